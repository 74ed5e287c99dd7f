"""`catbreeds` as in a pod of the cluster, with the files of the ServiceAccount in a folder of their own.

The environment has KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT, as in each pod, and SERVICE_ACCOUNT, the folder
that would be mounted under /var/run/secrets/kubernetes.io/serviceaccount.
"""

import os

from kubernetes.config import incluster_config

from pipeline.cli import main

if __name__ == "__main__":
    for constant, name in {"SERVICE_TOKEN_FILENAME": "token", "SERVICE_CERT_FILENAME": "ca.crt"}.items():
        assert os.path.basename(getattr(incluster_config, constant)) == name
        setattr(incluster_config, constant, os.path.join(os.environ["SERVICE_ACCOUNT"], name))
    main()
