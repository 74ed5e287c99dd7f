"""ServingCheck with a fake `tensorflow_model_server`: models that pass, models that fail, and cleanup."""

import base64
import hashlib
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import tensorflow as tf
from PIL import Image
from tfx.components.evaluator import constants
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing, ModelEvaluation

import serving.precision
from components.artifacts import ServingReport
from components.release import serving_check
from components.release.serving_check import ServingCheck, ServingError
from serving.photo_normalization import normalize
from serving.rollout.golden_requests import GoldenRequest
from tests.amx import needs_amx

BREEDS = ["Birman", "Manx", "Sphynx"]
PHOTOS = {f"photo {number}".encode(): [0.1 * number, 0.2, 0.8 - 0.1 * number] for number in range(3)}

# Like TensorFlow Serving, it serves one version of a model, takes time to load, ignores SIGTERM and responds in rows.
SERVER = """#!{python} -SE
import argparse, base64, hashlib, http.server, json, os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
parser = argparse.ArgumentParser()
for name in ("port", "rest_api_port", "model_name", "model_base_path"):
    parser.add_argument("--" + name, required=True)
options = parser.parse_args()
plan = json.load(open({plan!r}))
with open(plan["started"], "a") as file:
    print(os.getpid(), file=file)
if plan["mode"] == "exits":
    sys.exit("Failed to start server: no such op in version " + ",".join(os.listdir(options.model_base_path)))
assert os.environ["TF_SET_ONEDNN_FPMATH_MODE"] == plan["math_mode"]
assert open(options.model_base_path + "/1/saved_model.pb").read() == "the model"
unavailable_responses = iter(range(10**9 if plan["mode"] == "never loads" else 2))

class Handler(http.server.BaseHTTPRequestHandler):
    def respond(self, code, document):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def do_GET(self):
        known = self.path == "/v1/models/" + options.model_name + "/metadata"
        ready = known and next(unavailable_responses, None) is None
        self.respond(200 if ready else 404, {{"model_spec": {{"name": options.model_name}}}})

    def do_POST(self):
        assert self.path == "/v1/models/" + options.model_name + ":predict"
        if plan["mode"] == "dies":
            os._exit(9)
        if plan["mode"] == "rejects":
            return self.respond(400, {{"error": "input is not a JPEG"}})
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        photos = [base64.b64decode(row["image_bytes"]["b64"]) for row in body["instances"]]
        rows = [plan["predictions"].get(hashlib.sha256(photo).hexdigest(), plan["other"]) for photo in photos]
        if body["signature_name"] == "serving_default":
            rows = [{{name: row[name] for name in ("breeds", "probabilities")}} for row in rows]
        self.respond(200, {{"predictions": rows[:-1] if plan["mode"] == "omits" else rows}})

http.server.HTTPServer(("127.0.0.1", int(options.rest_api_port)), Handler).serve_forever()
"""


def sha(photo: bytes) -> str:
    return hashlib.sha256(photo).hexdigest()


def feature(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


class Workspace:
    """Artifacts as written by the upstream components, and a fake model server on PATH."""

    def __init__(self, folder: Path):
        self.folder, self.photos = folder, {}
        self.artifacts = {}
        for name, kind in {
            "model": Model,
            "blessing": ModelBlessing,
            "examples": Examples,
            "evaluation": ModelEvaluation,
            "report": ServingReport,
        }.items():
            self.artifacts[name] = kind()
            self.artifacts[name].uri = str(folder / name)
        self.model = folder / "model" / "Format-Serving"
        self.model.mkdir(parents=True)
        (self.model / "saved_model.pb").write_text("the model")
        (self.model / "assets.extra").mkdir()
        self.record = {}
        self.write_explain(set_threshold=None, unfamiliar_threshold=None)
        self.write_photos(PHOTOS, BREEDS)

    def write_explain(self, **thresholds: float | None) -> None:
        self.write_record(explain=thresholds)

    def write_record(self, **facts: object) -> None:
        """Write the model record with these facts and those of earlier calls."""
        self.record |= facts
        (self.model / "assets.extra" / "catbreeds.json").write_text(json.dumps(self.record))

    def write_photos(self, photos: dict[bytes, list[float]], breeds: list[str]) -> None:
        """Write photos with their measured probabilities and true breeds."""
        self.photos = photos
        rows = [self._outcome(photo, breed) for photo, breed in zip(photos, breeds, strict=True)]
        (self.folder / "evaluation").mkdir(exist_ok=True)
        (self.folder / "evaluation" / "outcomes.jsonl").write_text("\n".join(map(json.dumps, rows)))
        examples = self.artifacts["examples"]
        examples.split_names = artifact_utils.encode_split_names(["train", "test"])
        path = Path(artifact_utils.get_split_uri([examples], "test")) / "data_tfrecord-00000-of-00001"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tf.io.TFRecordWriter(str(path)) as writer:
            for photo in photos:
                features = {"image_bytes": feature(photo), "content_hash": feature(sha(photo).encode())}
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())

    def _outcome(self, photo: bytes, breed: str) -> dict:
        probabilities = self.photos[photo]
        best = max(range(3), key=probabilities.__getitem__)
        return {
            "path": f"{breed}/{photo[:7].decode(errors='replace')}.jpg",
            "content_hash": sha(photo),
            "breed": breed,
            "predicted": BREEDS[best],
            "confidence": round(probabilities[best], 6),
        }

    def install_server(
        self,
        mode: str = "serves",
        overrides: dict[bytes, dict] | None = None,
        other: dict | None = None,
        math_mode: str = "",
    ) -> None:
        """Put the fake server on PATH.

        Args:
            mode: Behavior of the server.
            overrides: Predictions that differ from the measured ones, by photo.
            other: Prediction for unknown photos.
            math_mode: Expected value of the environment variable TF_SET_ONEDNN_FPMATH_MODE.
        """
        predictions = {photo: {"breeds": BREEDS, "probabilities": values} for photo, values in self.photos.items()}
        predictions = {sha(photo): row for photo, row in {**predictions, **(overrides or {})}.items()}
        plan = {
            "mode": mode,
            "predictions": predictions,
            "other": other,
            "math_mode": math_mode,
            "started": str(self.folder / "started"),
        }
        (self.folder / "plan.json").write_text(json.dumps(plan))
        program = self.folder / "bin" / "tensorflow_model_server"
        program.parent.mkdir()
        program.write_text(SERVER.format(python=sys.executable, plan=str(self.folder / "plan.json")))
        program.chmod(0o755)

    def started(self) -> list[int]:
        """Return the process IDs of the servers that were started."""
        path = self.folder / "started"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def golden(self) -> list[GoldenRequest]:
        """Return the golden requests that were stored."""
        rows = json.loads((self.folder / "report" / "golden.json").read_text())
        return [GoldenRequest(**(row | {"photo": base64.b64decode(row["photo"])})) for row in rows]

    def check(self, photos: int = 3, blessed: int = constants.BLESSED_VALUE) -> dict:
        self.artifacts["blessing"].set_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY, blessed)
        ServingCheck.test_call(**self.artifacts, photos=photos, code_digest="")
        return json.loads((self.folder / "report" / "serving_check.json").read_text())


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace that checks that no process and no temporary folder is left, whether the check passes or fails."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    workspace = Workspace(tmp_path)
    yield workspace
    assert not any(psutil.pid_exists(pid) for pid in workspace.started())
    assert not [path for path in (tmp_path / "temporary").iterdir() if path.is_dir()]


def test_model_with_the_measured_predictions_passes(workspace):
    workspace.install_server()
    assert workspace.check() == {"checked": True, "server": "tensorflow_model_server", "photos": 3}
    assert len(workspace.started()) == 1


def test_the_server_of_a_float32_model_ignores_the_variable_of_this_process(workspace, monkeypatch):
    monkeypatch.setenv("TF_SET_ONEDNN_FPMATH_MODE", "BF16")
    workspace.install_server()
    assert workspace.check()["checked"]


@needs_amx
def test_the_server_computes_in_the_precision_of_the_record(workspace):
    workspace.write_record(backbone={"precision": "bfloat16"})
    workspace.install_server(math_mode="BF16")
    assert workspace.check()["checked"]


def test_a_bfloat16_model_is_not_checked_on_a_cpu_without_amx(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(serving.precision, "_CPU_INFO", tmp_path / "none")
    workspace.write_record(backbone={"precision": "bfloat16"})
    workspace.install_server()
    with pytest.raises(serving.precision.PrecisionError, match="bfloat16 needs a CPU with AMX"):
        workspace.check()
    assert workspace.started() == []


def test_requests_to_the_server_bypass_the_proxy(workspace, monkeypatch):
    monkeypatch.setattr(serving_check, "MODEL_SERVER_SECONDS", 20)  # limits the wait if the test fails
    for name in ("http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    workspace.install_server()
    assert workspace.check()["checked"]


def test_check_uses_the_given_number_of_photos(workspace):
    last = list(PHOTOS)[-1]
    workspace.install_server(overrides={last: {"breeds": BREEDS, "probabilities": [0, 0, 1]}})
    assert workspace.check(photos=2)["photos"] == 2


def test_golden_photos_cover_as_many_breeds_as_possible_in_any_order(workspace):
    photos = {f"photo {number}".encode(): [0.01 * number, 0.0, 1 - 0.01 * number] for number in range(9)}
    breeds = ["Birman"] * 6 + ["Sphynx", "Manx", "Sphynx"]
    workspace.write_photos(photos, breeds)
    workspace.install_server()
    assert workspace.check(photos=4)["photos"] == 4
    breed_of = dict(zip(photos, breeds, strict=True))
    golden_breeds = [breed_of[golden.photo] for golden in workspace.golden()]
    assert sorted(golden_breeds) == ["Birman", "Birman", "Manx", "Sphynx"]
    for photo, breed, probability, *_ in workspace.golden():
        assert (breed, probability) == ("Sphynx", pytest.approx(photos[photo][2]))


def noise(width: int, height: int) -> bytes:
    """Return a JPEG of incompressible noise."""
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 200).convert("RGB").save(buffer, "JPEG", quality=100, subsampling=0)
    return buffer.getvalue()


def test_large_photos_are_stored_smaller_with_the_prediction_for_that_size(workspace):
    large = [noise(1024, 1024), noise(800, 1024), noise(2000, 1500)]
    assert min(map(len, large)) > 500_000
    workspace.write_photos(dict(zip(large, PHOTOS.values(), strict=True)), BREEDS)
    workspace.install_server(other={"breeds": BREEDS, "probabilities": [0.1, 0.7, 0.2]})
    workspace.check()
    golden = workspace.golden()
    assert len(golden) == 3
    for photo, breed, probability, *_ in golden:
        assert (breed, probability) == ("Manx", 0.7)
        assert len(photo) <= 500_000
        assert normalize(photo).data == photo  # clients send it unchanged
        assert min(Image.open(io.BytesIO(photo)).size) >= 256 * 3 // 4


def test_large_photo_too_narrow_to_be_reduced_is_checked_but_not_stored(workspace):
    narrow = noise(8192, 64)
    assert len(narrow) > 500_000
    workspace.write_photos({narrow: [0.0, 0.2, 0.8], b"photo 1": [0.1, 0.2, 0.7]}, BREEDS[:2])
    workspace.install_server()
    assert workspace.check()["photos"] == 2
    assert [golden.photo for golden in workspace.golden()] == [b"photo 1"]


def test_different_breed_order_and_rounding_differences_pass(workspace):
    overrides = {
        photo: {"breeds": BREEDS[::-1], "probabilities": [value + 2e-4 for value in values[::-1]]}
        for photo, values in PHOTOS.items()
    }
    workspace.install_server(overrides=overrides)
    assert workspace.check()["checked"]


@pytest.mark.parametrize("photo", PHOTOS)
def test_different_confidence_fails_and_names_the_photo(workspace, photo):
    workspace.install_server(overrides={photo: {"breeds": BREEDS, "probabilities": [0.05, 0.9, 0.05]}})
    with pytest.raises(ServingError, match=rf"/{photo.decode()}\.jpg: the model server predicts Manx with 0.9000"):
        workspace.check()


def test_probabilities_that_do_not_sum_to_one_fail(workspace):
    workspace.install_server(overrides={b"photo 0": {"breeds": BREEDS, "probabilities": [0.5, 0.5, 0.8]}})
    with pytest.raises(ServingError, match="photo 0"):
        workspace.check()


def test_different_breed_with_the_same_confidence_fails(workspace):
    workspace.install_server(overrides={b"photo 0": {"breeds": BREEDS, "probabilities": [0.8, 0.2, 0.0]}})
    with pytest.raises(ServingError, match="predicts Birman"):
        workspace.check()


EXPLAIN = {"set_threshold": 0.25, "unfamiliar_threshold": 100.0}


@pytest.fixture
def explained(workspace):
    """Function that writes a photo with its measured set and flag, and installs a server that returns these outputs."""

    def write(
        probabilities: list[float], in_set: list[bool], unfamiliarity: float, outcome: dict | None = None
    ) -> Workspace:
        photo = b"photo 0"
        workspace.write_explain(**EXPLAIN)
        workspace.write_photos({photo: probabilities}, ["Manx"])
        path = workspace.folder / "evaluation" / "outcomes.jsonl"
        measured = {"in_set": in_set[1], "set_size": sum(in_set), "unfamiliar": unfamiliarity > 100} | (outcome or {})
        path.write_text(json.dumps(json.loads(path.read_text()) | measured))
        outputs = {"in_set": in_set, "unfamiliarity": unfamiliarity, "unfamiliar": unfamiliarity > 100}
        workspace.install_server(overrides={photo: {"breeds": BREEDS, "probabilities": probabilities, **outputs}})
        return workspace

    return write


def test_golden_requests_have_the_prediction_set_and_the_flag(explained):
    workspace = explained([0.1, 0.6, 0.3], [False, True, True], 160.0)
    assert workspace.check(photos=1)["checked"]
    (golden,) = workspace.golden()
    assert (golden.prediction_set, golden.unfamiliar) == (["Manx", "Sphynx"], True)


def test_golden_requests_omit_a_set_and_a_flag_that_are_close_to_a_threshold(explained):
    workspace = explained([0.14, 0.6, 0.26], [False, True, True], 104.0)
    workspace.check(photos=1)
    (golden,) = workspace.golden()
    assert (golden.prediction_set, golden.unfamiliar) == (None, None)


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        ({"set_size": 1}, r"returns the prediction set \['Manx', 'Sphynx'\], the Evaluator measured set_size=1"),
        ({"in_set": False}, "the Evaluator measured in_set=False"),
        ({"unfamiliar": True}, "returns unfamiliar=False, the Evaluator measured True"),
    ],
)
def test_a_set_or_flag_that_differs_from_the_measured_one_fails(explained, outcome, message):
    workspace = explained([0.1, 0.6, 0.3], [False, True, True], 60.0, outcome)
    with pytest.raises(ServingError, match=message):
        workspace.check(photos=1)


def test_server_that_exits_fails_with_the_end_of_its_log(workspace):
    workspace.install_server("exits")
    with pytest.raises(ServingError, match="Failed to start server: no such op in version 1"):
        workspace.check()
    assert len(workspace.started()) == 1


def test_server_that_never_loads_the_model_fails_after_the_timeout(workspace, monkeypatch):
    monkeypatch.setattr(serving_check, "MODEL_SERVER_SECONDS", 3)
    workspace.install_server("never loads")
    with pytest.raises(
        ServingError, match="the model cannot be served: tensorflow_model_server is not ready after 3 s"
    ):
        workspace.check()
    assert len(workspace.started()) == 1


def test_server_that_rejects_the_request_fails_with_its_response(workspace):
    workspace.install_server("rejects")
    with pytest.raises(ServingError, match=r"returned 400: .*input is not a JPEG"):
        workspace.check()


@pytest.mark.parametrize("mode", ["dies", "omits"])
def test_server_that_dies_or_omits_a_photo_raises_serving_error(workspace, mode):
    workspace.install_server(mode)
    with pytest.raises(ServingError):
        workspace.check()


@pytest.mark.parametrize("mode", ["dies", "omits"])
def test_server_that_dies_or_omits_a_photo_never_passes(workspace, mode):
    workspace.install_server(mode)
    with pytest.raises(Exception):  # noqa: B017, PT011
        workspace.check()
    assert not (workspace.folder / "report").exists()


def test_model_rejected_by_the_gate_is_not_loaded(workspace):
    workspace.install_server("exits")
    assert workspace.check(blessed=constants.NOT_BLESSED_VALUE) == {"checked": False}
    assert workspace.started() == []


def test_without_a_model_server_tensorflow_predicts_in_a_separate_process(workspace):
    table = tf.constant(list(PHOTOS.values()), tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")], autograph=False)
    def serve(image_bytes):
        rows = tf.gather(table, tf.strings.to_number(tf.strings.substr(image_bytes, 6, 1), tf.int32))
        return {"probabilities": rows, "breeds": tf.broadcast_to(tf.constant(BREEDS), tf.shape(rows))}

    module = tf.Module()
    module.serve = serve
    tf.saved_model.save(module, str(workspace.model), signatures={"serving_default": serve, "explain": serve})
    workspace.write_explain(set_threshold=None, unfamiliar_threshold=None)
    assert workspace.check() == {"checked": True, "server": "tensorflow", "photos": 3}


def test_without_a_model_server_a_failed_process_raises_serving_error(workspace, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(ServingError, match=r"TensorFlow cannot serve .* in a separate process"):
        workspace.check()
