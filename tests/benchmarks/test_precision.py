"""The benchmark of the precisions prints a row for each backbone, with differences for those with weights."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.amx import needs_amx
from tests.model_files import write_model
from tests.real_inputs import PHOTOS, WEIGHTS, needs_real_inputs

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "precision.py"


@needs_amx
@pytest.mark.slow
def test_precision_prints_speeds_and_differences(tmp_path, generate_photos):
    write_model(tmp_path / "net.keras", 32)
    data = generate_photos(breeds=3, photos=20)
    sizes = "image_size={xception: 71, resnet50: 32, efficientnetb7: 32}"
    command = [sys.executable, SCRIPT, "--data", data, "--weights-dir", tmp_path, "--set", sizes]
    command += ["--photos", "16", "--rounds", "1", "--folds", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    heading, *rows, summary = done.stdout.splitlines()
    columns = ["backbone", "side", "float32", "bfloat16", "ratio", "same head", "own head", "difference"]
    assert re.split(r"\s{2,}", heading) == columns
    assert [row.split()[:2] for row in rows] == [
        ["xception", "71"],
        ["resnet50", "32"],
        ["efficientnetb7", "32"],
        ["net", "32"],
    ]
    for row in rows:
        float32, bfloat16, ratio = map(float, row.split()[2:5])
        assert min(float32, bfloat16) > 0
        assert ratio == pytest.approx(bfloat16 / float32, abs=0.02)
    assert [len(row.split()) for row in rows] == [5, 5, 5, 8]
    assert re.fullmatch(r"\d+ photos of 3 breeds, 3 folds", summary)


@needs_amx
@pytest.mark.slow
@needs_real_inputs
def test_at_most_4_of_480_real_photos_get_another_breed_in_bfloat16():
    command = [sys.executable, SCRIPT, "--data", PHOTOS, "--weights-dir", WEIGHTS, "--photos", "32", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    _, *rows, summary = done.stdout.splitlines()
    assert summary.startswith("480 photos")
    changed = {cells[0]: list(map(int, cells[5:7])) for cells in map(str.split, rows) if len(cells) == 8}
    assert len(changed) == 2  # Xception and EfficientNet-Lite2
    for backbone, (same_head, own_head) in changed.items():
        assert max(same_head, own_head) <= 4, backbone
