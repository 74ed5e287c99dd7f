"""Runs the toy pipeline in the folder that its argument names: `python -m tests.pipeline.runners.toy_run FOLDER`."""

import sys
from pathlib import Path

from tests.pipeline.runners.test_local_runner import run

run(Path(sys.argv[1]))
