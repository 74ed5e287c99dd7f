"""Compiles the graph for Kubeflow Pipelines v2 and Vertex AI: TFX's compiler, then what it leaves to be done.

The specification names an image; the image is the code. So it changes with the graph and its settings, not with every
line of a component.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.orchestration.data_types import RuntimeParameter
from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_run_executor as tfx_entrypoint
from tfx.orchestration.kubeflow.v2.kubeflow_v2_dag_runner import KubeflowV2DagRunner, KubeflowV2DagRunnerConfig
from tfx.utils import import_utils

from pipeline.graph import create_pipeline
from pipeline.run_context import RunContext, photos_schema
from pipeline.runners.kubeflow import entrypoint
from pipeline.settings import ROOT, KubeflowSettings, Resources, Settings, to_json

ENTRYPOINT = ("python", "-m", "pipeline.runners.kubeflow.entrypoint")
# The backend puts the run's id in its place; Vertex AI as well.
_RUN_ID = "{{$.pipeline_job_uuid}}"
# The time of the schedule, or, in a run that somebody started, when it was created. The backend replaces it in
# constants of a task, not in parameters of a run.
_SCHEDULE_TIME = "{{$.pipeline_job_schedule_time_utc}}"
# A task that has one of these reads or writes outside of the pipeline's artifacts: it wants the volumes, and what it
# did yesterday says nothing about today.
_OUTSIDE = {"data", "weights_dir", "registry"}
# They refuse what is wrong with the data; it will be as wrong the next time.
_NEVER_RETRIED = {"DataGate"}
_RETRY_WINDOW = "86400s"  # from the first attempt; after it Argo starts no further one
_DESCRIPTIONS = {
    "data": "folder or archive of photos, one folder a breed",
    "run_date": "date that the run is for; [[ScheduledTime]]: the time of the schedule",
    "weights_dir": "folder with ImageNet weights; empty: as the profile's `weights` says",
    "registry": "base path of the pushed models, of which TensorFlow Serving reads the versions",
}


def parameters(settings: Settings) -> dict[str, Any]:
    """The parameters of a run and their defaults."""
    return {
        "data": settings.data or settings.kubeflow.data,
        "run_date": "",
        "weights_dir": settings.weights_dir or settings.kubeflow.weights_dir,
        "registry": f"{settings.kubeflow.registry.rstrip('/')}/{settings.model_name}",
        **{f"gate_{rule}": value for rule, value in settings.gate.model_dump().items()},
    }


def compile_pipeline(settings: Settings) -> str:
    """The pipeline specification (schema 2.1.0) and, as a second YAML document, the platform specification.

    Args:
        settings: `kubeflow` says what is particular to clusters; `data` and `weights_dir`, where given, are defaults.
    """
    config = KubeflowV2DagRunnerConfig(
        default_image=settings.kubeflow.image, default_commands=list(ENTRYPOINT), use_pipeline_spec_2_1=True
    )
    pipeline = create_pipeline(settings, _run_context(settings))
    spec = KubeflowV2DagRunner(config).run(pipeline, write_out=False)["pipelineSpec"]
    outside = {name for name, task in spec["root"]["dag"]["tasks"].items() if _reads_outside(task)}
    _shorten_types(spec)
    _complete_parameters(spec, settings)
    _complete_tasks(spec, settings.kubeflow, outside)
    _complete_executors(spec, settings.kubeflow)
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())  # or else a mistake in the names above
    platform = _platform(spec, settings.kubeflow, outside)
    heading = f"# {settings.model_name}: compiled by `catbreeds compile`; not to be edited.\n"
    return heading + yaml.safe_dump_all([spec, platform], sort_keys=True, width=120)


def _run_context(settings: Settings) -> RunContext:
    """Everything that lies outside of the pipeline is a parameter of the run, and looked at in the run alone."""
    given = {
        name: RuntimeParameter(name, int if isinstance(value, bool) else type(value))
        for name, value in parameters(settings).items()
    }
    schema = photos_schema(settings)
    return RunContext(
        data=given["data"],
        data_digest="",
        weights_dir=given["weights_dir"],
        weights_digest=lambda backbone: "",
        registry=given["registry"],
        stable=None,
        # No path of the machine that compiles may be in what is checked in.
        schema_file=str(schema.relative_to(ROOT)) if schema.is_relative_to(ROOT) else schema.name,
        gate={name.removeprefix("gate_"): value for name, value in given.items() if name.startswith("gate_")},
        code_digest=lambda *modules: "",
        run_id=_RUN_ID,
        run_date=given["run_date"],
        schedule_time=_SCHEDULE_TIME,
        settings=to_json(settings),
        in_cluster=True,
    )


def _reads_outside(task: dict[str, Any]) -> bool:
    inputs = task["inputs"].get("parameters", {}) if "inputs" in task else {}
    return any(value.get("componentInputParameter") in _OUTSIDE for value in inputs.values())


def _complete_parameters(spec: dict[str, Any], settings: Settings) -> None:
    """TFX drops the defaults of parameters, and takes truth values for whole numbers."""
    declared = spec["root"]["inputDefinitions"]["parameters"]
    for name, default in parameters(settings).items():
        declared[name] |= {"defaultValue": default, "isOptional": True}
        description = (
            _DESCRIPTIONS.get(name) or type(settings.gate).model_fields[name.removeprefix("gate_")].description
        )
        if description:
            declared[name]["description"] = description
        if isinstance(default, bool):
            declared[name]["parameterType"] = "BOOLEAN"
            for parameter in _readers(spec, name):
                parameter["parameterType"] = "BOOLEAN"


def _readers(spec: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """The definitions of the components' parameters that a parameter of the run sets."""
    for task in spec["root"]["dag"]["tasks"].values():
        for key, source in task.get("inputs", {}).get("parameters", {}).items():
            if source.get("componentInputParameter") == name:
                yield spec["components"][task["componentRef"]["name"]]["inputDefinitions"]["parameters"][key]


def _complete_tasks(spec: dict[str, Any], config: KubeflowSettings, outside: set[str]) -> None:
    for name, task in spec["root"]["dag"]["tasks"].items():
        if name in outside:
            task["cachingOptions"] = {}
        if config.retries and name not in _NEVER_RETRIED:
            task["retryPolicy"] = {
                "maxRetryCount": config.retries,
                "backoffDuration": "60s",
                "backoffFactor": 2.0,
                # Without it the backend tells Argo a maximum of 0, and Argo never retries.
                "backoffMaxDuration": _RETRY_WINDOW,
            }


def _shorten_types(spec: dict[str, Any]) -> None:
    """Leaves of the schema of each artifact its title, the only part that anything reads.

    Argo keeps the specification of a component up to eight times in the status of a run, which must stay small.
    """
    for component in spec["components"].values():
        for side in ("inputDefinitions", "outputDefinitions"):
            for artifact in component.get(side, {}).get("artifacts", {}).values():
                kind = artifact["artifactType"]
                kind["instanceSchema"] = entrypoint.schema(yaml.safe_load(kind["instanceSchema"])["title"])


def _complete_executors(spec: dict[str, Any], config: KubeflowSettings) -> None:
    components = {component["executorLabel"]: component for component in spec["components"].values()}
    for label, executor in spec["deploymentSpec"]["executors"].items():
        container = executor["container"]
        container["args"] = _arguments(container["args"], components[label])
        container["env"] = [{"name": name, "value": value} for name, value in sorted(config.env.items())]
        container["resources"] = _resources(_resources_of(label, config), config.gpu_type)


def _arguments(given: list[str], component: dict[str, Any]) -> list[str]:
    """The arguments of `pipeline.runners.kubeflow.entrypoint` for those of TFX's entry point."""
    known, beam = tfx_entrypoint._parse_flags(["", *given])
    uses_beam = issubclass(import_utils.import_class_by_path(known.executor_class_path), BaseBeamExecutor)
    return [
        known.executor_class_path,
        known.json_serialized_invocation_args,
        entrypoint.input_types(component.get("inputDefinitions", {})),
        *(beam[1:] if uses_beam else ()),
    ]


def _resources_of(label: str, config: KubeflowSettings) -> Resources:
    kind = label.removesuffix("_executor").partition("-")[0]
    by_kind = {
        "EmbeddingGen": config.embedding_resources,
        "Evaluator": config.embedding_resources,
        "Tuner": config.training_resources,
        "Trainer": config.training_resources,
    }
    return by_kind.get(kind, config.default_resources)


def _resources(resources: Resources, gpu_type: str) -> dict[str, Any]:
    found = {
        "cpuRequest": resources.cpu,
        "cpuLimit": resources.cpu,
        "memoryRequest": resources.memory,
        "memoryLimit": resources.memory,
    }
    return found | ({"accelerator": {"type": gpu_type, "count": str(resources.gpu)}} if resources.gpu else {})


def _platform(spec: dict[str, Any], config: KubeflowSettings, outside: set[str]) -> dict[str, Any]:
    """Volumes and secrets, which the pipeline specification has no words for; Vertex AI does not read them."""

    def constant(value: str) -> dict[str, Any]:
        return {"runtimeValue": {"constant": value}}

    mounts = [{"pvcNameParameter": constant(volume.claim), "mountPath": volume.path} for volume in config.volumes]
    secrets = [
        {
            "secretNameParameter": constant(secret.name),
            "keyToEnv": [{"secretKey": secret.key, "envVar": secret.variable}],
        }
        for secret in config.secrets
    ]
    settings = {key: value for key, value in {"pvcMount": mounts, "secretAsEnv": secrets}.items() if value}
    labels = {spec["components"][name]["executorLabel"] for name in outside}
    executors = {label: copy.deepcopy(settings) for label in sorted(labels)} if settings else {}  # YAML would link them
    return {"platforms": {"kubernetes": {"deploymentSpec": {"executors": executors}}}}


def write_pipeline(settings: Settings, path: Path) -> None:
    """Writes the specification to `path`, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(compile_pipeline(settings), encoding="utf-8")
