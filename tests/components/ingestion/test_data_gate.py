"""DataGate: data that is insufficient for training stops the run; smaller gaps give warnings."""

import json
from pathlib import Path

import pytest
import tensorflow_data_validation as tfdv
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import ExampleAnomalies, ExampleStatistics, Schema

from components.artifacts import DataVerdict, IngestReport
from components.errors import DataError
from components.ingestion.data_gate import DataGate
from pipeline.settings import ROOT
from serving.model_files import MODEL_RECORD_FILE

SPLITS = ("train", "eval", "test")
VALID_COUNTS = {"Birman": (7, 2, 1), "Sphynx": (6, 1, 3)}


def statistics(photos: int, width: int) -> statistics_pb2.DatasetFeatureStatisticsList:
    """TFDV statistics of photos that match the schema except, possibly, for their width."""
    common = {"num_non_missing": photos, "min_num_values": 1, "max_num_values": 1, "avg_num_values": 1.0}
    dataset = statistics_pb2.DatasetFeatureStatistics(num_examples=photos)
    for name in ("image_bytes", "breed", "path", "content_hash", "near_duplicate_group"):
        feature = dataset.features.add(type=statistics_pb2.FeatureNameStatistics.STRING)
        feature.path.step.append(name)
        feature.string_stats.common_stats.MergeFrom(statistics_pb2.CommonStatistics(**common))
    for name, value in {"width": width, "height": 100}.items():
        feature = dataset.features.add(type=statistics_pb2.FeatureNameStatistics.INT)
        feature.path.step.append(name)
        feature.num_stats.common_stats.MergeFrom(statistics_pb2.CommonStatistics(**common))
        feature.num_stats.min = feature.num_stats.max = value
    return statistics_pb2.DatasetFeatureStatisticsList(datasets=[dataset])


class Gate:
    """DataGate with inputs in the format of the upstream components."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.schema = text_format.Parse((ROOT / "schemas/photos/schema.pbtxt").read_text(), schema_pb2.Schema())
        self.settings = {"max_bad_share": 0.25, "min_photos_per_breed": 3}

    def run(
        self,
        breeds: dict[str, tuple[int, int, int]],
        widths: dict[str, int] | None = None,
        unusable: list[dict] | None = None,
        warnings: tuple[str, ...] = (),
        stable: str = "",
    ) -> dict:
        artifacts = {
            "anomalies": ExampleAnomalies(),
            "statistics": ExampleStatistics(),
            "schema": Schema(),
            "report": IngestReport(),
            "verdict": DataVerdict(),
        }
        for name, artifact in artifacts.items():
            artifact.uri = str(self._folder / name)
        for name, file in (("anomalies", "SchemaDiff.pb"), ("statistics", "FeatureStats.pb")):
            artifacts[name].split_names = artifact_utils.encode_split_names(list(SPLITS))
            for split in SPLITS:
                photo_statistics = statistics(10, (widths or {}).get(split, 100))
                proto = (
                    photo_statistics
                    if name == "statistics"
                    else tfdv.validate_statistics(photo_statistics, self.schema)
                )
                self._write(Path(artifact_utils.get_split_uri([artifacts[name]], split)) / file, proto)
        self._write(self._folder / "schema" / "schema.pbtxt", self.schema)
        counts = {breed: dict(zip(SPLITS, numbers, strict=True)) for breed, numbers in breeds.items()}
        photos = [
            {"path": f"{split}/{side}.jpg", "split": split, "width": side, "height": 100}
            for split, side in (widths or {}).items()
        ]
        files = sum(map(sum, breeds.values())) + len(unusable or [])
        summary = {"breeds": counts, "left_out": unusable or [], "files": files, "warnings": list(warnings)}
        self._write(self._folder / "report/report.json", summary)
        self._write(self._folder / "report/photos.jsonl", *photos, *(unusable or []))
        DataGate.test_call(
            **artifacts,
            schema_file="my schemas/schema.pbtxt",
            registry=str(self._folder / "serving"),
            stable=stable,
            code_digest="",
            **self.settings,
        )
        return json.loads((self._folder / "verdict" / "verdict.json").read_text())

    @staticmethod
    def _write(path: Path, *documents) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".pb":
            path.write_bytes(documents[0].SerializeToString())
        else:
            to_text = text_format.MessageToString if path.suffix == ".pbtxt" else json.dumps
            path.write_text("".join(f"{to_text(document)}\n" for document in documents))


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def test_valid_data_passes_without_warnings(gate):
    assert gate.run(VALID_COUNTS) == {"passed": True, "warnings": []}


@pytest.mark.parametrize(
    ("breeds", "messages"),
    [
        ({"Birman": (7, 2, 1)}, ["only 1 breed (Birman)"]),
        ({**VALID_COUNTS, "Manx": (0, 3, 3)}, ["breed 'Manx' has no photos in the train split", "split.seed"]),
        ({"Birman": (7, 0, 3), "Sphynx": (7, 0, 3)}, ["the eval split has no photos", "split.eval"]),
        ({"Birman": (7, 3, 0), "Sphynx": (7, 3, 0)}, ["the test split has no photos", "split.test"]),
        (
            {"Manx": (0, 4, 0)},
            ["only 1 breed (Manx)", "'Manx' has no photos in the train split", "the test split has no photos"],
        ),
    ],
    ids=["single breed", "breed without train", "empty eval", "empty test", "everything"],
)
def test_data_that_is_insufficient_for_training_stops_the_run(gate, tmp_path, breeds, messages):
    with pytest.raises(DataError) as caught:
        gate.run(breeds)
    lines = str(caught.value).splitlines()
    assert lines[0] == "the data cannot be used:"
    for part in messages:
        assert any(part in line for line in lines[1:]), part
    assert "Sphynx" not in str(caught.value)
    assert not (tmp_path / "verdict").exists()


@pytest.mark.parametrize(("split", "counts"), [("eval", (7, 0, 2)), ("test", (7, 2, 0))])
def test_a_breed_that_is_missing_from_eval_or_test_gives_a_warning(gate, split, counts):
    verdict = gate.run({**VALID_COUNTS, "Manx": counts, "Bombay": counts})
    assert verdict["passed"]
    assert verdict["warnings"] == [f"the {split} split has no photos of Manx, Bombay; it gives no metrics for them"]


@pytest.mark.parametrize("split", SPLITS)
def test_photos_outside_the_size_limits_of_the_schema_stop_the_run_and_are_listed(gate, split):
    with pytest.raises(DataError, match="1 photo has a width outside 32 to 8192 pixels") as caught:
        gate.run(VALID_COUNTS, widths={split: 16})
    assert str(caught.value).splitlines()[2:] == [f"    {split}/16.jpg: 16"]


def test_other_anomalies_are_reported_with_the_message_of_tfdv_and_the_split(gate):
    feature = next(feature for feature in gate.schema.feature if feature.name == "height")
    feature.name = "depth"
    with pytest.raises(DataError, match=r"train photos, feature 'depth': .*relax the schema"):
        gate.run(VALID_COUNTS)


def test_a_breed_that_is_not_in_the_schema_stops_the_run_with_a_remedy(gate):
    breed = next(feature for feature in gate.schema.feature if feature.name == "breed")
    breed.string_domain.value.extend(["Birman", "Bombay"])
    with pytest.raises(DataError) as caught:
        gate.run(VALID_COUNTS)
    assert str(caught.value).splitlines()[1:] == [
        "  breed 'Sphynx' is not in my schemas/schema.pbtxt; add it with "
        "`catbreeds schema update --data PHOTOS --schema 'my schemas'` or remove the folder"
    ]


def unusable_files(count: int, kind: str = "damaged") -> list[dict]:
    return [
        {"path": f"Birman/{number:02}.jpg", "breed": "Birman", "kind": kind, "reason": "no photo"}
        for number in range(count)
    ]


def test_too_many_unusable_files_stop_the_run_and_the_first_ten_are_listed(gate):
    with pytest.raises(
        DataError, match=r"13 of 33 files cannot be used, more than ingest.max_unusable_share=0.25"
    ) as caught:
        gate.run(VALID_COUNTS, unusable=unusable_files(13))
    assert str(caught.value).count("Birman/") == 10
    assert "... and 3 more" in str(caught.value)


@pytest.mark.parametrize(
    "unusable", [unusable_files(6), unusable_files(60, "duplicate"), unusable_files(60, "near_duplicate")]
)
def test_few_unusable_files_and_any_number_of_duplicates_pass(gate, unusable):
    assert gate.run(VALID_COUNTS, unusable=unusable)["passed"]


def test_a_breed_with_too_few_photos_stops_the_run(gate):
    with pytest.raises(
        DataError, match=r"breed 'Manx' has 2 photos, fewer than ingest.min_photos_per_breed=3"
    ) as caught:
        gate.run({**VALID_COUNTS, "Manx": (0, 1, 1)})
    assert len(str(caught.value).splitlines()) == 2


def test_all_problems_are_reported_together(gate):
    with pytest.raises(DataError) as caught:
        gate.run({**VALID_COUNTS, "Manx": (0, 1, 1)}, widths={"train": 16, "test": 10_000}, unusable=unusable_files(20))
    message = str(caught.value)
    for part in ("20 of 42", "'Manx' has 2", "2 photos have a width", "train/16.jpg: 16", "test/10000.jpg: 10000"):
        assert part in message


def test_a_breed_without_usable_photos_stops_the_run_and_its_excluded_files_are_counted(gate):
    unusable = [{**row, "breed": "Manx"} for row in [*unusable_files(2), *unusable_files(1, "not_an_image")]]
    with pytest.raises(
        DataError, match=r"breed 'Manx' has 0 photos \(excluded: 1 not an image, 2 damaged\), fewer than"
    ):
        gate.run({**VALID_COUNTS, "Manx": (0, 0, 0)}, unusable=unusable)


def test_warnings_of_ingestion_are_passed_on(gate):
    assert gate.run(VALID_COUNTS, warnings=("read as one set",))["warnings"] == ["read as one set"]


OTHER_SPELLINGS = ["birman", "BIRMAN", " Birman", "Birman ", "Birma\u200bn", "\uff22irman"]


@pytest.mark.parametrize("other", OTHER_SPELLINGS, ids=ascii)
def test_a_breed_that_the_schema_spells_differently_stops_the_run(gate, other):
    breed = next(feature for feature in gate.schema.feature if feature.name == "breed")
    breed.string_domain.value.extend([other, "Sphynx"])
    with pytest.raises(DataError) as caught:
        gate.run(VALID_COUNTS)
    assert f"breed 'Birman' is spelled {other!a} in my schemas/schema.pbtxt; rename the folder" in str(caught.value)
    assert "add it with" not in str(caught.value)


@pytest.mark.parametrize("other", OTHER_SPELLINGS, ids=ascii)
def test_a_schema_with_two_spellings_of_a_breed_stops_the_run(gate, other):
    breed = next(feature for feature in gate.schema.feature if feature.name == "breed")
    breed.string_domain.value.extend(["Birman", "Sphynx", other])
    with pytest.raises(DataError, match="are spellings of the same breed; keep one") as caught:
        gate.run(VALID_COUNTS)
    assert " and ".join(map(ascii, sorted(["Birman", other]))) in str(caught.value)


@pytest.mark.parametrize("other", OTHER_SPELLINGS, ids=ascii)
def test_a_breed_that_the_stable_version_spells_differently_stops_the_run(gate, tmp_path, other):
    record = tmp_path / "serving" / "1" / MODEL_RECORD_FILE
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"breeds": [other, "Sphynx"]}))
    with pytest.raises(DataError, match="in stable version 1; rename the folder") as caught:
        gate.run(VALID_COUNTS, stable="1@")
    assert f"breed 'Birman' is spelled {other!a}" in str(caught.value)
