"""The commands `sample-data` and `data`, which generate synthetic photos and download real ones."""

import contextlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.common import ExitCode, command_with_renamed_options, fail, os_error_message, require_local_path
from pipeline.settings import Settings
from serving.names import counted

if TYPE_CHECKING:
    from pipeline.console import TransferView
    from pipeline.datasets.public_datasets import Download

app = typer.Typer()
data_app = typer.Typer(
    help="Download public data sets of cat photos. Interrupted downloads resume when you rerun the command.",
    no_args_is_help=True,
)

OutArgument = Annotated[
    Path, typer.Argument(callback=require_local_path, help="Folder to write to; gets one subfolder per breed.")
]

TriesOption = Annotated[
    int, typer.Option(min=1, help="Give up after this many consecutive attempts that received no data.")
]


app.add_typer(data_app, name="data")


@app.command(cls=command_with_renamed_options({"--first": "--offset"}))
def sample_data(
    out: OutArgument,
    breeds: Annotated[int, typer.Option(help="Number of breeds.")] = 6,
    photos: Annotated[int, typer.Option(help="Number of photos per breed.")] = 40,
    offset: Annotated[
        int, typer.Option(help="Skip this many photos of each breed, to generate photos that no run has seen.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed generates the same photos.")] = 0,
    night: Annotated[
        bool, typer.Option("--night", help="Photos taken at night, which a model that learned from others finds hard.")
    ] = False,
    defects: Annotated[
        bool, typer.Option("--defects", help="Add unusable files of every kind that ingestion detects.")
    ] = False,
) -> None:
    """Generate photos of synthetic cat breeds, to try the pipeline without a data set."""
    from pipeline.datasets.sample_data import write_sample_data

    bad = []
    try:
        paths = write_sample_data(out, breeds=breeds, photos=photos, seed=seed, offset=offset, night=night)
        if defects:
            from components.ingestion.splits import assign_split
            from pipeline.datasets.defective_files import write_defects

            split = Settings().split
            bad = write_defects(
                out, paths, lambda hash: assign_split(hash, split.train, split.eval, split.seed), seed=seed
            )
    except (ValueError, OSError) as error:
        raise fail(os_error_message(error) if isinstance(error, OSError) else error) from None
    print(f"{out}: {counted(len(paths), 'photo')} of {breeds} synthetic breeds")
    for path, kind in bad:
        print(f"{path.relative_to(out)}: {kind}")


@data_app.command()
def kaggle(
    out: OutArgument,
    dataset: Annotated[
        str, typer.Option(help="Kaggle data set: owner/name, or owner/name/versions/number.")
    ] = "doctrinek/catbreedsrefined-7k",
    tries: TriesOption = 5,
) -> None:
    """Download CatBreedsRefined-7k from Kaggle: 20 breeds with 350 photos each. Requires a Kaggle account."""
    from pipeline.datasets import public_datasets

    with _transfer_view() as view:
        download = public_datasets.download_from_kaggle(out, dataset, tries, view)
    _print_summary(download, out)
    print(
        "The licence is on the data set's Kaggle page; put it in the model card with --set model_card.data_licence=..."
    )


@data_app.command()
def oxford(
    out: OutArgument,
    archives: Annotated[
        Path | None,
        typer.Option(
            callback=require_local_path,
            help="Folder to keep the downloaded archives in; existing archives are not downloaded again.",
            show_default="a hidden folder in OUT that is deleted at the end",
        ),
    ] = None,
    url: Annotated[str, typer.Option(help="URL of the folder with the archives, for example of a mirror.")] = (
        "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
    ),
    md5: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE=MD5", help="Expect another checksum for a republished archive; repeat the option for more."
        ),
    ] = None,
    tries: TriesOption = 5,
) -> None:
    """Download the cats of Oxford-IIIT Pet: 12 breeds, about 2,400 photos. Downloads 811 MB and keeps a third of it."""
    from pipeline.datasets import public_datasets

    checksums = dict(public_datasets.OXFORD_MD5)
    for assignment in md5 or ():
        name, _, value = assignment.partition("=")
        if name not in checksums or not re.fullmatch("[0-9a-f]{32}", value):
            raise fail(
                f"--md5 {assignment}: must be FILE=MD5, where FILE is one of {', '.join(checksums)} "
                "and MD5 has 32 digits of 0-9a-f"
            )
        checksums[name] = value
    if not url.startswith(("http://", "https://")):
        raise fail(f"--url {url}: must begin with http:// or https://")
    with _transfer_view() as view:
        download = public_datasets.download_oxford_cats(out, url, checksums, archives, tries, view)
    _print_summary(download, out)
    print("The licence is CC BY-SA 4.0; put it in the model card with --set model_card.data_licence='CC BY-SA 4.0'")


@contextlib.contextmanager
def _transfer_view() -> Iterator["TransferView"]:
    """Show the progress of a download; end the command with a message if the download fails."""
    from pipeline.console import TransferView, console_on
    from pipeline.datasets.http_download import DownloadError
    from pipeline.datasets.public_datasets import DatasetError

    try:
        with TransferView(console_on(sys.stderr)) as view:
            yield view
    except DatasetError as error:
        raise fail(error) from None
    except DownloadError as error:
        raise fail(error, ExitCode.FAILURE) from None
    except OSError as error:
        is_folder_conflict = isinstance(error, FileExistsError | NotADirectoryError)
        raise fail(
            os_error_message(error), ExitCode.INVALID_INPUT if is_folder_conflict else ExitCode.FAILURE
        ) from None
    except KeyboardInterrupt:
        raise fail("interrupted; rerun the command to resume", ExitCode.FAILURE) from None


def _print_summary(download: "Download", out: Path) -> None:
    status = "downloaded" if download.changed else "already complete"
    print(f"{out}: {download.files} photos in {download.folders} folders, {status}; each file is as published")
    data, workdir = shlex.quote(str(out)), shlex.quote(f"runs/{out.resolve().name}")
    print(f"Next: catbreeds run --data {data} --workdir {workdir}")
