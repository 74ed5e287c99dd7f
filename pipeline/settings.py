"""Settings of a pipeline run: typed, validated and documented, one `Field` per key.

They come from three sources: a YAML profile, environment variables (`CATBREEDS_TUNER__MAX_EPOCHS=5`; two underscores
stand for a dot) and command-line overrides (`--set tuner.max_epochs=5`). Later sources take precedence.
`catbreeds run --print-config` prints the result.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from components.candidates.architectures import ARCHITECTURES, ENSEMBLE, MAX_CANDIDATES
from components.candidates.model_file import check_model_file, fixed_input_size
from components.errors import WeightsError
from pipeline import strict_yaml
from serving.names import is_utf_8
from serving.registry import NO_OBJECT_STORE
from serving.rollout.limits import CANARY_SHARE, CanaryCriteria, RolloutLimits
from serving.service_links import is_service_link

ROOT = Path(__file__).resolve().parent.parent
PROFILES = Path(__file__).resolve().parent / "profiles"
ENVIRONMENT_PREFIX = "CATBREEDS_"
# Variables of the project's other programs, which share the prefix.
_OTHER_PREFIXES = ("CATBREEDS_CLIENT_", "CATBREEDS_GATEWAY_", "CATBREEDS_PAGE_", "CATBREEDS_TEST_")
# Keys that earlier versions used, with their current names. An old key is an error, never ignored.
RENAMED_KEYS = {
    "beam.embedding_batch": "beam.embedding_batch_size",
    "card": "model_card",
    "ingest.max_bad_share": "ingest.max_unusable_share",
    "kubeflow.embedding": "kubeflow.embedding_resources",
    "kubeflow.learning": "kubeflow.training_resources",
    "kubeflow.other": "kubeflow.default_resources",
    "rollout.keep": "rollout.keep_versions",
    "rollout.loaded": "rollout.loaded_versions",
    "rollout.models": "rollout.models_dir",
    "rollout.share": "rollout.canary_share",
    "rollout.start": "rollout.target",
}

# Names of candidates and components that a backbone cannot have, because component IDs contain its name.
RESERVED_NAMES = ("champion", ENSEMBLE, "gate")

Fraction = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=32, le=1024)]
# Pydantic adds the tag of the alternative to the path of an error; `_without_tags` removes it.
_PLAIN, _MAPPING = "(plain)", "(mapping)"
_BY_KIND = Discriminator(lambda value: _MAPPING if isinstance(value, dict | BaseModel) else _PLAIN)


class SettingsError(ValueError):
    """An unknown key or an invalid value; the message names the key and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitSettings(_Section):
    """How photos are divided into train, eval and test.

    The split of a photo depends only on its pixels, the three shares and `seed`.
    """

    train: float = Field(0.7, gt=0, lt=1, description="share of photos for training the classification heads")
    eval: float = Field(
        0.15, gt=0, lt=1, description="share of photos for tuning, early stopping and the thresholds of prediction sets"
    )
    test: float = Field(0.15, gt=0, lt=1, description="share of photos held out for the gate")
    seed: int = Field(0, ge=0, description="seed of the split assignment; another seed assigns photos differently")

    @model_validator(mode="after")
    def _check_sum(self):
        total = self.train + self.eval + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + eval + test must be 1, not {total:g}")
        return self


class IngestSettings(_Section):
    """How photo files are read and checked."""

    max_side: int = Field(1024, ge=64, le=8192, description="longest side in pixels; larger photos are scaled down")
    near_duplicate_bits: int = Field(
        48,
        ge=0,
        le=64,
        description="photos are near-duplicates if their 256-bit perceptual hashes differ in at most this many bits",
    )
    max_unusable_share: Fraction = Field(
        0.25, description="the run stops if more than this share of the files is unusable"
    )
    min_photos_per_breed: int = Field(3, ge=1, description="the run stops if a breed has fewer usable photos")


class BeamSettings(_Section):
    """Where the Apache Beam components run."""

    runner: Literal["direct", "portable", "flink", "dataflow"] = Field(
        "direct", description="Beam runner; `direct` runs in the component's process, the others need `options`"
    )
    options: tuple[str, ...] = Field((), description="Beam pipeline options, for example ['--job_endpoint=host:8099']")
    embedding_batch_size: int = Field(
        32, ge=1, le=1024, description="images per forward pass in EmbeddingGen and Evaluator; fewer need less memory"
    )

    def pipeline_args(self) -> list[str]:
        """Beam's command-line arguments."""
        runners = {
            # Beam's DirectRunner first tries to download Prism; FnApiRunner is the engine that it falls back to.
            "direct": ["--runner=FnApiRunner", "--direct_running_mode=in_memory", "--sdk_container_image=local"],
            "portable": ["--runner=PortableRunner"],
            "flink": ["--runner=FlinkRunner"],
            "dataflow": ["--runner=DataflowRunner"],
        }
        return [*runners[self.runner], *self.options]


class TunerSettings(_Section):
    """Hyperparameter search for the classification head, on cached embeddings.

    Linear heads are solved as logistic regressions; networks are searched with Keras Tuner's Hyperband.
    """

    objective: Literal["val_loss", "val_accuracy"] = Field(
        "val_loss", description="metric on the eval split that the search optimizes"
    )
    kinds: tuple[Literal["logistic_regression", "network"], ...] = Field(
        ("logistic_regression", "network"),
        min_length=1,
        description="kinds of heads to try: `logistic_regression` is linear and solved, `network` is a neural network "
        "that is trained",
    )
    blocks: tuple[Literal["last", "all"], ...] = Field(
        ("last", "all"),
        min_length=1,
        description="embeddings to try: of the last block of the backbone, or of all blocks that it returns",
    )
    l2: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.003, 0.01, 0.03, 0.1, 0.3),
        min_length=1,
        description="L2 penalties of the logistic regressions to try: 1/C of scikit-learn's LogisticRegression, for "
        "embeddings that are scaled to a mean squared length of 1",
    )
    max_epochs: int = Field(10, ge=2, le=1000, description="number of epochs of the longest trials of networks")
    factor: int = Field(3, ge=2, le=10, description="Hyperband's reduction factor")
    units: tuple[Annotated[int, Field(ge=0, le=8192)], ...] = Field(
        (0, 10, 50, 100),
        min_length=1,
        description="numbers of hidden units of a network to try; 0 is a linear head that is trained",
    )
    dropout: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        (0.2, 0.5, 0.8), min_length=1, description="dropout rates to try, applied to the embedding during training"
    )
    learning_rate: tuple[Annotated[float, Field(gt=0, le=10)], Annotated[float, Field(gt=0, le=10)]] = Field(
        (1e-4, 1e-1), description="lowest and highest learning rate; the search samples between them on a log scale"
    )
    weight_decay: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        (0.0, 1e-3, 1e-2), min_length=1, description="weight decay values of AdamW to try"
    )

    @field_validator("learning_rate")
    @classmethod
    def _check_order(cls, value):
        if value[0] >= value[1]:
            raise ValueError("the lowest must be below the highest")
        return value


class TrainerSettings(_Section):
    """Training of each candidate's head with the best hyperparameters of the search, if it is a neural network."""

    epochs: int = Field(
        30, ge=1, le=10_000, description="maximum number of epochs; training stops early based on the eval loss"
    )
    patience: int = Field(
        5, ge=1, description="number of epochs without improvement of the eval loss before training stops"
    )
    batch_size: int = Field(32, ge=1, le=65_536, description="photos per training step, in the search and in training")


class ExplainSettings(_Section):
    """Which predictions the served model marks as uncertain; calibrated on the eval split."""

    level: float = Field(
        0.95,
        gt=0,
        lt=1,
        description="share of new photos whose prediction set contains the right breed, and share of new photos of "
        "cats that are not flagged as unlike the training photos. Both thresholds need level / (1 - level) eval "
        "photos, which is 19 for 0.95; with fewer, the model has no prediction sets and no flag",
    )


class SelectionSettings(_Section):
    """How the best candidate is selected, by its out-of-fold predictions for the photos of train and eval."""

    price: float = Field(
        0.0,
        ge=0,
        le=100,
        description="points of accuracy that a candidate must gain for each doubling of its size; with 0, the most "
        "accurate candidate is selected, and the smaller one on a tie",
    )
    price_unit: Literal["parameters", "multiply_adds"] = Field(
        "parameters",
        description="size that `price` refers to: number of parameters, or multiply-adds of one prediction",
    )


class GateSettings(_Section):
    """What a candidate must achieve on the test split to replace the champion."""

    min_accuracy: Fraction = Field(0.5, description="minimum accuracy")
    min_test_photos: int = Field(
        10, ge=1, description="minimum number of test photos; with fewer, every candidate is rejected"
    )
    above_majority: bool = Field(
        True,
        description="require the candidate to be significantly better than always predicting the largest breed "
        "(one-sided exact McNemar test, p < 0.05)",
    )
    policy: Literal["no_harm", "not_worse", "better", "significantly_better"] = Field(
        "no_harm",
        description="how the candidate must compare with the champion on the same photos. no_harm: not significantly "
        "worse (one-sided exact McNemar test, p at least 0.05), and at most `margin` less accurate; not_worse: the 95% "
        "confidence interval of the accuracy difference (Tango's score interval) begins at -margin or above; better: "
        "more photos correct; significantly_better: also exact McNemar p < 0.05. `catbreeds gate --power` shows how "
        "often each policy rejects an equal model and passes a worse one",
    )
    margin: Fraction = Field(
        0.04,
        description="loss of accuracy that the policies no_harm and not_worse tolerate; `benchmarks/gate_power.py` "
        "prints what other margins would do",
    )
    min_slice: int = Field(
        20,
        ge=1,
        description="minimum number of test photos of a breed for max_slice_drop to apply; the results of breeds with "
        "fewer are reported but not enforced",
    )
    max_slice_drop: Fraction = Field(
        0.1,
        description="loss of accuracy on a single breed, compared with the champion, above which a candidate is "
        "rejected if the loss is significant (one-sided exact McNemar test, p below 0.05 divided by the number of "
        "breeds with min_slice test photos)",
    )


_ROLLOUT_LIMITS, _CANARY_CRITERIA = RolloutLimits(), CanaryCriteria()


class RolloutSettings(_Section):
    """How new versions are rolled out, and which old versions are kept."""

    target: Literal["off", "workdir", "cluster"] = Field(
        "off",
        description="where a run starts its pushed version as the canary: workdir: on the model servers of this "
        "workdir; cluster: on those in the Kubernetes `namespace`; off: nowhere",
    )
    namespace: str = Field("catbreeds", min_length=1, description="Kubernetes namespace of the model servers")
    models_dir: str = Field(
        "/models", pattern="^/.*[^/]$", description="path in the model server containers where the models are mounted"
    )
    canary_share: Fraction = Field(
        CANARY_SHARE, description="share of the gateways' requests that go to a canary that a run starts"
    )
    loaded_versions: int = Field(
        _ROLLOUT_LIMITS.loaded_versions,
        ge=1,
        description="number of versions that fit in a model server's memory; with 2, a rollback is instant",
    )
    keep_versions: int = Field(
        _ROLLOUT_LIMITS.keep_versions,
        ge=1,
        description="number of newest versions to keep in the registry; versions in use are always kept",
    )
    load_seconds: float = Field(
        _ROLLOUT_LIMITS.load_seconds, gt=0, description="timeout for a model server to load a version"
    )
    min_requests: int = Field(
        _CANARY_CRITERIA.min_requests,
        ge=1,
        description="minimum number of requests to each of canary and stable before they are compared",
    )
    max_error_increase: Fraction = Field(
        _CANARY_CRITERIA.max_error_increase,
        description="maximum increase of the error rate of the canary over the stable version",
    )
    max_latency_ratio: float = Field(
        _CANARY_CRITERIA.max_latency_ratio,
        ge=1,
        description="maximum ratio of the canary's 95th percentile latency to that of the stable version",
    )

    def limits(self) -> dict[str, Any]:
        """Arguments for `serving.rollout.limits.RolloutLimits`."""
        return self.model_dump(include={"loaded_versions", "keep_versions", "load_seconds"})

    def rules(self) -> dict[str, Any]:
        """Arguments for `serving.rollout.limits.CanaryCriteria`."""
        return self.model_dump(include={"min_requests", "max_error_increase", "max_latency_ratio"})


class ModelCardSettings(_Section):
    """Facts for the model card that the pipeline cannot determine."""

    data_source: str = Field("not stated", description="where the photos come from")
    data_licence: str = Field("not stated", description="licence of the photos")
    contact: str = Field("not stated", description="contact for questions about the model")


class Resources(_Section):
    """Resource requests and limits of a task of the compiled pipeline."""

    cpu: float = Field(1, gt=0, description="number of CPU cores")
    memory: float = Field(4, gt=0, description="memory in GB")
    gpu: int = Field(0, ge=0, description="number of GPUs of the type `kubeflow.gpu_type`")


class Volume(_Section):
    """A persistent volume for tasks that read or write outside of the pipeline's artifact store."""

    claim: str = Field(description="name of the PersistentVolumeClaim")
    path: str = Field(pattern="^/", description="mount path")


class Secret(_Section):
    """A key of a Kubernetes Secret, as an environment variable of the tasks that mount the volumes."""

    name: str = Field(description="name of the Secret")
    key: str = Field(description="key in the Secret")
    variable: str = Field(description="name of the environment variable")


class KubeflowSettings(_Section):
    """How the pipeline is compiled for Kubeflow Pipelines and Vertex AI.

    `data`, `weights_dir`, `registry` and the gate's rules become parameters of each run; these are their defaults.
    """

    image: str = Field(
        "catbreeds-pipeline:0.1.0",
        description="container image of every task; use an immutable tag, because it is part of the cache key",
    )
    data: str = Field("/catbreeds/photos", description="default of the run parameter `data`")
    weights_dir: str = Field(
        "", description="default of the run parameter `weights_dir`; empty: use the weights set by `weights`"
    )
    registry: str = Field(
        "/catbreeds/serving", description="folder of pushed models, with one subfolder per model name"
    )
    volumes: tuple[Volume, ...] = Field(
        (Volume(claim="catbreeds", path="/catbreeds"),),
        description="persistent volumes of the tasks that read photos or access the registry",
    )
    secrets: tuple[Secret, ...] = Field((), description="Secrets that the same tasks receive as environment variables")
    env: dict[str, str] = Field(
        {"HOME": "/tmp", "TF_CPP_MIN_LOG_LEVEL": "2"}, description="environment variables of every task"
    )
    retries: int = Field(
        2,
        ge=0,
        le=10,
        description="maximum number of retries of a failed task, within a day of its first attempt. The default "
        "installation of Kubeflow Pipelines 2.17 retries lost pods, but not tasks that exit with an error; to retry "
        "these too, an operator changes `retryPolicy: OnError` to `Always` under `workflowDefaults` in the ConfigMap "
        "`workflow-controller-configmap`",
    )
    gpu_type: str = Field(
        "nvidia.com/gpu", description="resource name of a GPU; on Vertex AI an accelerator type such as NVIDIA_TESLA_T4"
    )
    embedding_resources: Resources = Field(
        Resources(cpu=4, memory=12), description="resources of EmbeddingGen and Evaluator"
    )
    training_resources: Resources = Field(Resources(cpu=2, memory=8), description="resources of Tuner and Trainer")
    default_resources: Resources = Field(Resources(cpu=1, memory=4), description="resources of all other tasks")

    @field_validator("registry")
    @classmethod
    def _check_is_folder(cls, value):
        if "://" in value:
            raise ValueError(NO_OBJECT_STORE.format(value))
        return value


class ModelFile(_Section):
    """A backbone from a file: a Keras model from pixels (0 to 255) to a feature map, tokens or a vector."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="name of the backbone")
    model: str = Field(pattern=r"\.keras$", description="path of the .keras file")
    image_size: Pixels | None = Field(
        None, description="by default the input size of the model if it is fixed, else the setting `image_size`"
    )
    layers: tuple[str, ...] = Field(
        (),
        description="layers whose outputs are the outputs of the last blocks, in the order of the forward pass; by "
        "default only the output of the model",
    )
    licence: str = Field("not stated", description="licence of the weights, for the model card")

    @field_validator("name")
    @classmethod
    def _check_name(cls, value):
        if value in ARCHITECTURES:
            raise ValueError("is the name of a built-in backbone; choose another")
        if value in RESERVED_NAMES:
            raise ValueError("is reserved; choose another")
        return value

    @field_validator("model")
    @classmethod
    def _check_is_local(cls, value):
        if "://" in value:
            raise ValueError("must be a local path; mount the bucket")
        return value


BuiltIn = Annotated[Literal[tuple(ARCHITECTURES)], Tag(_PLAIN)]
FromFile = Annotated[ModelFile, Tag(_MAPPING)]


class Settings(_Section):
    """Settings of one run of the pipeline."""

    model_name: str = Field(
        "catbreeds", pattern=r"^[a-z][a-z0-9-]*$", description="name of the model in TensorFlow Serving"
    )
    data: str | None = Field(None, description="folder or archive of photos, with one folder per breed")
    workdir: str = Field("runs", description="folder for everything that a run writes")
    workers: int | None = Field(
        None,
        ge=1,
        description="maximum number of components that run in parallel; by default one per CPU core, but at most one "
        "per 3 GB of memory",
    )
    backbones: tuple[Annotated[BuiltIn | FromFile, _BY_KIND], ...] = Field(
        tuple(ARCHITECTURES),
        min_length=1,
        description="pretrained networks to compare: built-in ones by name, and Keras models from files",
    )
    ensemble: bool = Field(
        True,
        description="also train a head on the embeddings of all backbones, as one more candidate; it adds no pass over "
        "the photos, but its served model contains all backbones",
    )
    weights: Literal["imagenet", "random"] = Field(
        "imagenet", description="weights of the built-in backbones; random is for demonstrations and tests only"
    )
    weights_dir: str | None = Field(
        None, description="folder with ImageNet weights (<backbone>_notop.weights.h5), for machines without internet"
    )
    image_size: Annotated[Pixels, Tag(_PLAIN)] | Annotated[dict[str, Pixels], Tag(_MAPPING)] = Field(
        224,
        discriminator=_BY_KIND,
        description="width and height in pixels of the images that the backbones receive: one number, or a mapping "
        "with a number for each backbone. The cost of a forward pass grows with the square of the size",
    )
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        "float32",
        description="precision in which CPUs compute the backbones, also for the gate and on servers: `bfloat16` is "
        "faster and needs CPUs with AMX; `auto` is `bfloat16` if the CPU of a local run has AMX, else `float32`",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed for random weights, hyperparameter search and training")
    photos_schema: str | None = Field(
        None, description="folder that contains schema.pbtxt, the schema of the photos; by default schemas/photos"
    )
    top_k: int = Field(5, ge=1, le=100, description="number of breeds that the serving signature `top_k` returns")
    split: SplitSettings = SplitSettings()
    ingest: IngestSettings = IngestSettings()
    beam: BeamSettings = BeamSettings()
    tuner: TunerSettings = TunerSettings()
    trainer: TrainerSettings = TrainerSettings()
    explain: ExplainSettings = ExplainSettings()
    selection: SelectionSettings = SelectionSettings()
    gate: GateSettings = GateSettings()
    model_card: ModelCardSettings = ModelCardSettings()
    rollout: RolloutSettings = RolloutSettings()
    kubeflow: KubeflowSettings = KubeflowSettings()

    @property
    def registry(self) -> Path:
        """Base path of the pushed models, as TensorFlow Serving uses it."""
        return Path(self.workdir).resolve() / "serving" / self.model_name

    @property
    def backbone_names(self) -> tuple[str, ...]:
        """Names of the backbones, in the order of `backbones`."""
        return tuple(_name_of(backbone) for backbone in self.backbones)

    @property
    def candidate_names(self) -> tuple[str, ...]:
        """Names of the candidates: the backbones, and the ensemble if there is one."""
        has_ensemble = self.ensemble and len(self.backbones) > 1
        return (*self.backbone_names, ENSEMBLE) if has_ensemble else self.backbone_names

    @property
    def model_files(self) -> dict[str, ModelFile]:
        """Name -> entry of each backbone that comes from a file."""
        return {backbone.name: backbone for backbone in self.backbones if isinstance(backbone, ModelFile)}

    def image_size_of(self, backbone: str) -> int:
        """Width and height in pixels of the images that a backbone receives.

        Args:
            backbone: Name of the backbone.

        Raises:
            WeightsError: If the size is the input size of a model file, and the file cannot be read or takes several
                sizes.
        """
        file = self.model_files.get(backbone)
        if file and file.image_size:
            return file.image_size
        sizes = self.image_size if isinstance(self.image_size, dict) else {}
        if backbone in sizes:
            return sizes[backbone]
        size = fixed_input_size(backbone, file.model) if file else None
        if size is None and sizes:
            raise WeightsError(
                f"backbones: {backbone}: image_size: missing, and {file.model} takes images of several sizes; add it"
            )
        return size or self.image_size

    def check_model_files(self) -> None:
        """Check that the models in files can be backbones, without importing TensorFlow.

        Raises:
            WeightsError: If a file is missing or its model cannot be a backbone with these settings.
        """
        for name, file in self.model_files.items():
            check_model_file(name, file.model, self.image_size_of(name), file.layers)

    @field_validator("workdir", "photos_schema")
    @classmethod
    def _check_is_local(cls, value):
        if value and "://" in value:
            raise ValueError("must be a local path; mount the bucket")
        return value

    @field_validator("workdir")
    @classmethod
    def _check_not_blank(cls, value):
        if not value.strip():
            raise ValueError("must be the path of a folder")
        return value

    @field_validator("backbones")
    @classmethod
    def _check_names(cls, value):
        names = [_name_of(backbone) for backbone in value]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"a backbone is listed twice: {', '.join(doubled)}")
        return value

    @model_validator(mode="after")
    def _check_number_of_candidates(self):
        if len(self.candidate_names) > MAX_CANDIDATES:
            raise ValueError(f"backbones: at most {MAX_CANDIDATES} candidates, including the ensemble")
        return self

    @model_validator(mode="after")
    def _check_image_sizes(self):
        if isinstance(self.image_size, dict):
            # Sizes of built-in backbones that are not in use are ignored, so that `backbones` of a profile can change.
            if unknown := self.image_size.keys() - {*self.backbone_names, *ARCHITECTURES}:
                raise ValueError(f"image_size: no such backbone: {', '.join(sorted(unknown))}")
            for backbone in self.backbone_names:
                has_own_size = backbone in self.model_files and self.model_files[backbone].image_size is not None
                if has_own_size and backbone in self.image_size:
                    raise ValueError(f"image_size: {backbone} also has a size in its entry of backbones; remove one")
                if backbone not in self.model_files and backbone not in self.image_size:
                    raise ValueError(f"image_size: no size for {backbone}; add it to the mapping")
        for backbone in set(self.backbone_names) & ARCHITECTURES.keys():
            if self.image_size_of(backbone) < ARCHITECTURES[backbone].min_size:
                raise ValueError(f"image_size: {backbone} needs at least {ARCHITECTURES[backbone].min_size} pixels")
        return self

    @model_validator(mode="after")
    def _check_weights(self):
        if self.weights == "random" and self.weights_dir:
            raise ValueError(
                "weights_dir: contains ImageNet weights, but weights=random; set weights=imagenet or remove weights_dir"
            )
        return self


def _name_of(backbone: str | ModelFile) -> str:
    return backbone.name if isinstance(backbone, ModelFile) else backbone


def profiles() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load(
    profile: str,
    overrides: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
    options: Mapping[str, str] | None = None,
) -> Settings:
    """Combine a profile, environment variables, overrides and command-line options; later ones take precedence.

    Args:
        profile: Name of a profile or path of a YAML file.
        overrides: Values of `--set`, each `key=value`.
        environment: Environment variables; only those with the prefix CATBREEDS_ are read.
        options: Values of other command-line options, by key of the setting.

    Raises:
        SettingsError: If a key is unknown or a value is invalid. The message names the key and what is allowed.
    """
    values = _read_profile(profile)
    variables: dict[str, str] = {}  # key -> the environment variable that sets it
    for name, value in sorted((environment or {}).items()):
        if _is_setting(name, value):
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            if key in variables:
                raise SettingsError(f"{name} and {variables[key]} both set {key}; remove one")
            _assign(values, key, value, name)
            variables[key] = name
    _reject_overlaps(variables)
    overridden: dict[str, str] = {}  # key -> the option that sets it
    for override in overrides:
        key = _apply_override(values, override)
        variables.pop(key, None)
        overridden[key] = f"--set {override}"
    _reject_overlaps(overridden)
    for key in options or {}:
        variables.pop(key, None)
    values.update(options or {})
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        # Pydantic reports a list with an invalid item also as too short.
        errors = [e for e in _without_tags(error) if e["type"] != "too_short" or not e["input"]]
        raise SettingsError("\n".join(_error_message(e) + _source_of_error(e, variables) for e in errors)) from None


def check_gate(overrides: Iterable[str]) -> dict[str, Any]:
    """Validate `gate.key=value` overrides and return the rules that they set.

    Raises:
        SettingsError: If an override does not set a rule of the gate, or its value is invalid.
    """
    values: dict[str, Any] = {}
    for override in overrides:
        if not override.startswith("gate."):
            raise SettingsError(
                f"--set {override}: only the rules of the gate can be changed: "
                f"gate.{', gate.'.join(GateSettings.model_fields)}"
            )
        _apply_override(values, override)
    try:
        gate = Settings.model_validate(values).gate
    except ValidationError as error:
        raise SettingsError("\n".join(map(_error_message, _without_tags(error)))) from None
    return {name: getattr(gate, name) for name in values.get("gate", {})}


def to_yaml(settings: Settings) -> str:
    """Serialize the settings as a profile, which `load` can read."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def to_json(settings: Settings) -> str:
    """Serialize the settings as a JSON object, the form in which components receive them."""
    return json.dumps(settings.model_dump(mode="json"))


def _read_profile(profile: str) -> dict[str, Any]:
    path = PROFILES / f"{profile}.yaml" if profile in profiles() else Path(profile)
    try:
        values = strict_yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"profile {profile!r}: no such profile or file; available profiles: {', '.join(profiles())}"
        ) from None
    except strict_yaml.DuplicateKey as error:
        raise SettingsError(f"profile {path}, {error}") from None
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise SettingsError(f"profile {path}: cannot be read: {error}") from None
    if values is None:  # an empty file, or comments only
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"profile {path}: must be a mapping of settings, not {type(values).__name__}")
    return _copy_mappings(values)


def _copy_mappings(value: Any) -> Any:
    """Copy nested mappings: a YAML anchor makes two keys share one mapping, so a change to one would change both."""
    return {key: _copy_mappings(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _is_setting(variable: str, value: str) -> bool:
    """Whether an environment variable is a setting of the pipeline."""
    return (
        variable.startswith(ENVIRONMENT_PREFIX)
        and not variable.startswith(_OTHER_PREFIXES)
        and not is_service_link(variable, value)
    )


def _reject_overlaps(sources: Mapping[str, str]) -> None:
    """Reject `gate={...}` together with `gate.margin=...`: if both set a key, the result would depend on their order.

    Args:
        sources: Key -> the variable or option that sets it.
    """
    for section, section_source in sources.items():
        for key, source in sources.items():
            if key.startswith(f"{section}."):
                raise SettingsError(f"{section_source} and {source} both set keys of {section!r}; combine them")


def _apply_override(values: dict[str, Any], override: str) -> str:
    """Store the value of `key=value` in `values` and return the key."""
    key, equals, value = override.partition("=")
    if not equals:
        raise SettingsError(f"--set {override}: write --set key=value, for example --set tuner.max_epochs=5")
    _assign(values, key.strip(), value, f"--set {override}")
    return key.strip()


def _assign(values: dict[str, Any], key: str, text: str, source: str) -> None:
    """Parse `text` as YAML and store it at the dotted `key`. Text settings need no quotes."""
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise SettingsError(f"{source}: {section!r} is a value and has no keys")
    annotation = _type_of(key)
    is_text = annotation in (str, str | None) or get_origin(annotation) is Literal  # off is false in YAML 1.1
    try:
        value = strict_yaml.load(text)
    except (yaml.YAMLError, ValueError) as error:  # PyYAML raises ValueError for an invalid date such as 2024-13-45
        if not is_text or not is_utf_8(text):
            reason = str(error) if isinstance(error, strict_yaml.DuplicateKey) else f"{text!r} is not a YAML value"
            raise SettingsError(f"{source}: {reason}") from None
        value = text.strip()
    if is_text:
        value = value if value is None or isinstance(value, str) else text.strip()
    elif value == text.strip():  # a string without quotes
        value = _parse_float(value)
    _merge(values, key, name, value)


def _merge(values: dict[str, Any], key: str, name: str, value: Any) -> None:
    """Store `value` at `name`, the last part of `key`; for a section, replace only the keys that `value` has."""
    if isinstance(value, dict) and isinstance(values.get(name), dict) and _is_section(key):
        for inner in value:
            _merge(values[name], f"{key}.{inner}", inner, value[inner])
    else:
        values[name] = value


def _is_section(key: str) -> bool:
    annotation = _type_of(key)
    return isinstance(annotation, type) and issubclass(annotation, _Section)


def _type_of(key: str) -> Any:
    """Type of the setting at a dotted key, which may be a renamed one; None if there is no such setting."""
    annotation: Any = Settings
    for part in _current_key(key).split("."):
        fields = getattr(annotation, "model_fields", {})
        if part not in fields:
            return None
        annotation = fields[part].annotation
    return annotation


def _current_key(key: str) -> str:
    for old, new in RENAMED_KEYS.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return key


def _parse_float(text: str) -> float | str:
    """Parse numbers such as 1e-4, which YAML 1.1 reads as strings."""
    try:
        return float(text)
    except ValueError:
        return text


def _without_tags(error: ValidationError) -> list[dict[str, Any]]:
    """Return pydantic's errors; their paths contain only keys and positions."""
    return [
        {**details, "loc": tuple(part for part in details["loc"] if part not in (_PLAIN, _MAPPING))}
        for details in error.errors()
    ]


def _error_message(error: Mapping[str, Any]) -> str:
    """Format a pydantic error: dotted key, problem, given value and allowed range."""
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        if key in RENAMED_KEYS:
            return f"{key}: renamed to {RENAMED_KEYS[key]}; use the new key"
        section = Settings
        for part in error["loc"][:-1]:
            if part in section.model_fields:  # not a position in a list
                section = next(_sections_in(section.model_fields[part].annotation))
        return f"{key}: no such setting; available: {', '.join(section.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    value = "" if isinstance(error["input"], dict | BaseModel) else f" (got {error['input']!r})"
    return f"{key}: {message}{value}{_allowed_range(error['loc'])}" if key else message


def _sections_in(annotation: Any) -> Iterator[type[_Section]]:
    """Sections that a type contains, such as the items of a list."""
    if isinstance(annotation, type) and issubclass(annotation, _Section):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections_in(inner)


def _source_of_error(error: Mapping[str, Any], variables: Mapping[str, str]) -> str:
    """Name the environment variables that may have caused the error: all in its section if the section is invalid.

    Args:
        error: Pydantic's error.
        variables: Key -> the environment variable that sets it.
    """
    key = ".".join(map(str, error["loc"]))
    prefix = f"{key}." if key else ""
    names = [
        name for set_key, name in variables.items() if prefix.startswith(f"{set_key}.") or set_key.startswith(prefix)
    ]
    return f" (set by {', '.join(names)} in the environment)" if names else ""


def _allowed_range(location: tuple[str | int, ...]) -> str:
    """Both bounds of a number; pydantic reports only the one that is violated."""
    section, field = Settings, None
    for part in location:
        fields = getattr(section, "model_fields", {})
        if part not in fields:
            return ""
        field = fields[part]
        section = field.annotation
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    bounds = [
        f"{word} {getattr(constraint, name):g}"
        for constraint in (_constraints(field) if field else ())
        for name, word in words.items()
        if hasattr(constraint, name)
    ]
    return f"; allowed: {' and '.join(bounds)}" if bounds else ""


def _constraints(field: FieldInfo) -> list[Any]:
    """Constraints of a field, including those of its alternatives."""
    alternatives = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else ()
    return [c for one in (field, *map(FieldInfo.from_annotation, alternatives)) for c in one.metadata]
