"""DataGate: data that cannot be learnt from stops the run by name, thin spots only warn."""

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
GOOD = {"Birman": (7, 2, 1), "Sphynx": (6, 1, 3)}


def statistics(photos: int, width: int) -> statistics_pb2.DatasetFeatureStatisticsList:
    """What TFDV gathers from photos that are as the schema says, but for their width."""
    whole = {"num_non_missing": photos, "min_num_values": 1, "max_num_values": 1, "avg_num_values": 1.0}
    dataset = statistics_pb2.DatasetFeatureStatistics(num_examples=photos)
    for name in ("image_bytes", "breed", "path", "content_hash"):
        feature = dataset.features.add(type=statistics_pb2.FeatureNameStatistics.STRING)
        feature.path.step.append(name)
        feature.string_stats.common_stats.MergeFrom(statistics_pb2.CommonStatistics(**whole))
    for name, value in {"width": width, "height": 100}.items():
        feature = dataset.features.add(type=statistics_pb2.FeatureNameStatistics.INT)
        feature.path.step.append(name)
        feature.num_stats.common_stats.MergeFrom(statistics_pb2.CommonStatistics(**whole))
        feature.num_stats.min = feature.num_stats.max = value
    return statistics_pb2.DatasetFeatureStatisticsList(datasets=[dataset])


class Gate:
    """Calls the component with what the components before it would have written."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.schema = text_format.Parse((ROOT / "schemas/photos/schema.pbtxt").read_text(), schema_pb2.Schema())
        self.rules = {"max_bad_share": 0.25, "min_photos_per_breed": 3}

    def judge(
        self,
        breeds: dict[str, tuple[int, int, int]],
        widths: dict[str, int] | None = None,
        bad: list[dict] | None = None,
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
                gathered = statistics(10, (widths or {}).get(split, 100))
                written = gathered if name == "statistics" else tfdv.validate_statistics(gathered, self.schema)
                self._write(Path(artifact_utils.get_split_uri([artifacts[name]], split)) / file, written)
        self._write(self._folder / "schema" / "schema.pbtxt", self.schema)
        counts = {breed: dict(zip(SPLITS, numbers, strict=True)) for breed, numbers in breeds.items()}
        photos = [
            {"path": f"{split}/{side}.jpg", "split": split, "width": side, "height": 100}
            for split, side in (widths or {}).items()
        ]
        files = sum(map(sum, breeds.values())) + len(bad or [])
        summary = {"breeds": counts, "left_out": bad or [], "files": files, "warnings": list(warnings)}
        self._write(self._folder / "report/report.json", summary)
        self._write(self._folder / "report/photos.jsonl", *photos, *(bad or []))
        DataGate.test_call(
            **artifacts,
            schema_file="my schemas/schema.pbtxt",
            registry=str(self._folder / "serving"),
            stable=stable,
            code_digest="",
            **self.rules,
        )
        return json.loads((self._folder / "verdict" / "verdict.json").read_text())

    @staticmethod
    def _write(path: Path, *documents) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".pb":
            path.write_bytes(documents[0].SerializeToString())
        else:
            text = text_format.MessageToString if path.suffix == ".pbtxt" else json.dumps
            path.write_text("".join(f"{text(document)}\n" for document in documents))


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def test_data_in_order_passes_without_a_warning(gate):
    assert gate.judge(GOOD) == {"passed": True, "warnings": []}


@pytest.mark.parametrize(
    ("breeds", "named"),
    [
        ({"Birman": (7, 2, 1)}, ["only 1 breed (Birman)"]),
        ({**GOOD, "Manx": (0, 3, 3)}, ["breed 'Manx' has no photos in the train split", "split.seed"]),
        ({"Birman": (7, 0, 3), "Sphynx": (7, 0, 3)}, ["the eval split has no photos", "split.eval"]),
        ({"Birman": (7, 3, 0), "Sphynx": (7, 3, 0)}, ["the test split has no photos", "split.test"]),
        (
            {"Manx": (0, 4, 0)},
            ["only 1 breed (Manx)", "'Manx' has no photos in the train split", "the test split has no photos"],
        ),
    ],
    ids=["single breed", "breed without train", "empty eval", "empty test", "everything"],
)
def test_data_with_nothing_to_learn_stops_the_run_by_name(gate, tmp_path, breeds, named):
    with pytest.raises(DataError) as caught:
        gate.judge(breeds)
    lines = str(caught.value).splitlines()
    assert lines[0] == "the data cannot be used:"
    for part in named:
        assert any(part in line for line in lines[1:]), part
    assert "Sphynx" not in str(caught.value)
    assert not (tmp_path / "verdict").exists()


@pytest.mark.parametrize(("split", "counts"), [("eval", (7, 0, 2)), ("test", (7, 2, 0))])
def test_a_breed_that_is_missing_where_it_is_measured_is_only_a_warning(gate, split, counts):
    verdict = gate.judge({**GOOD, "Manx": counts, "Bombay": counts})
    assert verdict["passed"]
    assert verdict["warnings"] == [f"the {split} split has no photos of Manx, Bombay; it gives no metrics for them"]


@pytest.mark.parametrize("split", SPLITS)
def test_photos_outside_the_bounds_of_the_schema_stop_the_run_and_are_named(gate, split):
    with pytest.raises(DataError, match="1 photo has a width outside 32 to 8192 pixels") as caught:
        gate.judge(GOOD, widths={split: 16})
    assert str(caught.value).splitlines()[2:] == [f"    {split}/16.jpg: 16"]


def test_another_anomaly_is_told_in_the_words_of_tfdv_with_its_split(gate):
    feature = next(feature for feature in gate.schema.feature if feature.name == "height")
    feature.name = "depth"
    with pytest.raises(DataError, match=r"train photos, feature 'depth': .*relax the schema"):
        gate.judge(GOOD)


def test_a_breed_that_the_schema_does_not_list_stops_the_run_and_says_what_to_do(gate):
    breed = next(feature for feature in gate.schema.feature if feature.name == "breed")
    breed.string_domain.value.extend(["Birman", "Bombay"])
    with pytest.raises(DataError) as caught:
        gate.judge(GOOD)
    assert str(caught.value).splitlines()[1:] == [
        "  breed 'Sphynx' is not in my schemas/schema.pbtxt; add it with "
        "`catbreeds schema update --data PHOTOS --schema 'my schemas'` or remove the folder"
    ]


def bad_files(count: int, kind: str = "damaged") -> list[dict]:
    return [
        {"path": f"Birman/{number:02}.jpg", "breed": "Birman", "kind": kind, "reason": "no photo"}
        for number in range(count)
    ]


def test_too_many_bad_files_stop_the_run_ten_are_named_and_the_rest_counted(gate):
    with pytest.raises(
        DataError, match=r"13 of 33 files cannot be used, more than ingest.max_bad_share=0.25"
    ) as caught:
        gate.judge(GOOD, bad=bad_files(13))
    assert str(caught.value).count("Birman/") == 10
    assert "... and 3 more" in str(caught.value)


@pytest.mark.parametrize("bad", [bad_files(6), bad_files(60, "duplicate"), bad_files(60, "near_duplicate")])
def test_few_bad_files_and_any_number_of_copies_do_not(gate, bad):
    assert gate.judge(GOOD, bad=bad)["passed"]


def test_a_breed_with_too_few_photos_stops_the_run_and_is_named(gate):
    with pytest.raises(
        DataError, match=r"breed 'Manx' has 2 photos, fewer than ingest.min_photos_per_breed=3"
    ) as caught:
        gate.judge({**GOOD, "Manx": (0, 1, 1)})
    assert len(str(caught.value).splitlines()) == 2


def test_all_that_is_wrong_is_said_together(gate):
    with pytest.raises(DataError) as caught:
        gate.judge({**GOOD, "Manx": (0, 1, 1)}, widths={"train": 16, "test": 10_000}, bad=bad_files(20))
    message = str(caught.value)
    for part in ("20 of 42", "'Manx' has 2", "2 photos have a width", "train/16.jpg: 16", "test/10000.jpg: 10000"):
        assert part in message


def test_a_breed_without_a_usable_photo_stops_the_run_with_what_its_files_are(gate):
    bad = [{**row, "breed": "Manx"} for row in [*bad_files(2), *bad_files(1, "not_an_image")]]
    with pytest.raises(
        DataError, match=r"breed 'Manx' has 0 photos \(excluded: 1 not an image, 2 damaged\), fewer than"
    ):
        gate.judge({**GOOD, "Manx": (0, 0, 0)}, bad=bad)


def test_what_ingestion_warns_of_is_a_warning(gate):
    assert gate.judge(GOOD, warnings=("read as one set",))["warnings"] == ["read as one set"]


OTHER_SPELLINGS = ["birman", "BIRMAN", " Birman", "Birman ", "Birma\u200bn", "\uff22irman"]


@pytest.mark.parametrize("other", OTHER_SPELLINGS, ids=ascii)
def test_a_breed_that_the_schema_spells_otherwise_stops_the_run_with_both_names(gate, other):
    breed = next(feature for feature in gate.schema.feature if feature.name == "breed")
    breed.string_domain.value.extend([other, "Sphynx"])
    with pytest.raises(DataError) as caught:
        gate.judge(GOOD)
    assert f"breed 'Birman' is spelled {other!a} in my schemas/schema.pbtxt; rename the folder" in str(caught.value)
    assert "add it with" not in str(caught.value)


@pytest.mark.parametrize("other", OTHER_SPELLINGS, ids=ascii)
def test_a_schema_that_has_a_breed_in_two_spellings_stops_the_run(gate, other):
    breed = next(feature for feature in gate.schema.feature if feature.name == "breed")
    breed.string_domain.value.extend(["Birman", "Sphynx", other])
    with pytest.raises(DataError, match="are spellings of the same breed; keep one") as caught:
        gate.judge(GOOD)
    assert " and ".join(map(ascii, sorted(["Birman", other]))) in str(caught.value)


@pytest.mark.parametrize("other", OTHER_SPELLINGS, ids=ascii)
def test_a_breed_that_the_model_in_service_spells_otherwise_stops_the_run(gate, tmp_path, other):
    record = tmp_path / "serving" / "1" / MODEL_RECORD_FILE
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"breeds": [other, "Sphynx"]}))
    with pytest.raises(DataError, match="in the stable version 1; rename the folder") as caught:
        gate.judge(GOOD, stable="1@")
    assert f"breed 'Birman' is spelled {other!a}" in str(caught.value)
