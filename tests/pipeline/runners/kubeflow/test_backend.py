"""The backend emulation treats retries, caching and missing outputs like the real backend."""

import json

import pytest
import yaml

from tests.pipeline.runners.kubeflow import backend
from tests.pipeline.runners.kubeflow.test_compiled_specs import compiled

TEXT = {"parameterType": "STRING"}


def one_task_spec(executor: str, outputs: tuple[str, ...] = (), policy: dict | None = None, **parameters: dict) -> str:
    """Specification of a pipeline with one task, which runs an executor of the module `executors`.

    Args:
        executor: Name of the executor class.
        outputs: Keys of the outputs of the task, which have the type tfx.Model.
        policy: Retry policy of the task.
        parameters: Definitions of the pipeline's parameters, which are also those of the task.
    """
    kind = {"artifactType": {"instanceSchema": "title: tfx.Model\ntype: object\n"}}
    container = {
        "image": "catbreeds-pipeline:0.1.0",
        "command": ["python", "-m", "pipeline.runners.kubeflow.entrypoint"],
        "args": [f"tests.pipeline.runners.kubeflow.executors.{executor}", "{{$}}", ""],
    }
    task = {
        "taskInfo": {"name": "Task"},
        "componentRef": {"name": "Task"},
        "inputs": {"parameters": {name: {"componentInputParameter": name} for name in parameters}},
        **({"retryPolicy": policy} if policy else {}),
    }
    component = {
        "executorLabel": "Task",
        "inputDefinitions": {"parameters": parameters},
        "outputDefinitions": {"artifacts": dict.fromkeys(outputs, kind)},
    }
    spec = {
        "pipelineInfo": {"name": "small"},
        "schemaVersion": "2.1.0",
        "deploymentSpec": {"executors": {"Task": {"container": container}}},
        "components": {"Task": component},
        "root": {"dag": {"tasks": {"Task": task}}, "inputDefinitions": {"parameters": parameters}},
    }
    # The round trip copies shared objects, which YAML would write as anchors.
    return yaml.safe_dump(json.loads(json.dumps(spec)))


@pytest.fixture(scope="module")
def policy() -> dict:
    """Retry policy in the compiled pipeline."""
    spec, _ = compiled("kubeflow.retries=1")
    return spec["root"]["dag"]["tasks"]["Trainer-xception"]["retryPolicy"]


def test_a_task_of_the_compiled_pipeline_that_fails_once_is_retried(tmp_path, policy):
    text, parameters = one_task_spec("FailsOnce", policy=policy, marker=TEXT), {"marker": str(tmp_path / "failed")}
    run = backend.Backend(tmp_path).run(text, parameters)
    assert run.states == {"Task": "SUCCEEDED"}
    (log,) = run.inputs["Task"]["outputs"]["artifacts"]["executor-logs"]["artifacts"]
    assert log["uri"].endswith("/executor-logs-1")


def test_without_a_maximum_backoff_tasks_are_not_retried(tmp_path, policy):
    policy = {key: value for key, value in policy.items() if key != "backoffMaxDuration"}
    with pytest.raises(backend.TaskFailed, match="the node went away"):
        backend.Backend(tmp_path).run(
            one_task_spec("FailsOnce", policy=policy, marker=TEXT), {"marker": str(tmp_path / "failed")}
        )


def test_the_default_installation_of_version_2_17_does_not_retry_a_task_that_exits_with_an_error(tmp_path, policy):
    text, parameters = one_task_spec("FailsOnce", policy=policy, marker=TEXT), {"marker": str(tmp_path / "failed")}
    with pytest.raises(backend.TaskFailed, match="the node went away"):
        backend.Backend(tmp_path, retry_policy="OnError").run(text, parameters)


def test_only_tasks_with_caching_enabled_are_cached_and_the_volume_claim_is_part_of_the_key(tmp_path):
    spec = yaml.safe_load(one_task_spec("WritesParameterNames", marker=TEXT))
    cluster, parameters = backend.Backend(tmp_path), {"marker": str(tmp_path / "parameters")}

    def state(caching: bool, claim: str) -> str:
        spec["root"]["dag"]["tasks"]["Task"]["cachingOptions"] = {"enableCache": caching}
        mount = {"mountPath": "/cats", "pvcNameParameter": {"runtimeValue": {"constant": claim}}}
        executors = {"Task": {"pvcMount": [mount]}}
        platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": executors}}}}
        return cluster.run(yaml.safe_dump_all([spec, platform]), parameters).states["Task"]

    assert [state(False, "cats"), state(True, "cats")] == ["SUCCEEDED", "SUCCEEDED"]
    assert [state(True, "cats"), state(True, "dogs")] == ["CACHED", "SUCCEEDED"]


def test_a_missing_output_fails_the_task_although_the_launcher_only_warns(tmp_path):
    with pytest.raises(backend.TaskFailed, match="did not write its outputs page"):
        backend.Backend(tmp_path).run(one_task_spec("WritesNoPage", outputs=("model", "page")), {})


def test_an_optional_parameter_without_a_default_is_omitted_only_if_it_is_optional_for_the_task(tmp_path):
    optional = {**TEXT, "isOptional": True}
    text, parameters = (
        one_task_spec("WritesParameterNames", marker=TEXT, other=optional),
        {"marker": str(tmp_path / "parameters")},
    )
    backend.Backend(tmp_path).run(text, parameters)
    assert (tmp_path / "parameters").read_text() == "marker"
    spec = yaml.safe_load(text)
    spec["components"]["Task"]["inputDefinitions"]["parameters"]["other"] = {**TEXT}
    with pytest.raises(backend.TaskFailed, match="input parameter is null: other"):
        backend.Backend(tmp_path).run(yaml.safe_dump(spec), parameters)
