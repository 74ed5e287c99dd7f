"""The configuration of the model servers, and its conversion to and from TensorFlow Serving's format."""

import dataclasses
from collections.abc import Iterable, Mapping

from google.protobuf import text_format

from serving.labels import CANARY
from serving.protos.model_management_pb2 import ModelServerConfig
from serving.traffic_split import read_canary_share, traffic_text

# Keys of the ConfigMap, and file names in a workdir.
CONFIG_FILE = "models.config"
TRAFFIC_FILE = "traffic.json"


class ServingConfigError(ValueError):
    """The live configuration was not written by this project, or is inconsistent. The message states the reason."""


@dataclasses.dataclass(frozen=True)
class ServingConfig:
    """Versions to load, their labels, and the traffic split.

    Attributes:
        versions: Versions to load, ascending.
        labels: Version by label. Each is one of `versions`, so no label points to a version that is not loaded.
        canary_share: Share of the gateways' requests that go to the label `canary`, 0 to 1.
    """

    versions: tuple[int, ...]
    labels: Mapping[str, int]
    canary_share: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "versions", tuple(sorted(set(self.versions))))
        missing = set(self.labels.values()) - set(self.versions)
        if missing:
            raise ServingConfigError(f"labels point to versions that are not loaded: {sorted(missing)}")

    @property
    def labeled(self) -> set[int]:
        """Versions that have a label."""
        return set(self.labels.values())

    def with_versions(self, versions: Iterable[int]) -> "ServingConfig":
        """Return a configuration with the same labels that loads `versions` and the labeled versions."""
        return dataclasses.replace(self, versions=tuple({*versions, *self.labeled}))

    def files(self, model_name: str, base_path: str) -> dict[str, str]:
        """Return file contents by name: model servers read CONFIG_FILE at startup, gateways poll TRAFFIC_FILE.

        Args:
            model_name: Name of the model.
            base_path: Absolute directory of the model's versions, as the servers see it.
        """
        config = text_format.MessageToString(model_server_config(model_name, base_path, self.versions, self.labels))
        return {CONFIG_FILE: config, TRAFFIC_FILE: traffic_text(self.canary_share)}


def model_server_config(
    model_name: str, base_path: str, versions: Iterable[int], labels: Mapping[str, int] | None = None
) -> ModelServerConfig:
    """Return TensorFlow Serving's configuration for one model, with explicit versions.

    Args:
        model_name: Name of the model.
        base_path: Absolute directory of the model's versions, as the server sees it.
        versions: Versions to load.
        labels: Version by label; each is one of `versions`.
    """
    config = ModelServerConfig()
    model = config.model_config_list.config.add(name=model_name, base_path=base_path, model_platform="tensorflow")
    model.model_version_policy.specific.versions.extend(sorted(versions))
    for label, version in sorted((labels or {}).items()):
        model.version_labels[label] = version
    return config


def read_serving_config(files: Mapping[str, str], model_name: str) -> ServingConfig:
    """Parse the contents that `ServingConfig.files` returned.

    Raises:
        ServingConfigError: If `catbreeds` did not write the files.
    """
    try:
        config = text_format.Parse(files[CONFIG_FILE], ModelServerConfig())
        (model,) = (model for model in config.model_config_list.config if model.name == model_name)
        # The first configuration may have been written by hand, without a traffic split.
        share = read_canary_share(files[TRAFFIC_FILE]) if TRAFFIC_FILE in files else 0.0
        return ServingConfig(tuple(model.model_version_policy.specific.versions), dict(model.version_labels), share)
    except (KeyError, text_format.ParseError) as error:
        raise ServingConfigError(f"{CONFIG_FILE}: not a model server configuration: {error}") from None
    except ValueError as error:
        raise ServingConfigError(f"{CONFIG_FILE} or {TRAFFIC_FILE}: not written by `catbreeds`: {error}") from None


def make_serving_config(
    labels: Mapping[str, int],
    optional: Iterable[int],
    max_loaded: int,
    canary_share: float = 0.0,
    required: Iterable[int] = (),
) -> ServingConfig:
    """Return a configuration with the labeled and required versions, and optional ones while memory allows.

    Args:
        labels: Version by label.
        optional: Versions worth keeping loaded, such as the rollback target; the most useful first.
        max_loaded: Number of versions that fit into a server's memory.
        canary_share: See `ServingConfig`; 0 is used if no version is canary.
        required: Versions without a label that must be loaded, because the next step gives them one.
    """
    versions = {*labels.values(), *required}
    for version in optional:
        if len(versions) < max_loaded:
            versions.add(version)
    return ServingConfig(tuple(versions), dict(labels), canary_share if CANARY in labels else 0.0)
