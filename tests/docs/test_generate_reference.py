"""The generated references of settings and commands are up to date and complete."""

import os
import re
import subprocess
import sys

import pytest

from pipeline.settings import ROOT


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """Folder with the references generated from the current code."""
    folder = tmp_path_factory.mktemp("reference")
    # The result must not depend on colors or the width of the terminal.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "60", "NO_COLOR": "1"}
    subprocess.run([sys.executable, ROOT / "docs" / "generate_reference.py", folder], check=True, env=environment)
    return folder


@pytest.mark.parametrize("name", ["configuration.md", "cli.md"])
def test_reference_is_up_to_date(generated, name):
    assert (ROOT / "docs" / name).read_text() == (generated / name).read_text(), "run `make docs` and commit the result"


def test_all_settings_and_options_have_a_description(generated):
    lines = (generated / "configuration.md").read_text().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| `")]
    assert len(rows) > 30
    assert {"| `CATBREEDS_GATEWAY_MAX_BYTES`", "| `CATBREEDS_PAGE_SAMPLES`"} <= {row[0] for row in rows}
    assert [row[0] for row in rows if not row[2].strip()] == []
    options = re.findall(r"^\* `([-a-z][^`]*)`(.*)$", (generated / "cli.md").read_text(), re.MULTILINE)
    assert len(options) > 40
    assert [option for option, description in options if len(description) < 8] == []
