"""Model card: every backbone of the model with its weights and their licence."""

import re

from components.conformal import explanation_metrics
from components.release.model_card import Statements, card_page, model_card

METRICS = {"photos": 9, "accuracy": 0.5, "accuracy_ci95": [0.2, 0.8], "top3_accuracy": 1.0, "loss": 1.0}
GATE = {
    "rules": {"min_slice": 1},
    "majority": {"breed": "Birman", "accuracy": 0.5},
    "candidate": {"balanced_accuracy": 0.5, "never_recognised": {}},
    "power": {"summary": "unknown"},
    **dict.fromkeys(("reasons", "comparison", "not_compared", "champion"), ()),
}
XCEPTION = {"architecture": "xception", "weights": "imagenet", "weights_digest": "x", "image_size": 299}
FROM_FILE = {
    "name": "lite2",
    "architecture": "lite2",
    "weights": "file",
    "weights_digest": "l",
    "image_size": 260,
    "precision": "bfloat16",
}


def card_of(backbone: dict, **metrics: dict | None) -> dict:
    counts = {"train": 3, "eval": 3, "test": 3}
    return model_card(
        "cats",
        1,
        Statements("a", "b", "c"),
        {
            "backbone": backbone,
            "parameters": 7,
            "hyperparameters": {"kind": "logistic_regression", "l2": 1},
            "breeds": ["Birman"],
        }
        | dict.fromkeys(("model_digest", "data_digest", "code_digest"), "d"),
        {"files": 9, "photos": 9, "breeds": {"Birman": counts}, "left_out": []},
        {"overall": METRICS, "breeds": {"Birman": METRICS}, "calibration": {"expected_calibration_error": 0.1}}
        | metrics,
        {"gate": GATE, **dict.fromkeys(("pushed_at", "run_id", "commit", "model_uri"), "")},
    )


def test_the_card_lists_each_backbone_with_its_licence():
    combined = {
        "architecture": "xception+lite2",
        "weights_digest": "c",
        "parts": [XCEPTION | {"name": "xception", "licence": "MIT, as published"}, FROM_FILE | {"licence": "CC0 & BY"}],
    }
    card = card_of(combined)
    assert [(part["name"], part["licence"], part["image_size"]) for part in card["model"]["backbones"]] == [
        ("xception", "MIT, as published", 299),
        ("lite2", "CC0 & BY", 260),
    ]
    text = " ".join(re.sub(r"<[^>]*>", " ", card_page(card)).split())
    for part in (
        "xception input of 299 × 299 pixels, computed in float32; weights: imagenet; licence of the weights: MIT, as",
        "lite2 input of 260 × 260 pixels, computed in bfloat16; weights: file; licence of the weights: CC0 &amp; BY",
    ):
        assert part in text


def test_a_record_from_before_backbones_had_a_licence_has_that_of_its_architecture():
    (backbone,) = card_of(XCEPTION)["model"]["backbones"]
    assert backbone["name"] == "xception"
    assert backbone["licence"].startswith("MIT, as published with Keras; trained on ImageNet")


def test_random_weights_of_any_backbone_are_a_limitation():
    parts = [FROM_FILE | {"licence": "CC0"}, XCEPTION | {"weights": "random"}]
    combined = {"architecture": "lite2+xception", "weights_digest": "c", "parts": parts}
    assert card_of(combined)["limits"][0].startswith("A backbone has random weights")
    assert not card_of(FROM_FILE | {"licence": "CC0"})["limits"][0].startswith("A backbone has random weights")


def test_the_card_states_coverage_and_size_of_prediction_sets_and_the_share_of_flagged_photos():
    explain = {"level": 0.95, "calibration_photos": 40, "set_threshold": 0.1, "unfamiliar_threshold": 3.0}
    rows = [{"in_set": True, "set_size": 2, "unfamiliar": False}] * 9
    card = card_of(XCEPTION, explain=explanation_metrics(explain, 3, rows))
    text = card_page(card)
    assert "Prediction sets of level 95% contained the right breed for 9 of 9 test photos (100.0%" in text
    assert "0 of 9 test photos (0.0%, 95% CI 0.0% to 29.9%) were flagged as unlike all training photos" in text
    assert any("misses most cats of other breeds" in limit for limit in card["limits"])


def test_the_card_of_a_model_without_prediction_sets_says_why():
    explain = {"level": 0.95, "calibration_photos": 4, "set_threshold": None, "unfamiliar_threshold": None}
    card = card_of(XCEPTION, explain=explanation_metrics(explain, 3, [{}]))
    assert "No prediction sets and no flag for unfamiliar photos: 4 eval photos" in card_page(card)
    assert not any("flag" in limit for limit in card["limits"])
    assert card["model"]["output"] == "a probability for each breed"
