"""Drift of the photos that a version answers: captured photos against its test photos.

Each numeric feature is divided into bins with equally many test photos, so that all features are categories. TFDV then
measures the distances: the largest difference in share (L-infinity) for the predicted breed and the flag for unfamiliar
photos, Jensen-Shannon divergence for the others.

The thresholds come from resamples: test photos and captured photos together are divided at random into two sets of the
same sizes, whose distances are what chance alone gives, since without drift both are samples of the same photos. The
quantile is that of the largest distance of a resample over all features (max-T permutation test, Westfall & Young,
1993), so that FALSE_ALARMS is the probability of any false alarm in a comparison, not in each feature. Resamples of the
test photos alone give wrong thresholds: when no test photo was of some rare category, 63% of simulated comparisons of
60 test photos with 50 photos without drift reported drift.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2

FALSE_ALARMS = 0.01
RESAMPLES = 500
# In simulations, a shift of brightness by a standard deviation was found in 90% and 100% of comparisons of 50 captured
# photos with 60 and 400 test photos, and in 55% and 65% of 30 captured photos.
MIN_PHOTOS = 50
_BINS = 5
_SCALE_QUANTILE = 0.95
_SEED = 0
# Below this, a threshold is rounding: a feature that never varies has the distance 0 in each resample.
_MIN_THRESHOLD = 1e-6

Rows = Sequence[Mapping[str, Any]]
_Statistics, _Dataset = statistics_pb2.DatasetFeatureStatisticsList, statistics_pb2.DatasetFeatureStatistics


class Feature(NamedTuple):
    """A compared feature.

    Attributes:
        name: Key in the rows.
        title: Name for people.
        is_category: Whether its values are categories, compared by L-infinity, or numbers.
        digits: Digits after the decimal point of its mean.
    """

    name: str
    title: str
    is_category: bool = False
    digits: int = 2


FEATURES = (
    Feature("predicted", "predicted breed", is_category=True),
    Feature("confidence", "confidence"),
    Feature("width", "width", digits=0),
    Feature("height", "height", digits=0),
    Feature("brightness", "brightness"),
    Feature("embedding_norm", "embedding norm"),
    Feature("unfamiliarity", "distance to training", digits=1),
    Feature("unfamiliar", "flagged as unfamiliar", is_category=True),
)


@dataclass(frozen=True)
class Check:
    """Comparison of one feature.

    Attributes:
        feature: The feature.
        distance: Distance between captured photos and test photos, 0 to 1.
        threshold: Distance that random divisions of all photos hardly exceed.
        sentence: The result in words.
    """

    feature: Feature
    distance: float
    threshold: float
    sentence: str

    @property
    def is_drift(self) -> bool:
        """Whether the distance exceeds the threshold."""
        return self.distance > self.threshold

    def document(self) -> dict[str, Any]:
        """Return the check as a JSON object."""
        return {
            "feature": self.feature.name,
            "title": self.feature.title,
            "distance": self.distance,
            "threshold": self.threshold,
            "drift": self.is_drift,
            "sentence": self.sentence,
        }


def compare(reference: Rows, captured: Rows, progress: Callable[[int], None] = lambda done: None) -> list[Check]:
    """Compare captured photos with test photos, feature by feature.

    Args:
        reference: Features of the test photos of the version, see `components.photo_features`.
        captured: Features of the captured photos.
        progress: Function that is called with the number of completed resamples.
    """
    features = _features(reference)
    columns = [np.array([row[feature.name] for row in (*reference, *captured)]) for feature in features]
    coded = [_coded(feature, column) for feature, column in zip(features, columns, strict=True)]
    photos = len(reference)
    distances = _distances(features, [(column[:photos], column[photos:]) for column in coded])
    thresholds = _thresholds(features, coded, photos, progress)
    return [
        Check(feature, distance, threshold, _sentence(feature, column[:photos], column[photos:], distance, threshold))
        for feature, column, distance, threshold in zip(features, columns, distances, thresholds, strict=True)
    ]


def _thresholds(
    features: Sequence[Feature], columns: Sequence[np.ndarray], photos: int, progress: Callable[[int], None]
) -> list[float]:
    """Return the threshold of each feature.

    A threshold is a multiple of the feature's own 95th percentile. The multiple is the same for all features: the share
    FALSE_ALARMS of the resamples exceeds it in any feature.

    Args:
        features: Features.
        columns: Values of all photos for each feature; categories are numbers from 0.
        photos: Number of test photos.
        progress: Function that is called with the number of completed resamples.
    """
    generator = np.random.default_rng(_SEED)
    resampled = np.empty([RESAMPLES, len(features)])
    for number in range(RESAMPLES):
        order = generator.permutation(len(columns[0]))
        first, second = order[:photos], order[photos:]
        resampled[number] = _distances(features, [(column[first], column[second]) for column in columns])
        progress(number + 1)
    scales = np.maximum(np.quantile(resampled, _SCALE_QUANTILE, axis=0), _MIN_THRESHOLD)
    factor = np.quantile((resampled / scales).max(axis=1), 1 - FALSE_ALARMS)
    return np.maximum(factor * scales, _MIN_THRESHOLD).tolist()


def _features(reference: Rows) -> list[Feature]:
    """Return the features of a version; without calibration, it has no flag."""
    return [feature for feature in FEATURES if feature.name in reference[0]]


def _coded(feature: Feature, values: np.ndarray) -> np.ndarray:
    """Replace categories by numbers."""
    return np.unique(values, return_inverse=True)[1] if feature.is_category else values


def _distances(features: Sequence[Feature], pairs: Sequence[Sequence[np.ndarray]]) -> list[float]:
    """Return the distance of each feature, as TFDV's drift comparators measure it.

    Args:
        features: Features.
        pairs: For each, the values of the test photos and of the captured photos; categories are numbers from 0.
    """
    schema = schema_pb2.Schema()
    old, new = (_Statistics(datasets=[_Dataset(num_examples=len(values))]) for values in pairs[0])
    for feature, (old_values, new_values) in zip(features, pairs, strict=True):
        comparator = schema.feature.add(name=feature.name, type=schema_pb2.BYTES).drift_comparator
        measure = comparator.infinity_norm if feature.is_category else comparator.jensen_shannon_divergence
        measure.threshold = 0  # so that TFDV reports every distance
        if not feature.is_category:
            edges = _bin_edges(old_values)
            old_values, new_values = np.searchsorted(edges, old_values), np.searchsorted(edges, new_values)
        _add_statistics(old.datasets[0], feature.name, old_values)
        _add_statistics(new.datasets[0], feature.name, new_values)
    anomalies = tfdv.validate_statistics(new, schema, previous_statistics=old)
    measured = {info.path.step[0]: info.drift_measurements[0].value for info in anomalies.drift_skew_info}
    return [measured[feature.name] for feature in features]


def _bin_edges(values: np.ndarray) -> np.ndarray:
    """Return the upper ends of the bins but the last. A frequent value, such as a usual width, has its own bin."""
    quantiles, counts = np.unique(np.quantile(values, np.arange(1, _BINS) / _BINS), return_counts=True)
    # A value that is several quantiles has photos below it and above it.
    return np.union1d(quantiles, np.nextafter(quantiles[counts > 1], -np.inf))


def _add_statistics(dataset: _Dataset, name: str, categories: np.ndarray) -> None:
    """Add the statistics of a feature: the parts that TFDV's comparators read."""
    feature = dataset.features.add(type=statistics_pb2.FeatureNameStatistics.STRING)
    feature.path.step.append(name)
    common = feature.string_stats.common_stats
    common.num_non_missing = common.tot_num_values = len(categories)
    common.min_num_values = common.max_num_values = 1
    counts = {str(label): count for label, count in enumerate(np.bincount(categories).tolist()) if count}
    feature.string_stats.unique = len(counts)
    for label, count in counts.items():
        feature.string_stats.rank_histogram.buckets.add(label=label, sample_count=count)


def _sentence(feature: Feature, old: np.ndarray, new: np.ndarray, distance: float, threshold: float) -> str:
    if feature.name == "predicted":
        shares = {breed: (float(np.mean(new == breed)), float(np.mean(old == breed))) for breed in {*old, *new}}
        breed = max(sorted(shares), key=lambda breed: abs(shares[breed][0] - shares[breed][1]))
        facts = f"{breed} {shares[breed][0]:.0%}, {shares[breed][1]:.0%} in test"
    elif feature.is_category:
        facts = f"{np.mean(new):.0%}, {np.mean(old):.0%} in test"
    else:
        facts = f"{np.mean(new):.{feature.digits}f} on average, {np.mean(old):.{feature.digits}f} in test"
    verdict = "drift" if distance > threshold else "no drift"
    return f"{feature.title}: {facts}; distance {distance:.3f}, threshold {threshold:.3f}: {verdict}"
