"""What a prediction leaves open: the breeds that the photo may show, and whether it resembles the train photos."""

from typing import Any

import numpy as np
import tensorflow as tf
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA

from components.conformal import conformal_quantile

_MAX_COMPONENTS = 64
_PHOTOS_PER_COMPONENT = 4
_BATCH = 1024  # photos that are processed at a time
_EPSILON = 1e-6  # added to the variances, relative to their mean; few photos may have none in some directions


class RelativeMahalanobis(tf.Module):
    """Relative Mahalanobis distance of embeddings to the embeddings of train (Ren et al., arXiv:2106.09022, 2021).

    The distance to the nearest breed, whose covariance all breeds share, minus the distance to the Gaussian of all
    photos. With fewer photos than dimensions, both covariances must be shrunk, and equally in all directions without
    train photos: shrinking each on its own (Ledoit & Wolf, 2004) reverses the sign of the difference. Both therefore
    have the form of probabilistic PCA (Tipping & Bishop, 1999): a matrix for the leading principal components of all
    photos, shrunk with Ledoit and Wolf's estimate, and one variance for all other dimensions.

    Measured with Xception on 480 photos of 12 breeds, 340 of them in train: at a threshold that accepts 95% of the
    cats, 0.5% of 126 photos without cats are accepted, on average over several divisions into train and eval (20%
    without the other dimensions). Cats of a breed that is not
    in train are hardly recognized: 13% of them are rejected (AUROC 0.74).

    Args:
        embeddings: Standardized embeddings of train, float32 [n, d], d at least 2.
        labels: Indices of their breeds, int64 [n].
    """

    def __init__(self, embeddings: np.ndarray, labels: np.ndarray):
        super().__init__()
        photos, size = embeddings.shape
        components = max(1, min(_MAX_COMPONENTS, photos // _PHOTOS_PER_COMPONENT, size - 1))
        pca = PCA(components, svd_solver="randomized", random_state=0).fit(embeddings)
        breeds, labels = np.unique(labels, return_inverse=True)
        breed_means = np.stack([embeddings[labels == breed].mean(axis=0) for breed in range(len(breeds))])
        projection = pca.components_.T
        total, total_squares = _project(embeddings, pca.mean_[np.newaxis], np.zeros_like(labels), projection)
        within, within_squares = _project(embeddings, breed_means, labels, projection)

        def other_variance(projected: np.ndarray, squares: float) -> float:
            """Mean variance of the dimensions outside of the principal components."""
            return (squares - np.sum(projected**2)) / (photos * (size - components))

        floor = _EPSILON * total_squares / embeddings.size
        within_whitening = _whitening(within, floor)
        total_other, within_other = other_variance(total, total_squares), other_variance(within, within_squares)
        self._mean = _constant(pca.mean_)
        self._projection = _constant(projection)
        self._within_whitening = _constant(within_whitening)
        self._total_whitening = _constant(_whitening(total, floor))
        self._breed_means = _constant((breed_means - pca.mean_) @ projection @ within_whitening)
        self._other_weight = _constant(1 / (within_other + floor) - 1 / (total_other + floor))

    def __call__(self, embeddings: tf.Tensor) -> tf.Tensor:
        """Return the distance of each embedding: float32 [n, d] -> float32 [n]."""
        centered = embeddings - self._mean
        projected = centered @ self._projection
        other = tf.reduce_sum(centered**2, axis=1) - tf.reduce_sum(projected**2, axis=1)
        to_breeds = (projected @ self._within_whitening)[:, tf.newaxis] - self._breed_means
        nearest = tf.reduce_min(tf.reduce_sum(to_breeds**2, axis=2), axis=1)
        overall = tf.reduce_sum((projected @ self._total_whitening) ** 2, axis=1)
        return nearest - overall + other * self._other_weight


def _project(
    embeddings: np.ndarray, means: np.ndarray, rows: np.ndarray, projection: np.ndarray
) -> tuple[np.ndarray, float]:
    """Project deviations from means, [n, k], and sum the squares of all deviations, without a copy of the embeddings.

    Args:
        embeddings: Embeddings, float32 [n, d].
        means: Means, float32 [m, d].
        rows: Row of `means` for each embedding, int64 [n].
        projection: Principal components, float32 [d, k].
    """
    projected, squares = np.empty([len(embeddings), projection.shape[1]], np.float32), 0.0
    for start in range(0, len(embeddings), _BATCH):
        part = slice(start, start + _BATCH)
        deviations = embeddings[part] - means[rows[part]]
        projected[part] = deviations @ projection
        squares += float(np.sum(deviations**2))
    return projected, squares


def _whitening(deviations: np.ndarray, floor: float) -> np.ndarray:
    """Matrix W for which the squared length of x @ W is the squared Mahalanobis distance of x.

    Args:
        deviations: Deviations from the means, [n, k].
        floor: Variance added in each direction.
    """
    covariance, _ = ledoit_wolf(deviations, assume_centered=True)
    return np.linalg.cholesky(np.linalg.inv(covariance + floor * np.eye(len(covariance))))


def _constant(values: np.ndarray | float) -> tf.Variable:
    # Not `tf.constant`, which a SavedModel stores in its graph, whose size is limited.
    return tf.Variable(values, trainable=False, dtype=tf.float32)


def set_threshold(probabilities: np.ndarray, labels: np.ndarray, level: float) -> float | None:
    """Return the least probability of a breed in a prediction set, by split conformal prediction.

    The score of a photo is 1 - p (Sadinle et al., JASA 2019).

    Args:
        probabilities: Probabilities of the calibration photos, float32 [n, breeds].
        labels: Indices of their breeds, int64 [n]; -1 for a breed without probabilities, which no set contains.
        level: Share of photos whose set contains the breed, between 0 and 1.

    Returns:
        The threshold; None with fewer photos than `components.conformal.min_calibration_photos`.
    """
    of_breed = np.where(labels < 0, 0, probabilities[np.arange(len(labels)), labels])
    score = conformal_quantile(-of_breed, level)  # -p and 1 - p have the same order, and -p is exact
    return None if score is None else -score


def prediction_sets(probabilities: tf.Tensor, threshold: float) -> tf.Tensor:
    """Return whether each breed is in the prediction set of a photo: float32 [n, breeds] -> bool [n, breeds].

    A set has the breeds whose probability reaches the threshold, and always the most probable breed. Sets without that
    rule would be smaller; they would sometimes be empty, which tells a user nothing.
    """
    best = tf.reduce_max(probabilities, axis=1, keepdims=True)
    return probabilities >= tf.minimum(best, threshold)


class Explainer(tf.Module):
    """Prediction sets and the flag for unfamiliar photos, for the embeddings and probabilities of a trained head.

    The `prediction_sets` of at least the share `level` of new photos of the breeds contain the right breed.
    A photo is unfamiliar if its `RelativeMahalanobis` exceeds a bound that the share `level` of cats does not exceed.

    Args:
        train_embeddings: Standardized embeddings of train, float32 [n, d].
        train_labels: Indices of their breeds, int64 [n].
        eval_embeddings: Standardized embeddings of eval, float32 [m, d]. Both thresholds are calibrated on them.
        eval_labels: Indices of their breeds, int64 [m]; -1 for a breed that is not in train.
        eval_probabilities: Probabilities that the head returns for them, float32 [m, breeds].
        level: Share of the photos, between 0 and 1.

    Attributes:
        record: level, calibration_photos, set_threshold (least probability of a breed in a set) and
            unfamiliar_threshold (largest distance of a familiar photo); a threshold is None with fewer than
            `components.conformal.min_calibration_photos` photos.
    """

    def __init__(
        self,
        train_embeddings: np.ndarray,
        train_labels: np.ndarray,
        eval_embeddings: np.ndarray,
        eval_labels: np.ndarray,
        eval_probabilities: np.ndarray,
        level: float,
    ):
        super().__init__()
        self._distance = RelativeMahalanobis(train_embeddings, train_labels)
        self.record: dict[str, Any] = {
            "level": level,
            "calibration_photos": len(eval_labels),
            "set_threshold": set_threshold(eval_probabilities, eval_labels, level),
            "unfamiliar_threshold": conformal_quantile(self._distances(eval_embeddings), level),
        }

    def _distances(self, embeddings: np.ndarray) -> np.ndarray:
        parts = np.split(embeddings, range(_BATCH, len(embeddings), _BATCH))  # the distances to all breeds are large
        return np.concatenate([self._distance(tf.constant(part)).numpy() for part in parts])

    def __call__(self, embeddings: tf.Tensor, probabilities: tf.Tensor) -> dict[str, tf.Tensor]:
        """Explain the predictions of a head.

        Args:
            embeddings: Standardized embeddings, float32 [n, d].
            probabilities: Probabilities that the head returns for them, float32 [n, breeds].

        Returns:
            embedding: `embeddings`.
            unfamiliarity: Relative Mahalanobis distance, float32 [n].
            unfamiliar: Whether it exceeds the threshold, bool [n]; absent without a threshold.
            in_set: Whether the breed is in the prediction set, bool [n, breeds]; absent without a threshold.
        """
        unfamiliarity = self._distance(embeddings)
        outputs = {"embedding": embeddings, "unfamiliarity": unfamiliarity}
        if (bound := self.record["unfamiliar_threshold"]) is not None:
            outputs["unfamiliar"] = unfamiliarity > bound
        if (threshold := self.record["set_threshold"]) is not None:
            outputs["in_set"] = prediction_sets(probabilities, threshold)
        return outputs
