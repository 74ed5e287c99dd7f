"""Run `catbreeds` as in a pod of the cluster, with the ServiceAccount's files in another folder.

The environment contains KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT, as in every pod, and SERVICE_ACCOUNT, the
folder that a pod would mount at /var/run/secrets/kubernetes.io/serviceaccount.
"""

import os

from kubernetes.config import incluster_config

from pipeline.cli import main

if __name__ == "__main__":
    for constant, name in {"SERVICE_TOKEN_FILENAME": "token", "SERVICE_CERT_FILENAME": "ca.crt"}.items():
        assert os.path.basename(getattr(incluster_config, constant)) == name
        setattr(incluster_config, constant, os.path.join(os.environ["SERVICE_ACCOUNT"], name))
    main()
