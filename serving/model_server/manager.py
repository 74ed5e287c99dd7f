"""Which versions of which models serve: policies, polling, loading before unloading, labels."""

import argparse
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tensorflow_serving.apis import get_model_status_pb2, model_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.model_server.model import Model
from serving.model_server.status import Code, ServingError, as_serving_error, invalid

State = get_model_status_pb2.ModelVersionStatus.State
ModelConfig = model_server_config_pb2.ModelConfig
Load = Callable[[str, int, str], Model]  # name, version, path

_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class Version:
    """A version that the server has seen.

    Attributes:
        number: the name of its directory.
        path: its directory.
        wanted: the policy of its model asks for it.
        state: as GetModelStatus tells.
        error: why it could not be loaded.
        model: what serves, while AVAILABLE or UNLOADING.
        users: requests that run on it.
    """

    number: int
    path: str
    wanted: bool = True
    state: int = State.START
    error: ServingError | None = None
    model: Model | None = None
    users: int = 0


class Manager:
    """Keeps versions loaded as the configuration and the directories ask, and lends them to requests.

    A version is unloaded when another one of its model serves, or none is wanted any more, and nobody uses it.

    Args:
        load: makes a Model.
        flags: `file_system_poll_wait_seconds`, `max_num_load_retries`, `load_retry_interval_micros`,
            `allow_version_labels_for_unavailable_models`, `force_allow_any_version_labels_for_unavailable_models`.
    """

    def __init__(self, load: Load, flags: argparse.Namespace):
        self._load_model = load
        self._flags = flags
        self._changed = (
            threading.Condition()
        )  # guards what follows; notified when a version or the configuration changes
        self._configs: dict[str, ModelConfig] = {}
        self._versions: dict[str, dict[int, Version]] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._stopped = False
        self._polling = threading.Lock()
        self._reloading = threading.Lock()

    def start(self) -> None:
        """Looks at the directories from now on."""
        if self._flags.file_system_poll_wait_seconds > 0:
            threading.Thread(target=self._poll_forever, name="poll", daemon=True).start()

    def stop(self) -> None:
        """Loads nothing more, and ends waiting for what is not loaded. What serves goes on."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @contextmanager
    def use(self, spec: model_pb2.ModelSpec) -> Iterator[Model]:
        """The version that `spec` means: by label, by number, or the newest. It stays loaded inside the `with`.

        Raises:
            ServingError: it does not serve.
        """
        with self._changed:
            version = self._find(spec)
            version.users += 1
        try:
            yield version.model
        finally:
            with self._changed:
                version.users -= 1
                if not version.users:
                    self._changed.notify_all()

    def statuses(self, name: str) -> list[Version]:
        """All versions of a model that were ever seen, the newest first."""
        with self._changed:
            return sorted(self._versions.get(name, {}).values(), key=lambda version: -version.number)

    def reload(
        self, config: model_server_config_pb2.ModelServerConfig, awaited: Callable[[], bool] = lambda: True
    ) -> None:
        """Serves what `config` lists, and nothing else. Returns when each model that is new has a version that serves.

        Args:
            config: a list of models.
            awaited: becomes false when nobody waits for the outcome any more.

        Raises:
            ServingError: INVALID_ARGUMENT, it is no sensible configuration and nothing has changed;
                FAILED_PRECONDITION, a label would move to a version that does not serve: nothing has changed either,
                    the version is not even loaded;
                UNKNOWN, a new model has no version that can be loaded.
        """
        configs = _checked(config)
        with self._reloading:
            with self._changed:
                self._set_labels(configs)
                new = configs.keys() - self._configs.keys()
                self._configs = configs
            self._poll()
            self._wait_for(new, awaited)

    def _find(self, spec: model_pb2.ModelSpec) -> Version:
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        versions = self._versions.get(spec.name, {})
        choice = spec.WhichOneof("version_choice")
        if choice is None:
            serving = [number for number, version in versions.items() if version.state == State.AVAILABLE]
            if not serving:
                raise ServingError(Code.NOT_FOUND, f"Servable not found for request: Latest({spec.name})")
            return versions[max(serving)]
        if choice == "version_label":
            number = self._labels.get(spec.name, {}).get(spec.version_label)
            if number is None:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        else:
            number = spec.version.value
        if number not in versions or versions[number].state != State.AVAILABLE:
            raise ServingError(Code.NOT_FOUND, f"Servable not found for request: Specific({spec.name}, {number})")
        return versions[number]

    def _poll_forever(self) -> None:
        while not self._stopped:
            self._poll()
            with self._changed:
                self._changed.wait_for(lambda: self._stopped, self._flags.file_system_poll_wait_seconds)

    def _poll(self) -> None:
        """Compares the directories with what there is, and starts to load and unload."""
        with self._polling:
            with self._changed:
                configs = self._configs
            if self._flags.file_system_poll_wait_seconds < 0:
                return
            wanted = {}
            for name, config in configs.items():
                try:
                    wanted[name] = _choose(config)
                except OSError as error:
                    _LOG.warning("Could not find base path %s for servable %s: %s", config.base_path, name, error)
            with self._changed:
                for name in self._versions.keys() | configs.keys():
                    versions = self._versions.setdefault(name, {})
                    if name in wanted or name not in configs:
                        self._want(versions, wanted.get(name, {}))
                    self._converge(name)

    def _want(self, versions: dict[int, Version], wanted: dict[int, str]) -> None:
        for number, path in wanted.items():
            known = versions.get(number)
            if known is None or (known.state == State.END and not known.wanted):
                versions[number] = Version(number, path)
            elif known.state != State.UNLOADING:
                known.wanted = True
        for number, version in versions.items():
            if number not in wanted and version.wanted:
                version.wanted = False
                self._changed.notify_all()

    def _converge(self, name: str) -> None:
        """Starts what must happen next to the versions of a model; each end of it calls again."""
        versions = self._versions[name].values()
        wanted = [version for version in versions if version.wanted]
        replaced = not wanted or any(version.state == State.AVAILABLE for version in wanted)
        for version in versions:
            if not version.wanted and version.state == State.START:
                version.state = State.END
            if not version.wanted and version.state == State.AVAILABLE and replaced:
                version.state = State.UNLOADING
                threading.Thread(target=self._unload, args=(name, version), daemon=True).start()
        waiting = [version for version in wanted if version.state == State.START]
        if waiting and not self._stopped and not any(version.state == State.LOADING for version in versions):
            version = max(waiting, key=lambda version: version.number)
            version.state = State.LOADING
            threading.Thread(target=self._load, args=(name, version), daemon=True).start()

    def _load(self, name: str, version: Version) -> None:
        model, error = self._try_to_load(name, version)
        for _ in range(self._flags.max_num_load_retries):
            if not error or not self._worth_a_retry(version):
                break
            model, error = self._try_to_load(name, version)
        with self._changed:
            version.model, version.error = model, error
            version.state = State.END if error else State.AVAILABLE
            self._converge(name)
            self._changed.notify_all()

    def _try_to_load(self, name: str, version: Version) -> tuple[Model | None, ServingError | None]:
        try:
            model = self._load_model(name, version.number, version.path)
        except Exception as raised:
            error = as_serving_error(raised)
            _LOG.warning("Loading %s failed: %s: %s", _id(name, version), error.name, error.message)
            return None, error
        _LOG.info("Successfully loaded servable version %s", _id(name, version))
        return model, None

    def _worth_a_retry(self, version: Version) -> bool:
        """Waits until the next try; true if it still makes sense then."""
        with self._changed:
            return not self._changed.wait_for(
                lambda: self._stopped or not version.wanted, self._flags.load_retry_interval_micros / 1e6
            )

    def _unload(self, name: str, version: Version) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not version.users)
            model, version.model = version.model, None
        model.close()
        _LOG.info("Done unloading servable version %s", _id(name, version))
        with self._changed:
            version.state = State.END
            self._changed.notify_all()

    def _wait_for(self, names: set[str], awaited: Callable[[], bool]) -> None:
        with self._changed:
            while not self._settled(names):
                if self._stopped or not awaited():
                    raise ServingError(Code.CANCELLED, "nobody waits for the models any more")
                self._changed.wait(1)
            failed = {name: versions for name in names if (versions := self._failed(name))}
        if failed:
            texts = [
                f"{{{_id(name, version)} due to error: {version.error.name}: {version.error.message}}}, "
                for name, versions in sorted(failed.items())
                for version in versions
            ]
            raise ServingError(
                Code.UNKNOWN, f"{len(failed)} servable(s) did not become available: {{{''.join(texts)}}}"
            )

    def _settled(self, names: set[str]) -> bool:
        return all(
            self._failed(name)
            or any(version.state == State.AVAILABLE for version in self._versions.get(name, {}).values())
            for name in names
        )

    def _failed(self, name: str) -> list[Version]:
        """The versions of a model, if it has some and none of them could be loaded."""
        wanted = [version for version in self._versions.get(name, {}).values() if version.wanted]
        return wanted if all(version.error for version in wanted) else []

    def _set_labels(self, configs: dict[str, ModelConfig]) -> None:
        for name, config in configs.items():
            for label, number in config.version_labels.items():
                moved = self._labels.get(name, {}).get(label, number) != number
                allowed = self._flags.force_allow_any_version_labels_for_unavailable_models or (
                    self._flags.allow_version_labels_for_unavailable_models and not moved
                )
                version = self._versions.get(name, {}).get(number)
                if not allowed and (version is None or version.state != State.AVAILABLE):
                    raise ServingError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label {label} to version {number} of model {name}, which is not "
                        "currently available for inference",
                    )
        self._labels = {name: dict(config.version_labels) for name, config in configs.items()}


def _id(name: str, version: Version) -> str:
    return f"{{name: {name} version: {version.number}}}"


def _checked(config: model_server_config_pb2.ModelServerConfig) -> dict[str, ModelConfig]:
    if config.WhichOneof("config") == "custom_model_config":
        raise invalid("ModelServerConfig of custom models is not supported, only ModelConfigList is")
    configs: dict[str, ModelConfig] = {}
    for model in config.model_config_list.config:
        if model.name in configs:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        if not model.base_path.startswith("/"):
            raise invalid(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )
        if not model.model_platform and not model.model_type:
            raise invalid(
                "Illegal setting neither ModelServerConfig::model_type nor ModelServerConfig::model_platform."
            )
        if model.model_platform not in ("", "tensorflow"):
            raise invalid(f"model {model.name} has an unsupported platform: {model.model_platform}")
        configs[model.name] = model
    return configs


def _choose(config: ModelConfig) -> dict[int, str]:
    """Path by version of what the policy of a model wants of its directory; the default is the newest."""
    found = {
        int(path.name): str(path)
        for path in Path(config.base_path).iterdir()
        if path.name.isascii() and path.name.isdigit() and int(path.name) < 2**63
    }
    if not found:
        _LOG.warning("No versions of servable %s found under base path %s", config.name, config.base_path)
    policy = config.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return found
        case "specific":
            return {number: found[number] for number in policy.specific.versions if number in found}
        case _:
            newest = sorted(found)[-max(1, policy.latest.num_versions) :]
            return {number: found[number] for number in newest}
