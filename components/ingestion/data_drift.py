"""Drift between the photos and the stable version's training photos, measured by the comparators of the schema."""

import os

import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import ExampleStatistics
from tfx.utils import io_utils

from serving.model_files import TRAIN_STATISTICS_FILE

_Statistics = statistics_pb2.DatasetFeatureStatisticsList


def train_statistics(statistics: ExampleStatistics) -> str:
    """Path of the TFDV statistics of the train split."""
    return io_utils.get_only_uri_in_dir(artifact_utils.get_split_uri([statistics], "train"))


def load_statistics(path: str) -> _Statistics:
    """Read TFDV statistics from a file."""
    with fileio.open(path, "rb") as file:
        return _Statistics.FromString(file.read())


def load_version_statistics(version_path: str) -> _Statistics | None:
    """Read the train statistics that are stored with a pushed version; None if it has none."""
    path = os.path.join(version_path, TRAIN_STATISTICS_FILE)
    return load_statistics(path) if fileio.exists(path) else None


def describe_drift(statistics: _Statistics, previous: _Statistics, schema: schema_pb2.Schema) -> list[str]:
    """Describe each feature whose distance between `statistics` and `previous` exceeds its threshold in `schema`."""
    anomalies = tfdv.validate_statistics(statistics, schema, previous_statistics=previous)
    warnings = []
    for info in anomalies.drift_skew_info:
        feature = info.path.step[0]
        for measure in info.drift_measurements:
            if measure.value > measure.threshold:
                warnings.append(
                    f"{feature} differs from the training photos of the stable version: {_describe_distance(measure)}; "
                    f"{_describe_change(feature, statistics, previous)}"
                )
    return warnings


def _describe_distance(measure: anomalies_pb2.DriftSkewInfo.Measurement) -> str:
    name = anomalies_pb2.DriftSkewInfo.Measurement.Type.Name(measure.type).lower().replace("_", " ")
    return f"{name} distance {measure.value:.2f}, threshold {measure.threshold:.2f}"


def _describe_change(feature: str, statistics: _Statistics, previous: _Statistics) -> str:
    new, old = _feature_statistics(feature, statistics), _feature_statistics(feature, previous)
    if new.HasField("string_stats"):
        shares, old_shares = _value_shares(new), _value_shares(old)
        values = sorted({*shares, *old_shares})
        value = max(values, key=lambda value: abs(shares.get(value, 0) - old_shares.get(value, 0)))
        return f"{value!r} is {shares.get(value, 0):.0%} of the photos, previously {old_shares.get(value, 0):.0%}"
    return f"the mean is {new.num_stats.mean:.0f}, previously {old.num_stats.mean:.0f}"


def _feature_statistics(name: str, statistics: _Statistics) -> statistics_pb2.FeatureNameStatistics:
    return next(feature for feature in statistics.datasets[0].features if feature.path.step[0] == name)


def _value_shares(feature: statistics_pb2.FeatureNameStatistics) -> dict[str, float]:
    buckets = feature.string_stats.rank_histogram.buckets
    total = sum(bucket.sample_count for bucket in buckets)
    return {bucket.label: bucket.sample_count / total for bucket in buckets}
