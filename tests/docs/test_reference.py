"""The references of settings and commands say what the code says."""

import os
import re
import subprocess
import sys

import pytest

from pipeline.settings import ROOT


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with the references as the code of today has them."""
    folder = tmp_path_factory.mktemp("reference")
    # Also without colours and on another width than the one who wrote them.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "60", "NO_COLOR": "1"}
    subprocess.run([sys.executable, ROOT / "docs" / "reference.py", folder], check=True, env=environment)
    return folder


@pytest.mark.parametrize("name", ["configuration.md", "cli.md"])
def test_the_reference_is_current(written, name):
    assert (ROOT / "docs" / name).read_text() == (written / name).read_text(), "run `make docs` and commit the result"


def test_every_setting_and_option_is_described(written):
    lines = (written / "configuration.md").read_text().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| `")]
    assert len(rows) > 30
    assert {"| `CATBREEDS_GATEWAY_MAX_BYTES`", "| `CATBREEDS_PAGE_SAMPLES`"} <= {row[0] for row in rows}
    assert [row[0] for row in rows if not row[2].strip()] == []
    options = re.findall(r"^\* `([-a-z][^`]*)`(.*)$", (written / "cli.md").read_text(), re.MULTILINE)
    assert len(options) > 40
    assert [option for option, words in options if len(words) < 8] == []
