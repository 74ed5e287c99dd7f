"""The benchmark of EmbeddingGen compares it with the bare network for each backbone."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "embedding.py"


@pytest.mark.slow
def test_embedding_prints_the_ratio_of_each_backbone_and_of_all():
    options = ["--photos", "96", "--side", "71", "--bare-photos", "32", "--backbones", "resnet50"]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    _, heading, *rows = done.stdout.splitlines()
    assert heading.split() == ["backbone", "bare", "ms", "EmbeddingGen", "ms", "ratio", "start-up", "s"]
    costs = {name: list(map(float, values)) for name, *values in map(str.split, rows)}
    assert list(costs) == ["resnet50", "all"]
    for bare, embedding_gen, ratio, startup in costs.values():
        assert min(bare, embedding_gen, startup) > 0
        assert ratio == pytest.approx(embedding_gen / bare, rel=0.05, abs=0.01)
    assert costs["all"] == costs["resnet50"]
