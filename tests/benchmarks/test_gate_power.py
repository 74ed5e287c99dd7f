"""The gate benchmark prints, for the default rules, what the gate's own calculation gives."""

import subprocess
import sys
from pathlib import Path

import pytest

from components.release.gate_power import LOSS, disagreement, rejection_probability
from pipeline.settings import GateSettings

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gate_power.py"
# Position of the default policy and margin in a row, after accuracy, correlation and number of photos.
DEFAULT_COLUMN = 5


@pytest.fixture(scope="module")
def tables() -> list[list[list[float]]]:
    """The rows of the three printed tables."""
    options = ["--photos", "150", "--runs", "2000", "--gate-photos", "40", "--gate-runs", "10"]
    done = subprocess.run([sys.executable, BENCHMARK, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    sections = done.stdout.split("Share of runs")[1:]
    return [
        [[float(cell) for cell in line.split()] for line in section.splitlines() if line.lstrip().startswith("0.")]
        for section in sections
    ]


@pytest.mark.parametrize(("table", "loss"), [(0, 0.0), (1, LOSS)])
def test_simulated_shares_agree_with_the_exact_probabilities(tables, table, loss):
    gate = GateSettings()
    assert (gate.policy, gate.margin) == ("no_harm", 0.04)
    assert [row[:3] for row in tables[table]] == [[0.7, 0.55, 150], [0.7, 0.8, 150], [0.9, 0.55, 150], [0.9, 0.8, 150]]
    for accuracy, correlation, photos, *shares in tables[table]:
        exact = rejection_probability(gate.policy, gate.margin, int(photos), disagreement(accuracy, correlation), loss)
        assert shares[DEFAULT_COLUMN - 3] == pytest.approx(1 - exact if loss else exact, abs=0.05)


def test_the_whole_gate_is_simulated_for_each_candidate(tables):
    assert [len(row) for row in tables[2]] == [3 + 2 * 4] * 4
    for row in tables[2]:
        rejects = row[3::2]
        assert rejects[0] == rejects[2] == rejects[3]  # the temperature does not change right and wrong
