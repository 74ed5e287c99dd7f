"""The command of the containers, called with ExecutorInput JSON as the backend writes it."""

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


# As a compiled pipeline has it: the types of the artifacts that it reads, and which parameters are whole numbers.
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
            # What the backend adds; the launcher numbers it by the attempt.
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
    """Runs an executor as a container does; gives the document that it leaves for the backend."""
    monkeypatch.setenv(entrypoint.ROOT_VARIABLE, str(tmp_path))
    executors.seen.clear()

    def run(executor: str, invocation: dict = INVOCATION) -> dict:
        invocation = copy.deepcopy(invocation)
        place = INVOCATION["outputs"]["outputFile"].lstrip("/")
        invocation["outputs"]["outputFile"] = str(tmp_path / place)
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


def test_inputs_have_the_types_that_the_component_declares_and_their_own_metadata_alone(call):
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


def test_what_a_condition_asks_for_is_no_input_and_the_log_no_output(call):
    call("Writes")
    assert executors.seen["inputs"].keys() == {"examples", "report"}
    assert executors.seen["outputs"].keys() == {"model", "model_run", "metrics", "page"}


def test_parameters_keep_their_types(call):
    call("Writes")
    assert executors.seen["parameters"] == {"photos": 4, "data": "/photos/größe 😺"}
    assert isinstance(executors.seen["parameters"]["photos"], int)


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("minio://mlpipeline/v2/a", "minio/mlpipeline/v2/a"),
        ("s3://bucket/a", "s3/bucket/a"),
        ("gs://bucket/a", "gcs/bucket/a"),
    ],
)
def test_artifacts_are_where_the_launcher_puts_them(call, tmp_path, uri, place):
    invocation = copy.deepcopy(INVOCATION)
    invocation["inputs"]["artifacts"]["report"]["artifacts"][0]["uri"] = uri
    call("Writes", invocation)
    assert executors.seen["inputs"]["report"][0].uri == str(tmp_path / place)


def test_a_uri_that_the_launcher_leaves_alone_stays(call):
    invocation = copy.deepcopy(INVOCATION)
    invocation["inputs"]["artifacts"]["report"]["artifacts"][0]["uri"] = "hdfs://cluster/report"
    call("Writes", invocation)
    assert executors.seen["inputs"]["report"][0].uri == "hdfs://cluster/report"


def test_a_component_finds_the_folders_of_its_outputs_but_not_what_it_has_to_write_as_a_file(call):
    call("Writes")
    exists = {key: executors.seen[f"{key} exists"] for key in ("model", "model_run", "metrics", "page")}
    assert exists == {"model": True, "model_run": True, "metrics": True, "page": False}


def test_the_backend_is_told_remote_uris_also_in_metadata(call, tmp_path):
    output = call("Writes")
    for key in ("model", "model_run", "metrics", "page"):
        assert output["artifacts"][key]["artifacts"][0]["uri"] == f"{RUN}/Trainer/5b/{key}"
        assert metadata(output, key)["beside"] == f"{RUN}/Trainer/5b/{key}/content.txt"
    assert str(tmp_path) not in json.dumps(output)


def test_numbers_and_objects_keep_their_form_and_the_ui_gets_no_row_of_tfx(call):
    output = call("Writes")
    assert metadata(output, "metrics").keys() == {"beside", "number", "matrix"}
    assert metadata(output, "metrics")["number"] == 0.5
    assert metadata(output, "metrics")["matrix"] == {"rows": [{"row": [1, 2]}]}
    assert "tfx_version" in metadata(output, "model")


def test_no_null_goes_to_the_metadata_store():
    invocation = {"inputs": {}, "outputs": INVOCATION["outputs"]}
    written = {"artifacts": {"model": {"artifacts": [{"uri": "/m", "metadata": {"span": None, "kept": 0}}]}}}
    output = entrypoint.globalise(written, invocation, {})
    assert metadata(output, "model") == {"kept": 0}


def test_an_output_that_is_not_written_fails_the_task_by_name(call):
    with pytest.raises(entrypoint.MissingOutputError, match=r"nothing for its outputs page$"):
        call("WritesNoPage")


def test_an_output_that_is_an_empty_folder_fails_the_task_by_name(call):
    invocation = copy.deepcopy(INVOCATION)
    artifacts = invocation["outputs"]["artifacts"]
    artifacts["page"]["artifacts"][0]["type"] = schema("tfx.Model")
    with pytest.raises(entrypoint.MissingOutputError, match=r"nothing for its outputs page$"):
        call("WritesNoPage", invocation)


def test_an_error_of_the_component_is_the_error_of_the_task(call, tmp_path):
    with pytest.raises(ValueError, match="the photos are wrong"):
        call("Fails")
    assert not list(tmp_path.rglob("output_metadata.json"))


def test_on_vertex_ai_nothing_is_translated(call, monkeypatch, tmp_path):
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
