"""The commands that fetch real photos."""

import contextlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.common import Exit, fail, on_this_machine, told
from pipeline.settings import Settings
from serving.names import counted

if TYPE_CHECKING:
    from pipeline.console import TransferView
    from pipeline.datasets.public import Laid

app = typer.Typer()
data_app = typer.Typer(
    help="Fetch real photos of cats. What was cut off goes on when you run the command again.", no_args_is_help=True
)

OutArgument = Annotated[
    Path, typer.Argument(callback=on_this_machine, help="Folder to fill; one folder a breed is made in it.")
]

TriesOption = Annotated[int, typer.Option(min=1, help="Give up after so many tries in a row that brought nothing.")]


app.add_typer(data_app, name="data")


@app.command()
def sample_data(
    out: Annotated[
        Path, typer.Argument(callback=on_this_machine, help="Folder to write; one folder a breed is made in it.")
    ],
    breeds: Annotated[int, typer.Option(help="Number of imaginary breeds.")] = 6,
    photos: Annotated[int, typer.Option(help="Photos of each breed.")] = 40,
    first: Annotated[int, typer.Option(help="Number of the first photo: later ones are photos unseen before.")] = 0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same photos.")] = 0,
    defects: Annotated[bool, typer.Option("--defects", help="Add a bad file of every kind.")] = False,
) -> None:
    """Draw photos of imaginary cat breeds."""
    from pipeline.datasets.sample_data import write_sample_data

    bad = []
    try:
        paths = write_sample_data(out, breeds=breeds, photos=photos, seed=seed, first=first)
        if defects:
            from components.ingestion.splits import assign_split
            from pipeline.datasets.defects import write_defects

            split = Settings().split
            bad = write_defects(
                out, paths, lambda hash: assign_split(hash, split.train, split.eval, split.seed), seed=seed
            )
    except (ValueError, OSError) as error:
        raise fail(told(error) if isinstance(error, OSError) else error) from None
    print(f"{counted(len(paths), 'photo')} of {breeds} imaginary breeds in {out}")
    for path, kind in bad:
        print(f"{path.relative_to(out)}: {kind}")


@data_app.command()
def kaggle(
    out: OutArgument,
    dataset: Annotated[
        str, typer.Option(help="Data set: owner/name, or owner/name/versions/number.")
    ] = "doctrinek/catbreedsrefined-7k",
    tries: TriesOption = 5,
) -> None:
    """Fetch CatBreedsRefined-7k, 20 breeds of 350 photos each, by Kaggle's client; you need an account there."""
    from pipeline.datasets import public

    with _view() as view:
        laid = public.kaggle(out, dataset, tries, view)
    _show(laid, out)
    print("Its licence is on its page at Kaggle; tell the model card: --set card.data_licence=...")


@data_app.command()
def oxford(
    out: OutArgument,
    archives: Annotated[
        Path | None,
        typer.Option(
            callback=on_this_machine,
            help="Folder of the archives, which are kept there.",
            show_default="hidden in the folder to fill, and removed when all is done",
        ),
    ] = None,
    url: Annotated[str, typer.Option(help="Where the archives lie: there, or at a mirror.")] = (
        "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
    ),
    md5: Annotated[
        list[str] | None, typer.Option(metavar="FILE=MD5", help="Another checksum, should they be published anew.")
    ] = None,
    tries: TriesOption = 5,
) -> None:
    """Fetch the cats of Oxford-IIIT Pet: 12 breeds, about 2,400 photos; downloads 811 MB, keeps about a third of it."""
    from pipeline.datasets import public

    checksums = dict(public.OXFORD_MD5)
    for given in md5 or ():
        name, _, value = given.partition("=")
        if name not in checksums or not re.fullmatch("[0-9a-f]{32}", value):
            raise fail(f"--md5 {given}: write FILE=MD5 with one of {', '.join(checksums)} and 32 digits of 0-9a-f")
        checksums[name] = value
    if not url.startswith(("http://", "https://")):
        raise fail(f"--url {url}: must begin with http:// or https://")
    with _view() as view:
        laid = public.oxford(out, url, checksums, archives, tries, view)
    _show(laid, out)
    print("Licence of the data set: CC BY-SA 4.0; tell the model card: --set card.data_licence='CC BY-SA 4.0'")


@contextlib.contextmanager
def _view() -> Iterator["TransferView"]:
    """Shows the transfer; what stops it ends the command with a sentence."""
    from pipeline.console import TransferView, console_on
    from pipeline.datasets.downloads import DownloadError
    from pipeline.datasets.public import DatasetError

    try:
        with TransferView(console_on(sys.stderr)) as view:
            yield view
    except DatasetError as error:
        raise fail(error) from None
    except DownloadError as error:
        raise fail(error, Exit.FAILED) from None
    except OSError as error:
        is_no_folder = isinstance(error, FileExistsError | NotADirectoryError)
        raise fail(told(error), Exit.WRONG_INPUT if is_no_folder else Exit.FAILED) from None
    except KeyboardInterrupt:
        raise fail("stopped; run again to go on", Exit.FAILED) from None


def _show(laid: "Laid", out: Path) -> None:
    how = "fetched" if laid.fetched else "all there already"
    print(f"{out}: {laid.files} photos in {laid.folders} folders, {how}, each as published")
    data, workdir = shlex.quote(str(out)), shlex.quote(f"runs/{out.resolve().name}")
    print(f"Next: catbreeds run --data {data} --workdir {workdir}")
