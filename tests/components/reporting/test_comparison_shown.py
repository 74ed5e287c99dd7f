"""`catbreeds report` prints the comparison of candidates, also that of an earlier version, on narrow terminals."""

import json

import pytest
from typer.testing import CliRunner

from pipeline.cli import app

COMMON = {"weights": "imagenet", "eval_accuracy": 0.9, "eval_accuracy_ci95": [0.87, 0.93], "eval_loss": 0.31}
COMMON |= {"top3_accuracy": 0.98, "embedding_seconds": 30.0, "tuning_seconds": 10.0, "training_seconds": 5.0}
COMMON |= {"parameters": 20_900_000, "saved_model_bytes": 84_000_000, "latency_ms_p50": 25.0}
GATE = {"run": "run-7", "pushed_version": 2, "outcome": "blessed", "reasons": [], "serving": {}}


def out_of_fold(accuracy: float, difference: float, interval: list[float]) -> dict:
    return {
        "oof_accuracy": accuracy,
        "oof_accuracy_ci95": [accuracy - 0.01, accuracy + 0.01],
        "oof_loss": 0.29,
        "difference_to_winner": difference,
        "difference_ci95": interval,
        "multiply_adds": 4_569_000_000,
    }


CANDIDATES = [
    {"backbone": "xception", **COMMON, **out_of_fold(0.905, -0.016, [-0.0242, -0.008])},
    {"backbone": "resnet50", **COMMON, **out_of_fold(0.8, -0.121, [-0.15, -0.0949])},
    {"backbone": "efficientnetb7", **COMMON, **out_of_fold(0.921, 0.0, [-0.002, 0.002])},
]


@pytest.fixture
def printed_rows(tmp_path, monkeypatch):
    """Function that prints a comparison on a terminal of 60 columns and returns the cells of each row and the text."""

    def rows(comparison: dict) -> tuple[list[list[str]], str]:
        folder = tmp_path / "report"
        folder.mkdir()
        sizes = {"train": 1640, "eval": 360, "test": 400}
        comparison |= {"breeds": ["Birman", "Manx"], "winner": "efficientnetb7", "split_sizes": sizes}
        (folder / "comparison.json").write_text(json.dumps(comparison), encoding="utf-8")
        (folder / "gate.json").write_text(json.dumps(GATE), encoding="utf-8")
        monkeypatch.setenv("COLUMNS", "60")
        done = CliRunner().invoke(app, ["report", "--workdir", str(tmp_path)])
        assert done.exit_code == 0, done.output
        lines = [line for line in done.output.splitlines() if line.startswith("│")]
        return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines], done.output

    return rows


def test_table_shows_both_accuracies_and_the_difference_to_the_winner(printed_rows):
    rows, text = printed_rows({"candidates": CANDIDATES, "reason": "r", "price": 0.0, "price_unit": "parameters"})
    assert rows[:6] == [
        ["OOF accuracy", "0.905", "0.800", "0.921"],
        ["95% CI", "0.90-0.92", "0.79-0.81", "0.91-0.93"],
        ["to winner (pt)", "-1.6", "-12", ""],
        ["95% CI", "-2.4/-0.8", "-15/-9.5", ""],
        ["OOF loss", "0.29", "0.29", "0.29"],
        ["eval accuracy", "0.900", "0.900", "0.900"],
    ]
    assert ["multiply-adds", "4.6G", "4.6G", "4.6G"] in rows
    assert len(rows) == 16
    assert "OOF: out of fold, on train + eval" in text


def test_comparison_of_an_earlier_version_has_no_rows_for_what_it_did_not_measure(printed_rows):
    candidates = [{"backbone": row["backbone"], **COMMON} for row in CANDIDATES]
    rows, text = printed_rows({"candidates": candidates, "reason": "r", "rule": "most_accurate"})
    assert [row[0] for row in rows] == [
        *("eval accuracy", "95% CI", "eval loss", "top-3 accuracy", "embedding (s)", "tuning (s)", "training (s)"),
        *("parameters", "size (MB)", "latency (ms)"),
    ]
    assert "OOF" not in text
