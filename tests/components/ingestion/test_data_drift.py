"""Drift against the photos of the model in service is told in numbers that a person can check."""

import pandas as pd
import pytest
import tensorflow_data_validation as tfdv
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from components.ingestion.data_drift import describe_drift, load_version_statistics
from pipeline.settings import ROOT
from serving.model_files import TRAIN_STATISTICS_FILE

SCHEMA = text_format.Parse((ROOT / "schemas/photos/schema.pbtxt").read_text(), schema_pb2.Schema())


def photos(birmans: int, manx: int, width: int = 500):
    count = birmans + manx
    columns = {"breed": ["Birman"] * birmans + ["Manx"] * manx, "width": [width + i % 50 for i in range(count)]}
    return tfdv.generate_statistics_from_dataframe(pd.DataFrame({**columns, "height": [300] * count}))


def test_the_same_photos_and_nearly_the_same_have_not_drifted():
    assert describe_drift(photos(60, 40), photos(60, 40), SCHEMA) == []
    assert describe_drift(photos(64, 40), photos(60, 40), SCHEMA) == []


def test_another_share_of_a_breed_is_told_with_both_shares():
    (sentence,) = describe_drift(photos(20, 80), photos(60, 40), SCHEMA)
    assert "breed differs" in sentence
    assert "distance 0.40, threshold 0.10" in sentence
    assert sentence.endswith(
        ("'Birman' is 20% of the photos, previously 60%", "'Manx' is 80% of the photos, previously 40%")
    )


def test_a_new_breed_is_told():
    (sentence,) = describe_drift(photos(60, 40), photos(100, 0), SCHEMA)
    assert "is 40% of the photos, previously 0%" in sentence or "is 60% of the photos, previously 100%" in sentence


def test_other_sizes_are_told_with_both_means():
    (sentence,) = describe_drift(photos(60, 40, width=1000), photos(60, 40), SCHEMA)
    assert "width differs" in sentence
    assert "the mean is 1024, previously 524" in sentence


@pytest.mark.parametrize("written", [True, False])
def test_the_statistics_lie_beside_the_model_or_there_are_none(tmp_path, written):
    if written:
        path = tmp_path / TRAIN_STATISTICS_FILE
        path.parent.mkdir()
        path.write_bytes(photos(3, 4).SerializeToString())
    assert load_version_statistics(str(tmp_path)) == (photos(3, 4) if written else None)
