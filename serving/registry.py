"""The registry of pushed models: TensorFlow Serving's base path with one directory per version, and the labels.

Labels move only by `promote`, `rollback` and `unlabel`. Each change is prepared completely and then renamed into place
under a lock, so concurrent changes do not interleave, and an interrupted change takes effect completely or not at all.
"""

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from serving.labels import STABLE
from serving.model_files import ADMISSION_FILE, MODEL_RECORD_FILE, with_current_keys
from serving.names import distinguishable, spelling, spelling_variants

NO_OBJECT_STORE = (
    "{}: the registry of pushed models must be a folder, because object stores have no locks and no renames; "
    "mount the bucket or a volume (Vertex AI mounts gs://BUCKET/PATH at /gcs/BUCKET/PATH)"
)
_LABELS_FILE = "labels.json"
_STAGED = ".staged"
_VERSION = re.compile("[1-9][0-9]*")


class RegistryError(ValueError):
    """The registry cannot be read or changed as requested. The message states the reason and the remedy."""


class Registry:
    """Versions of one model. TensorFlow Serving reads the same directory and sees only complete versions.

    Args:
        base: Directory `<serving>/<model name>`; the first push creates it.

    Raises:
        RegistryError: If `base` is the address of an object store.
    """

    def __init__(self, base: str | Path):
        if "://" in str(base):
            raise RegistryError(NO_OBJECT_STORE.format(base))
        self.base = Path(base)

    def versions(self) -> list[int]:
        """Return the pushed versions, oldest first.

        Raises:
            RegistryError: If the directory cannot be read, or a sibling has the same name in another spelling.
        """
        try:
            self._require_one_spelling()
            entries = list(self.base.iterdir())
            return sorted(int(path.name) for path in entries if _VERSION.fullmatch(path.name) and path.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise RegistryError(f"{self.base}: cannot be read: {error.strerror}") from None

    def _require_one_spelling(self) -> None:
        name = self.base.name
        try:
            siblings = list(self.base.parent.iterdir())
        except PermissionError:
            return  # a volume may give access to this folder only
        for path in siblings:
            if path.name != name and spelling(path.name) == spelling(name) and path.is_dir():
                raise RegistryError(
                    f"{self.base.parent}: {distinguishable([name, path.name])} are the same name in two spellings; "
                    "use the existing name, or move that folder away"
                )

    def path(self, version: int) -> Path:
        """Return the SavedModel directory of `version`."""
        return self.base / str(version)

    def labels(self) -> dict[str, int]:
        """Return the version by label. The first push sets `stable`; until it is written, the oldest version is stable.

        Raises:
            RegistryError: If the labels file is damaged.
        """
        oldest = self.versions()[:1]
        return {STABLE: oldest[0]} | self._read_labels()["labels"] if oldest else {}

    def stable(self) -> int | None:
        """Return the stable version; None if nothing was pushed."""
        return self.labels().get(STABLE)

    def admission(self, version: int) -> dict[str, Any]:
        """Return the admission record of `version`: when, by which run and why it passed the gate.

        Raises:
            RegistryError: If there is no such version, or its files are damaged.
        """
        return self._read_json(version, ADMISSION_FILE)

    def record(self, version: int) -> dict[str, Any]:
        """Return the model record of `version`; see `serving.model_files`.

        Raises:
            RegistryError: If there is no such version, or its files are damaged.
        """
        return self._read_json(version, MODEL_RECORD_FILE)

    def _read_json(self, version: int, name: str) -> dict[str, Any]:
        self._require_version(version)
        path = self.path(version) / name
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RegistryError(f"{path}: cannot be read: {error}") from None
        if not isinstance(document, dict):
            raise RegistryError(f"{path}: damaged: {type(document).__name__} instead of an object")
        return with_current_keys(document)

    def _require_version(self, version: int) -> None:
        if version not in self.versions():
            versions = ", ".join(map(str, self.versions())) or "none"
            raise RegistryError(f"{self.base}: no version {version}; existing versions: {versions}")

    def require_servable(self, version: int) -> None:
        """Check that `version` is complete.

        Raises:
            RegistryError: If there is no such version, or it is damaged.
        """
        if "model_digest" not in self.record(version) or not (self.path(version) / "saved_model.pb").is_file():
            raise RegistryError(
                f"{self.path(version)}: damaged: saved_model.pb is missing or the model record is "
                "incomplete; use another version"
            )

    def find_by_model_digest(self, model_digest: str) -> int | None:
        """Return the newest undamaged version whose model has this digest."""
        return self._find_newest(lambda version: self.record(version)["model_digest"] == model_digest)

    def find_by_inputs_digest(self, inputs_digest: str) -> int | None:
        """Return the newest undamaged version trained with the data, code, weights and settings of this digest."""
        recorded = self._read_labels()["origins"].get(inputs_digest)
        return self._find_newest(
            lambda version: version == recorded or self.admission(version).get("inputs_digest") == inputs_digest
        )

    def add_inputs_digest(self, version: int, inputs_digest: str) -> None:
        """Record that these inputs also produce `version`, unless `find_by_inputs_digest` finds a version for them."""
        if self.find_by_inputs_digest(inputs_digest) is None:
            with self._locked():
                state = self._read_labels()
                self._write_labels({**state, "origins": state["origins"] | {inputs_digest: version}})

    def _find_newest(self, matches: Callable[[int], bool]) -> int | None:
        """Return the newest undamaged version that matches.

        All searches skip the same versions. If one search accepted a damaged version that another skips, every
        scheduled run would retrain and push nothing.
        """
        for version in reversed(self.versions()):
            try:
                self.require_servable(version)
                self.admission(version)
                if matches(version):
                    return version
            except RegistryError:
                continue
        return None

    def promote(self, version: int, label: str = STABLE) -> int | None:
        """Move `label` to `version`.

        Returns:
            The version that had the label before.

        Raises:
            RegistryError: If there is no such version, it is damaged, or the label respells an existing one.
        """
        self.require_servable(version)
        with self._locked():
            state, previous = self._read_labels(), self.labels().get(label)
            if group := spelling_variants([label, STABLE, *state["labels"]]):
                raise RegistryError(
                    f"labels {distinguishable(group[0])} are the same name in two spellings; use one of them"
                )
            if previous != version:
                replaced = state["replaced"].get(label, [])
                self._write_labels(
                    {
                        **state,
                        "labels": state["labels"] | {label: version},
                        "replaced": state["replaced"] | {label: [*replaced, previous] if previous else replaced},
                    }
                )
            return previous

    def rollback_targets(self, label: str = STABLE) -> list[int]:
        """Return the versions to which repeated `rollback` calls go back, the next one last."""
        current = self.labels().get(label)
        if current is None:
            return []
        replaced = self._read_labels()["replaced"].get(label, [])
        targets = [version for version in replaced if self._is_servable(version)]
        while targets[-1:] == [current]:
            targets.pop()
        return targets

    def require_rollback_targets(self, label: str = STABLE) -> list[int]:
        """Return the `rollback_targets`, of which there is at least one.

        Raises:
            RegistryError: If there is no version to go back to.
        """
        targets = self.rollback_targets(label)
        if not targets:
            raise RegistryError(f"{self.base}: no version was {label} before; use `promote` to choose a version")
        return targets

    def rollback(self, label: str = STABLE, target: int | None = None) -> tuple[int, int]:
        """Move `label` back to the previous undamaged version; each further call goes one version further back.

        Args:
            label: Label to move.
            target: Expected result. The label does not move if it would move to another version, so two concurrent
                rollbacks go back by only one version.

        Returns:
            The version that had the label, and the version that has it now.

        Raises:
            RegistryError: If there is no version to go back to.
        """
        if target is None:
            self.require_rollback_targets(label)  # fails before locking, which needs an existing directory
        with self._locked():
            state, current = self._read_labels(), self.labels()[label]
            if target is not None and self.rollback_targets(label)[-1:] != [target]:
                return current, current
            *earlier, previous = self.require_rollback_targets(label)
            self._write_labels(
                {
                    **state,
                    "labels": state["labels"] | {label: previous},
                    "replaced": state["replaced"] | {label: earlier},
                }
            )
            return current, previous

    def unlabel(self, label: str, reason: str, version: int | None = None) -> int | None:
        """Remove a label from the version that has it.

        Args:
            label: Label other than stable.
            reason: Reason to record for the version (see `stop_reason`); "" records none.
            version: Version from which to remove the label; the reason is recorded for it even if it does not have the
                label. None removes the label from any version.

        Returns:
            The version that had the label; None if it was not removed.
        """
        if label == STABLE:
            raise ValueError("the label stable cannot be removed")
        if not self.versions():
            return None
        with self._locked():
            state = self._read_labels()
            previous = state["labels"].get(label)
            if version is not None and previous != version:
                previous = None
            labels = {other: number for other, number in state["labels"].items() if previous is None or other != label}
            stopped_version = previous if version is None else version
            stopped = state["stopped"]
            if reason and stopped_version:
                stopped = {**stopped, str(stopped_version): reason}
            if (labels, stopped) != (state["labels"], state["stopped"]):
                self._write_labels({**state, "labels": labels, "stopped": stopped})
            return previous

    def stop_reason(self, version: int) -> str:
        """Return the reason why `version` lost a label; "" if none is recorded."""
        return self._read_labels()["stopped"].get(str(version), "")

    def remove(self, versions: Iterable[int]) -> list[int]:
        """Remove those of `versions` that exist and have no label.

        Returns:
            The removed versions.
        """
        if not self.versions():
            return []
        with self._locked():
            removable = set(self.versions()) - set(self.labels().values())
            removed = sorted(removable & set(versions))
            for version in removed:
                hidden = self.base / f".{version}-{uuid.uuid4().hex}{_STAGED}"  # the next push deletes leftovers
                os.rename(self.path(version), hidden)
                shutil.rmtree(hidden)
            return removed

    def push(
        self,
        model: str | Path,
        admission: dict[str, Any],
        extra_files: Mapping[str, str | Path] | None = None,
        make_texts: Callable[[int], Mapping[str, str]] = lambda version: {},
    ) -> int:
        """Copy a SavedModel byte for byte to a new version. The first version becomes stable; other labels do not move.

        A version appears completely or not at all: it is renamed into place when it is complete. New folders get the
        write permissions of their parent, so that all users of a shared volume can push and move labels.

        Args:
            model: Directory of the SavedModel.
            admission: Admission record; see `admission`.
            extra_files: Files to copy into the version, by their paths in the version.
            make_texts: Function that returns the contents of further files, by their paths, for the number of the
                version.

        Returns:
            The new version.

        Raises:
            RegistryError: If the registry cannot be written.
        """
        with self._registry_errors():
            _create_folder(self.base)
        with self._locked():
            for leftover in self.base.glob(f".*{_STAGED}"):  # from killed pushes and removals
                shutil.rmtree(leftover)
            state, existing = self._read_labels(), self.versions()
            # Numbers are never reused, even if the folder is gone: reports and servers refer to them.
            version = max([*existing, state["highest"]], default=0) + 1
            # The name is not an integer, so TensorFlow Serving ignores the folder.
            staged = self.base / f".{version}-{uuid.uuid4().hex}{_STAGED}"
            try:
                shutil.copytree(model, staged)
                for name, source in (extra_files or {}).items():
                    (staged / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, staged / name)
                for name, text in {ADMISSION_FILE: json.dumps(admission, indent=1), **make_texts(version)}.items():
                    (staged / name).parent.mkdir(parents=True, exist_ok=True)
                    (staged / name).write_text(text, encoding="utf-8")
                for folder, _, _ in os.walk(staged):
                    _share_write_access(Path(folder), self.base)
                os.rename(staged, self.path(version))
            finally:
                shutil.rmtree(staged, ignore_errors=True)
            labels = state["labels"] if existing else {**state["labels"], STABLE: version}
            self._write_labels({**state, "labels": {STABLE: min([*existing, version]), **labels}, "highest": version})
        return version

    def _is_servable(self, version: int) -> bool:
        try:
            self.require_servable(version)
        except RegistryError:
            return False
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the registry against changes by other processes.

        Raises:
            RegistryError: If the lock or a file cannot be written.
        """
        with self._registry_errors(), FileLock(self.base / ".lock", mode=0o644 | _shared_write_bits(self.base)):
            yield

    @contextlib.contextmanager
    def _registry_errors(self) -> Iterator[None]:
        """Raise RegistryError for operating system errors."""
        try:
            yield
        except PermissionError as error:
            path = error.filename or self.base
            raise RegistryError(
                f"{path}: this user (id {os.geteuid()}) may not write there; run as its owner: "
                f"chmod -R a+rwX {shlex.quote(str(self.base))}"
            ) from None
        except OSError as error:
            path = error.filename or self.base
            raise RegistryError(f"{path}: cannot be written: {error.strerror or error}") from None

    def _read_labels(self) -> dict[str, Any]:
        """Read the state of the registry.

        Its keys are `labels` (version by label), `replaced` (list of earlier versions by label), `highest` (highest
        version ever pushed), `stopped` (reason by version that lost a label) and `origins` (version by inputs digest,
        see `add_inputs_digest`).
        """
        path = self.base / _LABELS_FILE
        try:
            state = {"highest": 0, "stopped": {}, "origins": {}, **json.loads(path.read_text(encoding="utf-8"))}
            numbers = [state["highest"], *state["labels"].values(), *itertools.chain(*state["replaced"].values())]
            numbers += state["origins"].values()
            if not all(isinstance(number, int) for number in numbers):
                raise TypeError("a version is not a number")
            if group := spelling_variants([STABLE, *state["labels"]]):
                raise ValueError(f"labels {distinguishable(group[0])} are the same name in two spellings")
            return state
        except FileNotFoundError:
            return {"labels": {}, "replaced": {}, "highest": 0, "stopped": {}, "origins": {}}
        except OSError as error:
            raise RegistryError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RegistryError(f"{path}: damaged ({error}); remove the file and promote a version") from None

    def _write_labels(self, state: dict[str, dict]) -> None:
        temporary = self.base / f".{_LABELS_FILE}"
        temporary.unlink(missing_ok=True)  # left by a killed process, perhaps of another user
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(state, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.base / _LABELS_FILE)


def _create_folder(folder: Path) -> None:
    """Create the folder and its parents; a new folder gets the write permissions of its parent."""
    if folder.is_dir():
        return
    _create_folder(folder.parent)
    with contextlib.suppress(FileExistsError):  # another process has just created it
        folder.mkdir()
        _share_write_access(folder, folder.parent)


def _share_write_access(folder: Path, template: Path) -> None:
    """Add the group's and others' write permissions of `template` to `folder`."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode | _shared_write_bits(template) != mode:
        folder.chmod(mode | _shared_write_bits(template))


def _shared_write_bits(folder: Path) -> int:
    """Return the mode bits for writing by group and others; 0 for a folder with the sticky bit, such as /tmp."""
    mode = folder.stat().st_mode
    return 0 if mode & stat.S_ISVTX else mode & (stat.S_IWGRP | stat.S_IWOTH)
