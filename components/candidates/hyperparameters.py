"""Hyperparameters of heads and the trials of a search, as people read them."""

from typing import Any

from components.file_names import TUNER_RESULTS_FILE
from components.json_files import read_json

KINDS = {"logistic_regression": "logistic regression", "network": "network"}
BLOCKS = {"last": "last block", "all": "all blocks"}
# Runs of earlier versions have neither key.
_DEFAULTS = {"kind": "network", "blocks": "last"}


def read_trials(uri: str) -> list[dict[str, Any]]:
    """Read the trials of a search, best first: score, hyperparameters with `kind` and `blocks`, and cost of each."""
    return [_DEFAULTS | trial for trial in read_json(uri, TUNER_RESULTS_FILE)]


def describe_hyperparameters(hyperparameters: dict[str, Any]) -> str:
    """Return the hyperparameters of a head in words.

    >>> describe_hyperparameters({"kind": "logistic_regression", "blocks": "all", "l2": 0.03})
    'logistic regression on all blocks, L2 penalty 0.03'
    """
    values = _DEFAULTS | hyperparameters
    article = "the " if values["blocks"] == "last" else ""
    head = f"{KINDS[values['kind']]} on {article}{BLOCKS[values['blocks']]}"
    if values["kind"] == "logistic_regression":
        return f"{head}, L2 penalty {values['l2']:g}"
    units = f"{values['units']} hidden units" if values["units"] else "no hidden units"
    return (
        f"{head}, {units}, dropout {values['dropout']:g}, learning rate {values['learning_rate']:.2g}, weight decay "
        f"{values['weight_decay']:g}"
    )
