"""Drift from the training photos of the stable version is reported with numbers that a user can verify."""

import pandas as pd
import pytest
import tensorflow_data_validation as tfdv
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from components.ingestion.data_drift import describe_drift, load_version_statistics
from pipeline.settings import ROOT
from serving.model_files import TRAIN_STATISTICS_FILE

SCHEMA = text_format.Parse((ROOT / "schemas/photos/schema.pbtxt").read_text(), schema_pb2.Schema())


def statistics_of(birmans: int, manx: int, width: int = 500, **features: str):
    """Statistics of the train split; `features` have one value for all photos."""
    count = birmans + manx
    columns = {"breed": ["Birman"] * birmans + ["Manx"] * manx, "width": [width + i % 50 for i in range(count)]}
    columns |= {name: [value] * count for name, value in features.items()}
    return tfdv.generate_statistics_from_dataframe(pd.DataFrame({**columns, "height": [300] * count}))


def test_equal_and_similar_statistics_give_no_warning():
    assert describe_drift(statistics_of(60, 40), statistics_of(60, 40), SCHEMA) == []
    assert describe_drift(statistics_of(64, 40), statistics_of(60, 40), SCHEMA) == []


def test_a_feature_that_the_stable_version_did_not_have_gives_no_warning():
    new = statistics_of(60, 40, near_duplicate_group="a")
    assert describe_drift(new, statistics_of(60, 40), SCHEMA) == []
    (warning,) = describe_drift(statistics_of(20, 80, near_duplicate_group="a"), statistics_of(60, 40), SCHEMA)
    assert "breed differs" in warning


def test_a_changed_share_of_a_breed_is_reported_with_both_shares():
    (warning,) = describe_drift(statistics_of(20, 80), statistics_of(60, 40), SCHEMA)
    assert "breed differs" in warning
    assert "distance 0.40, threshold 0.10" in warning
    assert warning.endswith(
        ("'Birman' is 20% of the photos, previously 60%", "'Manx' is 80% of the photos, previously 40%")
    )


def test_a_new_breed_is_reported():
    (warning,) = describe_drift(statistics_of(60, 40), statistics_of(100, 0), SCHEMA)
    assert "is 40% of the photos, previously 0%" in warning or "is 60% of the photos, previously 100%" in warning


def test_changed_sizes_are_reported_with_both_means():
    (warning,) = describe_drift(statistics_of(60, 40, width=1000), statistics_of(60, 40), SCHEMA)
    assert "width differs" in warning
    assert "the mean is 1024, previously 524" in warning


@pytest.mark.parametrize("exist", [True, False])
def test_statistics_stored_with_a_version_are_loaded_if_they_exist(tmp_path, exist):
    if exist:
        path = tmp_path / TRAIN_STATISTICS_FILE
        path.parent.mkdir()
        path.write_bytes(statistics_of(3, 4).SerializeToString())
    assert load_version_statistics(str(tmp_path)) == (statistics_of(3, 4) if exist else None)
