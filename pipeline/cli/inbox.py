"""The command `inbox`: review of the photos that the gateway captured."""

import contextlib
import getpass
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.errors import HistoryError
from pipeline.cli.common import (
    CapturesOption,
    JsonOption,
    ProfileOption,
    SetOption,
    WorkdirOption,
    expand_option_groups,
    fail,
    read_settings,
    require_captures,
)
from pipeline.console import console_on
from pipeline.settings import Settings
from serving.names import counted, printable
from serving.registry import Registry, RegistryError

if TYPE_CHECKING:
    from serving.captures import Capture, CaptureStore
    from serving.inbox import Item

app = typer.Typer()
inbox_app = typer.Typer(help="Review the photos that the gateway captured.", invoke_without_command=True)
app.add_typer(inbox_app, name="inbox")

IdsArgument = Annotated[
    list[str], typer.Argument(metavar="ID...", help="IDs of captures, or their first digits.", show_default=False)
]

ReviewerOption = Annotated[
    str | None, typer.Option(help="Name to store with the decision.", show_default="the name of this user")
]


@dataclass(frozen=True)
class _Options:
    """Options of all commands."""

    captures: CapturesOption = None
    data: Annotated[
        str | None,
        typer.Option(
            help="Photo folder, with one folder per breed.", show_default="that of the last run in the workdir"
        ),
    ] = None
    workdir: WorkdirOption = None
    profile: ProfileOption = "standard"
    settings: SetOption = None

    @cached_property
    def config(self) -> Settings:
        """Settings of the pipeline."""
        return read_settings(self.profile, self.settings, workdir=self.workdir)

    @cached_property
    def store(self) -> "CaptureStore":
        """The captures; ends the command if there is no folder."""
        from serving.captures import CaptureStore

        return CaptureStore(require_captures(self.captures))

    @cached_property
    def folder(self) -> Path:
        """The photo folder; ends the command if it is not a local folder."""
        from pipeline.results.past_run import PastRun

        try:
            data = self.data or PastRun(self.config.workdir, "ImageExampleGen").data
        except HistoryError as error:
            raise fail(f"{error}; pass --data with the photo folder") from None
        if "://" in data or not Path(data).is_dir():
            raise fail(f"--data {printable(data)}: not a local folder; accepted photos are files in the photo folder")
        return Path(data)

    def known_photos(self) -> tuple[dict[str, bytes], list[str]]:
        """Perceptual hashes by path of the photos of the last run and those accepted since; and notes."""
        from pipeline.results.past_run import PastRun
        from serving.photo_origins import read_origins

        try:
            run = PastRun(self.config.workdir, "ImageExampleGen")
            hashes = {row["path"]: row["perceptual_hash"] for row in run.photos if "perceptual_hash" in row}
        except (HistoryError, FileNotFoundError):
            workdir = printable(self.config.workdir)
            return {}, [f"Near-duplicates are unknown: {workdir} has no photos of a run; pass --workdir."]
        if not hashes:
            return {}, ["Near-duplicates are unknown: an earlier release wrote the last run; run again."]
        folder = Path(self.data or run.data)
        if folder.is_dir():
            hashes |= {f"capture {o.capture}": o.perceptual_hash for o in read_origins(folder).values()}
        return {path: bytes.fromhex(text) for path, text in hashes.items()}, []


@inbox_app.callback()
@expand_option_groups
def inbox(
    context: typer.Context,
    options: _Options,
    every: Annotated[bool, typer.Option("--all", help="Show reviewed captures too.")] = False,
    random: Annotated[
        bool, typer.Option("--random", help="Show only the random share, in random order instead of the most useful.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many captures.")] = 20,
    html: Annotated[Path | None, typer.Option(help="Also write a page with the photos to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Review the photos that the gateway captured.

    Without a command: list them, the most useful for review first. First come those with feedback that disagrees with
    the model, then those that may show several breeds, then those with the least probability.
    """
    if command := context.invoked_subcommand:
        if any(context.get_parameter_source(name).name == "COMMANDLINE" for name in context.params):
            raise fail(f"pass options after the command: catbreeds inbox {command} ...")
        return
    from serving.capture_reasons import RANDOM_SHARE
    from serving.inbox import read_inbox

    captures = [c for c in options.store.read_all() if not random or c.reason == RANDOM_SHARE]
    pending = [capture for capture in captures if every or capture.review is None]
    with _exit_on_error(), _progress(len(pending)) as advance:
        known, notes = options.known_photos()
        items = read_inbox(pending, known, options.config.ingest.near_duplicate_bits, advance)
    if random:
        items.sort(key=lambda item: item.short_id)  # IDs are hashes, so their order is random
    if html is not None:
        from pipeline.results.contact_sheet import contact_sheet

        html.write_text(contact_sheet(items[:limit], len(items)), encoding="utf-8")
    if as_json:
        print(json.dumps([item.document() for item in items[:limit]], indent=1))
        return
    _print_items(items[:limit], len(items))
    for message in [*_random_share_note(captures), *notes, *_deletion_notes(options.store)]:
        print(message)
    if html is not None:
        print(f"Page: {html}")


@inbox_app.command()
@expand_option_groups
def accept(
    ids: IdsArgument,
    breed: Annotated[
        str | None,
        typer.Option(help="Breed of the photos.", show_default="that of the feedback, otherwise the predicted one"),
    ] = None,
    new_breed: Annotated[bool, typer.Option("--new-breed", help="Create the folder of the breed.")] = False,
    reviewer: ReviewerOption = None,
    *,
    options: _Options,
) -> None:
    """Copy captured photos to the photo folder, so that the next run trains on them.

    Photos of the random share can get into any split. Photos that were captured because the model was uncertain get
    into train only, because they would bias eval and test.
    """
    from serving import inbox
    from serving.capture_reasons import RANDOM_SHARE
    from serving.captures import NoCapture

    store, folder, reviewer = options.store, options.folder, reviewer or _user_name()
    with _exit_on_error():
        known, notes = options.known_photos()
        for capture in [store.read(inbox.find_capture(store, text)) for text in ids]:
            items = inbox.read_inbox([capture], known, options.config.ingest.near_duplicate_bits)
            if not items:
                raise NoCapture(f"no usable photo of the capture {capture.id}")
            item = items[0]
            chosen = breed or item.proposed_breed
            if chosen is None:
                raise inbox.InboxError(f"{capture.id}: the user says that it is not a cat; pass --breed, or reject it")
            path = inbox.accept(store, item, chosen, folder, reviewer, new_breed)
            splits = "any split" if capture.reason == RANDOM_SHARE else "train only"
            print(f"{item.short_id}: accepted as {chosen} ({splits}): {printable(str(path))}")
            if item.near_duplicate_of:
                print(f"  Nearly the same photo as {item.near_duplicate_of}.")
            known[f"capture {capture.id}"] = item.perceptual_hash
    for message in notes:
        print(message)


@inbox_app.command()
@expand_option_groups
def reject(ids: IdsArgument, reviewer: ReviewerOption = None, *, options: _Options) -> None:
    """Reject captured photos. Photos that were accepted before are removed from the photo folder."""
    from serving import inbox

    store, reviewer = options.store, reviewer or _user_name()
    with _exit_on_error():
        for capture_id in [inbox.find_capture(store, text) for text in ids]:
            folder = options.folder if store.copied_to(capture_id) else None
            print(f"{capture_id}: rejected{_removed(inbox.reject(store, capture_id, folder, reviewer))}")


@inbox_app.command()
@expand_option_groups
def forget(
    ids: Annotated[
        list[str],
        typer.Argument(metavar="ID...", help="IDs of captures, their first digits, or tokens.", show_default=False),
    ],
    *,
    options: _Options,
) -> None:
    """Delete captured photos and their copies in the photo folder, and name the versions that learned from them."""
    from serving import inbox
    from serving.captures import NoCapture, id_of

    store, folder = options.store, options.folder
    with _exit_on_error():
        learned, tested_on = _versions_by_capture(Registry(options.config.registry))
        others = {*inbox.accepted_captures(folder), *learned, *tested_on}
        found = []
        for text in ids:
            with contextlib.suppress(NoCapture):
                text = id_of(text)
            found.append(inbox.find_capture(store, text, others))
        for capture_id in found:
            copies = inbox.forget(store, capture_id, folder)
            print(f"{capture_id}: deleted{_removed(copies)}")
            if versions := learned.get(capture_id):
                print(f"  Learned by {_versions(versions)}; later runs train without it.")
            if tested := tested_on.get(capture_id):
                print(f"  In the test photos of {_versions(tested)}, and perhaps in golden requests.")
            if copies or versions or tested:
                print("  Past runs and versions may contain copies: see 'What remains' in docs/feedback.md.")


@contextlib.contextmanager
def _exit_on_error() -> Iterator[None]:
    from serving.captures import DamagedCapture, NoCapture
    from serving.inbox import InboxError
    from serving.photo_origins import OriginsError

    try:
        yield
    except (InboxError, OriginsError, RegistryError, DamagedCapture) as error:
        raise fail(error) from None
    except NoCapture as error:
        raise fail(f"{error}; it expired or was deleted") from None


def _versions_by_capture(registry: Registry) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Versions that learned from each capture, and those that were tested on it."""
    learned, tested = defaultdict(list), defaultdict(list)
    for version in registry.versions():
        captures = registry.admission(version).get("captures", {"learned": [], "tested": []})
        for versions, ids in ((learned, captures["learned"]), (tested, captures["tested"])):
            for capture_id in ids:
                versions[capture_id].append(version)
    return learned, tested


def _versions(versions: list[int]) -> str:
    return f"version{'s' if len(versions) > 1 else ''} {', '.join(map(str, versions))}"


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have no user names
        raise fail("this user has no name; pass --reviewer") from None


def _removed(copies: list[Path]) -> str:
    return f"; removed {', '.join(printable(str(path)) for path in copies)}" if copies else ""


def _random_share_note(captures: "list[Capture]") -> list[str]:
    """Note about how many captures of the random share are reviewed."""
    from serving.capture_reasons import RANDOM_SHARE

    reviewed = [capture.review is not None for capture in captures if capture.reason == RANDOM_SHARE]
    return [f"Random share: {sum(reviewed)} of {len(reviewed)} reviewed."] if reviewed else []


def _deletion_notes(store: "CaptureStore") -> list[str]:
    if not (ids := store.deleted_with_copy()):
        return []
    return [f"Deleted by their senders, but the photo folder has copies: catbreeds inbox forget {' '.join(ids)}"]


@contextlib.contextmanager
def _progress(total: int) -> Iterator:
    """Show a progress bar on a terminal; yield the function that advances it."""
    from rich.progress import Progress

    console = console_on(sys.stderr)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading captures", total=total)
        yield lambda: progress.advance(task)


def _print_items(items: "list[Item]", total: int) -> None:
    from rich.table import Table
    from rich.text import Text

    if not items:
        print("No captures to review.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("ID", "captured", "answer", "feedback", "note"):
        table.add_column(heading, overflow="fold")
    for item in items:
        cells = (item.short_id, item.capture.time[:16].replace("T", " "), *_item_texts(item))
        table.add_row(*map(Text, cells))
    console_on(sys.stdout).print(table)
    print(f"{len(items)} of {counted(total, 'capture')}")


def _item_texts(item: "Item") -> tuple[str, str, str]:
    """Describe a capture in words: the answer, the feedback, and notes."""
    capture = item.capture
    answer = f"{capture.answer.best.breed} {capture.answer.best.probability:.0%} (v{capture.answer.model.version})"
    notes = []
    if capture.review:
        notes.append(f"accepted as {capture.review.breed}" if capture.review.breed else "rejected")
    if len(capture.answer.prediction_set or ()) > 1:
        others = [name for name in capture.answer.prediction_set if name != capture.answer.best.breed]
        notes.append(f"or {', '.join(others[:2])}")
    if capture.answer.unfamiliar:
        notes.append("unfamiliar")
    if item.near_duplicate_of:
        notes.append(f"nearly the same as {item.near_duplicate_of}")
    if item.look_alikes:
        notes.append(f"{counted(item.look_alikes, 'look-alike')}")
    return answer, capture.feedback or "", "; ".join(notes)
