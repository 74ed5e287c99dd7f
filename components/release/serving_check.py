"""ServingCheck: loads the model that passed the gate in a model server and checks its predictions before the push."""

import base64
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
from tfx.components.evaluator import constants
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing, ModelEvaluation
from tfx.utils import path_utils

from components.artifacts import ServingReport
from components.evaluation_result import read_outcomes
from components.file_names import SERVING_CHECK_FILE, SERVING_CHECK_GOLDEN_FILE
from components.json_files import read_json, write_json
from components.local_copies import local_copy
from components.photo_examples import read_images
from serving import http_client, precision
from serving.addresses import LOOPBACK, free_ports
from serving.local import processes, stack
from serving.local.child_process import bound_command
from serving.local.processes import Program, ProgramError
from serving.local.stack import MODEL_SERVER_SECONDS, TENSORFLOW_MODEL_SERVER
from serving.model_files import DEFAULT_SIGNATURE, EXPLAIN_SIGNATURE, MODEL_RECORD_FILE
from serving.photo_normalization import PhotoError, normalize
from serving.precision import Tolerances
from serving.rollout.golden_requests import definite_flag, definite_set, golden_request, golden_requests_document

_GOLDEN_BYTES = 500_000  # golden photos are stored with the model
_GOLDEN_SIDES = (1024, 512, 256)  # pixels, tried in order for larger files; at 256 every JPEG is small enough


class ServingError(RuntimeError):
    """The model server cannot load the model, or its predictions differ from those that the Evaluator measured."""


@component
def ServingCheck(
    model: InputArtifact[Model],
    blessing: InputArtifact[ModelBlessing],
    examples: InputArtifact[Examples],
    evaluation: InputArtifact[ModelEvaluation],
    report: OutputArtifact[ServingReport],
    photos: Parameter[int],
    code_digest: Parameter[str],
):
    """Predict test photos with a model server and compare the results with those that the Evaluator measured.

    The signatures `serving_default` and `explain` are called. The photos cover as many breeds as possible. They are
    stored with their predictions as golden requests, which rollout sends to every server before user requests. A large
    photo is stored at a smaller size, with the prediction for that size. A model that was rejected by the gate is not
    checked. The server computes in the precision of the model record.

    The server is `tensorflow_model_server` if it is on PATH, else TensorFlow in a separate process.

    Args:
        photos: Number of photos.
        code_digest: Digest of the modules that this component runs.

    Raises:
        ServingError: If the model does not load or predictions differ.
        PrecisionError: If this CPU cannot compute in the precision of the model.
    """
    if blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY) != constants.BLESSED_VALUE:
        write_json(report.uri, SERVING_CHECK_FILE, {"checked": False})
        return
    binary = stack.official_model_server()
    expected = {row["content_hash"]: row for row in _sample_outcomes(read_outcomes(evaluation.uri), photos)}
    sample = read_images(examples.uri, "test", list(expected))
    golden_photos = [golden for photo in sample.values() if (golden := _golden_photo(photo)) is not None]
    all_photos = list(dict.fromkeys([*sample.values(), *golden_photos]))
    instances = [{"image_bytes": {"b64": base64.b64encode(photo).decode()}} for photo in all_photos]
    requests = [{"signature_name": name, "instances": instances} for name in (DEFAULT_SIGNATURE, EXPLAIN_SIGNATURE)]
    with local_copy(path_utils.serving_model_path(model.uri)) as path:
        record = read_json(path, MODEL_RECORD_FILE)
        precision.require(precision.precision_of(record))
        responses = (
            _predict_with_model_server(binary, path, precision.precision_of(record), requests)
            if binary
            else _predict_with_tensorflow(path, requests)
        )
    explain, tolerances = record["explain"], precision.tolerances(record)
    for rows in responses:
        if len(rows) != len(all_photos):
            raise ServingError(f"the model server returned {len(rows)} predictions for {len(all_photos)} photos")
        predictions = dict(zip(all_photos, rows, strict=True))
        for content_hash, photo in sample.items():
            _compare(expected[content_hash], predictions[photo], tolerances)
    for content_hash, photo in sample.items():
        _compare_explanation(expected[content_hash], predictions[photo], explain, tolerances)
    golden = [golden_request(photo, predictions[photo], explain, tolerances) for photo in golden_photos]
    write_json(report.uri, SERVING_CHECK_GOLDEN_FILE, golden_requests_document(golden))
    server = TENSORFLOW_MODEL_SERVER if binary else "tensorflow"
    write_json(report.uri, SERVING_CHECK_FILE, {"checked": True, "server": server, "photos": len(sample)})


def _sample_outcomes(outcomes: list[dict], count: int) -> list[dict]:
    """Return `count` outcomes that cover as many breeds as possible."""
    photos_of_breed = Counter()
    ranked = []
    for row in sorted(outcomes, key=lambda row: row["content_hash"]):
        ranked.append((photos_of_breed[row["breed"]], row["breed"], row))
        photos_of_breed[row["breed"]] += 1
    return [row for *_, row in sorted(ranked, key=lambda entry: entry[:2])[:count]]


def _golden_photo(photo: bytes) -> bytes | None:
    """Return the photo, reduced if it has too many bytes; None if it is too narrow to be reduced."""
    for side in _GOLDEN_SIDES:
        if len(photo) <= _GOLDEN_BYTES:
            break
        try:
            photo = normalize(photo, side).data
        except PhotoError:  # no client could send it either
            return None
    return photo


def _best_prediction(prediction: dict) -> tuple[str, float]:
    """Return the most probable breed of a prediction and its probability."""
    return max(zip(prediction["breeds"], prediction["probabilities"], strict=True), key=lambda pair: pair[1])


def _compare(expected: dict, prediction: dict, tolerances: Tolerances) -> None:
    tolerance = tolerances.probability
    probabilities = dict(zip(prediction["breeds"], prediction["probabilities"], strict=True))
    breed, confidence = _best_prediction(prediction)
    served = probabilities.get(expected["predicted"], 0)
    if abs(served - expected["confidence"]) > tolerance or abs(sum(probabilities.values()) - 1) > tolerance:
        raise ServingError(
            f"{expected['path']}: the model server predicts {breed} with {confidence:.4f}, the Evaluator measured "
            f"{expected['predicted']} with {expected['confidence']:.4f}"
        )


def _compare_explanation(expected: dict, prediction: dict, explain: dict, tolerances: Tolerances) -> None:
    """Compare the prediction set and the flag, unless the photo is close to a threshold."""
    prediction_set = definite_set(prediction, explain, tolerances.probability)
    if prediction_set is not None:
        served = {"in_set": expected["breed"] in prediction_set, "set_size": len(prediction_set)}
        if differing := {name for name, value in served.items() if value != expected[name]}:
            raise ServingError(
                f"{expected['path']}: the model server returns the prediction set {prediction_set}, the Evaluator "
                f"measured {', '.join(f'{name}={expected[name]}' for name in sorted(differing))}"
            )
    unfamiliar = definite_flag(prediction, explain, tolerances.probability)
    if unfamiliar is not None and unfamiliar != expected["unfamiliar"]:
        raise ServingError(
            f"{expected['path']}: the model server returns unfamiliar={unfamiliar}, the Evaluator measured "
            f"{expected['unfamiliar']}"
        )


def _predict_with_tensorflow(path: str, requests: list[dict]) -> list[list[dict]]:
    """Return the predictions for each request."""
    completed = subprocess.run(
        bound_command([sys.executable, "-m", "serving.local.saved_model_process", path]),
        input="\n".join(map(json.dumps, requests)),
        capture_output=True,
        text=True,
        timeout=MODEL_SERVER_SECONDS,
        check=False,
    )
    if completed.returncode:
        raise ServingError(f"TensorFlow cannot serve {path} in a separate process:\n{completed.stderr[-2000:]}")
    return [json.loads(line)["predictions"] for line in completed.stdout.splitlines()]


def _predict_with_model_server(binary: str, path: str, precision_name: str, requests: list[dict]) -> list[list[dict]]:
    """Return the predictions for each request."""
    responses = []
    with _model_server(binary, path, precision_name) as url:
        try:
            with http_client.client(timeout=MODEL_SERVER_SECONDS) as client:
                for request in requests:
                    response = client.post(f"{url}:predict", json=request)
                    if response.is_error:
                        raise ServingError(
                            f"{TENSORFLOW_MODEL_SERVER} returned {response.status_code}: {response.text[:2000]}"
                        )
                    responses.append(response.json()["predictions"])
            return responses
        except (httpx.HTTPError, ValueError) as error:
            raise ServingError(f"{TENSORFLOW_MODEL_SERVER} did not respond: {error}") from None


@contextlib.contextmanager
def _model_server(binary: str, path: str, precision_name: str) -> Iterator[str]:
    """Run TensorFlow Serving with the model as version 1, and yield the model's REST URL when it is available."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "candidate")
        shutil.copytree(path, base / "1")
        grpc_port, rest_port = free_ports(2)
        flags = {
            "port": grpc_port,
            "rest_api_port": rest_port,
            "model_name": base.name,
            "model_base_path": base,
        }
        url = f"{stack.local_url(LOOPBACK, rest_port)}/v1/models/{base.name}"
        # Not the model's status: its URL returns 200 even while the model is loading.
        ready_url = f"{url}/metadata"
        program = Program(
            TENSORFLOW_MODEL_SERVER,
            stack.model_server_command(binary, flags),
            ready_url,
            precision.environment(precision_name),
            Path(folder, "log"),
        )
        try:
            server = processes.start(program, MODEL_SERVER_SECONDS)
        except ProgramError as error:
            raise ServingError(f"the model cannot be served: {error}") from None
        try:
            yield url
        finally:
            server.stop(grace=0)  # TensorFlow Serving ignores SIGTERM
