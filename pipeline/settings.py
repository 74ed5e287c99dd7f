"""Settings of a run: typed, validated, and every key documented.

They come from a YAML profile, then `CATBREEDS_...` environment variables (`CATBREEDS_TUNER__MAX_EPOCHS=5`: two
underscores for a dot), then `--set tuner.max_epochs=5`; the later wins. `catbreeds run --print-config` shows them.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from components.candidates.architectures import ARCHITECTURES
from pipeline import strict_yaml
from serving.environment import is_service_link
from serving.names import is_utf_8
from serving.registry import NO_OBJECT_STORE
from serving.rollout.limits import CANARY_SHARE, CanaryCriteria, RolloutLimits

ROOT = Path(__file__).resolve().parent.parent
PROFILES = Path(__file__).resolve().parent / "profiles"
ENVIRONMENT_PREFIX = "CATBREEDS_"
# Other programs of the project read variables of their own under the same prefix.
_OTHER_PROGRAMS = ("CATBREEDS_CLIENT_", "CATBREEDS_GATEWAY_", "CATBREEDS_PAGE_", "CATBREEDS_TEST_")

Fraction = Annotated[float, Field(ge=0, le=1)]


class SettingsError(ValueError):
    """A setting that is unknown or impossible; the message names its key and says what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitSettings(_Section):
    """How photos are divided. A photo's split depends on its own pixels, the shares and `seed`."""

    train: float = Field(0.7, gt=0, lt=1, description="share of photos the heads learn from")
    eval: float = Field(0.15, gt=0, lt=1, description="share that tunes, stops and selects")
    test: float = Field(0.15, gt=0, lt=1, description="share that only the gate sees")
    seed: int = Field(0, ge=0, description="another seed deals the photos anew")

    @model_validator(mode="after")
    def _sums_to_one(self):
        total = self.train + self.eval + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + eval + test must be 1, not {total:g}")
        return self


class IngestSettings(_Section):
    """What becomes of the photo files."""

    max_side: int = Field(1024, ge=64, le=8192, description="longer photos are reduced to this many pixels")
    near_duplicate_bits: int = Field(
        48, ge=0, le=64, description="photos whose perceptual hashes differ in at most so many of 256 bits are copies"
    )
    max_bad_share: Fraction = Field(0.25, description="stop when a larger share of the files is no usable photo")
    min_photos_per_breed: int = Field(3, ge=1, description="stop when a breed has fewer good photos")


class BeamSettings(_Section):
    """Where the data-parallel components run."""

    runner: Literal["direct", "portable", "flink", "dataflow"] = Field(
        "direct", description="direct: in this process; the others need their `options`"
    )
    options: tuple[str, ...] = Field((), description="as Beam spells them: ['--job_endpoint=host:8099']")
    embedding_batch: int = Field(16, ge=1, le=1024, description="most images in one forward pass of a backbone")

    def pipeline_args(self) -> list[str]:
        """Beam's command-line arguments."""
        runners = {
            # Beam's own DirectRunner first tries to download Prism; this is the engine behind it.
            "direct": ["--runner=FnApiRunner", "--direct_running_mode=in_memory", "--sdk_container_image=local"],
            "portable": ["--runner=PortableRunner"],
            "flink": ["--runner=FlinkRunner"],
            "dataflow": ["--runner=DataflowRunner"],
        }
        return [*runners[self.runner], *self.options]


class TunerSettings(_Section):
    """The search for the head's hyperparameters: Keras Tuner's Hyperband on cached embeddings."""

    objective: Literal["val_loss", "val_accuracy"] = Field("val_loss", description="what the search improves, on eval")
    max_epochs: int = Field(10, ge=2, le=1000, description="epochs of the longest trials")
    factor: int = Field(3, ge=2, le=10, description="Hyperband's reduction factor")
    units: tuple[Annotated[int, Field(ge=0, le=8192)], ...] = Field(
        (0, 10, 50, 100), min_length=1, description="hidden units to try; 0 is a linear head"
    )
    dropout: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        (0.2, 0.5, 0.8), min_length=1, description="shares of the embedding to drop in training"
    )
    learning_rate: tuple[Annotated[float, Field(gt=0, le=10)], Annotated[float, Field(gt=0, le=10)]] = Field(
        (1e-4, 1e-1), description="lowest and highest, sampled logarithmically"
    )
    weight_decay: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        (0.0, 1e-3, 1e-2), min_length=1, description="of AdamW, to try"
    )

    @field_validator("learning_rate")
    @classmethod
    def _ordered(cls, value):
        if value[0] >= value[1]:
            raise ValueError("the lowest must be below the highest")
        return value


class TrainerSettings(_Section):
    """The final training of each backbone's head with the hyperparameters found."""

    epochs: int = Field(30, ge=1, le=10_000, description="at most; training stops early on eval loss")
    patience: int = Field(5, ge=1, description="epochs without a better eval loss before it stops")
    batch_size: int = Field(32, ge=1, le=65_536, description="photos in one step of search and training")


class SelectionSettings(_Section):
    """Which backbone wins; it is judged on eval."""

    rule: Literal["smaller_within_interval", "most_accurate"] = Field(
        "smaller_within_interval",
        description="smaller_within_interval: of those in the 95 % interval of the most accurate one's accuracy, the "
        "one with the fewest parameters; most_accurate: parameters decide between equals only",
    )


class GateSettings(_Section):
    """When a candidate may replace the model in service."""

    min_accuracy: Fraction = Field(0.5, description="least accuracy on test")
    min_test_photos: int = Field(10, ge=1, description="with fewer test photos nothing is admitted")
    above_majority: bool = Field(
        True,
        description="test photos must show that the model is better than always answering the largest breed: one-sided "
        "exact McNemar p < 0.05",
    )
    policy: Literal["not_worse", "better", "significantly_better"] = Field(
        "not_worse",
        description="not_worse: the 95 % interval of the paired difference begins at -margin or above; better: more "
        "photos right; significantly_better: exact McNemar p < 0.05",
    )
    margin: Fraction = Field(0.02, description="accuracy that not_worse may give away")
    min_slice: int = Field(20, ge=1, description="breeds with fewer test photos are shown, not enforced")
    max_slice_drop: Fraction = Field(0.1, description="most accuracy a breed may lose against the champion")


_ROLLOUT_LIMITS, _CANARY_CRITERIA = RolloutLimits(), CanaryCriteria()


class RolloutSettings(_Section):
    """How versions come to users, and what is kept of old ones."""

    start: Literal["off", "workdir", "cluster"] = Field(
        "off",
        description="make what a run pushes the canary: of the servers of this workdir, or of those in `namespace`",
    )
    namespace: str = Field("catbreeds", min_length=1, description="where the model servers of the cluster are")
    models: str = Field("/models", pattern="^/.*[^/]$", description="folder of pushed models as those servers see it")
    share: Fraction = Field(CANARY_SHARE, description="of the gateways' requests, for the canary that a run starts")
    loaded: int = Field(
        _ROLLOUT_LIMITS.loaded,
        ge=1,
        description="versions that a model server has memory for; 2 keep the way back loaded",
    )
    keep: int = Field(
        _ROLLOUT_LIMITS.keep, ge=1, description="newest versions that stay in the registry whatever points to them"
    )
    load_seconds: float = Field(_ROLLOUT_LIMITS.load_seconds, gt=0, description="for a model server to load a version")
    min_requests: int = Field(
        _CANARY_CRITERIA.min_requests,
        ge=1,
        description="that canary and stable must have had before they are compared",
    )
    max_error_increase: Fraction = Field(
        _CANARY_CRITERIA.max_error_increase, description="share of requests that a canary may fail more often"
    )
    max_latency_ratio: float = Field(
        _CANARY_CRITERIA.max_latency_ratio,
        ge=1,
        description="of the 95th percentile of a canary's answers to that of stable's",
    )

    def limits(self) -> dict[str, Any]:
        """What `serving.rollout.limits.RolloutLimits` takes."""
        return self.model_dump(include={"loaded", "keep", "load_seconds"})

    def rules(self) -> dict[str, Any]:
        """What `serving.rollout.limits.CanaryCriteria` takes."""
        return self.model_dump(include={"min_requests", "max_error_increase", "max_latency_ratio"})


class CardSettings(_Section):
    """What the model card says and no program can find out."""

    data_source: str = Field("not stated", description="where the photos come from")
    data_licence: str = Field("not stated", description="what they may be used for")
    contact: str = Field("not stated", description="whom to ask about the model")


class Resources(_Section):
    """What one task of a compiled pipeline may use."""

    cpu: float = Field(1, gt=0, description="cores")
    memory: float = Field(4, gt=0, description="GB")
    gpu: int = Field(0, ge=0, description="number of GPUs, of the kind `kubeflow.gpu_type`")


class Volume(_Section):
    """A persistent volume, for the tasks that read or write outside of the pipeline's own artifacts."""

    claim: str = Field(description="name of its PersistentVolumeClaim")
    path: str = Field(pattern="^/", description="where it is mounted")


class Secret(_Section):
    """A value of a Kubernetes Secret as an environment variable, for the same tasks."""

    name: str = Field(description="of the Secret")
    key: str = Field(description="in it")
    variable: str = Field(description="name of the environment variable")


class KubeflowSettings(_Section):
    """The pipeline as it is compiled for Kubeflow Pipelines and Vertex AI.

    `data`, `weights_dir`, `registry` and the gate's rules become parameters of each run; these are their defaults.
    """

    image: str = Field(
        "catbreeds-pipeline:0.1.0", description="of every task; its tag must never move: caching trusts it"
    )
    data: str = Field("/catbreeds/photos", description="default of the parameter `data`")
    weights_dir: str = Field("", description="default of the parameter `weights_dir`; empty: as `weights` says")
    registry: str = Field("/catbreeds/serving", description="folder of pushed models, a folder a model")
    volumes: tuple[Volume, ...] = Field(
        (Volume(claim="catbreeds", path="/catbreeds"),), description="mounted in tasks that read photos or the registry"
    )
    secrets: tuple[Secret, ...] = Field((), description="as environment variables of the same tasks")
    env: dict[str, str] = Field(
        {"HOME": "/tmp", "TF_CPP_MIN_LOG_LEVEL": "2"}, description="environment variables of every task"
    )
    retries: int = Field(
        2,
        ge=0,
        le=10,
        description="how often a task that failed is retried, within a day of its first attempt. The default "
        "installation of Kubeflow Pipelines 2.17 retries lost pods, no task that exits with an error: an operator "
        "changes `retryPolicy: OnError` to `Always` under `workflowDefaults` in the ConfigMap "
        "`workflow-controller-configmap`",
    )
    gpu_type: str = Field("nvidia.com/gpu", description="resource name of a GPU; on Vertex AI as NVIDIA_TESLA_T4")
    embedding: Resources = Field(Resources(cpu=4, memory=12), description="of EmbeddingGen and Evaluator")
    learning: Resources = Field(Resources(cpu=2, memory=8), description="of Tuner and Trainer")
    other: Resources = Field(Resources(cpu=1, memory=4), description="of all other tasks")

    @field_validator("registry")
    @classmethod
    def _folder(cls, value):
        if "://" in value:
            raise ValueError(NO_OBJECT_STORE.format(value))
        return value


class Settings(_Section):
    """One run of the pipeline."""

    model_name: str = Field("catbreeds", pattern=r"^[a-z][a-z0-9-]*$", description="TF Serving's name for the model")
    data: str | None = Field(None, description="folder or archive of photos, one folder a breed")
    workdir: str = Field("runs", description="everything a run writes lies below it")
    workers: int | None = Field(
        None, ge=1, description="components that run at a time; default: as many as cores, one for each 3 GB of memory"
    )
    backbones: tuple[Literal[tuple(ARCHITECTURES)], ...] = Field(
        tuple(ARCHITECTURES), min_length=1, description="pretrained networks to compare"
    )
    weights: Literal["imagenet", "random"] = Field("imagenet", description="random is for demonstration and tests")
    weights_dir: str | None = Field(
        None, description="folder with ImageNet weights (<backbone>_notop.weights.h5) for machines without internet"
    )
    image_size: int = Field(224, ge=32, le=1024, description="side in pixels of what the backbones see")
    seed: int = Field(0, ge=0, lt=2**32, description="of random weights, search and training")
    photos_schema: str | None = Field(None, description="folder with schema.pbtxt for photos; default: schemas/photos")
    top_k: int = Field(5, ge=1, le=100, description="breeds that the `top_k` signature answers")
    split: SplitSettings = SplitSettings()
    ingest: IngestSettings = IngestSettings()
    beam: BeamSettings = BeamSettings()
    tuner: TunerSettings = TunerSettings()
    trainer: TrainerSettings = TrainerSettings()
    selection: SelectionSettings = SelectionSettings()
    gate: GateSettings = GateSettings()
    card: CardSettings = CardSettings()
    rollout: RolloutSettings = RolloutSettings()
    kubeflow: KubeflowSettings = KubeflowSettings()

    @property
    def registry(self) -> Path:
        """Where models are pushed: TF Serving's base path."""
        return Path(self.workdir).resolve() / "serving" / self.model_name

    @field_validator("workdir", "photos_schema")
    @classmethod
    def _local(cls, value):
        if value and "://" in value:
            raise ValueError("must be a folder of this machine; mount the bucket")
        return value

    @field_validator("workdir")
    @classmethod
    def _named(cls, value):
        if not value.strip():
            raise ValueError("must be the path of a folder")
        return value

    @field_validator("backbones")
    @classmethod
    def _distinct(cls, value):
        if len(set(value)) < len(value):
            raise ValueError("a backbone is named twice")
        return value

    @model_validator(mode="after")
    def _consistent(self):
        for backbone in self.backbones:
            if self.image_size < ARCHITECTURES[backbone].min_size:
                raise ValueError(f"image_size: {backbone} needs at least {ARCHITECTURES[backbone].min_size} pixels")
        if self.weights == "random" and self.weights_dir:
            raise ValueError("weights_dir: holds ImageNet weights, but weights=random; say weights=imagenet or drop it")
        return self


def profiles() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load(
    profile: str,
    overrides: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
    options: Mapping[str, str] | None = None,
) -> Settings:
    """Settings of `profile` (a name or a path to a YAML file), environment, `key=value` overrides and `options`.

    Raises:
        SettingsError: names the key, what is wrong with it and what is allowed.
    """
    values = _read_profile(profile)
    variables: dict[str, str] = {}  # key -> the variable that sets it
    for name, value in sorted((environment or {}).items()):
        ours = name.startswith(ENVIRONMENT_PREFIX) and not name.startswith(_OTHER_PROGRAMS)
        if ours and not is_service_link(name, value):
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            if key in variables:
                raise SettingsError(f"{name} and {variables[key]} both set {key}; remove one")
            _assign(values, key, value, name)
            variables[key] = name
    _refuse_parts_of_others(variables)
    given: dict[str, str] = {}
    for override in overrides:
        key = _override(values, override)
        variables.pop(key, None)
        given[key] = f"--set {override}"
    _refuse_parts_of_others(given)
    for key in options or {}:
        variables.pop(key, None)
    values.update(options or {})
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        # A list with a wrong item is also reported as too short.
        errors = [e for e in error.errors() if e["type"] != "too_short" or not e["input"]]
        raise SettingsError("\n".join(_explain(e) + _origin(e, variables) for e in errors)) from None


def check_gate(overrides: Iterable[str]) -> dict[str, Any]:
    """The rules of the gate that `gate.key=value` overrides name.

    Raises:
        SettingsError: one is no rule of the gate, or impossible.
    """
    values: dict[str, Any] = {}
    for override in overrides:
        if not override.startswith("gate."):
            raise SettingsError(
                f"--set {override}: only rules of the gate can be changed: "
                f"gate.{', gate.'.join(GateSettings.model_fields)}"
            )
        _override(values, override)
    try:
        gate = Settings.model_validate(values).gate
    except ValidationError as error:
        raise SettingsError("\n".join(map(_explain, error.errors()))) from None
    return {name: getattr(gate, name) for name in values.get("gate", {})}


def to_yaml(settings: Settings) -> str:
    """The settings as a profile that `load` reads back."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def _read_profile(profile: str) -> dict[str, Any]:
    path = PROFILES / f"{profile}.yaml" if profile in profiles() else Path(profile)
    try:
        values = strict_yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"profile {profile!r}: no such profile or file; there are {', '.join(profiles())}"
        ) from None
    except strict_yaml.DuplicateKey as error:
        raise SettingsError(f"profile {path}, {error}") from None
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise SettingsError(f"profile {path}: cannot be read: {error}") from None
    if values is None:  # a file of comments
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"profile {path}: must be a mapping of settings, not {type(values).__name__}")
    return _copied(values)


def _copied(value: Any) -> Any:
    """`value` with mappings of its own wherever YAML's anchors share one, so that a change stays in one place."""
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _refuse_parts_of_others(origins: Mapping[str, str]) -> None:
    """Of `gate={...}` and `gate.margin=...`, both of which may set a key, the order would decide silently."""
    for section, whole in origins.items():
        for key, part in origins.items():
            if key.startswith(f"{section}."):
                raise SettingsError(f"{whole} and {part} both set keys of {section!r}; put all of them into one")


def _override(values: dict[str, Any], override: str) -> str:
    """Puts the value of `key=value` into `values`; returns the key."""
    key, equals, value = override.partition("=")
    if not equals:
        raise SettingsError(f"--set {override}: write --set key=value, for example --set tuner.max_epochs=5")
    _assign(values, key.strip(), value, f"--set {override}")
    return key.strip()


def _assign(values: dict[str, Any], key: str, text: str, origin: str) -> None:
    """Puts the YAML value `text` at the dotted `key`; for settings that are text, `text` need not be quoted."""
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise SettingsError(f"{origin}: {section!r} is a value, it has no keys below it")
    is_text = _type_of(key) in (str, str | None)
    try:
        value = strict_yaml.load(text)
    except (yaml.YAMLError, ValueError) as error:  # the latter for what looks like a date and is none
        if not is_text or not is_utf_8(text):
            reason = str(error) if isinstance(error, strict_yaml.DuplicateKey) else f"{text!r} is not a YAML value"
            raise SettingsError(f"{origin}: {reason}") from None
        value = text.strip()
    if is_text:
        value = value if value is None or isinstance(value, str) else text.strip()
    elif value == text.strip():
        value = _number(value)  # YAML 1.1 reads 1e-4 as a string; one in quotes is meant to be one
    _put(values, key, name, value)


def _put(values: dict[str, Any], key: str, name: str, value: Any) -> None:
    """Puts `value` at `name`, the last part of `key`; of a section, only the keys that `value` has are replaced."""
    if isinstance(value, dict) and isinstance(values.get(name), dict) and _is_section(key):
        for inner in value:
            _put(values[name], f"{key}.{inner}", inner, value[inner])
    else:
        values[name] = value


def _is_section(key: str) -> bool:
    section = _type_of(key)
    return isinstance(section, type) and issubclass(section, _Section)


def _type_of(key: str) -> Any:
    """The type of the setting at a dotted key; None if there is none."""
    found: Any = Settings
    for part in key.split("."):
        fields = getattr(found, "model_fields", {})
        if part not in fields:
            return None
        found = fields[part].annotation
    return found


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _explain(error: Mapping[str, Any]) -> str:
    """One pydantic error as a sentence: the dotted key, what is wrong, and what is allowed."""
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section = Settings
        for part in error["loc"][:-1]:
            section = section.model_fields[part].annotation
        return f"{path}: no such setting; there are {', '.join(section.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if isinstance(error["input"], dict | BaseModel) else f" (got {error['input']!r})"
    return f"{path}: {message}{given}{_allowed_range(error['loc'])}" if path else message


def _origin(error: Mapping[str, Any], variables: Mapping[str, str]) -> str:
    """For an error in what the environment says: the variable. All of them where a section or everything is wrong."""
    path = ".".join(map(str, error["loc"]))
    section = f"{path}." if path else ""
    found = [name for key, name in variables.items() if section.startswith(f"{key}.") or key.startswith(section)]
    return f" (set by {', '.join(found)} in the environment)" if found else ""


def _allowed_range(location: tuple[str | int, ...]) -> str:
    """Both bounds of a number; pydantic names only the one that was broken."""
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
        for constraint in (field.metadata if field else ())
        for name, word in words.items()
        if hasattr(constraint, name)
    ]
    return f"; allowed: {' and '.join(bounds)}" if bounds else ""
