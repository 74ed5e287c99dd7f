"""Compile the graph for Kubeflow Pipelines v2 and Vertex AI: run TFX's compiler, then complete its result.

The specification refers to the code only by the name of the container image. It changes when the graph or the settings
change, but not with every edit of a component.
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
from pipeline.settings import ROOT, KubeflowSettings, Resources, Settings, SettingsError, to_json
from serving.precision import AUTO, BFLOAT16, FLOAT32

ENTRYPOINT = ("python", "-m", "pipeline.runners.kubeflow.entrypoint")
# Kubeflow Pipelines and Vertex AI replace it with the ID of the run.
_RUN_ID = "{{$.pipeline_job_uuid}}"
# The backend replaces it with the scheduled time of the run, or the creation time of a run without schedule. It does so
# only in constants of a task, not in parameters of a run.
_SCHEDULE_TIME = "{{$.pipeline_job_schedule_time_utc}}"
# A task with one of these run parameters accesses files outside of the artifact store: it needs the volumes, and its
# results must not be cached, because those files can change.
_EXTERNAL_PARAMETERS = {"data", "weights_dir", "registry"}
# Tasks that fail if the data is invalid; a retry would fail for the same reason.
_NEVER_RETRIED = {"DataGate"}
_RETRY_WINDOW = "86400s"  # Argo starts no attempt later than this after the first one
_DESCRIPTIONS = {
    "data": "folder or archive of photos, with one folder per breed",
    "run_date": "date of the run; [[ScheduledTime]] stands for the scheduled time",
    "weights_dir": "folder with ImageNet weights; empty: the weights set by `weights` in the profile",
    "registry": "base path of the pushed models, from which TensorFlow Serving loads the versions",
}


def parameters(settings: Settings) -> dict[str, Any]:
    """Parameters of a run, with their defaults."""
    return {
        "data": settings.data or settings.kubeflow.data,
        "run_date": "",
        "weights_dir": settings.weights_dir or settings.kubeflow.weights_dir,
        "registry": f"{settings.kubeflow.registry.rstrip('/')}/{settings.model_name}",
        **{f"gate_{rule}": value for rule, value in settings.gate.model_dump().items()},
    }


def compile_pipeline(settings: Settings) -> str:
    """Compile the pipeline to YAML: the pipeline specification (schema 2.1.0) and the platform specification.

    Args:
        settings: Settings of the run. `data` and `weights_dir`, if set, replace the defaults in `kubeflow`.

    Raises:
        SettingsError: If the specification would depend on files of this machine, or the schema cannot be read.
    """
    _check_model_files(settings)
    if settings.precision == AUTO:
        raise SettingsError(
            f"precision: {AUTO}: the CPUs of a cluster may differ; set precision={FLOAT32}, or precision={BFLOAT16} if "
            "all nodes that run EmbeddingGen, Evaluator and ServingCheck have AMX"
        )
    config = KubeflowV2DagRunnerConfig(
        default_image=settings.kubeflow.image, default_commands=list(ENTRYPOINT), use_pipeline_spec_2_1=True
    )
    pipeline = create_pipeline(settings, _run_context(settings))
    spec = KubeflowV2DagRunner(config).run(pipeline, write_out=False)["pipelineSpec"]
    external = {name for name, task in spec["root"]["dag"]["tasks"].items() if _is_external(task)}
    _shorten_artifact_types(spec)
    _complete_parameters(spec, settings)
    _complete_tasks(spec, settings.kubeflow, external)
    _complete_executors(spec, settings.kubeflow)
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())  # fails on unknown field names
    platform = _platform_spec(spec, settings.kubeflow, external)
    header = f"# {settings.model_name}: compiled by `catbreeds compile`; do not edit.\n"
    return header + yaml.safe_dump_all([spec, platform], sort_keys=True, width=120)


def _check_model_files(settings: Settings) -> None:
    """Reject model files by which the specification would depend on this machine: the tasks read them elsewhere."""
    for name, file in settings.model_files.items():
        if not Path(file.model).is_absolute():
            raise SettingsError(
                f"backbones: {name}: model: {file.model}: must be the absolute path in the containers, for example on "
                f"the volume at {', '.join(volume.path for volume in settings.kubeflow.volumes)}"
            )
        sizes = settings.image_size if isinstance(settings.image_size, dict) else {}
        if not file.image_size and name not in sizes:
            raise SettingsError(
                f"backbones: {name}: image_size: missing; add it, because {file.model} is not read when the pipeline "
                "is compiled"
            )


def _run_context(settings: Settings) -> RunContext:
    """Context in which photos, weights, registry and gate are parameters of each run, so their digests are unknown."""
    run_parameters = {
        name: RuntimeParameter(name, int if isinstance(value, bool) else type(value))
        for name, value in parameters(settings).items()
    }
    schema = photos_schema(settings)
    return RunContext(
        data=run_parameters["data"],
        data_digest="",
        weights_dir=run_parameters["weights_dir"],
        weights_digest=lambda backbone: "",
        registry=run_parameters["registry"],
        stable=None,
        # The specification is checked in and must not contain a path of the machine that compiles it.
        schema_file=str(schema.relative_to(ROOT)) if schema.is_relative_to(ROOT) else schema.name,
        gate={name.removeprefix("gate_"): value for name, value in run_parameters.items() if name.startswith("gate_")},
        code_digest=lambda *modules: "",
        run_id=_RUN_ID,
        run_date=run_parameters["run_date"],
        schedule_time=_SCHEDULE_TIME,
        settings=to_json(settings),
        in_cluster=True,
    )


def _is_external(task: dict[str, Any]) -> bool:
    """Whether a task accesses files outside of the artifact store."""
    inputs = task["inputs"].get("parameters", {}) if "inputs" in task else {}
    return any(value.get("componentInputParameter") in _EXTERNAL_PARAMETERS for value in inputs.values())


def _complete_parameters(spec: dict[str, Any], settings: Settings) -> None:
    """Restore the defaults of parameters, which TFX drops, and booleans, which TFX compiles to integers."""
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
            for parameter in _component_parameters(spec, name):
                parameter["parameterType"] = "BOOLEAN"


def _component_parameters(spec: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Definitions of the component parameters that the run parameter `name` sets."""
    for task in spec["root"]["dag"]["tasks"].values():
        for key, source in task.get("inputs", {}).get("parameters", {}).items():
            if source.get("componentInputParameter") == name:
                yield spec["components"][task["componentRef"]["name"]]["inputDefinitions"]["parameters"][key]


def _complete_tasks(spec: dict[str, Any], config: KubeflowSettings, external: set[str]) -> None:
    """Set caching and retries."""
    for name, task in spec["root"]["dag"]["tasks"].items():
        if name in external:
            task["cachingOptions"] = {}
        if config.retries and name not in _NEVER_RETRIED:
            task["retryPolicy"] = {
                "maxRetryCount": config.retries,
                "backoffDuration": "60s",
                "backoffFactor": 2.0,
                # Without it the backend passes a maximum of 0 to Argo, which then never retries.
                "backoffMaxDuration": _RETRY_WINDOW,
            }


def _shorten_artifact_types(spec: dict[str, Any]) -> None:
    """Reduce the schema of each artifact type to its title, the only part that is used.

    Argo stores the specification of a component up to eight times in the status of a run, which must stay small.
    """
    for component in spec["components"].values():
        for side in ("inputDefinitions", "outputDefinitions"):
            for artifact in component.get(side, {}).get("artifacts", {}).values():
                kind = artifact["artifactType"]
                kind["instanceSchema"] = entrypoint.schema(yaml.safe_load(kind["instanceSchema"])["title"])


def _complete_executors(spec: dict[str, Any], config: KubeflowSettings) -> None:
    """Set arguments, environment variables and resources of the containers."""
    components = {component["executorLabel"]: component for component in spec["components"].values()}
    for label, executor in spec["deploymentSpec"]["executors"].items():
        container = executor["container"]
        container["args"] = _entrypoint_arguments(container["args"], components[label])
        container["env"] = [{"name": name, "value": value} for name, value in sorted(config.env.items())]
        container["resources"] = _container_resources(_component_resources(label, config), config.gpu_type)


def _entrypoint_arguments(tfx_arguments: list[str], component: dict[str, Any]) -> list[str]:
    """Convert arguments of TFX's entry point to arguments of `pipeline.runners.kubeflow.entrypoint`."""
    known, beam = tfx_entrypoint._parse_flags(["", *tfx_arguments])
    uses_beam = issubclass(import_utils.import_class_by_path(known.executor_class_path), BaseBeamExecutor)
    return [
        known.executor_class_path,
        known.json_serialized_invocation_args,
        entrypoint.input_types(component.get("inputDefinitions", {})),
        *(beam[1:] if uses_beam else ()),
    ]


def _component_resources(label: str, config: KubeflowSettings) -> Resources:
    component = label.removesuffix("_executor").partition("-")[0]
    by_component = {
        "EmbeddingGen": config.embedding_resources,
        "Evaluator": config.embedding_resources,
        "EmbeddingJoin": config.training_resources,
        "Tuner": config.training_resources,
        "Trainer": config.training_resources,
    }
    return by_component.get(component, config.default_resources)


def _container_resources(resources: Resources, gpu_type: str) -> dict[str, Any]:
    container_resources = {
        "cpuRequest": resources.cpu,
        "cpuLimit": resources.cpu,
        "memoryRequest": resources.memory,
        "memoryLimit": resources.memory,
    }
    if resources.gpu:
        container_resources["accelerator"] = {"type": gpu_type, "count": str(resources.gpu)}
    return container_resources


def _platform_spec(spec: dict[str, Any], config: KubeflowSettings, external: set[str]) -> dict[str, Any]:
    """Volumes and Secrets, for which the pipeline specification has no fields. Vertex AI ignores them."""

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
    labels = {spec["components"][name]["executorLabel"] for name in external}
    # Copies, because YAML would write shared objects as anchors.
    executors = {label: copy.deepcopy(settings) for label in sorted(labels)} if settings else {}
    return {"platforms": {"kubernetes": {"deploymentSpec": {"executors": executors}}}}


def write_pipeline(settings: Settings, path: Path) -> None:
    """Compile the pipeline to the file `path`; creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(compile_pipeline(settings), encoding="utf-8")
