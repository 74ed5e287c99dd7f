"""ImageExampleGen: photos in breed folders become tf.Examples in train, eval and test; what cannot be used is named."""

import collections
import concurrent.futures
import itertools
import json
import os
import uuid
from collections import Counter as Tally
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
from components.ingestion.near_duplicates import FindDuplicates, perceptual_hash
from components.ingestion.photo_layout import Refused
from components.ingestion.photo_source import list_photos, open_source
from components.ingestion.splits import SPLITS, split_of
from components.json_files import read_json_lines, write_json
from serving import photo
from serving.names import printable

_THREADS = os.cpu_count() or 1
# Handing photos over one by one takes threads longer than the waiting is worth.
_GROUP = 8
_AHEAD = _THREADS
_PHOTOS_A_FILE = 1024


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
    """Reads, normalises and splits the photos. What cannot be used is left out and named; DataGate judges of that.

    Features: image_bytes (JPEG or PNG), breed, path (relative), content_hash (`Photo.digest`), width, height.

    Args:
        data: folder or archive, see `components.ingestion.photo_source`.
        data_digest: digest of the photos; a new one re-runs the component.
        code_digest: of the modules that it runs; likewise.
        train: share of the train split; `eval` likewise, test is the rest.
        seed: deals the photos anew.
        max_side: longest side in pixels.
        near_duplicate_bits: see `components.ingestion.near_duplicates`.

    Raises:
        DataError: there are no photos, a folder that could be a breed gives none, or the archive is damaged.
    """
    source = open_source(data)
    photos, refused, warnings = list_photos(source)
    chunks = [[(path.encode(errors="surrogateescape"), photos[path]) for path in c] for c in source.chunks([*photos])]
    examples.split_names = artifact_utils.encode_split_names(list(SPLITS))
    staging = os.path.join(report.uri, "staging")
    folders = {split: artifact_utils.get_split_uri([examples], split) for split in SPLITS}
    for folder in (staging, *folders.values()):
        fileio.makedirs(folder)
    read_photos = _ReadPhotos(data, staging, folders, (train, eval, seed), max_side, len(photos))
    with beam_pipeline as pipeline:
        read = (
            pipeline
            | "Paths" >> beam.Create(enumerate(chunks), reshuffle=False)
            | "Read" >> beam.ParDo(read_photos).with_outputs(main="files")
        )
        duplicates = beam.pvalue.AsDict(
            read.hashes
            | FindDuplicates(near_duplicate_bits)
            | "ByPhoto" >> beam.Map(lambda found: (found["path"], found))
        )
        # Only names of files and hashes travel through Beam; the images wait in the files.
        _ = read.files | "Settle" >> beam.Map(_settle, duplicates)
        _ = (
            (
                read.rows | "Judge" >> beam.Map(_judged, duplicates),
                pipeline | "Refused" >> beam.Create([_refused_row(row) for row in refused], reshuffle=False),
            )
            | beam.Flatten()
            | "Lines" >> beam.Map(json.dumps, sort_keys=True)
            | "WriteReport"
            >> beam.io.WriteToText(os.path.join(report.uri, PHOTOS_FILE), num_shards=1, shard_name_template="")
        )
    fileio.rmtree(staging)
    summary = _summarise(report.uri) | {"warnings": warnings}
    write_json(report.uri, INGEST_REPORT_FILE, summary)
    for split, folder in folders.items():
        count = sum(breed[split] for breed in summary["breeds"].values())
        examples.set_int_custom_property(f"photos_{split}", count)
        if not count:  # components after this one want a file, though an empty one
            tf.io.TFRecordWriter(os.path.join(folder, "data_tfrecord")).close()


class _Staged(NamedTuple):
    """A file of examples that wait to hear which of them are duplicates.

    Attributes:
        path: where it is.
        settled: where it goes.
        photos: paths of the photos, in the order of the examples.
    """

    path: str
    settled: str
    photos: list[str]


class _ReadPhotos(beam.DoFn):
    """(number, [(path, breed)]) -> staged files; on `rows` what became of each photo, on `hashes` what it looks like.

    Decoders leave Python's lock while they work, so threads use all cores, whatever the runner.
    """

    def __init__(self, data: str, staging: str, folders: dict[str, str], deal: tuple, max_side: int, total: int):
        self._data, self._staging, self._folders = data, staging, folders
        self._deal, self._max_side, self._total = deal, max_side, total

    def setup(self):
        self._source = open_source(self._data)
        self._counter = progress.Counter("photos", self._total)

    def process(self, chunk: tuple[int, list[tuple[bytes, str]]]) -> Iterator:
        number, photos = chunk
        breeds = {path.decode(errors="surrogateescape"): breed for path, breed in photos}
        contents = self._source.read(list(breeds))
        results = _map_ahead(self._example, ((path, breeds[path], fetch) for path, fetch in contents))
        staged: dict[str, tuple[_Staged, tf.io.TFRecordWriter]] = {}
        for position, (example, row, look) in enumerate(results):
            yield beam.pvalue.TaggedOutput("rows", row)
            if example is not None:
                split = row["split"]
                key = (row["path"], row["breed"], SPLITS.index(split), look)
                yield beam.pvalue.TaggedOutput("hashes", (row["content_hash"], key))
                if split not in staged:
                    staged[split] = self._stage(split, f"data_tfrecord-{number:05}-{position:05}")
                file, writer = staged[split]
                writer.write(example)
                file.photos.append(row["path"])
                if len(file.photos) == _PHOTOS_A_FILE:
                    writer.close()
                    yield staged.pop(split)[0]
            self._counter.add()
        for file, writer in staged.values():
            writer.close()
            yield file

    def _stage(self, split: str, name: str) -> tuple[_Staged, tf.io.TFRecordWriter]:
        # Beam may try a step again: no two attempts write the same file.
        path = os.path.join(self._staging, str(uuid.uuid4()))
        return _Staged(path, os.path.join(self._folders[split], name), []), tf.io.TFRecordWriter(path)

    def _example(self, path: str, breed: str, fetch: Callable[[], bytes]) -> tuple[bytes | None, dict, bytes | None]:
        row = {"path": printable(path), "breed": breed}
        try:
            picture = photo.normalise(fetch(), self._max_side)
        except photo.PhotoError as error:
            return None, {**row, "kind": error.kind, "reason": str(error)}, None
        row |= {
            "split": split_of(picture.digest, *self._deal),
            "content_hash": picture.digest,
            "width": picture.width,
            "height": picture.height,
        }
        return _to_example(row, picture.data), row, perceptual_hash(picture.luma)


def _map_ahead(function: Callable, arguments: Iterable[tuple]) -> Iterator:
    """The results of `function` in the order of `arguments`, of which a few at a time are held."""
    arguments, pending = iter(arguments), collections.deque()
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        while group := list(itertools.islice(arguments, _GROUP)):
            pending.append(pool.submit(lambda group: [function(*argument) for argument in group], group))
            if len(pending) > _AHEAD:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _to_example(row: dict[str, Any], image_bytes: bytes) -> bytes:
    def text(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {"image_bytes": text(image_bytes)}
    for name in ("breed", "path", "content_hash"):
        features[name] = text(row[name].encode())
    for name in ("width", "height"):
        features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=[row[name]]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def _settle(staged: _Staged, duplicates: dict[str, dict]) -> None:
    """Moves a file to the folder of its split, without its duplicates."""
    if duplicates.keys().isdisjoint(staged.photos):
        if fileio.exists(staged.path):  # or else an earlier attempt has moved it
            fileio.rename(staged.path, staged.settled, overwrite=True)
        return
    examples = tf.data.TFRecordDataset(staged.path).as_numpy_iterator()
    with tf.io.TFRecordWriter(staged.settled) as writer:
        for photo_path, example in zip(staged.photos, examples, strict=True):
            if photo_path not in duplicates:
                writer.write(example)


def _judged(row: dict[str, Any], duplicates: dict[str, dict]) -> dict[str, Any]:
    """The row of a photo, or why it is left out."""
    if row["path"] not in duplicates:
        return row
    kind, like = duplicates[row["path"]]["kind"], duplicates[row["path"]]["like"]
    reason = {
        "label_conflict": f"another breed has the same photo, or nearly: {like}",
        "duplicate": f"the same photo as {like}",
        "near_duplicate": f"nearly the same photo as {like}, which is in an earlier split",
    }[kind]
    return {"path": row["path"], "breed": row["breed"], "kind": kind, "like": like, "reason": reason}


def _refused_row(refused: Refused) -> dict[str, Any]:
    return {"path": printable(refused.path), "breed": None, "kind": "not_read", "reason": refused.reason}


def _summarise(uri: str) -> dict[str, Any]:
    """Counts by breed and split, and what was left out; the files are in the order of their paths."""
    rows = sorted(read_json_lines(uri, PHOTOS_FILE), key=lambda row: row["path"])
    tally = Tally((row["breed"], row["split"]) for row in rows if "split" in row)
    breeds = sorted({row["breed"] for row in rows} - {None})
    return {
        "files": len(rows),
        "photos": tally.total(),
        "breeds": {breed: {split: tally[breed, split] for split in SPLITS} for breed in breeds},
        "left_out": [{name: row[name] for name in ("path", "kind", "reason")} for row in rows if "reason" in row],
    }
