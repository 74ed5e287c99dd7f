"""The compiled specifications that are checked in: up to date, and such that a cluster takes them."""

import copy
import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from kfp import components

from pipeline.settings import SettingsError
from pipeline.settings import load as settings
from tests.pipeline.runners.kubeflow import backend
from tests.running import CATBREEDS

ROOT = Path(__file__).parents[4]
PROFILES = ("smoke", "standard")
OUTSIDE = {
    *("ImageExampleGen", "DataGate", "RetrainGate", "ChampionModel", "Pusher", "RunReport"),
    *("Backbone-xception", "Backbone-resnet50", "Backbone-efficientnetb7"),
}


def text(profile: str) -> str:
    return (ROOT / "kfp_specs" / f"{profile}.yaml").read_text(encoding="utf-8")


def compiled(*overrides: str) -> tuple[dict, dict]:
    """What a profile with other settings compiles to."""
    from pipeline.runners.kubeflow.compiler import compile_pipeline

    return backend.load(compile_pipeline(settings("smoke", overrides)))


@pytest.fixture(scope="module")
def smoke() -> dict:
    spec, _ = backend.load(text("smoke"))
    return spec


def test_what_is_checked_in_is_what_compiles_anywhere(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CATBREEDS_")}
    # A process of its own: whether what it writes depends on how Python hashes strings is decided when it starts.
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
        same = (tmp_path / "specs" / f"{profile}.yaml").read_bytes() == text(profile).encode()
        assert same, f"kfp_specs/{profile}.yaml is out of date: run `make compile` and check it in"


@pytest.mark.parametrize("profile", PROFILES)
def test_the_server_and_the_client_take_it(profile):
    spec, platform = backend.load(text(profile))
    component = components.load_component_from_text(text(profile))
    assert component.pipeline_spec.pipeline_info.name == "catbreeds" == spec["pipelineInfo"]["name"]
    assert set(component.platform_spec.platforms) == set(platform["platforms"]) == {"kubernetes"}
    assert component.component_spec.inputs.keys() == spec["root"]["inputDefinitions"]["parameters"].keys()


@pytest.mark.parametrize("profile", PROFILES)
def test_no_machine_is_named_in_it(profile):
    assert not [place for place in (str(ROOT), str(Path.home()), "/home/") if place in text(profile)]


def test_a_run_needs_no_parameter_and_each_can_be_given():
    parameters = backend.load(text("standard"))[0]["root"]["inputDefinitions"]["parameters"]
    assert {name: parameter["defaultValue"] for name, parameter in parameters.items()} == {
        "data": "/catbreeds/photos",
        "run_date": "",
        "weights_dir": "",
        "registry": "/catbreeds/serving/catbreeds",
        "gate_min_accuracy": 0.4,
        "gate_min_test_photos": 10,
        "gate_above_majority": True,
        "gate_policy": "not_worse",
        "gate_margin": 0.02,
        "gate_min_slice": 20,
        "gate_max_slice_drop": 0.1,
    }
    assert all(parameter["description"] for parameter in parameters.values())


@pytest.mark.parametrize("profile", PROFILES)
def test_a_rule_that_is_true_or_false_is_so_for_the_run_and_for_the_component(profile):
    spec = backend.load(text(profile))[0]
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert parameters["gate_above_majority"]["parameterType"] == "BOOLEAN"
    assert parameters["gate_above_majority"]["defaultValue"] is (profile == "standard")
    of_component = spec["components"]["ModelGate"]["inputDefinitions"]["parameters"]
    assert of_component["above_majority"] == {"parameterType": "BOOLEAN"}


def test_the_backbones_are_parallel_branches(smoke):
    tasks = smoke["root"]["dag"]["tasks"]

    def rests_on(name: str) -> set[str]:
        direct = backend._upstream(tasks[name])
        return direct.union(*map(rests_on, direct))

    for backbone in ("xception", "resnet50", "efficientnetb7"):
        branch = {name for name in rests_on(f"Evaluator-{backbone}") if name.count("-") == 1}
        assert branch == {
            f"{kind}-{backbone}" for kind in ("Backbone", "EmbeddingGen", "Transform", "Tuner", "Trainer")
        }


def test_what_reads_outside_of_the_pipeline_is_never_cached_and_has_the_volumes(smoke):
    _, platform = backend.load(text("smoke"))
    tasks = smoke["root"]["dag"]["tasks"]
    assert {name for name, task in tasks.items() if not task["cachingOptions"].get("enableCache")} == OUTSIDE
    mounts = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert mounts.keys() == {f"{name}_executor" for name in OUTSIDE}
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
    retries = {name: task.get("retryPolicy") for name, task in spec["root"]["dag"]["tasks"].items()}
    assert retries.pop("DataGate") is None
    assert {policy["maxRetryCount"] for policy in retries.values()} == {4}
    assert {policy["backoffMaxDuration"] for policy in retries.values()} == {"86400s"}
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    secret = {
        "secretNameParameter": {"runtimeValue": {"constant": "keys"}},
        "keyToEnv": [{"secretKey": "token", "envVar": "TOKEN"}],
    }
    assert executors == {f"{name}_executor": {"secretAsEnv": [secret]} for name in OUTSIDE}


def test_other_breeds_in_the_schema_are_another_specification(tmp_path):
    schema = (ROOT / "schemas" / "photos" / "schema.pbtxt").read_text(encoding="utf-8")
    (tmp_path / "schema.pbtxt").write_text(f"{schema}\n# of our cats\n", encoding="utf-8")
    spec, _ = compiled(f"photos_schema={tmp_path}")
    given = spec["root"]["dag"]["tasks"]["ImportSchemaGen"]["inputs"]["parameters"]
    assert given["text"]["runtimeValue"]["constant"].endswith("# of our cats\n")


def test_a_schema_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SettingsError, match=f"photos_schema: {tmp_path}/schema.pbtxt: no such file"):
        compiled(f"photos_schema={tmp_path}")


def test_the_page_says_how_large_the_status_of_a_run_is():
    from pipeline.runners.kubeflow.compiler import compile_pipeline

    page = (ROOT / "docs" / "kubeflow.md").read_text(encoding="utf-8")
    given = settings("smoke", ())
    for backbones in (3, 4, 5):
        more = tuple(f"backbone{number}" for number in range(3, backbones))
        text = compile_pipeline(given.model_copy(update={"backbones": (*given.backbones, *more)}))
        tasks = len(backend.load(text)[0]["root"]["dag"]["tasks"])
        plain, retried = (backend.node_status(text, default_retries) / 1e6 for default_retries in (False, True))
        assert f"| {backbones} | {tasks} | {plain:.1f} | {retried:.1f} |" in page


def test_only_what_uses_beam_is_given_its_flags(smoke):
    arguments = {
        name.removesuffix("_executor"): executor["container"]["args"]
        for name, executor in smoke["deploymentSpec"]["executors"].items()
    }
    assert {len(given) for given in arguments.values()} == {3, 6}
    assert {name.partition("-")[0] for name, given in arguments.items() if len(given) == 6} >= {
        *("StatisticsGen", "Transform", "EmbeddingGen", "ImageExampleGen")
    }
    assert len(arguments["Pusher"]) == len(arguments["Trainer-resnet50"]) == 3


def spoil_resolver(spec):
    spec["deploymentSpec"]["executors"]["Pusher_executor"] = {"resolver": {}}


def spoil_lifecycle(spec):
    container = spec["deploymentSpec"]["executors"]["ImageExampleGen_executor"]["container"]
    container["lifecycle"] = {"preCacheCheck": {"command": ["python"]}}


def spoil_version(spec):
    spec["schemaVersion"] = "2.0.0"


def spoil_name(spec):
    tasks = spec["root"]["dag"]["tasks"]
    tasks["Run.Report"] = tasks.pop("RunReport")


def spoil_producer(spec):
    artifacts = spec["root"]["dag"]["tasks"]["DataGate"]["inputs"]["artifacts"]
    artifacts["report"]["taskOutputArtifact"]["producerTask"] = "ImageExampleGen_task"


def spoil_order(spec):
    spec["root"]["dag"]["tasks"]["ImageExampleGen"]["dependentTasks"] = ["Pusher"]


def spoil_input(spec):
    del spec["root"]["dag"]["tasks"]["Pusher"]["inputs"]["parameters"]["run_id"]


def spoil_condition(spec):
    # What TFX makes of a condition on a channel that is an input as well.
    task = spec["root"]["dag"]["tasks"]["Backbone-xception"]
    task["triggerPolicy"]["condition"] = task["triggerPolicy"]["condition"].replace("_RetrainGate.decision", "decision")


def spoil_command(spec):
    spec["deploymentSpec"]["executors"]["Pusher_executor"]["container"]["command"] = []


def spoil_field(spec):
    spec["root"]["dag"]["tasks"]["Pusher"]["retries"] = 3


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_resolver, "resolver not implemented"),
        (spoil_lifecycle, "lifecycle"),
        (spoil_version, "schemaVersion 2.0.0"),
        (spoil_name, "Argo takes no task by the name Run.Report"),
        (spoil_producer, "no task ImageExampleGen_task"),
        (spoil_order, "a cycle among"),
        (spoil_input, "Pusher: nothing for its parameters {'run_id'}"),
        (spoil_condition, "its condition asks for decision"),
        (spoil_command, "no image or command"),
        (spoil_field, "not a pipeline specification"),
    ],
    ids=lambda value: value.__name__.removeprefix("spoil_") if callable(value) else "",
)
def test_the_executor_of_these_tests_takes_nothing_that_a_cluster_would_not(smoke, spoil, words):
    spoiled = copy.deepcopy(smoke)
    spoil(spoiled)
    with pytest.raises(backend.Rejected, match=words.replace("{", r"\{")):
        backend.load(yaml.safe_dump(spoiled))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"folder": "/photos"}, "unknown parameters: {'folder'}"),
        ({"data": 7}, "parameter data: 7 is no STRING"),
        ({"gate_margin": "much"}, "parameter gate_margin: 'much' is no NUMBER_DOUBLE"),
        ({"data": "x" * 10_000}, "the parameters take"),
    ],
)
def test_parameters_that_the_server_would_not_take_start_nothing(tmp_path, parameters, words):
    with pytest.raises(backend.Rejected, match=words.replace("{", r"\{")):
        backend.Backend(tmp_path).run(text("smoke"), parameters)
    assert list(tmp_path.iterdir()) == []


def test_the_executor_imports_nothing_of_the_pipeline():
    code = (
        "import sys, json\nimport tests.pipeline.runners.kubeflow.backend\n"
        "print(json.dumps(sorted({'components', 'pipeline', 'serving', 'tfx'} & set(sys.modules))))"
    )
    done = subprocess.run(
        [CATBREEDS.with_name("python"), "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
