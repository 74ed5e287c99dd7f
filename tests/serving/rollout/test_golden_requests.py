"""Golden requests omit a set or a flag that another CPU could change, and nothing else."""

import pytest

from serving.precision import tolerances
from serving.rollout.golden_requests import GoldenRequest, golden_request

BREEDS = ["Birman", "Manx", "Sphynx"]


def golden(probabilities: list[float], unfamiliarity: float, precision: str = "float32", **explain) -> GoldenRequest:
    outputs = {
        "breeds": BREEDS,
        "probabilities": probabilities,
        "in_set": [probability >= explain["set_threshold"] for probability in probabilities],
        "unfamiliarity": unfamiliarity,
        "unfamiliar": unfamiliarity > explain["unfamiliar_threshold"],
    }
    return golden_request(b"photo", outputs, explain, tolerances({"backbone": {"precision": precision}}))


@pytest.mark.parametrize(
    ("probabilities", "threshold", "prediction_set"),
    [
        ([0.1, 0.6, 0.3], 0.25, ["Manx", "Sphynx"]),
        ([0.14, 0.6, 0.26], 0.25, None),
        ([0.001, 0.9, 0.099], 0.01, ["Manx", "Sphynx"]),
        ([0.006, 0.9, 0.094], 0.01, None),
    ],
)
def test_sets_of_breeds_far_from_the_threshold_are_checked(probabilities, threshold, prediction_set):
    request = golden(probabilities, 10.0, set_threshold=threshold, unfamiliar_threshold=100.0)
    assert request.prediction_set == prediction_set


@pytest.mark.parametrize(
    ("unfamiliarity", "threshold", "flag"),
    [(160.0, 100.0, True), (104.0, 100.0, None), (0.5, 0.3, None), (-0.5, 0.3, None), (4.0, 0.3, True)],
)
def test_flags_of_photos_far_from_the_threshold_are_checked(unfamiliarity, threshold, flag):
    request = golden([0.1, 0.6, 0.3], unfamiliarity, set_threshold=0.25, unfamiliar_threshold=threshold)
    assert request.unfamiliar == flag


def test_a_bfloat16_model_has_larger_tolerances():
    probabilities, thresholds = [0.12, 0.7, 0.18], {"set_threshold": 0.15, "unfamiliar_threshold": 100.0}
    request = golden(probabilities, 107.0, "float32", **thresholds)
    assert (request.prediction_set, request.unfamiliar) == (["Manx", "Sphynx"], True)
    request = golden(probabilities, 107.0, "bfloat16", **thresholds)
    assert (request.prediction_set, request.unfamiliar) == (None, None)
