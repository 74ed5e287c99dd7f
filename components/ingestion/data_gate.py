"""DataGate: stops the run if the photos violate the schema or are insufficient for training."""

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from tensorflow_data_validation.utils.anomalies_util import load_anomalies_binary
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import ExampleAnomalies, ExampleStatistics, Schema
from tfx.utils import io_utils

from components.artifacts import DataVerdict, IngestReport
from components.errors import DataError
from components.file_names import INGEST_REPORT_FILE, PHOTOS_FILE, VERDICT_FILE
from components.ingestion.data_drift import describe_drift, load_statistics, load_version_statistics, train_statistics
from components.ingestion.near_duplicates import KINDS as DUPLICATE_KINDS
from components.json_files import read_json, read_json_lines, write_json
from components.stable_version import stable_version
from serving.names import counted, distinguishable, spelling, spelling_variants
from serving.registry import Registry, RegistryError

_MAX_LISTED = 10
_SIDES = ("width", "height")
# Anomalies of TFDV for which DataGate has its own message, which names the breed or the photos.
_REPORTED_SEPARATELY = {
    "breed": {anomalies_pb2.AnomalyInfo.ENUM_TYPE_UNEXPECTED_STRING_VALUES},
    **{
        side: {anomalies_pb2.AnomalyInfo.INT_TYPE_BIG_INT, anomalies_pb2.AnomalyInfo.INT_TYPE_SMALL_INT}
        for side in _SIDES
    },
}


@component
def DataGate(
    anomalies: InputArtifact[ExampleAnomalies],
    statistics: InputArtifact[ExampleStatistics],
    schema: InputArtifact[Schema],
    report: InputArtifact[IngestReport],
    verdict: OutputArtifact[DataVerdict],
    schema_file: Parameter[str],
    max_bad_share: Parameter[float],
    min_photos_per_breed: Parameter[int],
    registry: Parameter[str],
    code_digest: Parameter[str],
    stable: Parameter[str] = None,
):
    """Stop the run if the data violates the schema or is insufficient for training; write warnings otherwise.

    Args:
        schema_file: Path of the schema file, for messages.
        max_bad_share: Maximum share of unusable files.
        min_photos_per_breed: Minimum number of photos of a breed.
        registry: Base path of the pushed models; drift is measured against the training photos of the stable version.
        code_digest: Digest of the modules that the component runs; the component reruns when it changes.
        stable: Result of `components.stable_version.stable_identity`; if None, the component reads the label.

    Raises:
        DataError: If the data cannot be used; the message lists all problems.
    """
    summary = read_json(report.uri, INGEST_REPORT_FILE)
    rows = read_json_lines(report.uri, PHOTOS_FILE)
    parsed_schema = schema_pb2.Schema()
    io_utils.parse_pbtxt_file(io_utils.get_only_uri_in_dir(schema.uri), parsed_schema)
    models = Registry(registry)
    version = stable_version(models, stable)
    errors = [
        *_check_unusable_files(summary, max_bad_share),
        *_check_breeds_in_schema(summary["breeds"], parsed_schema, schema_file),
        *_check_breed_spelling(summary["breeds"], models, version),
        *_check_sizes(rows, parsed_schema, schema_file),
        *_check_anomalies(anomalies),
        *_check_photo_counts(summary["breeds"], rows, min_photos_per_breed),
    ]
    if errors:
        raise DataError("the data cannot be used:\n" + "\n".join(f"  {error}" for error in errors))
    warnings = [
        *summary["warnings"],
        *_missing_breed_warnings(summary["breeds"]),
        *_drift_warnings(statistics, parsed_schema, models, version),
    ]
    write_json(verdict.uri, VERDICT_FILE, {"passed": True, "warnings": warnings})


def _check_unusable_files(summary: dict[str, Any], max_bad_share: float) -> list[str]:
    unusable = [row for row in summary["left_out"] if row["kind"] not in DUPLICATE_KINDS]
    if len(unusable) <= max_bad_share * summary["files"]:
        return []
    counts = f"{len(unusable)} of {summary['files']} files cannot be used"
    first = f"{counts}, more than ingest.max_unusable_share={max_bad_share:g} allows:"
    return [first, *_first_lines([f"  {row['path']}: {row['reason']}" for row in unusable])]


def _check_breeds_in_schema(breeds: dict[str, Any], schema: schema_pb2.Schema, schema_file: str) -> list[str]:
    known = breed_domain(schema)
    if known is None:
        return []
    command = f"catbreeds schema update --data PHOTOS --schema {shlex.quote(str(Path(schema_file).parent))}"
    repeated = [
        f"{schema_file}: {distinguishable(group)} are spellings of the same breed; keep one"
        for group in spelling_variants(known.value)
    ]
    name_by_spelling = {spelling(breed): breed for breed in known.value}
    respelled_breeds = [
        f"breed {breed!a} is spelled {name_by_spelling[spelling(breed)]!a} in {schema_file}; "
        "rename the folder or edit the file"
        for breed in breeds
        if breed not in known.value and spelling(breed) in name_by_spelling
    ]
    unknown = [
        f"breed {breed!r} is not in {schema_file}; add it with `{command}` or remove the folder"
        for breed in breeds
        if spelling(breed) not in name_by_spelling
    ]
    return [*repeated, *respelled_breeds, *unknown]


def _check_breed_spelling(breeds: dict[str, Any], models: Registry, version: int | None) -> list[str]:
    """Report breeds that the stable version spells differently; ModelGate would treat them as different breeds."""
    if version is None:
        return []
    try:
        known = models.record(version)["breeds"]
    except (RegistryError, KeyError):
        return []  # ChampionModel and ModelGate handle a damaged version
    name_by_spelling = {spelling(breed): breed for breed in known}
    return [
        f"breed {breed!a} is spelled {name_by_spelling[spelling(breed)]!a} in stable version {version}; "
        "rename the folder"
        for breed in breeds
        if breed not in known and spelling(breed) in name_by_spelling
    ]


def breed_domain(schema: schema_pb2.Schema) -> schema_pb2.StringDomain | None:
    """Breeds that `schema` allows; None if it allows any."""
    feature = _feature(schema, "breed")
    if feature.HasField("domain"):
        return next(domain for domain in schema.string_domain if domain.name == feature.domain)
    return feature.string_domain if feature.HasField("string_domain") else None


def _feature(schema: schema_pb2.Schema, name: str) -> schema_pb2.Feature:
    """Return the feature in `schema`; an empty feature if the schema does not have it."""
    return next((feature for feature in schema.feature if feature.name == name), schema_pb2.Feature())


def _check_sizes(rows: list[dict[str, Any]], schema: schema_pb2.Schema, schema_file: str) -> list[str]:
    errors = []
    for side in _SIDES:
        domain = _feature(schema, side).int_domain
        low = domain.min if domain.HasField("min") else 0
        high = domain.max if domain.HasField("max") else float("inf")
        out_of_range = [f"  {row['path']}: {row[side]}" for row in rows if side in row and not low <= row[side] <= high]
        if out_of_range:
            verb, pronoun = ("has", "it") if len(out_of_range) == 1 else ("have", "them")
            errors.append(
                f"{counted(len(out_of_range), 'photo')} {verb} a {side} outside {low} to {high} pixels; "
                f"remove {pronoun} or change the limits in {schema_file}:"
            )
            errors += _first_lines(out_of_range)
    return errors


def _check_anomalies(artifact: ExampleAnomalies) -> list[str]:
    errors = []
    for split in artifact_utils.decode_split_names(artifact.split_names):
        uri = artifact_utils.get_split_uri([artifact], split)
        result = load_anomalies_binary(io_utils.get_only_uri_in_dir(uri))
        for feature, info in sorted(result.anomaly_info.items()):
            reported = _REPORTED_SEPARATELY.get(feature, set())
            errors += [
                f"{split} photos, feature {feature!r}: {reason.description.rstrip('.')}. "
                "Fix the photos, or relax the schema if they are correct"
                for reason in info.reason
                if reason.type not in reported
            ]
    return errors


def _check_photo_counts(breeds: dict[str, dict[str, int]], rows: list[dict[str, Any]], min_photos: int) -> list[str]:
    errors, excluded = [], Counter((row["breed"], row["kind"]) for row in rows if "reason" in row)

    def excluded_files(breed: str) -> str:
        kinds = [f"{number} {kind.replace('_', ' ')}" for (name, kind), number in excluded.items() if name == breed]
        return f" (excluded: {', '.join(sorted(kinds))})" if kinds else ""

    if len(breeds) < 2:
        errors.append(f"only {len(breeds)} breed ({', '.join(breeds)}); a classifier needs at least 2")
    photos = {breed: sum(counts.values()) for breed, counts in breeds.items()}
    errors += [
        f"breed {breed!r} has {counted(count, 'photo')}{excluded_files(breed)}, fewer than "
        f"ingest.min_photos_per_breed={min_photos}; add photos or remove the folder"
        for breed, count in photos.items()
        if count < min_photos
    ]
    errors += [
        f"breed {breed!r} has no photos in the train split; add photos or change split.seed"
        for breed, counts in breeds.items()
        if photos[breed] >= min_photos and not counts["train"]
    ]
    errors += [
        f"the {split} split has no photos; add photos or increase split.{split}"
        for split in ("eval", "test")
        if not any(counts[split] for counts in breeds.values())
    ]
    return errors


def _missing_breed_warnings(breeds: dict[str, dict[str, int]]) -> list[str]:
    warnings = []
    for split in ("eval", "test"):
        missing = [breed for breed, counts in breeds.items() if not counts[split]]
        if missing:
            warnings.append(f"the {split} split has no photos of {', '.join(missing)}; it gives no metrics for them")
    return warnings


def _drift_warnings(
    statistics: ExampleStatistics, schema: schema_pb2.Schema, models: Registry, version: int | None
) -> list[str]:
    previous = load_version_statistics(str(models.path(version))) if version is not None else None
    if previous is None:
        return []
    return describe_drift(load_statistics(train_statistics(statistics)), previous, schema)


def _first_lines(lines: list[str]) -> list[str]:
    more = len(lines) - _MAX_LISTED
    return [*lines[:_MAX_LISTED], *([f"  ... and {more} more"] if more > 0 else [])]
