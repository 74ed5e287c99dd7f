"""Entry point of the containers, called with ExecutorInput JSON in the format of the backend."""

import copy
import json
import os

import pytest

from pipeline.runners.kubeflow import entrypoint
from tests.pipeline.runners.kubeflow import executors

RUN = "minio://mlpipeline/v2/artifacts/pipeline/catbreeds/3f2c"
SESSION = '{"Provider":"minio","Params":{"endpoint":"minio-service.kubeflow:9000"}}'


def schema(title: str) -> dict:
    return {"instanceSchema": f"title: {title}\ntype: object\n"}


# Argument INPUTS in a compiled pipeline: the types of the input artifacts and the names of integer parameters.
INPUTS = "examples=tfx.Examples report=components.IngestReport photos=int"
INVOCATION = {
    "inputs": {
        "parameterValues": {"photos": 4, "data": "/photos/größe 😺"},
        "artifacts": {
            "examples": {
                "artifacts": [
                    {
                        "name": "12",
                        "type": {"instanceSchema": ""},
                        "uri": f"{RUN}/ImageExampleGen/7a/examples",
                        "metadata": {
                            "split_names": '["train"]',
                            "photos_train": 51,
                            "display_name": "examples",
                            "store_session_info": SESSION,
                            "sizes": {"list": [1, 2]},
                            "origin": {"struct": {"camera": "old"}},
                        },
                    }
                ]
            },
            "report": {
                "artifacts": [{"name": "13", "type": {"instanceSchema": ""}, "uri": "s3://elsewhere/report"}],
            },
            "_RetrainGate.decision": {
                "artifacts": [
                    {
                        "name": "14",
                        "type": {"instanceSchema": ""},
                        "uri": f"{RUN}/RetrainGate/9e/decision",
                        "metadata": {"retrain": 1, "display_name": "decision"},
                    }
                ]
            },
        },
    },
    "outputs": {
        "artifacts": {
            key: {"artifacts": [{"name": key, "uri": f"{RUN}/Trainer/5b/{key}", "type": kind}]}
            for key, kind in {
                "model": schema("tfx.Model"),
                "model_run": schema("tfx.ModelRun"),
                "metrics": schema("system.Metrics"),
                "page": schema("system.HTML"),
            }.items()
        }
        | {
            # Added by the backend; the launcher appends the number of the attempt.
            "executor-logs": {
                "artifacts": [
                    {
                        "name": "executor-logs",
                        "uri": f"{RUN}/Trainer/5b/executor-logs-0",
                        "type": {"schemaTitle": "system.Artifact"},
                    }
                ]
            }
        },
        "outputFile": "/minio/mlpipeline/v2/artifacts/pipeline/catbreeds/3f2c/Trainer/5b/output_metadata.json",
    },
}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run an executor like a container; return the ExecutorOutput for the backend."""
    monkeypatch.setenv(entrypoint.ROOT_VARIABLE, str(tmp_path))
    executors.seen.clear()

    def run(executor: str, invocation: dict = INVOCATION) -> dict:
        invocation = copy.deepcopy(invocation)
        output_file = INVOCATION["outputs"]["outputFile"].lstrip("/")
        invocation["outputs"]["outputFile"] = str(tmp_path / output_file)
        arguments = [
            "entrypoint",
            f"tests.pipeline.runners.kubeflow.executors.{executor}",
            json.dumps(invocation),
            INPUTS,
        ]
        entrypoint.main(entrypoint.parse_flags(arguments))
        with open(invocation["outputs"]["outputFile"], encoding="utf-8") as file:
            return json.load(file)

    return run


def metadata(output: dict, key: str) -> dict:
    return output["artifacts"][key]["artifacts"][0]["metadata"]


def test_inputs_have_the_declared_types_and_only_their_own_metadata(call):
    call("Writes")
    inputs = executors.seen["inputs"]
    (examples,), (report,) = inputs["examples"], inputs["report"]
    assert (examples.type_name, report.type_name) == ("Examples", "components.IngestReport")
    assert examples.split_names == '["train"]'
    assert examples.get_int_custom_property("photos_train") == 51
    assert examples.get_json_value_custom_property("sizes") == [1, 2]
    assert examples.get_json_value_custom_property("origin") == {"camera": "old"}
    assert not examples.has_custom_property("display_name")
    assert not examples.has_custom_property("store_session_info")


def test_artifacts_of_conditions_are_not_inputs_and_the_log_is_not_an_output(call):
    call("Writes")
    assert executors.seen["inputs"].keys() == {"examples", "report"}
    assert executors.seen["outputs"].keys() == {"model", "model_run", "metrics", "page"}


def test_parameters_keep_their_types(call):
    call("Writes")
    assert executors.seen["parameters"] == {"photos": 4, "data": "/photos/größe 😺"}
    assert isinstance(executors.seen["parameters"]["photos"], int)


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("minio://mlpipeline/v2/a", "minio/mlpipeline/v2/a"),
        ("s3://bucket/a", "s3/bucket/a"),
        ("gs://bucket/a", "gcs/bucket/a"),
    ],
)
def test_input_uris_become_local_paths_of_the_launcher(call, tmp_path, uri, path):
    invocation = copy.deepcopy(INVOCATION)
    invocation["inputs"]["artifacts"]["report"]["artifacts"][0]["uri"] = uri
    call("Writes", invocation)
    assert executors.seen["inputs"]["report"][0].uri == str(tmp_path / path)


def test_uris_of_other_schemes_are_unchanged(call):
    invocation = copy.deepcopy(INVOCATION)
    invocation["inputs"]["artifacts"]["report"]["artifacts"][0]["uri"] = "hdfs://cluster/report"
    call("Writes", invocation)
    assert executors.seen["inputs"]["report"][0].uri == "hdfs://cluster/report"


def test_output_folders_exist_before_the_component_runs_and_output_files_do_not(call):
    call("Writes")
    exists = {key: executors.seen[f"{key} exists"] for key in ("model", "model_run", "metrics", "page")}
    assert exists == {"model": True, "model_run": True, "metrics": True, "page": False}


def test_the_output_for_the_backend_has_remote_uris_also_in_metadata(call, tmp_path):
    output = call("Writes")
    for key in ("model", "model_run", "metrics", "page"):
        assert output["artifacts"][key]["artifacts"][0]["uri"] == f"{RUN}/Trainer/5b/{key}"
        assert metadata(output, key)["neighbor"] == f"{RUN}/Trainer/5b/{key}/content.txt"
    assert str(tmp_path) not in json.dumps(output)


def test_numbers_and_objects_are_unchanged_and_metrics_have_no_tfx_version(call):
    output = call("Writes")
    assert metadata(output, "metrics").keys() == {"neighbor", "number", "matrix"}
    assert metadata(output, "metrics")["number"] == 0.5
    assert metadata(output, "metrics")["matrix"] == {"rows": [{"row": [1, 2]}]}
    assert "tfx_version" in metadata(output, "model")


def test_null_values_are_removed_from_the_output():
    invocation = {"inputs": {}, "outputs": INVOCATION["outputs"]}
    output = {"artifacts": {"model": {"artifacts": [{"uri": "/m", "metadata": {"span": None, "kept": 0}}]}}}
    output = entrypoint.to_remote(output, invocation, {})
    assert metadata(output, "model") == {"kept": 0}


def test_a_missing_output_fails_the_task_with_its_name(call):
    with pytest.raises(entrypoint.MissingOutputError, match=r"did not write its outputs page$"):
        call("WritesNoPage")


def test_an_empty_output_folder_fails_the_task_with_its_name(call):
    invocation = copy.deepcopy(INVOCATION)
    artifacts = invocation["outputs"]["artifacts"]
    artifacts["page"]["artifacts"][0]["type"] = schema("tfx.Model")
    with pytest.raises(entrypoint.MissingOutputError, match=r"did not write its outputs page$"):
        call("WritesNoPage", invocation)


def test_an_exception_of_the_component_fails_the_task(call, tmp_path):
    with pytest.raises(ValueError, match="invalid photos"):
        call("Fails")
    assert not list(tmp_path.rglob("output_metadata.json"))


def test_uris_are_not_translated_on_vertex_ai(call, monkeypatch, tmp_path):
    monkeypatch.setenv("CLOUD_ML_PROJECT_ID", "cats")
    invocation = {
        "inputs": {
            "artifacts": {
                "report": {
                    "artifacts": [
                        {
                            "name": "projects/1/artifacts/2",
                            "uri": "gs://bucket/report",
                            "type": schema("components.IngestReport"),
                        }
                    ]
                }
            }
        },
        "outputs": {
            "artifacts": {
                "metrics": {"artifacts": [{"uri": str(tmp_path / "metrics"), "type": schema("system.Metrics")}]}
            }
        },
    }
    os.mkdir(tmp_path / "metrics")
    output = call("Writes", invocation)
    assert executors.seen["inputs"]["report"][0].uri == "gs://bucket/report"
    assert output["artifacts"]["metrics"]["artifacts"][0]["uri"] == str(tmp_path / "metrics")
