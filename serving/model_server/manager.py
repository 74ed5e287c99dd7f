"""Load and unload versions of models: version policies, directory polling and labels."""

import argparse
import ctypes
import gc
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
LoadModel = Callable[[str, int, str], Model]  # name, version, path

_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class Version:
    """A version of a model that the server has found.

    Attributes:
        number: Version number, which is the name of its directory.
        path: Path of its directory.
        selected: Whether the version policy of the model selects it.
        state: State that GetModelStatus reports.
        error: Error of the failed load.
        model: Loaded model while the state is AVAILABLE or UNLOADING.
        users: Number of requests that use the model.
    """

    number: int
    path: str
    selected: bool = True
    state: int = State.START
    error: ServingError | None = None
    model: Model | None = None
    users: int = 0


class Manager:
    """Manager that keeps the configured versions loaded and provides them to requests.

    A version that is no longer selected is unloaded once no request uses it. If other versions of the model are
    selected, it stays loaded until one of them is available.

    Args:
        load_model: Function that loads a version: name, version number and path to Model.
        flags: Parsed flags: `file_system_poll_wait_seconds`, `max_num_load_retries`, `load_retry_interval_micros`,
            `allow_version_labels_for_unavailable_models`, `force_allow_any_version_labels_for_unavailable_models`.
    """

    def __init__(self, load_model: LoadModel, flags: argparse.Namespace):
        self._load_model = load_model
        self._flags = flags
        # Guards the attributes below; notified when a version or the configuration changes.
        self._changed = threading.Condition()
        self._configs: dict[str, ModelConfig] = {}
        self._versions: dict[str, dict[int, Version]] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._stopped = False
        self._polling = threading.Lock()
        self._reloading = threading.Lock()

    def start(self) -> None:
        """Start polling the model directories."""
        if self._flags.file_system_poll_wait_seconds > 0:
            threading.Thread(target=self._poll_forever, name="poll", daemon=True).start()

    def stop(self) -> None:
        """Stop loading versions and waiting for loads. Loaded versions stay available."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @contextmanager
    def use(self, spec: model_pb2.ModelSpec) -> Iterator[Model]:
        """Yield the model that `spec` selects by label, by number, or as the newest; it stays loaded in the block.

        Raises:
            ServingError: If the version is not available.
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
        """Return all versions of a model that the server has ever found, newest first."""
        with self._changed:
            return sorted(self._versions.get(name, {}).values(), key=lambda version: -version.number)

    def reload(
        self, config: model_server_config_pb2.ModelServerConfig, is_active: Callable[[], bool] = lambda: True
    ) -> None:
        """Replace the configuration, and wait until every new model has an available version.

        Args:
            config: Configuration with a list of models.
            is_active: Function that returns False once the caller has stopped waiting.

        Raises:
            ServingError: With INVALID_ARGUMENT, if the configuration is invalid; nothing changes.
                With FAILED_PRECONDITION, if a label would move to a version that is not available; nothing changes and
                the version is not loaded.
                With UNKNOWN, if no version of a new model can be loaded.
        """
        configs = _validated(config)
        with self._reloading:
            with self._changed:
                self._set_labels(configs)
                new = configs.keys() - self._configs.keys()
                self._configs = configs
            self._poll()
            self._wait_for(new, is_active)

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
        """Scan the model directories, and start loading and unloading versions accordingly."""
        with self._polling:
            with self._changed:
                configs = self._configs
            if self._flags.file_system_poll_wait_seconds < 0:
                return
            selected = {}
            for name, config in configs.items():
                try:
                    selected[name] = _select_versions(config)
                except OSError as error:
                    _LOG.warning("Could not find base path %s for servable %s: %s", config.base_path, name, error)
            with self._changed:
                for name in self._versions.keys() | configs.keys():
                    versions = self._versions.setdefault(name, {})
                    if name in selected or name not in configs:
                        self._mark_selected(versions, selected.get(name, {}))
                    self._converge(name)

    def _mark_selected(self, versions: dict[int, Version], selected: dict[int, str]) -> None:
        for number, path in selected.items():
            known = versions.get(number)
            if known is None or (known.state == State.END and not known.selected):
                versions[number] = Version(number, path)
            elif known.state != State.UNLOADING:
                known.selected = True
        for number, version in versions.items():
            if number not in selected and version.selected:
                version.selected = False
                self._changed.notify_all()

    def _converge(self, name: str) -> None:
        """Start the next load or unload of the versions of a model; called again when a load ends."""
        versions = self._versions[name].values()
        selected = [version for version in versions if version.selected]
        replaced = not selected or any(version.state == State.AVAILABLE for version in selected)
        for version in versions:
            if not version.selected and version.state == State.START:
                version.state = State.END
            if not version.selected and version.state == State.AVAILABLE and replaced:
                version.state = State.UNLOADING
                threading.Thread(target=self._unload, args=(name, version), daemon=True).start()
        waiting = [version for version in selected if version.state == State.START]
        if waiting and not self._stopped and not any(version.state == State.LOADING for version in versions):
            version = max(waiting, key=lambda version: version.number)
            version.state = State.LOADING
            threading.Thread(target=self._load, args=(name, version), daemon=True).start()

    def _load(self, name: str, version: Version) -> None:
        model, error = self._load_once(name, version)
        for _ in range(self._flags.max_num_load_retries):
            if not error or not self._wait_before_retry(version):
                break
            model, error = self._load_once(name, version)
        return_freed_memory()
        with self._changed:
            version.model, version.error = model, error
            version.state = State.END if error else State.AVAILABLE
            self._converge(name)
            self._changed.notify_all()

    def _load_once(self, name: str, version: Version) -> tuple[Model | None, ServingError | None]:
        try:
            model = self._load_model(name, version.number, version.path)
        except Exception as raised:
            error = as_serving_error(raised)
            _LOG.warning("Loading %s failed: %s: %s", _id(name, version), error.name, error.message)
            return None, error
        _LOG.info("Successfully loaded servable version %s", _id(name, version))
        return model, None

    def _wait_before_retry(self, version: Version) -> bool:
        """Wait for the retry interval; return whether the version is still selected and the manager still runs."""
        with self._changed:
            return not self._changed.wait_for(
                lambda: self._stopped or not version.selected, self._flags.load_retry_interval_micros / 1e6
            )

    def _unload(self, name: str, version: Version) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not version.users)
            model, version.model = version.model, None
        model.close()
        del model
        gc.collect()  # a TensorFlow graph has reference cycles
        return_freed_memory()
        _LOG.info("Done unloading servable version %s", _id(name, version))
        with self._changed:
            version.state = State.END
            self._changed.notify_all()

    def _wait_for(self, names: set[str], is_active: Callable[[], bool]) -> None:
        with self._changed:
            while not self._is_loaded_or_failed(names):
                if self._stopped or not is_active():
                    raise ServingError(Code.CANCELLED, "the caller has stopped waiting for the models")
                self._changed.wait(1)
            failed = {name: versions for name in names if (versions := self._failed_versions(name))}
        if failed:
            errors = [
                f"{{{_id(name, version)} due to error: {version.error.name}: {version.error.message}}}, "
                for name, versions in sorted(failed.items())
                for version in versions
            ]
            raise ServingError(
                Code.UNKNOWN, f"{len(failed)} servable(s) did not become available: {{{''.join(errors)}}}"
            )

    def _is_loaded_or_failed(self, names: set[str]) -> bool:
        return all(
            self._failed_versions(name)
            or any(version.state == State.AVAILABLE for version in self._versions.get(name, {}).values())
            for name in names
        )

    def _failed_versions(self, name: str) -> list[Version]:
        """Return the selected versions of a model if loading failed for all of them, else an empty list."""
        selected = [version for version in self._versions.get(name, {}).values() if version.selected]
        return selected if all(version.error for version in selected) else []

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


def return_freed_memory() -> None:
    """Return memory that a load or unload has freed to the operating system; glibc keeps most of it otherwise."""
    ctypes.CDLL(None).malloc_trim(0)


def _id(name: str, version: Version) -> str:
    return f"{{name: {name} version: {version.number}}}"


def _validated(config: model_server_config_pb2.ModelServerConfig) -> dict[str, ModelConfig]:
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


def _select_versions(config: ModelConfig) -> dict[int, str]:
    """Return the versions that the version policy of a model selects, as paths by number; by default the newest."""
    versions = {
        int(path.name): str(path)
        for path in Path(config.base_path).iterdir()
        if path.name.isascii() and path.name.isdigit() and int(path.name) < 2**63
    }
    if not versions:
        _LOG.warning("No versions of servable %s found under base path %s", config.name, config.base_path)
    policy = config.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return versions
        case "specific":
            return {number: versions[number] for number in policy.specific.versions if number in versions}
        case _:
            newest = sorted(versions)[-max(1, policy.latest.num_versions) :]
            return {number: versions[number] for number in newest}
