"""Prediction sets and the flag for unfamiliar photos, on synthetic embeddings with fewer photos than dimensions."""

import numpy as np
import pytest
import tensorflow as tf

from pipeline.modules.explanation import Explainer, RelativeMahalanobis

SIZE, BREEDS = 200, 3
RANDOM_BASIS = np.linalg.qr(np.random.default_rng(9).normal(size=(SIZE, 20)))[0].T


def synthetic_embeddings(photos: int, seed: int, other_scale: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and labels: photos vary in 20 directions, and by `other_scale` in all others."""
    random = np.random.default_rng(seed)
    labels = np.arange(photos) % BREEDS
    directions = random.normal(size=(photos, 20))
    directions[:, :BREEDS] += 4 * np.eye(BREEDS)[labels]
    embeddings = directions @ RANDOM_BASIS + other_scale * random.normal(size=(photos, SIZE))
    return embeddings.astype(np.float32), labels


def explainer(calibration_photos: int = 60, level: float = 0.9, unknown_breeds: int = 0) -> Explainer:
    evaluation, labels = synthetic_embeddings(calibration_photos, 1)
    probabilities = np.random.default_rng(2).dirichlet(np.ones(BREEDS), calibration_photos).astype(np.float32)
    labels[:unknown_breeds] = -1
    return Explainer(*synthetic_embeddings(80, 0), evaluation, labels, probabilities, level)


def test_photos_outside_of_the_train_photos_have_larger_distances():
    distance = RelativeMahalanobis(*synthetic_embeddings(80, 0))
    familiar = distance(tf.constant(synthetic_embeddings(300, 1)[0])).numpy()
    bound = np.quantile(familiar, 0.95)
    # In directions without variance in train, which are not among the principal components.
    elsewhere = synthetic_embeddings(300, 2, other_scale=1)[0]
    assert (distance(tf.constant(elsewhere)).numpy() > bound).mean() > 0.9
    # Far from all breeds in the directions that distinguish them.
    between = synthetic_embeddings(300, 3)[0] + 15 * RANDOM_BASIS[:BREEDS].sum(axis=0)
    assert (distance(tf.constant(between.astype(np.float32))).numpy() > bound).mean() > 0.9


def test_distances_are_deterministic_and_finite_with_one_photo_per_breed():
    embeddings, labels = synthetic_embeddings(BREEDS, 0)
    values = [RelativeMahalanobis(embeddings, labels)(tf.constant(embeddings)).numpy() for _ in range(2)]
    assert np.isfinite(values[0]).all()
    np.testing.assert_array_equal(*values)


def test_a_set_has_the_probable_breeds_and_always_the_most_probable():
    explain = explainer()
    threshold = explain.record["set_threshold"]
    assert 0 < threshold < 1 / BREEDS
    high, low = 1 - threshold, threshold / 2
    probabilities = tf.constant([[high, threshold, 0.0], [0.9, low, 0.1 - low], [0.0, 0.0, 1.0]], tf.float32)
    outputs = explain(tf.constant(synthetic_embeddings(3, 5)[0]), probabilities)
    assert outputs["in_set"].numpy()[0].tolist() == [True, True, False]
    assert outputs["in_set"].numpy()[1, :2].tolist() == [True, False]
    assert outputs["in_set"].numpy()[2].tolist() == [False, False, True]
    impossible = explainer(level=0.5)
    impossible.record["set_threshold"] = 0.99  # a threshold that no breed reaches
    outputs = impossible(tf.constant(synthetic_embeddings(1, 5)[0]), tf.constant([[0.3, 0.4, 0.3]]))
    assert outputs["in_set"].numpy().tolist() == [[False, True, False]]


def test_photos_of_a_breed_that_is_not_in_train_count_as_not_covered():
    assert explainer(unknown_breeds=3).record["set_threshold"] > 0
    assert explainer(unknown_breeds=12).record["set_threshold"] == 0  # 20% of them: no set of 90% can be smaller


def test_photos_are_flagged_at_the_calibrated_share():
    explain = explainer(calibration_photos=200, level=0.9)
    embeddings = tf.constant(synthetic_embeddings(1000, 3)[0])
    outputs = explain(embeddings, tf.fill([1000, BREEDS], 1 / BREEDS))
    assert outputs["unfamiliar"].numpy().mean() == pytest.approx(0.1, abs=0.06)
    np.testing.assert_array_equal(outputs["embedding"], embeddings)


def test_too_few_calibration_photos_give_distances_but_no_sets_and_no_flag():
    explain = explainer(calibration_photos=18, level=0.95)
    assert explain.record == {
        "level": 0.95,
        "calibration_photos": 18,
        "set_threshold": None,
        "unfamiliar_threshold": None,
    }
    outputs = explain(tf.constant(synthetic_embeddings(2, 5)[0]), tf.fill([2, BREEDS], 1 / BREEDS))
    assert outputs.keys() == {"embedding", "unfamiliarity"}
    assert explainer(calibration_photos=19, level=0.95).record["set_threshold"] is not None
