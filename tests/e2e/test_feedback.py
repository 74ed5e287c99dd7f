"""Photos that users send come back as a better model: captured, reviewed and learned, also after interruptions."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from serving.captures import CaptureStore
from serving.client import ModelChoice
from serving.client.gateway import GatewayClient
from serving.client.grpc import GrpcClient
from serving.photo_origins import read_origins
from tests import fork_server
from tests.e2e.up import Up
from tests.running import CATBREEDS, catbreeds
from tests.serving.model_server.servers import eventually

pytestmark = pytest.mark.slow

SENT, UNSEEN = 20, 15  # photos of each breed


@pytest.fixture(scope="module")
def folder(feedback_copy) -> Path:
    """A workdir with a pushed version, photos taken at night that users send, and photos that no version has seen."""
    folder = feedback_copy.parent
    for name, photos, offset, *night in (
        ("sent", SENT, 500, "--night"),
        ("unseen_night", UNSEEN, 700, "--night"),
        ("unseen_day", UNSEEN, 700),
    ):
        catbreeds("sample-data", folder / name, "--photos", photos, "--offset", offset, *night)
    return folder


def right(client: GrpcClient, folder: Path) -> int:
    """Number of photos in breed folders that the model is right on."""
    paths = sorted(path for path in folder.rglob("*.*"))
    answers = client.predict_many([path.read_bytes() for path in paths])
    return sum(answer.best.breed == path.parent.name for answer, path in zip(answers, paths, strict=True))


def kill_when(command: list, condition) -> None:
    """Start a command and kill it as soon as the condition holds; it may end before."""
    process = fork_server.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not condition():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() in (-signal.SIGKILL, 0)


def test_photos_of_users_become_a_better_version(folder):
    captures, photos, work = folder / "captures", folder / "work" / "photos", folder / "work"
    variables = {"CATBREEDS_GATEWAY_CAPTURE_FOLDER": str(captures), "CATBREEDS_GATEWAY_CAPTURE_SHARE": "0.5"}
    up = Up(work, **variables)
    stable = GrpcClient(up.grpc, ModelChoice(label="stable"))
    night, day = right(stable, folder / "unseen_night"), right(stable, folder / "unseen_day")

    # Users send photos taken at night, and say what they show.
    gateway, store = GatewayClient(up.gateway), CaptureStore(captures)
    tokens = 0
    for path in sorted((folder / "sent").rglob("*.*")):
        answer = gateway.predict(path)
        if answer.token:
            gateway.give_feedback(answer.token, path.parent.name)
            tokens += 1
    eventually(lambda: sum(capture.feedback is not None for capture in store.read_all()) == tokens)

    # The change is noticed.
    drift = catbreeds("drift", "--captures", captures, "--workdir", work, "--json")
    assert drift.returncode == 3, drift.stdout + drift.stderr
    assert "brightness" in {check["feature"] for check in json.loads(drift.stdout)["checks"] if check["drift"]}

    # A reviewer accepts them; the command is killed and repeated.
    inbox = ("--captures", captures, "--workdir", work, "--data", photos)
    rows = json.loads(catbreeds("inbox", *inbox, "--limit", 1000, "--json").stdout)
    assert len(rows) == tokens > SENT
    assert {row["reason"] for row in rows} == {"random", "uncertain"}
    accept = [CATBREEDS, "inbox", "accept", *(row["id"] for row in rows), *inbox]
    kill_when(accept, lambda: len(list(photos.rglob("capture-*"))) > tokens // 3)
    assert catbreeds(*accept[1:]).returncode == 0
    accepted = {path.stem.removeprefix("capture-"): path.parent.name for path in photos.rglob("capture-*")}
    assert accepted == {origin.capture: origin.breed for origin in read_origins(photos).values()}
    assert len(accepted) == tokens

    # The next run learns from them; it is killed and repeated.
    run = ("run", "--profile", "feedback", "--data", photos, "--workdir", work)
    embeddings = work / "artifacts" / "EmbeddingGen-xception" / "embeddings"
    before = len(list(embeddings.iterdir()))
    kill_when([CATBREEDS, *run], lambda: len(list(embeddings.iterdir())) > before)
    rerun = catbreeds(*run)
    assert rerun.returncode == 0, rerun.stdout + rerun.stderr
    gate = json.loads((work / "report" / "gate.json").read_text())
    new, ingest = gate["new_photos"], json.loads((work / "report" / "ingest.json").read_text())
    assert gate["pushed_version"] == 2
    assert new["captured_random"] + new["captured_uncertain"] == sum(new["splits"].values()) == tokens
    assert sum(ingest["captured"]["random"].values()) == new["captured_random"]
    assert ingest["captured"]["uncertain"] == {"train": new["captured_uncertain"], "eval": 0, "test": 0}
    assert new["test"]["photos"] == new["splits"]["test"] <= new["captured_random"]
    assert f"new since version 1: {tokens} photos" in " ".join(rerun.stdout.split())

    # The new version is better at night and not worse by day.
    assert catbreeds("promote", 2, "--workdir", work).returncode == 0
    eventually(lambda: stable.predict(path).model.version == 2)
    total = 6 * UNSEEN
    assert right(stable, folder / "unseen_night") >= night + total // 15
    assert right(stable, folder / "unseen_day") >= day - total // 10

    # A user deletes an accepted photo.
    capture = sorted(accepted)[0]
    store.delete(capture)
    assert f"catbreeds inbox forget {capture}" in catbreeds("inbox", *inbox).stdout
    forgotten = catbreeds("inbox", "forget", capture, *inbox)
    learned = json.loads(catbreeds("lineage", 2, "--workdir", work, "--json").stdout)["data"]["learned_captures"]
    assert ("Learned by version 2" in forgotten.stdout) == (capture in learned)
    assert len(list(photos.rglob("capture-*"))) == tokens - 1
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait() == 0
