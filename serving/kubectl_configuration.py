"""What kubectl's configuration says of a cluster: its address, and how to sign in there."""

import os
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from kubernetes.client import Configuration

# Whoever asks without credentials, as after a sign-in plugin that failed; Kubernetes answers 403, not 401.
ANONYMOUS = "system:anonymous"


class ConfigurationError(ValueError):
    """There is no configuration of kubectl, or it cannot be used; the message says why."""


def load(configuration: "Configuration", context: str | None) -> None:
    """Sets `configuration` to what kubectl would use.

    Args:
        configuration: of the client.
        context: of kubectl's configuration; None: its current one.

    Raises:
        ConfigurationError: there is none, it is damaged, or it has no such context.
    """
    from kubernetes.config import ConfigException, load_kube_config

    # The client would keep what KUBECONFIG was when it was imported.
    files = os.environ.get("KUBECONFIG")
    try:
        load_kube_config(files, context=context, client_configuration=configuration)
    except ConfigException as error:
        raise ConfigurationError(str(error)) from None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        where = f"KUBECONFIG={files}" if files else "~/.kube/config"
        raise ConfigurationError(
            f"{where}: cannot be read: {' '.join(str(error).split())}; `kubectl config view` must work"
        ) from None
