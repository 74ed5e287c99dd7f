"""Remote artifacts for code that needs a path of this machine: copied once, by TFX's file layer."""

import contextlib
import os
import tempfile
from collections.abc import Iterator


def is_remote(path: str) -> bool:
    """Whether it is an address such as `gs://bucket/folder`."""
    return "://" in path


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """Path of the file or folder `uri` on this machine: itself, or of a remote one a copy, removed afterwards.

    Raises:
        NotFoundError: of TFX's file layer: there is no such remote file.
    """
    if not is_remote(uri):
        yield uri
        return
    from tfx.dsl.io import fileio  # takes ten seconds to import
    from tfx.utils import io_utils

    with tempfile.TemporaryDirectory(prefix="catbreeds-") as folder:
        path = os.path.join(folder, os.path.basename(uri.rstrip("/")))
        if fileio.isdir(uri):
            io_utils.copy_dir(uri, path)
        else:
            io_utils.copy_file(uri, path)
        yield path


@contextlib.contextmanager
def local_output(uri: str) -> Iterator[str]:
    """Path of a folder on this machine to write the folder `uri` in: itself, or of a remote one a temporary folder.

    What was written to the temporary folder is copied to `uri` when the block has ended without an error.
    """
    if not is_remote(uri):
        yield uri
        return
    from tfx.utils import io_utils

    with tempfile.TemporaryDirectory(prefix="catbreeds-") as folder:
        yield folder
        io_utils.copy_dir(folder, uri)
