"""Out-of-fold predictions: each photo of train and eval is predicted by a head that was fitted without it.

They compare candidates on all these photos, about six times as many as the eval split has. The standardization of the
embeddings uses the statistics of train in every fold; it does not use labels.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from components import progress
from components.keras_config import keras
from pipeline.modules.head import Records

FOLDS = 5


def out_of_fold_rows(
    records: Records,
    splits: list[str],
    breeds: list[str],
    fit: Callable[[Records, Sequence[np.ndarray]], Iterator[keras.Model]],
) -> list[dict[str, Any]]:
    """Predict each photo with a head that was fitted on the photos of the other folds.

    Args:
        records: Photos.
        splits: Name of the split of each photo.
        breeds: Breeds in the order of the labels.
        fit: Function that fits heads on parts of the photos; see `pipeline.modules.training.refitter`.

    Returns:
        One row for each photo, in the order of `records`: content_hash, split, breed, fold, predicted, correct,
        confidence (probability of the predicted breed), probability (of the photo's breed), probabilities.
    """
    folds = assign_folds(records.labels, records.groups)
    probabilities = np.zeros((len(folds), len(breeds)), np.float32)
    held_out = [folds == fold for fold in np.unique(folds)]
    if len(held_out) > 1:  # one group of near-duplicates leaves no photos to fit a head on
        counter = progress.Counter("folds", len(held_out))
        for part, head in zip(held_out, fit(records, [~part for part in held_out]), strict=True):
            probabilities[part] = head(records.embeddings[part], training=False)
            counter.add()
    return [
        _row(*row, breeds)
        for row in zip(splits, records.content_hashes, records.labels, folds, probabilities, strict=True)
    ]


def assign_folds(labels: np.ndarray, groups: list[bytes], folds: int = FOLDS) -> np.ndarray:
    """Assign photos to folds 0, 1, ..., int64 [n], so that the folds have about equally many photos of each breed.

    The photos of a group are in one fold, because a near-duplicate of a photo would reveal its breed. The assignment
    does not depend on the order of the photos.

    Args:
        labels: Indices of the breeds, int64 [n].
        groups: IDs of the groups; the photos of a group have the same breed.
        folds: Number of folds.
    """
    ordered = sorted(set(zip(labels.tolist(), groups, strict=True)))
    fold = {group: position % folds for position, (_, group) in enumerate(ordered)}
    return np.array([fold[group] for group in groups])


def _row(
    split: str, content_hash: bytes, label: int, fold: int, probabilities: np.ndarray, breeds: list[str]
) -> dict[str, Any]:
    top = int(np.argmax(probabilities))
    return {
        "content_hash": content_hash.decode(),
        "split": split,
        "breed": breeds[label],
        "fold": int(fold),
        "predicted": breeds[top],
        "correct": top == int(label),
        "confidence": round(float(probabilities[top]), 6),
        "probability": round(float(probabilities[label]), 6),
        "probabilities": [round(float(value), 6) for value in probabilities],
    }
