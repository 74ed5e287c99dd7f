import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "tuning_cost.py"


@pytest.mark.slow
def test_the_benchmark_prints_its_ratios_and_says_what_it_scaled():
    done = subprocess.run([sys.executable, BENCHMARK, "--images", "60"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"recipe/ours +ours/floor", done.stdout)
    assert "scaled" in done.stdout
