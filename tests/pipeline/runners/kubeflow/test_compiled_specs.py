"""The checked-in compiled specifications are up to date and valid for a cluster."""

import copy
import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from google.protobuf import text_format
from kfp import components
from tensorflow_metadata.proto.v0 import schema_pb2

from pipeline.settings import SettingsError
from pipeline.settings import load as settings
from tests.pipeline.runners.kubeflow import backend
from tests.running import CATBREEDS

ROOT = Path(__file__).parents[4]
PROFILES = ("smoke", "standard")
EXTERNAL_TASKS = {
    *("ImageExampleGen", "DataGate", "RetrainGate", "ChampionModel", "Pusher", "RunReport"),
    *("Backbone-xception", "Backbone-resnet50", "Backbone-efficientnetb7"),
}


def text(profile: str) -> str:
    return (ROOT / "kfp_specs" / f"{profile}.yaml").read_text(encoding="utf-8")


def compiled(*overrides: str) -> tuple[dict, dict]:
    """Pipeline and platform specifications of the smoke profile with other settings."""
    from pipeline.runners.kubeflow.compiler import compile_pipeline

    return backend.load(compile_pipeline(settings("smoke", overrides)))


@pytest.fixture(scope="module")
def smoke() -> dict:
    spec, _ = backend.load(text("smoke"))
    return spec


def test_the_checked_in_specifications_are_up_to_date(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CATBREEDS_")}
    # A separate process with another hash seed, to detect output that depends on the order of sets.
    done = subprocess.run(
        [CATBREEDS, "compile", "--output", "specs"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["specs/standard.yaml", "specs/smoke.yaml"]
    for profile in PROFILES:
        is_up_to_date = (tmp_path / "specs" / f"{profile}.yaml").read_bytes() == text(profile).encode()
        assert is_up_to_date, f"kfp_specs/{profile}.yaml is out of date: run `make compile` and commit the result"


@pytest.mark.parametrize("profile", PROFILES)
def test_server_and_client_accept_the_specification(profile):
    spec, platform = backend.load(text(profile))
    component = components.load_component_from_text(text(profile))
    assert component.pipeline_spec.pipeline_info.name == "catbreeds" == spec["pipelineInfo"]["name"]
    assert set(component.platform_spec.platforms) == set(platform["platforms"]) == {"kubernetes"}
    assert component.component_spec.inputs.keys() == spec["root"]["inputDefinitions"]["parameters"].keys()


@pytest.mark.parametrize("profile", PROFILES)
def test_the_specification_contains_no_path_of_this_machine(profile):
    assert not [path for path in (str(ROOT), str(Path.home()), "/home/") if path in text(profile)]


def test_every_run_parameter_has_a_default_and_a_description():
    parameters = backend.load(text("standard"))[0]["root"]["inputDefinitions"]["parameters"]
    assert {name: parameter["defaultValue"] for name, parameter in parameters.items()} == {
        "data": "/catbreeds/photos",
        "run_date": "",
        "weights_dir": "",
        "registry": "/catbreeds/serving/catbreeds",
        "gate_min_accuracy": 0.4,
        "gate_min_test_photos": 10,
        "gate_above_majority": True,
        "gate_policy": "no_harm",
        "gate_margin": 0.04,
        "gate_min_slice": 20,
        "gate_max_slice_drop": 0.1,
    }
    assert all(parameter["description"] for parameter in parameters.values())


@pytest.mark.parametrize("profile", PROFILES)
def test_a_boolean_rule_has_a_boolean_parameter_in_the_run_and_in_the_component(profile):
    spec = backend.load(text(profile))[0]
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert parameters["gate_above_majority"]["parameterType"] == "BOOLEAN"
    assert parameters["gate_above_majority"]["defaultValue"] is (profile == "standard")
    component_parameters = spec["components"]["ModelGate"]["inputDefinitions"]["parameters"]
    assert component_parameters["above_majority"] == {"parameterType": "BOOLEAN"}


def test_the_backbones_are_parallel_branches(smoke):
    tasks = smoke["root"]["dag"]["tasks"]

    def all_upstream(name: str) -> set[str]:
        direct = backend._upstream(tasks[name])
        return direct.union(*map(all_upstream, direct))

    for backbone in ("xception", "resnet50", "efficientnetb7"):
        branch = {name for name in all_upstream(f"Evaluator-{backbone}") if name.count("-") == 1}
        assert branch == {
            f"{kind}-{backbone}" for kind in ("Backbone", "EmbeddingGen", "Transform", "Tuner", "Trainer")
        }


def test_tasks_that_access_external_files_are_never_cached_and_mount_the_volumes(smoke):
    _, platform = backend.load(text("smoke"))
    tasks = smoke["root"]["dag"]["tasks"]
    assert {name for name, task in tasks.items() if not task["cachingOptions"].get("enableCache")} == EXTERNAL_TASKS
    mounts = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert mounts.keys() == {f"{name}_executor" for name in EXTERNAL_TASKS}
    (mount,) = mounts["Pusher_executor"]["pvcMount"]
    assert mount == {"mountPath": "/catbreeds", "pvcNameParameter": {"runtimeValue": {"constant": "catbreeds"}}}


def test_image_resources_retries_secrets_and_environment_come_from_the_settings():
    spec, platform = compiled(
        "kubeflow.image=registry.example/cats:7",
        "kubeflow.embedding_resources={cpu: 8, memory: 24, gpu: 1}",
        "kubeflow.retries=4",
        "kubeflow.env={A: b}",
        "kubeflow.secrets=[{name: keys, key: token, variable: TOKEN}]",
        "kubeflow.volumes=[]",
    )
    containers = {label: found["container"] for label, found in spec["deploymentSpec"]["executors"].items()}
    assert {container["image"] for container in containers.values()} == {"registry.example/cats:7"}
    assert all(container["env"] == [{"name": "A", "value": "b"}] for container in containers.values())
    assert containers["EmbeddingGen-xception_executor"]["resources"] == {
        **{"cpuRequest": 8.0, "cpuLimit": 8.0, "memoryRequest": 24.0, "memoryLimit": 24.0},
        "accelerator": {"type": "nvidia.com/gpu", "count": "1"},
    }
    assert "accelerator" not in containers["Tuner-xception_executor"]["resources"]
    assert containers["EmbeddingJoin_executor"]["resources"] == containers["Tuner-xception_executor"]["resources"]
    retries = {name: task.get("retryPolicy") for name, task in spec["root"]["dag"]["tasks"].items()}
    assert retries.pop("DataGate") is None
    assert {policy["maxRetryCount"] for policy in retries.values()} == {4}
    assert {policy["backoffMaxDuration"] for policy in retries.values()} == {"86400s"}
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    secret = {
        "secretNameParameter": {"runtimeValue": {"constant": "keys"}},
        "keyToEnv": [{"secretKey": "token", "envVar": "TOKEN"}],
    }
    assert executors == {f"{name}_executor": {"secretAsEnv": [secret]} for name in EXTERNAL_TASKS}


def test_the_specification_contains_the_schema_of_the_photos(tmp_path):
    schema = (ROOT / "schemas" / "photos" / "schema.pbtxt").read_text(encoding="utf-8")
    (tmp_path / "schema.pbtxt").write_text(f"{schema}\n# of our cats\n", encoding="utf-8")
    spec, _ = compiled(f"photos_schema={tmp_path}")
    parameters = spec["root"]["dag"]["tasks"]["ImportSchemaGen"]["inputs"]["parameters"]
    assert parameters["text"]["runtimeValue"]["constant"].endswith("# of our cats\n")


def test_a_schema_of_an_earlier_version_is_completed(tmp_path):
    """TFDV reports a feature that the schema lacks as an anomaly."""
    (tmp_path / "schema.pbtxt").write_text("feature { name: 'breed' type: BYTES }  # any breed", encoding="utf-8")
    spec, _ = compiled(f"photos_schema={tmp_path}")
    text = spec["root"]["dag"]["tasks"]["ImportSchemaGen"]["inputs"]["parameters"]["text"]["runtimeValue"]["constant"]
    schema = text_format.Parse(text, schema_pb2.Schema())
    assert [feature.name for feature in schema.feature] == ["breed", "near_duplicate_group"]
    assert schema.feature[1].presence.min_fraction == 1


def test_a_missing_schema_is_rejected_with_its_path(tmp_path):
    with pytest.raises(SettingsError, match=f"photos_schema: {tmp_path}/schema.pbtxt: no such file"):
        compiled(f"photos_schema={tmp_path}")


def test_a_backbone_from_a_file_is_read_from_the_volume():
    file = "{name: my_net, model: /catbreeds/net.keras, image_size: 64, layers: [body, top], licence: CC0}"
    spec, platform = compiled(f"backbones=[resnet50, {file}]")
    tasks = spec["root"]["dag"]["tasks"]
    values = {
        name: value["runtimeValue"]["constant"]
        for name, value in tasks["Backbone-my-net"]["inputs"]["parameters"].items()
        if "runtimeValue" in value
    }
    assert values["model_file"] == "/catbreeds/net.keras"
    assert (values["weights"], json.loads(values["layers"]), values["image_size"]) == ("file", ["body", "top"], 64)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert {"Backbone-my-net_executor", "RetrainGate_executor"} <= executors.keys()
    gate = tasks["RetrainGate"]["inputs"]["parameters"]["backbones"]["runtimeValue"]["constant"]
    assert [network["model_file"] for network in json.loads(gate)] == ["", "/catbreeds/net.keras"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("model: net.keras, image_size: 64", "model: net.keras: must be the absolute path in the containers"),
        ("model: /catbreeds/net.keras", "image_size: missing; add it"),
    ],
)
def test_a_backbone_from_a_file_that_depends_on_this_machine_is_rejected(entry, message):
    with pytest.raises(SettingsError) as caught:
        compiled(f"backbones=[{{name: net, {entry}}}]")
    assert str(caught.value).startswith(f"backbones: net: {message}")


def test_the_image_size_of_a_backbone_from_a_file_may_be_in_the_mapping():
    backbones = "backbones=[xception, {name: net, model: /catbreeds/net.keras}]"
    spec, _ = compiled(backbones, "image_size={xception: 71, net: 64}")
    parameters = spec["root"]["dag"]["tasks"]["Backbone-net"]["inputs"]["parameters"]
    assert parameters["image_size"]["runtimeValue"]["constant"] == 64
    with pytest.raises(SettingsError, match="backbones: net: image_size: missing; add it"):
        compiled(backbones, "image_size={xception: 71}")


def test_the_precision_is_compiled_and_auto_is_rejected():
    spec, _ = compiled("backbones=[resnet50]", "precision=bfloat16")
    tasks = spec["root"]["dag"]["tasks"]
    assert tasks["Backbone-resnet50"]["inputs"]["parameters"]["precision"]["runtimeValue"]["constant"] == "bfloat16"
    gate = tasks["RetrainGate"]["inputs"]["parameters"]["backbones"]["runtimeValue"]["constant"]
    assert [network["precision"] for network in json.loads(gate)] == ["bfloat16"]
    with pytest.raises(SettingsError, match="precision: auto: the CPUs of a cluster may differ; set precision=float32"):
        compiled("precision=auto")


def test_the_documentation_has_the_current_size_of_the_node_status():
    from pipeline.runners.kubeflow.compiler import compile_pipeline

    page = (ROOT / "docs" / "kubeflow.md").read_text(encoding="utf-8")
    smoke_settings = settings("smoke", ())
    for backbones in (3, 4, 5):
        more = tuple(f"backbone{number}" for number in range(3, backbones))
        text = compile_pipeline(smoke_settings.model_copy(update={"backbones": (*smoke_settings.backbones, *more)}))
        tasks = len(backend.load(text)[0]["root"]["dag"]["tasks"])
        plain, retried = (backend.node_status(text, default_retries) / 1e6 for default_retries in (False, True))
        assert f"| {backbones} | {tasks} | {plain:.1f} | {retried:.1f} |" in page


def test_the_specification_of_eight_candidates_is_within_all_limits():
    from pipeline.runners.kubeflow.compiler import compile_pipeline

    backbones = tuple(f"backbone{number}" for number in range(7))
    spec, _ = backend.load(compile_pipeline(settings("smoke", ()).model_copy(update={"backbones": backbones})))
    inputs = {name: task.get("inputs", {}) for name, task in spec["root"]["dag"]["tasks"].items()}
    candidates = inputs["RunReport"]["parameters"]["candidates"]["runtimeValue"]["constant"]
    assert json.loads(candidates) == [*backbones, "ensemble"]

    def producers(task: str, key: str) -> list[str]:
        artifacts = inputs[task]["artifacts"]
        numbers = [number for number in range(8) if f"{key}_{number}" in artifacts]
        return [artifacts[f"{key}_{number}"]["taskOutputArtifact"]["producerTask"] for number in numbers]

    assert producers("BackboneSelector", "backbone") == [f"Backbone-{name}" for name in backbones]
    embeddings = [f"EmbeddingGen-{name}" for name in backbones]
    assert producers("EmbeddingJoin", "embeddings") == producers("EmbeddingJoin", "schema") == embeddings
    assert producers("BackboneSelector", "embeddings") == [*embeddings, "EmbeddingJoin"]
    trainers, tuners = ([f"{node}-{name}" for name in (*backbones, "ensemble")] for node in ("Trainer", "Tuner"))
    assert producers("BackboneSelector", "model") == producers("RunReport", "training") == trainers
    assert producers("RunReport", "trials") == tuners
    defaults = {name: row["defaultValue"] for name, row in spec["root"]["inputDefinitions"]["parameters"].items()}
    sizes = {name: len(json.dumps(values.get("parameters", {}))) for name, values in inputs.items()}
    assert max(len(json.dumps(defaults)), *sizes.values()) < 10_000, sizes


def test_only_beam_components_receive_beam_options(smoke):
    arguments = {
        name.removesuffix("_executor"): executor["container"]["args"]
        for name, executor in smoke["deploymentSpec"]["executors"].items()
    }
    assert {len(values) for values in arguments.values()} == {3, 6}
    assert {name.partition("-")[0] for name, values in arguments.items() if len(values) == 6} >= {
        *("StatisticsGen", "Transform", "EmbeddingGen", "ImageExampleGen")
    }
    assert len(arguments["Pusher"]) == len(arguments["Trainer-resnet50"]) == 3


def invalidate_resolver(spec):
    spec["deploymentSpec"]["executors"]["Pusher_executor"] = {"resolver": {}}


def invalidate_lifecycle(spec):
    container = spec["deploymentSpec"]["executors"]["ImageExampleGen_executor"]["container"]
    container["lifecycle"] = {"preCacheCheck": {"command": ["python"]}}


def invalidate_version(spec):
    spec["schemaVersion"] = "2.0.0"


def invalidate_name(spec):
    tasks = spec["root"]["dag"]["tasks"]
    tasks["Run.Report"] = tasks.pop("RunReport")


def invalidate_producer(spec):
    artifacts = spec["root"]["dag"]["tasks"]["DataGate"]["inputs"]["artifacts"]
    artifacts["report"]["taskOutputArtifact"]["producerTask"] = "ImageExampleGen_task"


def invalidate_order(spec):
    spec["root"]["dag"]["tasks"]["ImageExampleGen"]["dependentTasks"] = ["Pusher"]


def invalidate_input(spec):
    del spec["root"]["dag"]["tasks"]["Pusher"]["inputs"]["parameters"]["run_id"]


def invalidate_condition(spec):
    # TFX compiles this if the channel of the condition is also an input.
    task = spec["root"]["dag"]["tasks"]["Backbone-xception"]
    task["triggerPolicy"]["condition"] = task["triggerPolicy"]["condition"].replace("_RetrainGate.decision", "decision")


def invalidate_command(spec):
    spec["deploymentSpec"]["executors"]["Pusher_executor"]["container"]["command"] = []


def invalidate_field(spec):
    spec["root"]["dag"]["tasks"]["Pusher"]["retries"] = 3


@pytest.mark.parametrize(
    ("invalidate", "message"),
    [
        (invalidate_resolver, "resolver not implemented"),
        (invalidate_lifecycle, "lifecycle"),
        (invalidate_version, "schemaVersion 2.0.0"),
        (invalidate_name, "Argo does not accept the task name Run.Report"),
        (invalidate_producer, "no task ImageExampleGen_task"),
        (invalidate_order, "a cycle among"),
        (invalidate_input, "Pusher: missing parameters {'run_id'}"),
        (invalidate_condition, "its condition uses decision"),
        (invalidate_command, "no image or command"),
        (invalidate_field, "not a pipeline specification"),
    ],
    ids=lambda value: value.__name__.removeprefix("invalidate_") if callable(value) else "",
)
def test_the_backend_emulation_rejects_invalid_specifications(smoke, invalidate, message):
    invalid_spec = copy.deepcopy(smoke)
    invalidate(invalid_spec)
    with pytest.raises(backend.Rejected, match=message.replace("{", r"\{")):
        backend.load(yaml.safe_dump(invalid_spec))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"folder": "/photos"}, "unknown parameters: {'folder'}"),
        ({"data": 7}, "parameter data: 7 is not of type STRING"),
        ({"gate_margin": "much"}, "parameter gate_margin: 'much' is not of type NUMBER_DOUBLE"),
        ({"data": "x" * 10_000}, "the parameters take"),
    ],
)
def test_invalid_parameters_are_rejected_before_the_run_starts(tmp_path, parameters, message):
    with pytest.raises(backend.Rejected, match=message.replace("{", r"\{")):
        backend.Backend(tmp_path).run(text("smoke"), parameters)
    assert list(tmp_path.iterdir()) == []


def test_the_backend_emulation_imports_no_pipeline_code():
    code = (
        "import sys, json\nimport tests.pipeline.runners.kubeflow.backend\n"
        "print(json.dumps(sorted({'components', 'pipeline', 'serving', 'tfx'} & set(sys.modules))))"
    )
    done = subprocess.run(
        [CATBREEDS.with_name("python"), "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
