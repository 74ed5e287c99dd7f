"""DataGate: the run stops here, with names, when the photos are not what the schema and learning need."""

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
from components.ingestion.data_drift import champion_statistics, describe_drift, load_statistics, train_statistics
from components.ingestion.near_duplicates import KINDS as DUPLICATES
from components.json_files import read_json, read_json_lines, write_json
from components.release.champion_model import stable_version
from serving.names import counted, distinguishable, spelling, spelling_variants
from serving.registry import Registry, RegistryError

_NAMED_AT_MOST = 10
_SIDES = ("width", "height")
# What our own words say better, because they name the breed or the photos.
_SAID_BY_NAME = {
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
    """Refuses data that is not as the schema says, or with too little to learn from; writes warnings about the rest.

    Args:
        schema_file: where the schema came from, for messages.
        max_bad_share: refuse the data when a larger share of files is no usable photo.
        min_photos_per_breed: refuse the data when a breed has fewer photos.
        registry: base path of the pushed models: drift is told against the data of the one in service.
        code_digest: of the modules that it runs.
        stable: see `components.release.champion_model.stable_version`.

    Raises:
        DataError: names all that is wrong.
    """
    summary = read_json(report.uri, INGEST_REPORT_FILE)
    rows = read_json_lines(report.uri, PHOTOS_FILE)
    rules = schema_pb2.Schema()
    io_utils.parse_pbtxt_file(io_utils.get_only_uri_in_dir(schema.uri), rules)
    models = Registry(registry)
    version = stable_version(models, stable)
    errors = [
        *_bad_files(summary, max_bad_share),
        *_unknown_breeds(summary["breeds"], rules, schema_file),
        *_renamed_breeds(summary["breeds"], models, version),
        *_odd_sizes(rows, rules, schema_file),
        *_other_anomalies(anomalies),
        *_unlearnable(summary["breeds"], rows, min_photos_per_breed),
    ]
    if errors:
        raise DataError("the data cannot be used:\n" + "\n".join(f"  {error}" for error in errors))
    warnings = [
        *summary["warnings"],
        *_thin_splits(summary["breeds"]),
        *_drift(statistics, rules, models, version),
    ]
    write_json(verdict.uri, VERDICT_FILE, {"passed": True, "warnings": warnings})


def _bad_files(summary: dict[str, Any], max_bad_share: float) -> list[str]:
    bad = [row for row in summary["left_out"] if row["kind"] not in DUPLICATES]
    if len(bad) <= max_bad_share * summary["files"]:
        return []
    counts = f"{len(bad)} of {summary['files']} files cannot be used"
    first = f"{counts}, more than ingest.max_bad_share={max_bad_share:g} allows:"
    return [first, *_some([f"  {row['path']}: {row['reason']}" for row in bad])]


def _unknown_breeds(breeds: dict[str, Any], schema: schema_pb2.Schema, schema_file: str) -> list[str]:
    known = breed_domain(schema)
    if known is None:
        return []
    command = f"catbreeds schema update --data PHOTOS --schema {shlex.quote(str(Path(schema_file).parent))}"
    twice = [
        f"{schema_file} has the same breed in two spellings, {distinguishable(group)}: remove one"
        for group in spelling_variants(known.value)
    ]
    spelled = {spelling(breed): breed for breed in known.value}
    other = [
        f"breed {breed!a} is spelled {spelled[spelling(breed)]!a} in {schema_file}: rename the folder, or edit the file"
        for breed in breeds
        if breed not in known.value and spelling(breed) in spelled
    ]
    unknown = [
        f"breed {breed!r} is not in {schema_file}: add it with `{command}`, or remove the folder"
        for breed in breeds
        if spelling(breed) not in spelled
    ]
    return [*twice, *other, *unknown]


def _renamed_breeds(breeds: dict[str, Any], models: Registry, version: int | None) -> list[str]:
    """Breeds that the model in service knows in another spelling: to the gate they would be other breeds."""
    if version is None:
        return []
    try:
        known = models.record(version)["breeds"]
    except (RegistryError, KeyError):
        return []  # ChampionModel and ModelGate say what follows from a damaged version
    spelled = {spelling(breed): breed for breed in known}
    return [
        f"breed {breed!a} is spelled {spelled[spelling(breed)]!a} by version {version} in service: rename the folder"
        for breed in breeds
        if breed not in known and spelling(breed) in spelled
    ]


def breed_domain(schema: schema_pb2.Schema) -> schema_pb2.StringDomain | None:
    """The breeds that `schema` knows, None where any may come."""
    feature = _feature(schema, "breed")
    if feature.HasField("domain"):
        return next(domain for domain in schema.string_domain if domain.name == feature.domain)
    return feature.string_domain if feature.HasField("string_domain") else None


def _feature(schema: schema_pb2.Schema, name: str) -> schema_pb2.Feature:
    """What `schema` says of a feature; nothing, where it does not have it."""
    return next((feature for feature in schema.feature if feature.name == name), schema_pb2.Feature())


def _odd_sizes(rows: list[dict[str, Any]], schema: schema_pb2.Schema, schema_file: str) -> list[str]:
    errors = []
    for side in _SIDES:
        domain = _feature(schema, side).int_domain
        low = domain.min if domain.HasField("min") else 0
        high = domain.max if domain.HasField("max") else float("inf")
        odd = [f"  {row['path']}: {row[side]}" for row in rows if side in row and not low <= row[side] <= high]
        if odd:
            errors.append(
                f"{counted(len(odd), 'photo')} {'has' if len(odd) == 1 else 'have'} a {side} outside {low} to {high} "
                f"pixels; remove {'it' if len(odd) == 1 else 'them'} or widen {schema_file}:"
            )
            errors += _some(odd)
    return errors


def _other_anomalies(artifact: ExampleAnomalies) -> list[str]:
    found = []
    for split in artifact_utils.decode_split_names(artifact.split_names):
        uri = artifact_utils.get_split_uri([artifact], split)
        result = load_anomalies_binary(io_utils.get_only_uri_in_dir(uri))
        for feature, info in sorted(result.anomaly_info.items()):
            said = _SAID_BY_NAME.get(feature, set())
            found += [
                f"{split} photos, feature {feature!r}: {reason.description.rstrip('.')}. "
                "Mend the photos, or widen the schema if they are right"
                for reason in info.reason
                if reason.type not in said
            ]
    return found


def _unlearnable(breeds: dict[str, dict[str, int]], rows: list[dict[str, Any]], min_photos: int) -> list[str]:
    errors, left_out = [], Counter((row["breed"], row["kind"]) for row in rows if "reason" in row)

    def instead(breed: str) -> str:
        """What became of the other files of a breed."""
        kinds = [f"{number} {kind.replace('_', ' ')}" for (of, kind), number in left_out.items() if of == breed]
        return f" (left out: {', '.join(sorted(kinds))})" if kinds else ""

    if len(breeds) < 2:
        errors.append(f"only {len(breeds)} breed ({', '.join(breeds)}); two are the least to tell apart")
    photos = {breed: sum(counts.values()) for breed, counts in breeds.items()}
    errors += [
        f"breed {breed!r} has {counted(count, 'photo')}{instead(breed)}; each needs "
        f"ingest.min_photos_per_breed={min_photos}: add photos or remove the folder"
        for breed, count in photos.items()
        if count < min_photos
    ]
    errors += [
        f"breed {breed!r} has no photo in train; add photos or choose another split.seed"
        for breed, counts in breeds.items()
        if photos[breed] >= min_photos and not counts["train"]
    ]
    errors += [
        f"no photo at all in {split}; add photos or give split.{split} a larger share"
        for split in ("eval", "test")
        if not any(counts[split] for counts in breeds.values())
    ]
    return errors


def _thin_splits(breeds: dict[str, dict[str, int]]) -> list[str]:
    warnings = []
    for split in ("eval", "test"):
        missing = [breed for breed, counts in breeds.items() if not counts[split]]
        if missing:
            warnings.append(f"{split} has no photo of {', '.join(missing)}: nothing is measured for them there")
    return warnings


def _drift(
    statistics: ExampleStatistics, schema: schema_pb2.Schema, models: Registry, version: int | None
) -> list[str]:
    champion = champion_statistics(str(models.path(version))) if version is not None else None
    if champion is None:
        return []
    return describe_drift(load_statistics(train_statistics(statistics)), champion, schema)


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - _NAMED_AT_MOST
    return [*lines[:_NAMED_AT_MOST], *([f"  ... and {more} more"] if more > 0 else [])]
