"""ImageExampleGen: converts photos in breed folders to tf.Examples in train, eval and test; reports excluded files."""

import concurrent.futures
import itertools
import json
import os
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import tensorflow as tf
from tfx.dsl.component.experimental.annotations import BeamComponentParameter, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples

from components import progress
from components.artifacts import IngestReport
from components.file_names import INGEST_REPORT_FILE, PHOTOS_FILE
from components.ingestion.near_duplicates import LOWEST_RANK, FindDuplicates
from components.ingestion.photo_layout import Excluded
from components.ingestion.photo_source import list_photos, open_source, read_origins
from components.ingestion.splits import SPLITS, assign_split
from components.json_files import read_json_lines, write_json
from serving import photo_normalization
from serving.names import counted, printable
from serving.perceptual_hash import perceptual_hash
from serving.photo_origins import ORIGINS_FILE, Origin, as_row, file_digest

_THREADS = os.cpu_count() or 1
# A task processes several photos, which has less overhead than one task per photo.
_PHOTOS_PER_TASK = 8
_MAX_PENDING_TASKS = _THREADS
_EXAMPLES_PER_FILE = 1024


@component(use_beam=True)
def ImageExampleGen(
    examples: OutputArtifact[Examples],
    report: OutputArtifact[IngestReport],
    data: Parameter[str],
    data_digest: Parameter[str],
    code_digest: Parameter[str],
    train: Parameter[float],
    eval: Parameter[float],
    seed: Parameter[int],
    max_side: Parameter[int],
    near_duplicate_bits: Parameter[int],
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
):
    """Read, normalize and split the photos. The report lists unusable files; DataGate decides whether to stop the run.

    Photos whose origin says that the model was uncertain about them go to train; see `serving.photo_origins`.

    Features: image_bytes (JPEG or PNG), breed, path (relative), content_hash (`Photo.digest`), near_duplicate_group
    (the smallest content hash of the photos in its group, see `FindDuplicates`), width, height.

    Args:
        data: Folder or archive, see `components.ingestion.photo_source`.
        data_digest: Digest of the photos; the component reruns when it changes.
        code_digest: Digest of the modules that the component runs; the component reruns when it changes.
        train: Share of the train split.
        eval: Share of the eval split; the test split is the rest.
        seed: Seed of the split assignment.
        max_side: Maximum width and height in pixels; larger photos are reduced.
        near_duplicate_bits: Maximum distance of near-duplicates, see `components.ingestion.near_duplicates`.

    Raises:
        DataError: If there are no photos, if a folder that may be a breed has no usable photo, or if the archive is
            damaged.
    """
    source = open_source(data)
    photos, excluded, warnings, origins_files = list_photos(source)
    origins = read_origins(source, origins_files)
    chunks = [[(path.encode(errors="surrogateescape"), photos[path]) for path in c] for c in source.chunks([*photos])]
    examples.split_names = artifact_utils.encode_split_names(list(SPLITS))
    staging = os.path.join(report.uri, "staging")
    folders = {split: artifact_utils.get_split_uri([examples], split) for split in SPLITS}
    for folder in (staging, *folders.values()):
        fileio.makedirs(folder)
    read_photos = _ReadPhotos(data, staging, folders, (train, eval, seed), max_side, len(photos), origins)
    with beam_pipeline as pipeline:
        read = (
            pipeline
            | "Paths" >> beam.Create(enumerate(chunks), reshuffle=False)
            | "Read" >> beam.ParDo(read_photos).with_outputs(main="files")
        )
        found = read.hashes | FindDuplicates(near_duplicate_bits)
        duplicates, groups = beam.pvalue.AsDict(found.excluded), beam.pvalue.AsDict(found.groups)
        # Only file names and hashes pass through Beam; the images stay in the staged files.
        _ = read.files | "MoveToSplits" >> beam.Map(_move_to_split, duplicates, groups)
        _ = (
            (
                read.rows | "AddDuplicates" >> beam.Map(_with_duplicates, duplicates, groups),
                pipeline | "Excluded" >> beam.Create([_excluded_row(entry) for entry in excluded], reshuffle=False),
            )
            | beam.Flatten()
            | "Lines" >> beam.Map(json.dumps, sort_keys=True)
            | "WriteReport"
            >> beam.io.WriteToText(os.path.join(report.uri, PHOTOS_FILE), num_shards=1, shard_name_template="")
        )
    fileio.rmtree(staging)
    summary = _summarize(report.uri, origins)
    summary["warnings"] += warnings
    write_json(report.uri, INGEST_REPORT_FILE, summary)
    captured = sum(sum(splits.values()) for splits in summary["captured"].values())
    examples.set_int_custom_property("photos_captured", captured)
    for split, folder in folders.items():
        count = sum(breed[split] for breed in summary["breeds"].values())
        examples.set_int_custom_property(f"photos_{split}", count)
        if not count:  # downstream components need a file, even if it is empty
            tf.io.TFRecordWriter(os.path.join(folder, "data_tfrecord")).close()


class _StagedFile(NamedTuple):
    """A temporary file of examples that may still include duplicates, each in a group of its own.

    Attributes:
        path: Current path.
        destination: Final path, in the folder of the split.
        photos: Paths of the photos, in the order of the examples.
    """

    path: str
    destination: str
    photos: list[str]


class _ReadPhotos(beam.DoFn):
    """Beam function that reads photos and writes their examples to staged files.

    Input: (number of the chunk, [(path, breed)]).
    Output: Staged files; on `rows` one row for each photo; on `hashes` the input of `FindDuplicates`.

    Image decoders release the GIL, so threads use all cores with any runner.
    """

    def __init__(
        self,
        data: str,
        staging: str,
        folders: dict[str, str],
        split: tuple,
        max_side: int,
        total: int,
        origins: dict[str, Origin],
    ):
        self._data, self._staging, self._folders = data, staging, folders
        self._split, self._max_side, self._total = split, max_side, total
        self._origins = origins

    def setup(self):
        self._source = open_source(self._data)
        self._counter = progress.Counter("photos", self._total)

    def process(self, chunk: tuple[int, list[tuple[bytes, str]]]) -> Iterator:
        number, photos = chunk
        breeds = {path.decode(errors="surrogateescape"): breed for path, breed in photos}
        contents = self._source.read(list(breeds))
        results = _map_in_threads(self._read_photo, ((path, breeds[path], fetch) for path, fetch in contents))
        staged: dict[str, tuple[_StagedFile, tf.io.TFRecordWriter]] = {}
        for position, (example, row, image_hash, rank) in enumerate(results):
            yield beam.pvalue.TaggedOutput("rows", row)
            if example is not None:
                split = row["split"]
                key = (row["path"], row["breed"], rank, image_hash)
                yield beam.pvalue.TaggedOutput("hashes", (row["content_hash"], key))
                if split not in staged:
                    staged[split] = self._open_staged_file(split, f"data_tfrecord-{number:05}-{position:05}")
                file, writer = staged[split]
                writer.write(example)
                file.photos.append(row["path"])
                if len(file.photos) == _EXAMPLES_PER_FILE:
                    writer.close()
                    yield staged.pop(split)[0]
            self._counter.add()
        for file, writer in staged.values():
            writer.close()
            yield file

    def _open_staged_file(self, split: str, name: str) -> tuple[_StagedFile, tf.io.TFRecordWriter]:
        # Beam may retry a step; a unique name keeps attempts from writing the same file.
        path = os.path.join(self._staging, str(uuid.uuid4()))
        return _StagedFile(path, os.path.join(self._folders[split], name), []), tf.io.TFRecordWriter(path)

    def _read_photo(self, path: str, breed: str, fetch: Callable[[], bytes]) -> tuple:
        """Return the example, the row, the perceptual hash, and the rank of the photo for `FindDuplicates`.

        Of an unusable photo, only the row is not None.
        """
        row = {"path": printable(path), "breed": breed}
        origin = None
        try:
            data = fetch()
            origin = self._origins.get(file_digest(data)) if self._origins else None
            row |= {"origin": as_row(origin)} if origin else {}
            picture = photo_normalization.normalize(data, self._max_side)
        except photo_normalization.PhotoError as error:
            return None, {**row, "kind": error.kind, "reason": str(error)}, None, None
        is_train_only = origin is not None and origin.is_train_only
        image_hash = perceptual_hash(picture.luma)
        row |= {
            "split": "train" if is_train_only else assign_split(picture.digest, *self._split),
            "content_hash": picture.digest,
            "near_duplicate_group": picture.digest,
            "width": picture.width,
            "height": picture.height,
            "perceptual_hash": image_hash.hex(),
        }
        # A photo that was chosen because the model is uncertain must not remove one from eval or test.
        rank = LOWEST_RANK if is_train_only else SPLITS.index(row["split"])
        return _to_example(row, picture.data), row, image_hash, rank


def _map_in_threads(function: Callable, arguments: Iterable[tuple]) -> Iterator:
    """Yield the results of `function` in the order of `arguments`; a bounded number of tasks is pending."""
    arguments, pending = iter(arguments), deque()
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(itertools.islice(arguments, _PHOTOS_PER_TASK)):
            pending.append(pool.submit(lambda batch: [function(*argument) for argument in batch], batch))
            if len(pending) > _MAX_PENDING_TASKS:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _to_example(row: dict[str, Any], image_bytes: bytes) -> bytes:
    def bytes_feature(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {"image_bytes": bytes_feature(image_bytes)}
    for name in ("breed", "path", "content_hash", "near_duplicate_group"):
        features[name] = bytes_feature(row[name].encode())
    for name in ("width", "height"):
        features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=[row[name]]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def _move_to_split(staged: _StagedFile, duplicates: dict[str, dict], groups: dict[str, str]) -> None:
    """Move a staged file to the folder of its split, without the duplicates and with the groups of near-duplicates."""
    if duplicates.keys().isdisjoint(staged.photos) and groups.keys().isdisjoint(staged.photos):
        if fileio.exists(staged.path):  # otherwise an earlier attempt has moved it
            fileio.rename(staged.path, staged.destination, overwrite=True)
        return
    examples = tf.data.TFRecordDataset(staged.path).as_numpy_iterator()
    with tf.io.TFRecordWriter(staged.destination) as writer:
        for photo_path, example in zip(staged.photos, examples, strict=True):
            if photo_path not in duplicates:
                writer.write(_with_group(example, groups[photo_path]) if photo_path in groups else example)


def _with_group(example: bytes, group: str) -> bytes:
    """Return the serialized example with another near-duplicate group."""
    parsed = tf.train.Example.FromString(example)
    parsed.features.feature["near_duplicate_group"].bytes_list.value[:] = [group.encode()]
    return parsed.SerializeToString(deterministic=True)


def _with_duplicates(row: dict[str, Any], duplicates: dict[str, dict], groups: dict[str, str]) -> dict[str, Any]:
    """Return the row of a photo with its group; for a duplicate, the row has the reason instead of the split."""
    if row["path"] in groups:
        return row | {"near_duplicate_group": groups[row["path"]]}
    if row["path"] not in duplicates:
        return row
    kind, like = duplicates[row["path"]]["kind"], duplicates[row["path"]]["like"]
    # Only photos of LOWEST_RANK are excluded from train, whatever the split of the other photo is.
    earlier = "" if row["split"] == "train" else ", which is in an earlier split (train, eval, test)"
    reason = {
        "label_conflict": f"the same or nearly the same photo is in another breed: {like}",
        "duplicate": f"the same photo as {like}",
        "near_duplicate": f"nearly the same photo as {like}{earlier}",
    }[kind]
    kept = {name: row[name] for name in ("path", "breed", "origin") if name in row}
    return {**kept, "kind": kind, "like": like, "reason": reason}


def _excluded_row(entry: Excluded) -> dict[str, Any]:
    return {"path": printable(entry.path), "breed": None, "kind": "not_read", "reason": entry.reason}


def _summarize(uri: str, origins: dict[str, Origin]) -> dict[str, Any]:
    """Photo counts by breed and split, the captured photos, the excluded files in the order of their paths, warnings.

    `captured` counts the photos with an origin by the reason of their capture and by split.
    """
    rows = sorted(read_json_lines(uri, PHOTOS_FILE), key=lambda row: row["path"])
    counts = Counter((row["breed"], row["split"]) for row in rows if "split" in row)
    captured = Counter((row["origin"]["reason"], row["split"]) for row in rows if "origin" in row and "split" in row)
    breeds = sorted({row["breed"] for row in rows} - {None})
    found = {row["origin"]["capture"] for row in rows if "origin" in row}
    missing = sorted(origin.capture for origin in origins.values() if origin.capture not in found)
    return {
        "files": len(rows),
        "photos": counts.total(),
        "breeds": {breed: {split: counts[breed, split] for split in SPLITS} for breed in breeds},
        "captured": {
            reason: {split: captured[reason, split] for split in SPLITS} for reason in sorted({r for r, _ in captured})
        },
        "left_out": [{name: row[name] for name in ("path", "kind", "reason")} for row in rows if "reason" in row],
        "warnings": [_missing_photos_warning(missing)] if missing else [],
    }


def _missing_photos_warning(captures: list[str]) -> str:
    return (
        f"{ORIGINS_FILE} has {counted(len(captures), 'photo')} that changed or {'is' if len(captures) == 1 else 'are'} "
        f"missing, for example that of capture {captures[0]}: restore the file, or remove its line with "
        "`catbreeds inbox forget`"
    )
