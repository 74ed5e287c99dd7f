"""Read the cluster's address and credentials from kubectl's configuration."""

import os
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from kubernetes.client import Configuration

# User of requests without credentials, for example after a sign-in plugin failed. Kubernetes rejects them with 403,
# not 401.
ANONYMOUS = "system:anonymous"


class ConfigurationError(ValueError):
    """kubectl's configuration is missing or cannot be used. The message states the reason."""


def load(configuration: "Configuration", context: str | None) -> None:
    """Load the address and credentials that kubectl uses into `configuration`.

    Args:
        configuration: Configuration of the Kubernetes client.
        context: Context of kubectl's configuration; None for its current one.

    Raises:
        ConfigurationError: If the configuration is missing or damaged, or has no such context.
    """
    from kubernetes.config import ConfigException, load_kube_config

    # Passed explicitly, because the client reads KUBECONFIG only once, at import.
    files = os.environ.get("KUBECONFIG")
    try:
        load_kube_config(files, context=context, client_configuration=configuration)
    except ConfigException as error:
        raise ConfigurationError(str(error)) from None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        source = f"KUBECONFIG={files}" if files else "~/.kube/config"
        raise ConfigurationError(
            f"{source}: cannot be read: {' '.join(str(error).split())}; check it with `kubectl config view`"
        ) from None
