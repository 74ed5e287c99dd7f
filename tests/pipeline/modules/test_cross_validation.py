"""Each photo is predicted once, by a head that was fitted without it and without its near-duplicates."""

import numpy as np

from pipeline.modules import training
from pipeline.modules.cross_validation import FOLDS, assign_folds, out_of_fold_rows
from pipeline.modules.head import Records
from tests.pipeline.modules.test_head import BREEDS, NETWORK, SIZES, SOLVED, synthetic_records

NAMES = ["Fogbell", "Mosscoat", "Rex"]


def test_rows_are_predictions_of_heads_fitted_on_the_other_folds():
    splits, fitted = ["train"] * 60 + ["eval"] * 12, []

    refit = training.refitter(SIZES, BREEDS, SOLVED, 16, 0, seed=0)

    def fit(photos: Records, parts: list[np.ndarray]):
        fitted.extend({photos.content_hashes[row] for row in np.flatnonzero(part)} for part in parts)
        return refit(photos, parts)

    rows = out_of_fold_rows(synthetic_records(72, 0), splits, NAMES, fit)
    assert [row["split"] for row in rows] == splits
    assert len(fitted) == FOLDS
    for row in rows:
        assert [row["content_hash"].encode() in photos for photos in fitted] == [n != row["fold"] for n in range(FOLDS)]
        assert row["confidence"] == max(row["probabilities"])
        assert row["predicted"] == NAMES[row["probabilities"].index(row["confidence"])]
        assert row["probability"] == row["probabilities"][NAMES.index(row["breed"])]
        assert row["correct"] == (row["predicted"] == row["breed"])
    assert np.mean([row["correct"] for row in rows]) > 0.9


def test_photos_of_one_group_have_no_predictions():
    refit = training.refitter(SIZES, BREEDS, SOLVED, 16, 0, seed=0)
    (row,) = out_of_fold_rows(synthetic_records(1, 0), ["train"], NAMES, refit)
    assert row["probabilities"] == [0, 0, 0]


def test_a_network_is_refitted_from_the_start_for_the_given_number_of_epochs():
    photos = synthetic_records(80, 0)
    part = np.arange(80) < 40

    def predict(epochs: int, *parts: np.ndarray):
        fit = training.refitter(SIZES, BREEDS, NETWORK, 16, epochs, seed=0)
        return [head(photos.embeddings, training=False).numpy() for head in fit(photos, parts)][-1]

    alone = predict(2, part)
    np.testing.assert_array_equal(predict(2, ~part, part), alone)
    assert not np.array_equal(predict(3, part), alone)


def test_folds_keep_groups_together_and_spread_breeds_evenly():
    labels = np.repeat([0, 1, 2], [50, 11, 3])
    groups = [b"g%03d" % (number // 2 if number < 20 else number) for number in range(len(labels))]
    folds = assign_folds(labels, groups)
    for group in set(groups):
        assert len({fold for fold, name in zip(folds, groups, strict=True) if name == group}) == 1
    for label in range(3):
        fold_of_group = {g: f for g, f, other in zip(groups, folds, labels, strict=True) if other == label}
        counts = np.bincount(list(fold_of_group.values()), minlength=FOLDS)
        assert counts.max() - counts.min() <= 1
    order = np.random.default_rng(0).permutation(len(labels))
    np.testing.assert_array_equal(assign_folds(labels[order], [groups[i] for i in order]), folds[order])
