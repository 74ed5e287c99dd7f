"""What model servers shall serve, and the one place that makes TensorFlow Serving's configuration of it."""

import dataclasses
from collections.abc import Iterable, Mapping

from google.protobuf import text_format

from serving.labels import CANARY
from serving.protos.model_management_pb2 import ModelServerConfig
from serving.traffic_split import read_canary_share, traffic_text

# Names of the files in the ConfigMap, and below a workdir.
CONFIG_FILE = "models.config"
TRAFFIC_FILE = "traffic.json"


class ServingConfigError(ValueError):
    """A live configuration that is none of ours; the message says what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class ServingConfig:
    """Versions that are loaded, and what they are called.

    Attributes:
        versions: ascending.
        labels: label -> version; each is one of `versions`, so that no server has a label for what it does not load.
        canary_share: share of the gateway's requests that ask for `canary`, 0 to 1.
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
    def labelled(self) -> set[int]:
        """Versions that requests can ask for by a label."""
        return set(self.labels.values())

    def with_versions(self, versions: Iterable[int]) -> "ServingConfig":
        """The same labels, and these versions beside those that they point to."""
        return dataclasses.replace(self, versions=tuple({*versions, *self.labelled}))

    def files(self, name: str, base_path: str) -> dict[str, str]:
        """Contents by name: what a model server reads at its start, and what a gateway reads all the time.

        Args:
            name: of the model.
            base_path: absolute, as the servers see it.
        """
        config = text_format.MessageToString(model_config(name, base_path, self.versions, self.labels))
        return {CONFIG_FILE: config, TRAFFIC_FILE: traffic_text(self.canary_share)}


def model_config(
    name: str, base_path: str, versions: Iterable[int], labels: Mapping[str, int] | None = None
) -> ModelServerConfig:
    """TensorFlow Serving's configuration of one model. In production versions are always named.

    Args:
        name: of the model.
        base_path: absolute, as the server sees it.
        versions: to load.
        labels: label -> one of `versions`.
    """
    config = ModelServerConfig()
    model = config.model_config_list.config.add(name=name, base_path=base_path, model_platform="tensorflow")
    model.model_version_policy.specific.versions.extend(sorted(versions))
    for label, version in sorted((labels or {}).items()):
        model.version_labels[label] = version
    return config


def read_serving_config(files: Mapping[str, str], name: str) -> ServingConfig:
    """What `ServingConfig.files` wrote.

    Raises:
        ServingConfigError: the files are not ours.
    """
    try:
        config = text_format.Parse(files[CONFIG_FILE], ModelServerConfig())
        (model,) = (model for model in config.model_config_list.config if model.name == name)
        # Made by hand, a first configuration may do without.
        share = read_canary_share(files[TRAFFIC_FILE]) if TRAFFIC_FILE in files else 0.0
        return ServingConfig(tuple(model.model_version_policy.specific.versions), dict(model.version_labels), share)
    except (KeyError, text_format.ParseError) as error:
        raise ServingConfigError(f"{CONFIG_FILE}: no configuration of a model server: {error}") from None
    except ValueError as error:
        raise ServingConfigError(f"{CONFIG_FILE} or {TRAFFIC_FILE}: not written by `catbreeds`: {error}") from None


def make_serving_config(
    labels: Mapping[str, int],
    spares: Iterable[int] = (),
    loaded: int = 2,
    canary_share: float = 0.0,
    needed: Iterable[int] = (),
) -> ServingConfig:
    """What is labelled or needed, and spares as long as no server holds more than `loaded` versions.

    Args:
        labels: label -> version.
        spares: what is worth being loaded: the way back; the best first.
        loaded: versions that a server has memory for.
        canary_share: see `ServingConfig`; 0 where nothing is labelled canary.
        needed: versions that will be labelled next.
    """
    versions = {*labels.values(), *needed}
    for spare in spares:
        if len(versions) < loaded:
            versions.add(spare)
    return ServingConfig(tuple(versions), dict(labels), canary_share if CANARY in labels else 0.0)
