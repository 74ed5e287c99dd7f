"""The registry of pushed models: TF Serving's base path, one directory a version, and the labels of versions.

Whoever drives it, here or in a cluster, moves labels by `promote` and `rollback` alone. Each change is one rename of
what is complete, under a lock: two processes cannot mix theirs, and an interrupted one has happened or has not.
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
    "{}: the registry of pushed models must be a folder: it needs locks and renames, which object stores lack; "
    "mount the bucket or a volume (Vertex AI mounts gs://BUCKET/PATH at /gcs/BUCKET/PATH)"
)
_LABELS_FILE = "labels.json"
_STAGED = ".staged"
_VERSION = re.compile("[1-9][0-9]*")


class RegistryError(ValueError):
    """What was asked of the registry cannot be; the message says why and what to do."""


class Registry:
    """Versions of one model below `base`. TF Serving reads the same directory and sees only complete versions.

    Args:
        base: directory `<serving>/<model name>`; it is made by the first push.

    Raises:
        RegistryError: it is the address of an object store.
    """

    def __init__(self, base: str | Path):
        if "://" in str(base):
            raise RegistryError(NO_OBJECT_STORE.format(base))
        self.base = Path(base)

    def versions(self) -> list[int]:
        """Pushed versions, oldest first.

        Raises:
            RegistryError: the directory cannot be read, or there is another one with its name in another spelling.
        """
        try:
            self._require_one_spelling()
            found = list(self.base.iterdir())
            return sorted(int(path.name) for path in found if _VERSION.fullmatch(path.name) and path.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise RegistryError(f"{self.base}: cannot be read: {error.strerror}") from None

    def _require_one_spelling(self) -> None:
        name = self.base.name
        try:
            beside = list(self.base.parent.iterdir())
        except PermissionError:
            return  # a volume may give access to this folder alone
        for path in beside:
            if path.name != name and spelling(path.name) == spelling(name) and path.is_dir():
                raise RegistryError(
                    f"{self.base.parent}: {distinguishable([name, path.name])} are the same name in two spellings; "
                    "use the name that is there, or move that folder away"
                )

    def path(self, version: int) -> Path:
        """Directory of the SavedModel of `version`."""
        return self.base / str(version)

    def labels(self) -> dict[str, int]:
        """Label -> version. A push sets stable where nothing is; before that is written, the oldest version is it.

        Raises:
            RegistryError: the file of the labels is damaged.
        """
        oldest = self.versions()[:1]
        return {STABLE: oldest[0]} | self._read_labels()["labels"] if oldest else {}

    def stable(self) -> int | None:
        """The version in service."""
        return self.labels().get(STABLE)

    def admission(self, version: int) -> dict[str, Any]:
        """Why `version` was admitted.

        Raises:
            RegistryError: there is no such version, or its files are damaged.
        """
        return self._read(version, ADMISSION_FILE)

    def record(self, version: int) -> dict[str, Any]:
        """What `version` is made of, see `serving.model_files`.

        Raises:
            RegistryError: there is no such version, or its files are damaged.
        """
        return self._read(version, MODEL_RECORD_FILE)

    def _read(self, version: int, name: str) -> dict[str, Any]:
        self._require(version)
        path = self.path(version) / name
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RegistryError(f"{path}: cannot be read: {error}") from None
        if not isinstance(document, dict):
            raise RegistryError(f"{path}: damaged: a {type(document).__name__} instead of an object")
        return with_current_keys(document)

    def _require(self, version: int) -> None:
        if version not in self.versions():
            there = ", ".join(map(str, self.versions())) or "none"
            raise RegistryError(f"{self.base}: there is no version {version}; there are: {there}")

    def require_servable(self, version: int) -> None:
        """
        Raises:
            RegistryError: there is no such version, or it is damaged.
        """
        if "model_digest" not in self.record(version) or not (self.path(version) / "saved_model.pb").is_file():
            raise RegistryError(
                f"{self.path(version)}: damaged, it has no saved_model.pb or no whole record; it must not serve"
            )

    def find_model(self, model_digest: str) -> int | None:
        """The newest undamaged version that was with this digest."""
        return self._newest(lambda version: self.record(version)["model_digest"] == model_digest)

    def find_by_inputs(self, inputs_digest: str) -> int | None:
        """The newest undamaged version that was made from this data, code, weights and settings."""
        known = self._read_labels()["origins"].get(inputs_digest)
        return self._newest(
            lambda version: version == known or self.admission(version).get("inputs_digest") == inputs_digest
        )

    def add_inputs(self, version: int, inputs_digest: str) -> None:
        """Records that this data, code, weights and settings give `version` as well; see `find_by_inputs`."""
        if self.find_by_inputs(inputs_digest) is None:
            with self._locked():
                state = self._read_labels()
                self._write_labels({**state, "origins": state["origins"] | {inputs_digest: version}})

    def _newest(self, matches: Callable[[int], bool]) -> int | None:
        """The newest of the undamaged versions that match.

        All searches pass over the same versions: if only one of them took a damaged version for whole, scheduled runs
        would retrain each time and push nothing.
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
        """Moves `label` to `version`.

        Returns:
            The version that had it.

        Raises:
            RegistryError: there is no such version, it is damaged, or the label is another spelling of another one.
        """
        self.require_servable(version)
        with self._locked():
            state, previous = self._read_labels(), self.labels().get(label)
            if group := spelling_variants([label, STABLE, *state["labels"]]):
                raise RegistryError(f"labels {distinguishable(group[0])} are the same name in two spellings; use one")
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

    def before(self, label: str = STABLE) -> list[int]:
        """Versions that `rollback` goes back to, the next one last."""
        current = self.labels().get(label)
        if current is None:
            return []
        before = [version for version in self._read_labels()["replaced"].get(label, []) if self._is_servable(version)]
        while before[-1:] == [current]:
            before.pop()
        return before

    def require_before(self, label: str = STABLE) -> list[int]:
        """`before`, where there must be one.

        Raises:
            RegistryError: there is none to go back to.
        """
        before = self.before(label)
        if not before:
            raise RegistryError(f"{self.base}: no version was {label} before; `promote` moves the label anywhere")
        return before

    def rollback(self, label: str = STABLE, target: int | None = None) -> tuple[int, int]:
        """Moves `label` back to the version that had it before and can serve; called again, one further back.

        Args:
            label: what moves.
            target: nothing moves unless it leads there; so two who roll back at once go back by one version.

        Returns:
            The version that had it, and the one that has it now.

        Raises:
            RegistryError: there is none to go back to.
        """
        if target is None:
            self.require_before(label)  # also where there is no directory to lock
        with self._locked():
            state, current = self._read_labels(), self.labels()[label]
            if target is not None and self.before(label)[-1:] != [target]:
                return current, current
            *earlier, previous = self.require_before(label)
            self._write_labels(
                {
                    **state,
                    "labels": state["labels"] | {label: previous},
                    "replaced": state["replaced"] | {label: earlier},
                }
            )
            return current, previous

    def unlabel(self, label: str, why: str, version: int | None = None) -> int | None:
        """Takes a label, other than stable, from the version that has it.

        Args:
            label: nothing is done if no version has it.
            why: is kept, see `stopped`.
            version: it is taken from no other one, and `why` is kept for this one whether it has the label or not;
                None: whichever has it.

        Returns:
            The version that had it.
        """
        if label == STABLE:
            raise ValueError("one version is always stable")
        if not self.versions():
            return None
        with self._locked():
            state = self._read_labels()
            had = state["labels"].get(label)
            if version is not None and had != version:
                had = None
            labels = {other: number for other, number in state["labels"].items() if had is None or other != label}
            concerned = had if version is None else version
            stopped = {**state["stopped"], str(concerned): why} if why and concerned else state["stopped"]
            if (labels, stopped) != (state["labels"], state["stopped"]):
                self._write_labels({**state, "labels": labels, "stopped": stopped})
            return had

    def stopped(self, version: int) -> str:
        """Why `version` lost a label; "" if it did not."""
        return self._read_labels()["stopped"].get(str(version), "")

    def remove(self, versions: Iterable[int]) -> list[int]:
        """Removes versions that no label points to.

        Returns:
            Those that it has removed.
        """
        if not self.versions():
            return []
        with self._locked():
            there = set(self.versions()) - set(self.labels().values())
            removed = sorted(there & set(versions))
            for version in removed:
                hidden = self.base / f".{version}-{uuid.uuid4().hex}{_STAGED}"  # the next push removes what is left
                os.rename(self.path(version), hidden)
                shutil.rmtree(hidden)
            return removed

    def push(
        self,
        model: str | Path,
        admission: dict[str, Any],
        beside: Mapping[str, str | Path] | None = None,
        texts: Callable[[int], Mapping[str, str]] = lambda version: {},
    ) -> int:
        """Copies the SavedModel `model` byte for byte to a new version; labels stay, but the first version is stable.

        A version appears whole or not at all: it is renamed into place when it is complete. A new folder gets the write
        permissions of the folder above, so that users who share a volume can all push and move labels.

        Args:
            model: directory of the SavedModel.
            admission: why it was admitted.
            beside: files that go with the model, by their paths in the version.
            texts: likewise, contents that want to know the version.

        Returns:
            The new version.

        Raises:
            RegistryError: it cannot be written.
        """
        with self._failures():
            _make_folder(self.base)
        with self._locked():
            for leftover in self.base.glob(f".*{_STAGED}"):  # of pushes and removals that were killed
                shutil.rmtree(leftover)
            state, others = self._read_labels(), self.versions()
            # A number is never given again, though its folder be gone: reports and servers remember it.
            version = max([*others, state["highest"]], default=0) + 1
            # Not an integer, so TF Serving does not look at it.
            staged = self.base / f".{version}-{uuid.uuid4().hex}{_STAGED}"
            try:
                shutil.copytree(model, staged)
                for name, source in (beside or {}).items():
                    (staged / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, staged / name)
                for name, text in {ADMISSION_FILE: json.dumps(admission, indent=1), **texts(version)}.items():
                    (staged / name).parent.mkdir(parents=True, exist_ok=True)
                    (staged / name).write_text(text, encoding="utf-8")
                for folder, _, _ in os.walk(staged):
                    _share(Path(folder), self.base)
                os.rename(staged, self.path(version))
            finally:
                shutil.rmtree(staged, ignore_errors=True)
            labels = state["labels"] if others else {**state["labels"], STABLE: version}
            self._write_labels({**state, "labels": {STABLE: min([*others, version]), **labels}, "highest": version})
        return version

    def _is_servable(self, version: int) -> bool:
        try:
            self.require_servable(version)
        except RegistryError:
            return False
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else changes the registry inside the block.

        Raises:
            RegistryError: the lock, or what the block does, is not possible here.
        """
        with self._failures(), FileLock(self.base / ".lock", mode=0o644 | _shared(self.base)):
            yield

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            place = error.filename or self.base
            raise RegistryError(
                f"{place}: this user (id {os.geteuid()}) may not write there; as its owner: "
                f"chmod -R a+rwX {shlex.quote(str(self.base))}"
            ) from None
        except OSError as error:
            place = error.filename or self.base
            raise RegistryError(f"{place}: cannot be written: {error.strerror or error}") from None

    def _read_labels(self) -> dict[str, Any]:
        """`labels`: label -> version; `replaced`: label -> the versions that had it before; `highest`: ever given;
        `stopped`: version -> why it lost a label; `origins`: digest -> version, see `add_inputs`.
        """
        path = self.base / _LABELS_FILE
        try:
            state = {"highest": 0, "stopped": {}, "origins": {}, **json.loads(path.read_text(encoding="utf-8"))}
            numbers = [state["highest"], *state["labels"].values(), *itertools.chain(*state["replaced"].values())]
            numbers += state["origins"].values()
            if not all(isinstance(number, int) for number in numbers):
                raise TypeError("a version is no number")
            if group := spelling_variants([STABLE, *state["labels"]]):
                raise ValueError(f"labels {distinguishable(group[0])} are the same name in two spellings")
            return state
        except FileNotFoundError:
            return {"labels": {}, "replaced": {}, "highest": 0, "stopped": {}, "origins": {}}
        except OSError as error:
            raise RegistryError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RegistryError(
                f"{path}: damaged ({error}); remove it and promote the version that shall serve"
            ) from None

    def _write_labels(self, state: dict[str, dict]) -> None:
        temporary = self.base / f".{_LABELS_FILE}"
        temporary.unlink(missing_ok=True)  # of somebody who was killed, and may be another user
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(state, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.base / _LABELS_FILE)


def _make_folder(folder: Path) -> None:
    """As `mkdir --parents`; a new folder gets the write permissions of the one above."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):  # another process was quicker
        folder.mkdir()
        _share(folder, folder.parent)


def _share(folder: Path, above: Path) -> None:
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode | _shared(above) != mode:
        folder.chmod(mode | _shared(above))


def _shared(folder: Path) -> int:
    """Write permissions of a folder's group and of others, as bits of a mode; none for a folder like /tmp."""
    mode = folder.stat().st_mode
    return 0 if mode & stat.S_ISVTX else mode & (stat.S_IWGRP | stat.S_IWOTH)
