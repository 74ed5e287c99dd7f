"""The component Rollout, with and without servers."""

import json

import pytest
import yaml

from components.artifacts import PushRecord, RolloutRecord
from components.release.rollout import Rollout as Component
from pipeline.runners.kubeflow.compiler import compile_pipeline
from pipeline.settings import load
from serving.rollout.controller import RolloutController


@pytest.fixture
def roll_out(tmp_path, registry):
    """Run the component for a push of `version`; return the recorded outcome."""

    def roll_out(version: int | None, already_pushed_as: int | None = None) -> str:
        pushed, outcome = PushRecord(), RolloutRecord()
        pushed.uri, outcome.uri = str(tmp_path / "pushed"), str(tmp_path / "outcome")
        (tmp_path / "pushed").mkdir(exist_ok=True)
        (tmp_path / "pushed" / "push.json").write_text(
            json.dumps({"version": version, "already_pushed_as": already_pushed_as})
        )
        Component.test_call(
            pushed=pushed,
            outcome=outcome,
            registry=str(registry.base),
            run_id="run",
            namespace="",
            models="",
            share=0.25,
            loaded=2,
            load_seconds=60.0,
        )
        document = json.loads((tmp_path / "outcome" / "rollout.json").read_text())
        assert document["version"] in (version, already_pushed_as)
        return document["outcome"]

    return roll_out


def test_rollout_without_a_push_or_a_server_records_the_reason_and_changes_nothing(roll_out, registry, fleet):
    assert roll_out(None) == "no version was pushed"
    assert roll_out(2).startswith("no server is running on this machine")
    assert registry.labels() == {"stable": 1}
    assert fleet.read() == (None, None)


def test_a_pushed_version_becomes_canary_unless_a_server_cannot_load_it(roll_out, registry, fleet, announce):
    (server,) = announce(1)
    assert roll_out(1) == "version 1 is the first version and already stable"
    assert roll_out(2).startswith("version 2 is the canary with 25% of the requests")
    assert registry.labels() == {"stable": 1, "canary": 2}
    assert fleet.read()[0].canary_share == 0.25
    assert (server.added(registry.base.name, "stable"), server.added(registry.base.name, "canary")) == (1, 2)
    assert roll_out(4).startswith("stopped: model-server at 127.0.0.1:")
    assert registry.labels() == {"stable": 1}


def test_rollout_starts_the_version_of_an_interrupted_run_but_no_version_that_was_stopped(
    roll_out, registry, fleet, announce
):
    announce(1)
    roll_out(1)
    assert roll_out(None, already_pushed_as=1) == "no version was pushed"  # it is stable
    assert roll_out(None, already_pushed_as=2).startswith("version 2 is the canary with 25% of the requests")
    assert roll_out(None, already_pushed_as=2) == "no version was pushed"  # it is canary already
    RolloutController(registry, fleet).stop_canary("by hand")
    assert roll_out(None, already_pushed_as=2) == "no version was pushed"


def test_promoting_the_canary_removes_its_label_and_its_share(roll_out, registry, fleet, announce):
    announce(1)
    roll_out(1)
    roll_out(2)
    RolloutController(registry, fleet).promote(2)
    assert registry.labels() == {"stable": 2}
    assert fleet.read()[0].canary_share == 0


def test_the_pipeline_has_the_component_after_pusher_only_if_the_settings_select_a_target():
    def tasks(*settings: str) -> dict:
        spec = next(yaml.safe_load_all(compile_pipeline(load("smoke", settings))))
        return spec["root"]["dag"]["tasks"]

    assert "Rollout" not in tasks()
    task = tasks("rollout.target=cluster", "rollout.canary_share=0.5")["Rollout"]
    assert task["inputs"]["artifacts"]["pushed"]["taskOutputArtifact"]["producerTask"] == "Pusher"
    parameters = task["inputs"]["parameters"]
    assert parameters["registry"] == {"componentInputParameter": "registry"}
    assert parameters["namespace"]["runtimeValue"]["constant"] == "catbreeds"
    assert parameters["share"]["runtimeValue"]["constant"] == 0.5
