"""Local copies of remote artifacts, for code that needs a local path; copied with TFX file systems."""

import contextlib
import os
import tempfile
from collections.abc import Iterator


def is_remote(path: str) -> bool:
    """Whether `path` is an address such as `gs://bucket/folder`."""
    return "://" in path


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """Yield a local path of the file or folder `uri`: `uri` itself, or a temporary copy if it is remote.

    Raises:
        NotFoundError: If the remote file does not exist (the error type of TFX file systems).
    """
    if not is_remote(uri):
        yield uri
        return
    from tfx.dsl.io import fileio  # the import takes ten seconds
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
    """Yield a local folder for the contents of the folder `uri`: `uri` itself, or a temporary folder if it is remote.

    If the block ends without an error, the temporary folder replaces the folder `uri`.
    """
    if not is_remote(uri):
        yield uri
        return
    from tfx.utils import io_utils

    with tempfile.TemporaryDirectory(prefix="catbreeds-") as folder:
        yield folder
        io_utils.copy_dir(folder, uri)
