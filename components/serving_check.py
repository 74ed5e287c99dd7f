"""ServingCheck: loads the admitted model in a model server and calls it, before it is pushed."""

import base64
import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import tensorflow as tf
from tfx.components.evaluator import constants
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing, ModelEvaluation
from tfx.utils import io_utils, path_utils

from components.artifacts import ServingReport
from components.documents import write_json
from components.local_copies import local_copy
from components.measured import read_outcomes
from serving.rollout.golden import Golden, golden_document

SERVING_FILE = "serving_check.json"
# Photos with the answers that were right, for whoever serves the model later.
ANSWERS_FILE = "golden.json"
MODEL_SERVER = "tensorflow_model_server"
_TOLERANCE = 1e-3
_GOLDEN_BYTES = 500_000  # the photos travel with the model
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
    code: Parameter[str],
):
    """Asks for test photos and expects what the Evaluator measured for them; a model that was refused is not asked.

    The photos and their answers are kept: rollout asks every server for them before users do.

    The server is `tensorflow_model_server` where it is on PATH, else TensorFlow in a process of its own.

    Args:
        photos: how many to ask for.
        code: digest of the modules that it runs.

    Raises:
        ServingError: the model does not load, or answers differ.
    """
    if blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY) != constants.BLESSED_VALUE:
        write_json(report.uri, SERVING_FILE, {"checked": False})
        return
    path = path_utils.serving_model_path(model.uri)
    server = MODEL_SERVER if shutil.which(MODEL_SERVER) else "tensorflow"
    expected = {row["content_hash"]: row for row in read_outcomes(evaluation.uri)}
    sample = _read_photos(examples, photos)
    ask = _ask_model_server if server == MODEL_SERVER else _ask_tensorflow
    with local_copy(path) as local:
        answers = ask(local, {"instances": [{"image_bytes": {"b64": base64.b64encode(d).decode()}} for _, d in sample]})
    if len(answers) != len(sample):
        raise ServingError(f"the model server answers {len(answers)} photos, it was asked for {len(sample)}")
    for (content_hash, _), answer in zip(sample, answers, strict=True):
        _compare(expected[content_hash], answer)
    golden = [
        Golden(photo, expected[content_hash]["predicted"], expected[content_hash]["confidence"])
        for content_hash, photo in sample
        if len(photo) <= _GOLDEN_BYTES
    ]
    write_json(report.uri, ANSWERS_FILE, golden_document(golden))
    write_json(report.uri, SERVING_FILE, {"checked": True, "server": server, "photos": len(sample)})


def _read_photos(examples: Examples, count: int) -> list[tuple[str, bytes]]:
    """Content hash and bytes of the first `count` test photos."""
    with local_copy(artifact_utils.get_split_uri([examples], "test")) as folder:
        records = tf.data.TFRecordDataset(sorted(tf.io.gfile.glob(io_utils.all_files_pattern(folder)))).take(count)
        features = [tf.train.Example.FromString(record).features.feature for record in records.as_numpy_iterator()]
    return [(f["content_hash"].bytes_list.value[0].decode(), f["image_bytes"].bytes_list.value[0]) for f in features]


def _compare(expected: dict, answer: dict) -> None:
    probabilities = dict(zip(answer["breeds"], answer["probabilities"], strict=True))
    breed, confidence = max(probabilities.items(), key=lambda pair: pair[1])
    measured = probabilities.get(expected["predicted"], 0)
    if abs(measured - expected["confidence"]) > _TOLERANCE or abs(sum(probabilities.values()) - 1) > _TOLERANCE:
        raise ServingError(
            f"{expected['path']}: the model server says {breed} with {confidence:.4f}, the Evaluator measured "
            f"{expected['predicted']} with {expected['confidence']:.4f}"
        )


def _ask_tensorflow(path: str, request: dict) -> list[dict]:
    command = [sys.executable, "-m", "serving.probe", path]
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, timeout=_DEADLINE_SECONDS, check=False
    )
    if done.returncode:
        raise ServingError(f"TensorFlow in a fresh process cannot serve {path}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)["predictions"]


def _ask_model_server(path: str, request: dict) -> list[dict]:
    with _model_server(path) as url:
        body = json.dumps(request).encode()
        try:
            with urllib.request.urlopen(f"{url}:predict", body, timeout=_DEADLINE_SECONDS) as response:
                return json.load(response)["predictions"]
        except urllib.error.HTTPError as error:
            raise ServingError(f"{MODEL_SERVER} answers {error.code}: {error.read().decode()[:2000]}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
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
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    log.seek(0)
    raise ServingError(f"{MODEL_SERVER} does not serve the model:\n{log.read()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
