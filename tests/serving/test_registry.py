"""The registry contains only complete versions; covers labels, rollback, concurrent access and damaged files."""

import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import serving.registry
from serving.labels import STABLE
from serving.registry import Registry, RegistryError

ROOT = Path(serving.registry.__file__).parents[1]
CANARY = "canary"

PUSH_AND_PROMOTE_FOREVER = """
import sys
from serving.registry import Registry

registry = Registry(sys.argv[1])
while True:
    registry.promote(registry.push(sys.argv[2], {"accuracy": 0.75}))
"""

KILLED_DURING_PUSH = """
import os, shutil, signal, sys
from serving.registry import Registry

copytree = shutil.copytree


def copy_and_kill_process(*arguments, **options):
    copytree(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)


shutil.copytree = copy_and_kill_process
Registry(sys.argv[1]).push(sys.argv[2], {})
"""


def create_model(folder: Path, digest: str = "model-a") -> Path:
    (folder / "variables").mkdir(parents=True)
    (folder / "assets.extra").mkdir()
    (folder / "saved_model.pb").write_bytes(bytes(range(256)))
    (folder / "variables" / "variables.index").write_bytes(b"index")
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(digest.encode() + b"\0\r\n\xff" * 1000)
    (folder / "assets.extra" / "catbreeds.json").write_text(json.dumps({"model_digest": digest}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def as_pushed(registry: Registry, version: int) -> tuple[dict[str, bytes], dict]:
    """Return the files of a version and its admission document; fail if the document is missing."""
    files = contents(registry.path(version))
    return files, json.loads(files.pop("admission.json"))


def start_process(code: str, *arguments: object) -> subprocess.Popen:
    """Start a separate process that can be killed."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT)


def push_and_move_labels(base: Path, models: Path, seed: int) -> tuple[dict[int, str], list[tuple], list[tuple]]:
    """Push versions and move labels at random; runs in several processes at the same time.

    Returns:
        Name of the pushed model by version; the promotions and the rollbacks, each as (label, from, to).
    """
    registry, rng = Registry(base), random.Random(seed)
    pushes, promotions, rollbacks = {}, [], []
    for number in range(20):
        name = f"{seed}-{number}"
        pushes[registry.push(create_model(models / name, name), {"name": name})] = name
        for _ in range(rng.randrange(8)):
            label = rng.choice([STABLE, CANARY])
            if rng.random() < 0.6:
                version = rng.choice(registry.versions())
                promotions.append((label, registry.promote(version, label), version))
            else:
                with suppress(RegistryError):  # if there is no version to go back to
                    rollbacks.append((label, *registry.rollback(label)))
    return pushes, promotions, rollbacks


@contextmanager
def full_disk():
    """Limit the size of written files to a few bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def model(tmp_path):
    return create_model(tmp_path / "model")


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "serving" / "catbreeds")


@pytest.fixture
def pushed(registry, model):
    """The registry with versions 1 to 4; no label has been moved."""
    for _ in range(4):
        registry.push(model, {})
    return registry


@pytest.fixture
def break_copy(monkeypatch):
    """Return a function that makes copies fail after half of the files, as if the disk were full."""

    def copy_half(source, target, **_):
        files = sorted(p for p in Path(source).rglob("*") if p.is_file())
        for path in files[: len(files) // 2]:
            copy = Path(target) / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
        raise OSError("No space left on device")

    def break_copy():
        monkeypatch.setattr(shutil, "copytree", copy_half)

    return break_copy


def test_reading_a_registry_before_the_first_push_finds_nothing_and_creates_nothing(registry):
    assert registry.versions() == []
    assert registry.labels() == {}
    assert registry.stable() is None
    assert registry.find_by_model_digest("model-a") is None
    assert not registry.base.exists()


def test_the_first_push_is_version_1_and_stable(registry, model):
    assert registry.push(model, {}) == 1
    assert registry.versions() == [1]
    assert registry.stable() == 1
    assert registry.labels() == {STABLE: 1}


def test_a_later_push_does_not_move_the_stable_label(registry, model):
    registry.push(model, {})
    assert registry.push(model, {}) == 2
    assert registry.versions() == [1, 2]
    assert registry.stable() == 1


def test_a_push_copies_byte_for_byte_and_adds_the_admission_document(registry, model):
    admission = {"accuracy": 0.75, "reasons": ["größer"]}
    version = registry.push(model, admission)
    pushed = contents(registry.path(version))
    assert json.loads(pushed.pop("admission.json")) == registry.admission(version) == admission
    assert pushed == contents(model)


def test_a_push_adds_extra_files_and_texts(registry, model, tmp_path):
    card = tmp_path / "card.html"
    card.write_bytes(b"<p>\xc3\x9f\r\n")
    registry.push(model, {})
    version = registry.push(model, {}, {"about/card.html": card}, lambda version: {"about.txt": f"größer: {version}"})
    files, admission = as_pushed(registry, version)
    assert admission == {}
    assert files == contents(model) | {"about/card.html": card.read_bytes(), "about.txt": "größer: 2".encode()}


def test_a_push_that_fails_to_create_its_texts_leaves_nothing_and_the_next_push_succeeds(registry, model):
    registry.push(model, {})
    before = contents(registry.base)
    with pytest.raises(ZeroDivisionError):
        registry.push(model, {}, make_texts=lambda version: {"ratio.txt": str(1 / 0)})
    assert contents(registry.base) == before
    assert registry.push(model, {}) == 2


def test_a_push_does_not_change_earlier_versions(registry, model, tmp_path):
    registry.push(model, {"n": 1})
    before = contents(registry.path(1))
    registry.push(create_model(tmp_path / "other", "model-b"), {"n": 2})
    assert contents(registry.path(1)) == before


def test_a_push_gets_the_number_after_the_highest_version_even_if_some_were_removed(registry, model):
    for _ in range(3):
        registry.push(model, {})
    shutil.rmtree(registry.path(2))
    assert registry.push(model, {}) == 4
    registry.path(4).rename(registry.path(12))
    assert registry.push(model, {}) == 13
    assert registry.versions() == [1, 3, 12, 13]


def test_an_interrupted_first_push_leaves_nothing_visible(registry, model, break_copy):
    break_copy()
    with pytest.raises(RegistryError, match="cannot be written: No space left"):
        registry.push(model, {})
    assert registry.versions() == []
    assert registry.stable() is None
    assert [path for path in registry.base.iterdir() if path.name != ".lock"] == []


def test_an_interrupted_later_push_changes_nothing_and_the_next_push_succeeds(registry, model, break_copy, monkeypatch):
    registry.push(model, {})
    before = contents(registry.base)
    break_copy()
    with pytest.raises(RegistryError, match="cannot be written: No space left"):
        registry.push(model, {})
    assert contents(registry.base) == before
    monkeypatch.undo()
    assert registry.push(model, {}) == 2


def test_during_a_push_no_reader_sees_the_new_version(registry, model, monkeypatch):
    registry.push(model, {})
    copytree, seen = shutil.copytree, []

    def copy_and_list(*arguments, **options):
        copytree(*arguments, **options)
        # TensorFlow Serving looks for folders whose names are numbers.
        seen.append([path.name for path in registry.base.iterdir() if path.is_dir() and path.name.isdigit()])

    monkeypatch.setattr(shutil, "copytree", copy_and_list)
    registry.push(model, {})
    assert seen
    assert all(names == ["1"] for names in seen)


def test_find_by_model_digest_returns_the_newest_version(registry, tmp_path):
    for number, digest in enumerate(["model-a", "model-b", "model-a"]):
        registry.push(create_model(tmp_path / str(number), digest), {})
    assert registry.find_by_model_digest("model-a") == 3
    assert registry.find_by_model_digest("model-b") == 2
    assert registry.find_by_model_digest("model-c") is None


@pytest.mark.parametrize("read", [Registry.record, Registry.admission])
def test_reading_a_missing_version_is_an_error_that_lists_the_existing_ones(pushed, read):
    with pytest.raises(RegistryError, match=rf"{re.escape(str(pushed.base))}: .*no version 5\b.*: 1, 2, 3, 4"):
        read(pushed, 5)


@pytest.mark.parametrize(
    ("read", "name"), [(Registry.record, "assets.extra/catbreeds.json"), (Registry.admission, "admission.json")]
)
@pytest.mark.parametrize("damaged", [None, b"", b'{"recipe_dig', b"\xff\xfe"])
def test_the_error_names_a_missing_or_damaged_file_of_a_version(pushed, read, name, damaged):
    file = pushed.path(2) / name
    file.unlink()
    if damaged is not None:
        file.write_bytes(damaged)
    with pytest.raises(RegistryError, match=re.escape(str(file))):
        read(pushed, 2)
    assert read(pushed, 3) is not None


def test_files_and_hidden_folders_next_to_the_versions_are_ignored(registry, model):
    registry.push(model, {})
    (registry.base / "7").write_text("a file")
    (registry.base / ".8-unfinished").mkdir()
    (registry.base / "models.config").write_text("")
    assert registry.versions() == [1]


def test_promote_moves_the_label_and_returns_the_previous_version(pushed):
    assert pushed.promote(3) == 1
    assert pushed.stable() == 3
    assert pushed.labels() == {STABLE: 3}
    assert pushed.promote(2) == 3
    assert pushed.labels() == {STABLE: 2}


def test_a_push_after_a_promotion_does_not_move_the_stable_label(pushed, model):
    pushed.promote(3)
    assert pushed.push(model, {}) == 5
    assert pushed.stable() == 3


def test_promote_and_rollback_change_no_version(pushed):
    before = {version: contents(pushed.path(version)) for version in pushed.versions()}
    pushed.promote(3)
    pushed.rollback()
    assert {version: contents(pushed.path(version)) for version in pushed.versions()} == before


@pytest.mark.parametrize("version", [0, -1, 2, 5])
def test_promoting_a_missing_version_is_an_error_that_lists_the_existing_ones_and_changes_nothing(pushed, version):
    pushed.promote(3)
    shutil.rmtree(pushed.path(2))
    before = contents(pushed.base)
    with pytest.raises(RegistryError) as error:
        pushed.promote(version)
    assert str(pushed.base) in str(error.value)
    assert re.search(rf"no version {version}\b", str(error.value))
    assert "1, 3, 4" in str(error.value)
    assert contents(pushed.base) == before


def test_promote_before_the_first_push_reports_that_no_version_exists(registry):
    with pytest.raises(RegistryError, match=rf"{re.escape(str(registry.base))}: .*no version 1\b.*: none"):
        registry.promote(1)
    assert registry.labels() == {}


def test_promoting_the_default_stable_version_changes_nothing(pushed):
    before = contents(pushed.base)
    assert pushed.promote(1) == 1
    assert contents(pushed.base) == before
    with pytest.raises(RegistryError):
        pushed.rollback()


def test_promoting_the_current_version_changes_neither_the_label_nor_the_rollback_targets(pushed):
    pushed.promote(2)
    pushed.promote(3)
    before = contents(pushed.base)
    assert pushed.promote(3) == 3
    assert pushed.promote(3) == 3
    assert contents(pushed.base) == before
    assert pushed.rollback() == (3, 2)


def test_rollback_goes_back_step_by_step_and_raises_at_the_first_version(pushed):
    for version in [3, 2, 4, 2]:
        pushed.promote(version)
    for step in [(2, 4), (4, 2), (2, 3), (3, 1)]:
        assert pushed.rollback() == step
        assert pushed.stable() == step[1]
    with pytest.raises(RegistryError, match=rf"{re.escape(str(pushed.base))}: .*{STABLE}"):
        pushed.rollback()
    assert pushed.stable() == 1


def test_after_a_rollback_and_a_promotion_rollback_returns_to_the_version_between_them(pushed):
    pushed.promote(2)
    pushed.promote(3)
    pushed.rollback()
    pushed.promote(4)
    assert pushed.rollback() == (4, 2)
    assert pushed.rollback() == (2, 1)


def test_rollback_skips_deleted_versions(pushed):
    for version in [2, 3, 4]:
        pushed.promote(version)
    shutil.rmtree(pushed.path(2))
    shutil.rmtree(pushed.path(3))
    assert pushed.rollback() == (4, 1)
    with pytest.raises(RegistryError):
        pushed.rollback()


def test_rollback_works_if_the_current_version_is_deleted(pushed):
    pushed.promote(2)
    pushed.promote(3)
    shutil.rmtree(pushed.path(3))
    assert pushed.rollback() == (3, 2)
    assert pushed.stable() == 2


def test_rollback_raises_and_the_label_stays_if_all_earlier_versions_are_deleted(pushed):
    for version in [2, 3]:
        pushed.promote(version)
    shutil.rmtree(pushed.path(1))
    shutil.rmtree(pushed.path(2))
    with pytest.raises(RegistryError):
        pushed.rollback()
    assert pushed.stable() == 3


def test_rollback_before_the_first_push_raises(registry):
    with pytest.raises(RegistryError):
        registry.rollback()
    assert registry.labels() == {}


def test_labels_move_and_roll_back_independently(pushed):
    assert pushed.promote(2, CANARY) is None
    assert pushed.promote(4, CANARY) == 2
    assert pushed.labels() == {STABLE: 1, CANARY: 4}
    assert pushed.promote(3) == 1
    assert pushed.labels() == {STABLE: 3, CANARY: 4}
    assert pushed.rollback(CANARY) == (4, 2)
    assert pushed.labels() == {STABLE: 3, CANARY: 2}
    with pytest.raises(RegistryError, match=CANARY):
        pushed.rollback(CANARY)
    assert pushed.rollback() == (3, 1)
    assert pushed.labels() == {STABLE: 1, CANARY: 2}


def test_a_label_that_was_never_set_cannot_roll_back(pushed):
    pushed.promote(2)
    with pytest.raises(RegistryError, match=CANARY):
        pushed.rollback(CANARY)
    assert pushed.labels() == {STABLE: 2}


def test_labels_and_rollback_targets_persist(pushed):
    pushed.promote(2)
    pushed.promote(3)
    pushed.promote(4, CANARY)
    assert Registry(pushed.base).labels() == {STABLE: 3, CANARY: 4}
    assert Registry(pushed.base).rollback() == (3, 2)
    assert Registry(str(pushed.base)).rollback() == (2, 1)
    assert pushed.labels() == {STABLE: 1, CANARY: 4}


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b'{"labels": {"sta',
        b"\xff\xfe",
        b"null",
        b"[]",
        b'{"stable": 2}',
        b'{"labels": {}}',
        b'{"labels": 1, "replaced": 1}',
    ],
)
def test_a_damaged_labels_file_is_reported_and_not_overwritten(pushed, damaged):
    pushed.promote(2)
    file = pushed.base / "labels.json"
    file.write_bytes(damaged)
    for call in [pushed.labels, pushed.stable, pushed.rollback, lambda: pushed.promote(3)]:
        with pytest.raises(RegistryError, match=re.escape(str(file))):
            call()
    assert file.read_bytes() == damaged
    file.unlink()
    assert pushed.promote(3) == 1
    assert pushed.stable() == 3


def test_a_failed_write_leaves_the_labels_unchanged(pushed):
    pushed.promote(2)
    for move in [lambda: pushed.promote(3), lambda: pushed.promote(4, CANARY), pushed.rollback]:
        with full_disk(), pytest.raises(RegistryError, match="cannot be written: File too large"):
            move()
        assert pushed.labels() == {STABLE: 2}
    assert pushed.promote(3) == 2
    assert pushed.rollback() == (3, 2)


@pytest.mark.parametrize("record", [None, b"", b'{"model_digest": "rec', b"\xff\xfe", b"{}"])
def test_find_skips_a_version_whose_record_is_missing_or_damaged(registry, tmp_path, record):
    for number, digest in enumerate(["model-a", "model-b", "model-b"]):
        registry.push(create_model(tmp_path / str(number), digest), {})
    file = registry.path(3) / "assets.extra" / "catbreeds.json"
    file.unlink()
    if record is not None:
        file.write_bytes(record)
    assert registry.find_by_model_digest("model-b") == 2
    assert registry.find_by_model_digest("model-a") == 1
    assert registry.find_by_model_digest("model-c") is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("saved_model.pb", None),
        *(("assets.extra/catbreeds.json", content) for content in (None, b"", b"{", b"\xff\xfe", b"[]", b"{}")),
        *(("admission.json", content) for content in (None, b"", b"{", b"\xff\xfe", b"[]")),
    ],
)
def test_no_search_finds_a_damaged_version(registry, tmp_path, name, content):
    """If one search found a version that another skips, every scheduled run would retrain and push nothing."""
    for number in range(2):
        registry.push(create_model(tmp_path / str(number), "model-b"), {"inputs_digest": "inputs-b"})
    assert (registry.find_by_model_digest("model-b"), registry.find_by_inputs_digest("inputs-b")) == (2, 2)
    (registry.path(2) / name).unlink()
    if content is not None:
        (registry.path(2) / name).write_bytes(content)
    assert (registry.find_by_model_digest("model-b"), registry.find_by_inputs_digest("inputs-b")) == (1, 1)


def test_added_inputs_are_found_as_long_as_their_version_exists_and_is_undamaged(registry, tmp_path):
    for digest in ("model-a", "model-b"):
        registry.push(create_model(tmp_path / digest, digest), {"inputs_digest": f"inputs of {digest}"})
    registry.add_inputs_digest(1, "other inputs")
    registry.add_inputs_digest(2, "other inputs")  # ignored: already recorded
    assert registry.find_by_inputs_digest("other inputs") == 1
    assert registry.labels() == {STABLE: 1}
    registry.promote(2)
    assert registry.find_by_inputs_digest("other inputs") == 1
    (registry.path(1) / "saved_model.pb").unlink()
    assert registry.find_by_inputs_digest("other inputs") is None
    registry.remove([1])
    assert registry.find_by_inputs_digest("other inputs") is None
    registry.add_inputs_digest(2, "other inputs")
    assert registry.find_by_inputs_digest("other inputs") == 2


def test_the_leftovers_of_a_killed_push_are_ignored_and_removed_by_the_next_push(registry, model):
    registry.push(model, {})
    before = {path.name for path in registry.base.iterdir()}
    for _ in range(2):
        assert start_process(KILLED_DURING_PUSH, registry.base, model).wait() == -signal.SIGKILL
    # Without leftovers, the test would prove nothing.
    assert {path.name for path in registry.base.iterdir()} > before
    assert registry.versions() == [1]
    assert registry.push(model, {}) == 2
    assert {path.name for path in registry.base.iterdir()} == before | {"2"}


def test_concurrent_pushes_and_label_moves_neither_lose_nor_mix_versions(registry, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(4, spawn, initializer=spawn.Barrier(4).wait) as processes:
        work = [processes.submit(push_and_move_labels, registry.base, tmp_path / "models", seed) for seed in range(4)]
        while not all(process.done() for process in work):
            # Labels are read first, because versions are only added.
            labels, versions = registry.labels(), registry.versions()
            assert set(labels.values()) <= set(versions)
            for version in versions[-1:]:
                files, admission = as_pushed(registry, version)
                assert files == contents(tmp_path / "models" / admission["name"])
        pushes, promotions, rollbacks = zip(*(process.result() for process in work), strict=True)

    names = dict(sorted(item for pushed in pushes for item in pushed.items()))
    assert list(names) == registry.versions() == list(range(1, sum(map(len, pushes)) + 1))
    for version, name in names.items():
        assert as_pushed(registry, version) == (contents(tmp_path / "models" / name), {"name": name})
        assert registry.find_by_model_digest(name) == version

    json.loads((registry.base / "labels.json").read_text(encoding="utf-8"))
    labels = registry.labels()
    assert set(labels.values()) <= set(names)
    for label, first in [(STABLE, 1), (CANARY, None)]:
        promoted = [(had, has) for one in promotions for moved, had, has in one if moved == label]
        rolled_back = [(had, has) for one in rollbacks for moved, had, has in one if moved == label]
        # In some order, each move starts from the version to which the previous move has moved the label.
        moves = promoted + rolled_back
        assert Counter([first, *(has for _, has in moves)]) == Counter([*(had for had, _ in moves), labels.get(label)])
        # The remaining rollback targets are the versions that promotions replaced and no rollback has used.
        remaining = Counter(had for had, has in promoted if had not in (has, None))
        remaining.subtract(Counter(has for _, has in rolled_back))
        current, visited = labels.get(label), Counter()
        with suppress(RegistryError):
            for _ in range(remaining.total() + 1):
                had, has = registry.rollback(label)
                assert had == current
                current = has
                visited[current] += 1
        assert visited == remaining


def test_a_process_killed_at_any_moment_leaves_complete_versions_and_the_next_push_succeeds(registry, model):
    registry.push(model, {"accuracy": 0.75})
    expected, rng = contents(model), random.Random(0)
    for _ in range(15):
        before = registry.versions()
        process = start_process(PUSH_AND_PROMOTE_FOREVER, registry.base, model)
        try:
            while registry.versions() == before:
                assert process.poll() is None
            time.sleep(rng.uniform(0, 0.02))  # varies the time of the kill
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL

        versions = registry.versions()
        assert versions == list(range(1, len(versions) + 1))
        assert all(as_pushed(registry, version) == (expected, {"accuracy": 0.75}) for version in versions)
        stable = registry.stable()
        assert stable in versions
        assert registry.labels() == {STABLE: stable}
        assert registry.push(model, {"accuracy": 0.75}) == versions[-1] + 1
        assert registry.stable() == stable
        hidden = {path.name for path in registry.base.iterdir() if path.is_dir()} - set(map(str, registry.versions()))
        assert hidden == set()
    while registry.stable() != 1:
        had, has = registry.rollback()
        assert has < had


@pytest.mark.parametrize("promoted", [False, True])
def test_the_number_of_a_deleted_version_is_never_reused(registry, model, promoted):
    for _ in range(3):
        registry.push(model, {})
    if promoted:
        registry.promote(3)
        registry.rollback()
    shutil.rmtree(registry.path(3))
    assert registry.push(model, {}) == 4


def test_no_other_version_becomes_stable_if_the_stable_version_is_deleted(registry, model):
    for _ in range(2):
        registry.push(model, {})
    shutil.rmtree(registry.path(1))
    assert registry.stable() == 1
    assert registry.push(model, {}) == 3
    assert registry.stable() == 1


def test_a_push_to_a_registry_whose_versions_are_all_deleted_becomes_stable(registry, model):
    registry.push(model, {})
    shutil.rmtree(registry.path(1))
    assert registry.push(model, {}) == 2
    assert registry.stable() == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda version: (version / "saved_model.pb").unlink(),
        lambda version: (version / "assets.extra" / "catbreeds.json").write_text("{}"),
        lambda version: (version / "assets.extra" / "catbreeds.json").write_text("["),
    ],
)
def test_a_damaged_version_is_neither_promoted_nor_rolled_back_to(registry, model, damage):
    for _ in range(3):
        registry.push(model, {})
    registry.promote(2)
    registry.promote(3)
    damage(registry.path(2))
    with pytest.raises(RegistryError, match=rf"^{registry.path(2)}"):
        registry.promote(2)
    assert registry.rollback() == (3, 1)


def others_may_write(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IWOTH)


@pytest.mark.parametrize(("mode", "shared"), [(0o777, True), (0o755, False), (0o1777, False)])
def test_new_folders_get_the_write_permissions_of_the_volume(tmp_path, model, mode, shared):
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume").chmod(mode)
    registry = Registry(tmp_path / "volume" / "serving" / "catbreeds")
    before = os.umask(0o022)
    try:
        registry.push(model, {})
    finally:
        os.umask(before)
    created = [registry.base.parent, registry.base, registry.base / ".lock", registry.path(1)]
    created += [path for path in registry.path(1).rglob("*") if path.is_dir()]
    assert [others_may_write(path) for path in created] == [shared] * len(created)


def push_promote_and_remove(user: int, base: Path, model: Path) -> list[int] | str:
    """Push, promote and remove versions as the user with this ID; return the removed versions or the error message."""
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    os.umask(0o022)
    registry = Registry(base)
    try:
        for _ in range(2):
            registry.push(model, {})
        registry.promote(max(registry.versions()))
        return registry.remove(registry.versions()[:1])
    except RegistryError as error:
        return str(error)


@pytest.fixture
def volume():
    """A world-writable folder next to a model that everybody can read."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        create_model(Path(folder) / "model")
        (Path(folder) / "volume").mkdir()
        (Path(folder) / "volume").chmod(0o777)
        yield Path(folder) / "volume"


def run_as_user(user: int, volume: Path) -> list[int] | str:
    """Run `push_promote_and_remove` in a separate process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        work = process.submit(push_promote_and_remove, user, volume / "to serve" / "catbreeds", volume.parent / "model")
        return work.result()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can work as other users")
def test_several_users_can_share_one_registry(volume):
    assert run_as_user(10001, volume) == [1]
    assert run_as_user(1000, volume) == [2]
    assert run_as_user(10001, volume) == [3]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can work as other users")
def test_a_user_without_write_permission_gets_an_error_with_the_remedy(volume):
    run_as_user(10001, volume)
    base = volume / "to serve" / "catbreeds"
    (base / ".lock").chmod(0o644)
    expected = f"{base / '.lock'}: this user (id 1000) may not write there; run as its owner: chmod -R a+rwX '{base}'"
    assert run_as_user(1000, volume) == expected


def test_the_error_names_an_unusable_lock_or_labels_file(pushed):
    (pushed.base / ".lock").unlink()
    (pushed.base / ".lock").mkdir()
    for move in [lambda: pushed.promote(2), lambda: pushed.unlabel(CANARY, "no"), lambda: pushed.remove([2])]:
        with pytest.raises(RegistryError, match=r"\.lock: cannot be written: Is a directory$"):
            move()
    (pushed.base / "labels.json").unlink()
    (pushed.base / "labels.json").mkdir()
    with pytest.raises(RegistryError, match=r"labels\.json: cannot be read: Is a directory$"):
        pushed.labels()


@pytest.mark.parametrize("other", ["Stable", " stable", "stable ", "STABLE", "\uff53table", "sta\u200bble"], ids=ascii)
def test_a_label_that_differs_only_in_spelling_is_rejected_with_both_names(tmp_path, other):
    registry = Registry(tmp_path / "base")
    registry.push(create_model(tmp_path / "model"), {})
    with pytest.raises(RegistryError, match="the same name in two spellings") as caught:
        registry.promote(1, other)
    assert " and ".join(map(ascii, sorted([STABLE, other]))) in str(caught.value)
    assert registry.labels() == {STABLE: 1}
    labels = registry.base / "labels.json"
    state = json.loads(labels.read_text())
    labels.write_text(json.dumps({**state, "labels": {**state["labels"], other: 1}}))
    with pytest.raises(RegistryError, match="the same name in two spellings"):
        registry.labels()


@pytest.mark.parametrize("other", ["CatBreeds", "catbreeds ", "\uff43atbreeds"], ids=ascii)
@pytest.mark.parametrize("base", [True, False], ids=["both exist", "other exists"])
def test_a_registry_whose_name_differs_only_in_spelling_from_an_existing_one_is_rejected(tmp_path, other, base):
    Registry(tmp_path / other).push(create_model(tmp_path / "model"), {})
    registry = Registry(tmp_path / "catbreeds")
    if base:
        registry.base.mkdir()
    for call in (registry.versions, registry.stable, lambda: registry.push(tmp_path / "model", {})):
        with pytest.raises(RegistryError, match="are the same name in two spellings") as caught:
            call()
        assert f"'catbreeds' and {other!a}" in str(caught.value)
