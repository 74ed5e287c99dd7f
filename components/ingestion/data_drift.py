"""How far the photos have drifted from those that the model in service learned from, by the schema's comparators."""

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
    """Path of TFDV's statistics of the train split."""
    return io_utils.get_only_uri_in_dir(artifact_utils.get_split_uri([statistics], "train"))


def load_statistics(path: str) -> _Statistics:
    """TFDV's statistics in a file."""
    with fileio.open(path, "rb") as file:
        return _Statistics.FromString(file.read())


def champion_statistics(version_path: str) -> _Statistics | None:
    """Statistics of the train split of a pushed version, None where it has none."""
    path = os.path.join(version_path, TRAIN_STATISTICS_FILE)
    return load_statistics(path) if fileio.exists(path) else None


def describe_drift(statistics: _Statistics, champion: _Statistics, schema: schema_pb2.Schema) -> list[str]:
    """A sentence for each feature whose distance to the champion's data is above its threshold in `schema`."""
    found = tfdv.validate_statistics(statistics, schema, previous_statistics=champion)
    sentences = []
    for info in found.drift_skew_info:
        feature = info.path.step[0]
        for measure in info.drift_measurements:
            if measure.value > measure.threshold:
                sentences.append(
                    f"{feature} differs from the photos that the model in service learned from: {_distance(measure)}; "
                    f"{_change(feature, statistics, champion)}"
                )
    return sentences


def _distance(measure: anomalies_pb2.DriftSkewInfo.Measurement) -> str:
    name = anomalies_pb2.DriftSkewInfo.Measurement.Type.Name(measure.type).lower().replace("_", " ")
    return f"{name} distance {measure.value:.2f}, above {measure.threshold:.2f}"


def _change(feature: str, statistics: _Statistics, champion: _Statistics) -> str:
    now, then = _feature(feature, statistics), _feature(feature, champion)
    if now.HasField("string_stats"):
        shares, before = _shares(now), _shares(then)
        most = max(sorted({*shares, *before}), key=lambda value: abs(shares.get(value, 0) - before.get(value, 0)))
        return f"{most!r} is {shares.get(most, 0):.0%} of them now, it was {before.get(most, 0):.0%}"
    return f"mean {now.num_stats.mean:.0f} now, it was {then.num_stats.mean:.0f}"


def _feature(name: str, statistics: _Statistics) -> statistics_pb2.FeatureNameStatistics:
    return next(feature for feature in statistics.datasets[0].features if feature.path.step[0] == name)


def _shares(feature: statistics_pb2.FeatureNameStatistics) -> dict[str, float]:
    buckets = feature.string_stats.rank_histogram.buckets
    total = sum(bucket.sample_count for bucket in buckets)
    return {bucket.label: bucket.sample_count / total for bucket in buckets}
