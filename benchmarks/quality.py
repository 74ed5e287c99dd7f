"""Compare the classifiers that the pipeline builds with a baseline, on photos that they were not built from.

    python benchmarks/quality.py --data photos --weights-dir weights \
        --backbones xception lite2=efficientnet_lite2.keras:block20_out,block21_out,top

`photos` has one folder for each breed. The photos are divided into folds; near-duplicates are in the same fold. Each
fold is predicted by classifiers that were built from the other folds, which are divided into train and eval in the
proportions of the settings. The figures are over the predictions of all photos.

    baseline: The head of the project that this one replaces, on the last block of the first backbone: pooled
        features without standardization, 50 hidden units with ReLU, dropout of half of them, softmax; 30 epochs of Adam
        (learning rate 0.001, 32 photos per step) on train. Eval only calibrates its prediction sets. A built-in
        backbone receives images of 224 px.
    last block, all blocks: The pipeline's head for the embeddings of the last block or of all blocks of a backbone,
        with the best hyperparameters on eval.
    tuned: The head that the pipeline builds: the Tuner also chooses the blocks.
    ensemble: The same with the embeddings of all backbones.

The Tuner tries only logistic regressions; with --networks, it also searches networks, as by default in a run.

Columns:

    accuracy, NLL, ECE: share of right predictions, mean negative log-likelihood in nats, expected calibration error.
    points, s.e., lower: accuracy minus that of the baseline on the same photos, in percentage points; its standard
        error; lower bound of its 95% interval (normal approximation).
    covered, breeds: share of the 95% prediction sets, calibrated on eval, that contain the breed, and their mean size.
    passes, ms: forward passes and milliseconds for embedding a photo, in batches, including decoding it.

Results for 480 photos of 12 breeds (a sample of Oxford-IIIT Pet, 476 without duplicates), Xception and
EfficientNet-Lite2 with ImageNet weights, --repeats 3, on 2 idle CPU cores. With so few photos, eval has about 70 of
them and the sets are larger.

                         accuracy      NLL      ECE   points     s.e.    lower  covered   breeds   passes       ms
    baseline                0.838    0.459    0.022     +0.0      0.0     +0.0    0.973     2.20        1     66.9
    xception, last block    0.859    0.422    0.032     +2.0      1.1     -0.1    0.978     1.87        1     74.8
    xception, all blocks    0.871    0.378    0.038     +3.3      1.1     +1.1    0.971     1.63        1     74.8
    xception, tuned         0.870    0.383    0.035     +3.2      1.1     +1.1    0.969     1.60        1     74.8
    lite2, last block       0.836    0.432    0.016     -0.2      1.5     -3.2    0.971     1.82        1     29.3
    lite2, all blocks       0.845    0.418    0.018     +0.7      1.5     -2.2    0.975     1.77        1     29.3
    lite2, tuned            0.847    0.420    0.014     +0.8      1.5     -2.1    0.975     1.78        1     29.3
    ensemble, last block    0.878    0.352    0.020     +4.0      1.1     +1.9    0.976     1.53        2    104.1
    ensemble, all blocks    0.873    0.336    0.024     +3.4      1.1     +1.2    0.969     1.46        2    104.1
    ensemble, tuned         0.874    0.340    0.024     +3.6      1.1     +1.3    0.969     1.46        2    104.1

The same for Xception with other image sizes (--set 'image_size={xception: 299}'):

             xception, tuned                        ensemble, tuned
      pixels accuracy  NLL  points  s.e. breeds     accuracy  NLL  points  s.e. breeds
         224    0.859 .415    +2.1   0.8   1.70        0.880 .349    +4.1   1.0   1.48
         256    0.870 .383    +3.2   1.1   1.60        0.874 .340    +3.6   1.1   1.46
         299    0.873 .389    +3.4   1.2   1.68        0.880 .347    +4.2   1.2   1.39

An image of 256 x 256 pixels has 1.3 times as many pixels as one of 224 x 224, one of 299 x 299 has 1.8 times as many.
"""

import argparse
import hashlib
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import tensorflow as tf
from tfx.dsl.components.base.base_node import BaseNode
from tfx.types.standard_artifacts import Examples, Model
from tfx.utils import path_utils

from components.artifacts import IngestReport
from components.candidates.architectures import ARCHITECTURES, ENSEMBLE
from components.candidates.backbone import Backbone, find_weights
from components.candidates.embedding_features import embedding_features, feature_name
from components.candidates.evaluator import calibration
from components.candidates.hyperparameters import BLOCKS
from components.candidates.model_file import fixed_input_size
from components.errors import DataError, WeightsError
from components.ingestion.image_example_gen import ImageExampleGen
from components.keras_config import keras
from pipeline.graph import create_pipeline
from pipeline.modules.cross_validation import assign_folds
from pipeline.modules.explanation import prediction_sets, set_threshold
from pipeline.modules.head import Records, hyperparameters_of, make_deterministic
from pipeline.modules.preprocessing import standardize
from pipeline.modules.training import fit_head
from pipeline.modules.tuning import head_search
from pipeline.node_ids import branch_node_id
from pipeline.run_context import local_run_context
from pipeline.runners.local import metadata_config
from pipeline.settings import Settings, SettingsError, load

BASELINE = "baseline"
BASELINE_IMAGE_SIZE = 224
BASELINE_UNITS, BASELINE_DROPOUT, BASELINE_EPOCHS, BASELINE_LEARNING_RATE, BASELINE_BATCH_SIZE = 50, 0.5, 30, 1e-3, 32
_MAX_PARTS = 20  # of the photos outside of a fold, to divide them into train and eval
_TINY = np.finfo(np.float32).tiny  # so that the logarithm of a probability is finite
_Z = 1.96  # two-sided 95% quantile of the standard normal distribution


class Photos(NamedTuple):
    """Photos as ingestion stores them, sorted by content hash.

    Attributes:
        images: JPEG or PNG bytes of the n photos.
        breeds: Names of the breeds, in the order of the labels.
        labels: Indices of the breeds, int64 [n].
        content_hashes: Content hashes of the n photos.
        groups: IDs of the groups of near-duplicates of the n photos.
    """

    images: list[bytes]
    breeds: list[str]
    labels: np.ndarray
    content_hashes: list[bytes]
    groups: list[bytes]


class Split(NamedTuple):
    """Ascending indices of the photos of a fold (test) and of the other photos (train and eval)."""

    train: np.ndarray
    eval: np.ndarray
    test: np.ndarray


class Embeddings(NamedTuple):
    """Outputs of one or more backbones.

    Attributes:
        values: Name of the embedding -> float32 [n, d].
        passes: Number of forward passes for each photo.
        seconds: Seconds for each photo.
    """

    values: dict[str, np.ndarray]
    passes: int
    seconds: float


class Predictions(NamedTuple):
    """Predictions of all photos by classifiers of one kind, for r divisions into folds.

    Attributes:
        probabilities: float32 [r, n, breeds].
        sets: 1 if a breed is in the prediction set, else 0, float32 [r, n, breeds]; NaN if eval was too small.
    """

    probabilities: np.ndarray
    sets: np.ndarray


def pipeline_nodes(overrides: list[str]) -> tuple[Settings, dict[str, BaseNode]]:
    """Return the settings of the standard profile with `overrides`, and the components of their pipeline by ID."""
    with tempfile.TemporaryDirectory() as workdir:
        settings = load("standard", [f"workdir={workdir}", *overrides])
        graph = create_pipeline(settings, local_run_context(settings, "benchmark"), metadata_config(workdir))
    return settings, {node.id: node for node in graph.components}


def read_photos(node: BaseNode, settings: Settings) -> Photos:
    """Ingest the photos; those that ingestion excludes, such as exact duplicates, are left out.

    All photos are in one split, because ingestion leaves out near-duplicates of photos in another split.

    Args:
        node: Component ImageExampleGen of the pipeline.
        settings: Settings of the run.
    """
    with tempfile.TemporaryDirectory() as folder:
        examples, report = Examples(), IngestReport()
        examples.uri, report.uri = f"{folder}/examples", f"{folder}/report"
        ImageExampleGen.test_call(
            examples,
            report,
            **node.exec_properties | {"train": 1.0, "eval": 0.0},
            beam_pipeline=beam.Pipeline(argv=settings.beam.pipeline_args()),
        )
        records = tf.data.TFRecordDataset(tf.io.gfile.glob(f"{examples.uri}/Split-train/*")).as_numpy_iterator()
        rows = [tf.train.Example.FromString(record).features.feature for record in records]
    names = ("content_hash", "image_bytes", "breed", "near_duplicate_group")
    values = sorted(tuple(row[name].bytes_list.value[0] for name in names) for row in rows)
    content_hashes, images, breed_names, groups = map(list, zip(*values, strict=True))
    breeds, labels = np.unique(breed_names, return_inverse=True)
    return Photos(images, [name.decode() for name in breeds], labels, content_hashes, groups)


def embed(node: BaseNode, images: list[bytes], batch_size: int) -> Embeddings:
    """Build a backbone and embed all photos.

    Args:
        node: Component Backbone of the pipeline.
        images: JPEG or PNG bytes of the photos.
        batch_size: Number of photos per forward pass.
    """
    with tempfile.TemporaryDirectory() as folder:
        artifact = Model()
        artifact.uri = folder
        Backbone.test_call(artifact, **node.exec_properties)
        model = tf.saved_model.load(path_utils.serving_model_path(folder))
    signature = model.signatures["serving_default"]
    batches = [tf.constant(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
    signature(image_bytes=batches[0])  # the first call is slower
    started = time.perf_counter()
    outputs = [signature(image_bytes=batch) for batch in batches]
    seconds = (time.perf_counter() - started) / len(images)
    return Embeddings({name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}, 1, seconds)


def embed_for_candidates(nodes: dict[str, BaseNode], photos: Photos, settings: Settings) -> dict[str, Embeddings]:
    """Embed all photos with each backbone.

    Args:
        nodes: Components of the pipeline, by ID.
        photos: All photos.
        settings: Settings of the run.

    Returns:
        Name of the candidate -> embeddings of its backbones.
    """
    embeddings = {}
    for name in settings.backbone_names:
        node = nodes[branch_node_id("Backbone", name)]
        embeddings[name] = embed(node, photos.images, settings.beam.embedding_batch_size)
        _log(f"{name}: {1000 * embeddings[name].seconds:.1f} ms per photo")
    if ENSEMBLE in settings.candidate_names:
        parts = list(embeddings.values())
        values = {name: matrix for part in parts for name, matrix in part.values.items()}
        embeddings[ENSEMBLE] = Embeddings(values, sum(p.passes for p in parts), sum(p.seconds for p in parts))
    return embeddings


def embed_for_baseline(
    candidates: dict[str, Embeddings], overrides: list[str], photos: Photos, settings: Settings
) -> Embeddings:
    """Embed all photos with the last block of the first backbone.

    Args:
        candidates: Embeddings of the photos for each candidate.
        overrides: Overrides of `settings`.
        photos: All photos.
        settings: Settings of the run.
    """
    backbone = settings.backbone_names[0]
    embeddings = candidates[backbone]
    if backbone in ARCHITECTURES and settings.image_size_of(backbone) != BASELINE_IMAGE_SIZE:
        _, nodes = pipeline_nodes([*overrides, f"backbones=[{backbone}]", f"image_size={BASELINE_IMAGE_SIZE}"])
        node = nodes[branch_node_id("Backbone", backbone)]
        embeddings = embed(node, photos.images, settings.beam.embedding_batch_size)
        _log(f"{BASELINE}: {1000 * embeddings.seconds:.1f} ms per photo")
    name = feature_name(backbone, 0)
    return embeddings._replace(values={name: embeddings.values[name]})


def split_into_folds(photos: Photos, folds: int, eval_share: float, seed: int) -> Iterator[Split]:
    """Yield one split for each fold. Near-duplicates are in the same part; the parts have equal shares of each breed.

    Args:
        photos: All photos.
        folds: Number of folds.
        eval_share: Share of eval in the photos outside of the fold.
        seed: Seed; another one gives other folds.
    """
    share = Fraction(eval_share).limit_denominator(_MAX_PARTS)
    fold_of = assign_folds(photos.labels, _shuffle(photos.groups, f"{seed} test"), folds)
    eval_groups = _shuffle(photos.groups, f"{seed} eval")
    for fold in range(folds):
        rest = np.flatnonzero(fold_of != fold)
        parts = assign_folds(photos.labels[rest], [eval_groups[row] for row in rest], share.denominator)
        in_eval = parts < share.numerator
        yield Split(rest[~in_eval], rest[in_eval], np.flatnonzero(fold_of == fold))


def _shuffle(groups: list[bytes], salt: str) -> list[bytes]:
    """Other IDs of the groups, which sort in another order."""
    return [hashlib.sha256(salt.encode() + group).digest() for group in groups]


def evaluate(
    photos: Photos, embeddings: dict[str, Embeddings], settings: Settings, folds: int, repeats: int
) -> dict[str, Predictions]:
    """Predict each photo by classifiers of each kind that were built from the other folds.

    Args:
        photos: All photos.
        embeddings: Embeddings of the photos for the baseline and for each candidate.
        settings: Settings of the run.
        folds: Number of folds.
        repeats: Number of different divisions into folds.
    """
    shape = (repeats, len(photos.labels), len(photos.breeds))
    eval_share = settings.split.eval / (settings.split.train + settings.split.eval)
    results: dict[str, Predictions] = {}
    for repeat in range(repeats):
        for fold, split in enumerate(split_into_folds(photos, folds, eval_share, repeat)):
            _log(f"division {repeat + 1} of {repeats}, fold {fold + 1} of {folds}")
            for name, probabilities in predict(photos, embeddings, split, settings):
                result = results.setdefault(name, Predictions(*np.zeros((2, *shape), np.float32)))
                result.probabilities[repeat, split.test] = probabilities[split.test]
                result.sets[repeat, split.test] = sets_of_test(
                    probabilities, photos.labels, split, settings.explain.level
                )
    return results


def predict(
    photos: Photos, embeddings: dict[str, Embeddings], split: Split, settings: Settings
) -> Iterator[tuple[str, np.ndarray]]:
    """Build classifiers from train and eval; yield the name of each one and its probabilities, float32 [n, breeds].

    Args:
        photos: All photos.
        embeddings: Embeddings of the photos for the baseline and for each candidate.
        split: Split of the photos.
        settings: Settings of the run.
    """
    for name, (values, _, _) in embeddings.items():
        started = time.perf_counter()
        if name == BASELINE:
            (pooled,) = values.values()
            head = train_baseline(pooled[split.train], photos.labels[split.train], len(photos.breeds), settings.seed)
            yield name, head(pooled, training=False).numpy()
            continue
        records = standardized_records(photos, values, split.train)
        heads, hyperparameters = build_heads(records, split, len(photos.breeds), settings)
        for kind, head in heads.items():
            yield f"{name}, {kind}", head(records.embeddings, training=False).numpy()
        chosen = ", ".join(f"{key} {value}" for key, value in hyperparameters.items())
        _log(f"  {name}: {chosen} ({time.perf_counter() - started:.1f} s)")


def train_baseline(embeddings: np.ndarray, labels: np.ndarray, breeds: int, seed: int) -> keras.Model:
    """Train the head of the baseline on embeddings float32 [n, d] with labels int64 [n]."""
    make_deterministic(seed)
    head = keras.Sequential(
        [
            keras.Input([embeddings.shape[1]]),
            keras.layers.Dense(BASELINE_UNITS, "relu"),
            keras.layers.Dropout(BASELINE_DROPOUT),
            keras.layers.Dense(breeds, "softmax"),
        ]
    )
    head.compile(
        keras.optimizers.Adam(BASELINE_LEARNING_RATE), loss="sparse_categorical_crossentropy", jit_compile=False
    )
    head.fit(embeddings, labels, epochs=BASELINE_EPOCHS, batch_size=BASELINE_BATCH_SIZE, verbose=0)
    return head


def standardized_records(photos: Photos, embeddings: dict[str, np.ndarray], train: np.ndarray) -> Records:
    """Return all photos, with embeddings standardized by the statistics of the photos `train`."""

    def moments(normalized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.nn.moments(tf.gather(normalized, train), axes=[0])

    columns = standardize({name: tf.constant(embeddings[name]) for name in embedding_features(embeddings)}, moments)
    sizes = {name: column.shape[1] for name, column in columns.items()}
    return Records(
        np.concatenate(list(columns.values()), axis=1), sizes, photos.labels, photos.content_hashes, photos.groups
    )


def build_heads(
    records: Records, split: Split, breeds: int, settings: Settings
) -> tuple[dict[str, keras.Model], dict[str, str | float]]:
    """Build the heads of a candidate.

    Args:
        records: All photos, standardized.
        split: Split of the photos.
        breeds: Number of breeds.
        settings: Settings of the run.

    Returns:
        The heads for each choice of blocks, if there are several blocks, and "tuned", the one that the pipeline builds.
        The hyperparameters of the latter.
    """
    train, evaluation = records.subset(split.train), records.subset(split.eval)
    trainer = settings.trainer.model_dump(mode="json")
    config = {"tuner": settings.tuner.model_dump(mode="json"), "batch_size": trainer["batch_size"]}
    with tempfile.TemporaryDirectory() as folder:
        search = head_search(train, evaluation, breeds, config | {"seed": settings.seed}, folder)
        search.tuner.search(**search.fit_kwargs)
        trials = search.tuner.oracle.get_best_trials(len(search.tuner.oracle.trials))
    ranked = [hyperparameters_of(trial.hyperparameters) for trial in trials]
    best = {values["blocks"]: values for values in reversed(ranked)}
    heads = {}
    for blocks, hyperparameters in best.items():
        make_deterministic(settings.seed)
        heads[blocks] = fit_head(train, evaluation, breeds, hyperparameters, trainer).head
    named = {BLOCKS[blocks]: heads[blocks] for blocks in BLOCKS if len(heads) > 1}
    return named | {"tuned": heads[ranked[0]["blocks"]]}, ranked[0]


def sets_of_test(probabilities: np.ndarray, labels: np.ndarray, split: Split, level: float) -> np.ndarray:
    """Return the prediction sets of the photos of test, calibrated on eval: float32 [t, breeds], see `Predictions`.

    Args:
        probabilities: Probabilities of all photos, float32 [n, breeds].
        labels: Indices of the breeds, int64 [n].
        split: Split of the photos.
        level: Share of photos whose set contains the breed.
    """
    threshold = set_threshold(probabilities[split.eval], labels[split.eval], level)
    if threshold is None:
        return np.full_like(probabilities[split.test], np.nan)
    return prediction_sets(tf.constant(probabilities[split.test]), threshold).numpy()


def table(labels: np.ndarray, embeddings: dict[str, Embeddings], results: dict[str, Predictions]) -> str:
    """Format one row for each kind of classifier.

    Args:
        labels: Indices of the breeds, int64 [n].
        embeddings: Embeddings of the photos for the baseline and for each candidate.
        results: Predictions, by name of the classifier.
    """
    rows = np.arange(len(labels))
    correct = {name: np.mean(r.probabilities.argmax(axis=2) == labels, axis=0) for name, r in results.items()}
    lines = [["accuracy", "NLL", "ECE", "points", "s.e.", "lower", "covered", "breeds", "passes", "ms"]]
    for name, (probabilities, sets) in results.items():
        _, passes, seconds = embeddings[name.partition(",")[0]]
        points = 100 * (correct[name] - correct[BASELINE])
        error = points.std(ddof=1) / np.sqrt(len(points))
        lines.append(
            [
                f"{correct[name].mean():.3f}",
                f"{-np.log(np.maximum(probabilities[:, rows, labels], _TINY)).mean():.3f}",
                f"{_calibration_error(probabilities, labels):.3f}",
                f"{points.mean():+.1f}",
                f"{error:.1f}",
                f"{points.mean() - _Z * error:+.1f}",
                f"{sets[:, rows, labels].mean():.3f}",
                f"{sets.sum(axis=2).mean():.2f}",
                f"{passes}",
                f"{1000 * seconds:.1f}",
            ]
        )
    width = max(map(len, results))
    return "\n".join(
        f"{name:<{width}}" + "".join(f"{cell:>9}" for cell in line)
        for name, line in zip(["", *results], lines, strict=True)
    )


def _calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    confidence, correct = probabilities.max(axis=2).ravel(), (probabilities.argmax(axis=2) == labels).ravel()
    outcomes = [{"confidence": c, "correct": r} for c, r in zip(confidence, correct, strict=True)]
    return calibration(outcomes)["expected_calibration_error"]


def backbone_entry(text: str) -> str | dict[str, str | list[str]]:
    """Convert an argument of --backbones to an entry of the setting `backbones`."""
    name, _, file = text.partition("=")
    path, layers = re.fullmatch(r"(.*?)(?:(?<=\.keras):(.*))?", file).groups()
    return _file_entry(name, path) | ({"layers": layers.split(",")} if layers else {}) if file else name


def backbones_in(weights_dir: Path) -> list[str | dict[str, str]]:
    """Entries of the setting `backbones` for the weights of built-in backbones and the `.keras` files in a folder."""
    entries = []
    for name in ARCHITECTURES:
        try:
            find_weights(name, str(weights_dir))
        except WeightsError:
            continue
        entries.append(name)
    for path in sorted(weights_dir.glob("*.keras")):
        entries.append(_file_entry(re.sub("[^a-z0-9_]", "_", path.stem.lower()), str(path)))
    return entries


def _file_entry(name: str, path: str) -> dict[str, str | int]:
    # The sizes of a profile are those of built-in backbones.
    size = fixed_input_size(name, path)
    return {"name": name, "model": path} | ({"image_size": size} if size else {})


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Embed the photos, evaluate all classifiers and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder or archive of photos, with one folder per breed")
    parser.add_argument(
        "--weights-dir", type=Path, help="folder with ImageNet weights; by default Keras downloads them"
    )
    parser.add_argument(
        "--backbones",
        nargs="+",
        type=backbone_entry,
        help="built-in backbones, and models as NAME=FILE.keras or NAME=FILE.keras:LAYER,LAYER,... (layers in the "
        "order of the forward pass); by default those that --weights-dir has",
    )
    parser.add_argument("--folds", type=int, default=6, help="number of folds")
    parser.add_argument("--repeats", type=int, default=1, help="number of different divisions into folds")
    parser.add_argument("--networks", action="store_true", help="also search networks with Hyperband")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    arguments = parser.parse_args()
    backbones = arguments.backbones or (backbones_in(arguments.weights_dir) if arguments.weights_dir else ["xception"])
    kinds = ["logistic_regression", *(["network"] if arguments.networks else [])]
    overrides = [
        f"data={arguments.data}",
        f"weights_dir={arguments.weights_dir or ''}",
        f"backbones={json.dumps(backbones)}",
        f"tuner.kinds={kinds}",
        *arguments.set,
    ]
    settings, nodes = pipeline_nodes(overrides)
    photos = read_photos(nodes["ImageExampleGen"], settings)
    _log(f"{len(photos.images)} photos in {len(set(photos.groups))} groups of near-duplicates")
    candidates = embed_for_candidates(nodes, photos, settings)
    embeddings = {BASELINE: embed_for_baseline(candidates, overrides, photos, settings), **candidates}
    results = evaluate(photos, embeddings, settings, arguments.folds, arguments.repeats)
    divisions = f"{arguments.repeats} division{'s' if arguments.repeats > 1 else ''} into folds"
    print(f"{len(photos.images)} photos of {len(photos.breeds)} breeds, {arguments.folds} folds, {divisions}")
    print(table(photos.labels, embeddings, results))


if __name__ == "__main__":
    try:
        main()
    except (DataError, SettingsError, WeightsError) as error:
        sys.exit(f"error: {error}")
