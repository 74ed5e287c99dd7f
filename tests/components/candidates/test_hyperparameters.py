"""Hyperparameters and trials of all versions of this project are read and described."""

import json

import pytest

from components.candidates.hyperparameters import describe_hyperparameters, read_trials

NETWORK = {"units": 50, "dropout": 0.5, "learning_rate": 0.00123, "weight_decay": 0.001}


def test_trials_of_earlier_versions_are_networks_on_the_last_block(tmp_path):
    solved = {"kind": "logistic_regression", "blocks": "all", "l2": 0.1, "score": 0.4}
    (tmp_path / "tuner_results.json").write_text(json.dumps([solved, {**NETWORK, "score": 0.5}]), encoding="utf-8")
    assert read_trials(str(tmp_path)) == [solved, {"kind": "network", "blocks": "last", **NETWORK, "score": 0.5}]


@pytest.mark.parametrize(
    ("hyperparameters", "description"),
    [
        (
            {"kind": "logistic_regression", "blocks": "last", "l2": 0.003},
            "logistic regression on the last block, L2 penalty 0.003",
        ),
        (
            {"kind": "network", "blocks": "all", **NETWORK},
            "network on all blocks, 50 hidden units, dropout 0.5, learning rate 0.0012, weight decay 0.001",
        ),
        (
            {**NETWORK, "units": 0},
            "network on the last block, no hidden units, dropout 0.5, learning rate 0.0012, weight decay 0.001",
        ),
    ],
)
def test_description_states_kind_blocks_and_values(hyperparameters, description):
    assert describe_hyperparameters(hyperparameters) == description
