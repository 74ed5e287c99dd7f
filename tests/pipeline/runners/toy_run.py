"""Run the toy pipeline in a folder: `python -m tests.pipeline.runners.toy_run FOLDER`."""

import sys
from pathlib import Path

from tests.pipeline.runners.test_local_runner import run

run(Path(sys.argv[1]))
