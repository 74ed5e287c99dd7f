"""ServingCheck: loads the admitted model in a model server and calls it, before it is pushed."""

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator

import httpx
from tfx.components.evaluator import constants
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing, ModelEvaluation
from tfx.utils import path_utils

from components.artifacts import ServingReport
from components.evaluation_result import read_outcomes
from components.file_names import SERVING_CHECK_FILE, SERVING_CHECK_GOLDEN_FILE
from components.json_files import write_json
from components.local_copies import local_copy
from components.photo_examples import read_images
from serving import http_client
from serving.photo import PhotoError, normalise
from serving.rollout.golden_requests import GoldenRequest, golden_requests_document

MODEL_SERVER = "tensorflow_model_server"
_TOLERANCE = 1e-3
_GOLDEN_BYTES = 500_000  # the photos travel with the model
_GOLDEN_SIDES = (1024, 512, 256)  # pixels, for larger ones; at 256 no JPEG has more bytes than that
_DEADLINE_SECONDS = 300


class ServingError(RuntimeError):
    """A model server cannot load the model, or answers something else than was measured."""


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
    """Asks for test photos and expects what the Evaluator measured for them; a model that was refused is not asked.

    The photos, of as many breeds as possible, and their answers are kept: rollout asks every server for them before
    users do. A photo of many bytes is kept smaller, with the answer that the server gave for it.

    The server is `tensorflow_model_server` where it is on PATH, else TensorFlow in a process of its own.

    Args:
        photos: how many to ask for.
        code_digest: of the modules that it runs.

    Raises:
        ServingError: the model does not load, or answers differ.
    """
    if blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY) != constants.BLESSED_VALUE:
        write_json(report.uri, SERVING_CHECK_FILE, {"checked": False})
        return
    path = path_utils.serving_model_path(model.uri)
    server = MODEL_SERVER if shutil.which(MODEL_SERVER) else "tensorflow"
    expected = {row["content_hash"]: row for row in _sample(read_outcomes(evaluation.uri), photos)}
    sample = read_images(examples.uri, "test", list(expected))
    kept = [small for photo in sample.values() if (small := _small(photo)) is not None]
    asked = list(dict.fromkeys([*sample.values(), *kept]))
    ask = _ask_model_server if server == MODEL_SERVER else _ask_tensorflow
    with local_copy(path) as local:
        given = ask(
            local, {"instances": [{"image_bytes": {"b64": base64.b64encode(photo).decode()}} for photo in asked]}
        )
    if len(given) != len(asked):
        raise ServingError(f"the model server answers {len(given)} photos, it was asked for {len(asked)}")
    answers = dict(zip(asked, given, strict=True))
    for content_hash, photo in sample.items():
        _compare(expected[content_hash], answers[photo])
    golden = [GoldenRequest(photo, *_best(answers[photo])) for photo in kept]
    write_json(report.uri, SERVING_CHECK_GOLDEN_FILE, golden_requests_document(golden))
    write_json(report.uri, SERVING_CHECK_FILE, {"checked": True, "server": server, "photos": len(sample)})


def _sample(outcomes: list[dict], count: int) -> list[dict]:
    """`count` of the outcomes, of as many breeds as possible."""
    of_breed = Counter()
    ranked = []
    for row in sorted(outcomes, key=lambda row: row["content_hash"]):
        ranked.append((of_breed[row["breed"]], row["breed"], row))
        of_breed[row["breed"]] += 1
    return [row for *_, row in sorted(ranked, key=lambda found: found[:2])[:count]]


def _small(photo: bytes) -> bytes | None:
    """A photo in few enough bytes to travel with the model; None where it is too narrow to be made smaller."""
    for side in _GOLDEN_SIDES:
        if len(photo) <= _GOLDEN_BYTES:
            break
        try:
            photo = normalise(photo, side).data
        except PhotoError:  # no client could send it, either
            return None
    return photo


def _best(answer: dict) -> tuple[str, float]:
    """The most probable breed of an answer and its probability."""
    return max(zip(answer["breeds"], answer["probabilities"], strict=True), key=lambda pair: pair[1])


def _compare(expected: dict, answer: dict) -> None:
    probabilities = dict(zip(answer["breeds"], answer["probabilities"], strict=True))
    breed, confidence = _best(answer)
    measured = probabilities.get(expected["predicted"], 0)
    if abs(measured - expected["confidence"]) > _TOLERANCE or abs(sum(probabilities.values()) - 1) > _TOLERANCE:
        raise ServingError(
            f"{expected['path']}: the model server says {breed} with {confidence:.4f}, the Evaluator measured "
            f"{expected['predicted']} with {expected['confidence']:.4f}"
        )


def _ask_tensorflow(path: str, request: dict) -> list[dict]:
    command = [sys.executable, "-m", "serving.local.saved_model_process", path]
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, timeout=_DEADLINE_SECONDS, check=False
    )
    if done.returncode:
        raise ServingError(f"TensorFlow in a fresh process cannot serve {path}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)["predictions"]


def _ask_model_server(path: str, request: dict) -> list[dict]:
    with _model_server(path) as url:
        try:
            with http_client.client(timeout=_DEADLINE_SECONDS) as client:
                response = client.post(f"{url}:predict", json=request)
            if response.is_error:
                raise ServingError(f"{MODEL_SERVER} answers {response.status_code}: {response.text[:2000]}")
            return response.json()["predictions"]
        except (httpx.HTTPError, ValueError) as error:
            raise ServingError(f"{MODEL_SERVER} does not answer: {error}") from None


@contextlib.contextmanager
def _model_server(path: str) -> Iterator[str]:
    """Runs the real server on the model as version 1; gives the model's REST address when it is available."""
    with tempfile.TemporaryDirectory() as base, tempfile.TemporaryFile("w+") as log:
        shutil.copytree(path, os.path.join(base, "1"))
        port, rest_port = _free_port(), _free_port()
        server = subprocess.Popen(
            [
                MODEL_SERVER,
                f"--port={port}",
                f"--rest_api_port={rest_port}",
                "--model_name=candidate",
                f"--model_base_path={base}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            url = f"http://127.0.0.1:{rest_port}/v1/models/candidate"
            _wait_until_available(server, f"{url}/metadata", log)
            yield url
        finally:
            server.kill()  # it ignores SIGTERM
            server.wait()


def _wait_until_available(server: subprocess.Popen, url: str, log) -> None:
    """Waits for the metadata: the model's status answers 200 even while it is loading."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    with http_client.client(timeout=5) as client:
        while time.monotonic() < deadline and server.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if client.get(url).is_success:
                    return
            time.sleep(0.2)
    log.seek(0)
    raise ServingError(f"{MODEL_SERVER} does not serve the model:\n{log.read()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
