"""Measure what each optimization gains: the same work with and without it, in one run.

    python benchmarks/optimizations.py
    python benchmarks/optimizations.py --cases solver "huge pages"

Cases:

    reused heads: a hyperparameter search (Hyperband, 10 trials, two sizes of head, synthetic embeddings) in which
        trials of the same size reuse one network; without: each trial builds a new one.
    solver: the logistic regressions of five penalties, on synthetic embeddings of 1,500 photos whose variance is in few
        directions, as that of real ones; without: scikit-learn's L-BFGS.
    few rows: the products with synthetic embeddings in an iteration of the solver, of matrices with a row for each head
        and breed; without: of matrices with a column for each head and breed.
    both kinds at once: a search of logistic regressions and networks on one and on three blocks of such embeddings;
        without: a search of each kind, one after the other.
    epoch in one step: training a network for 60 epochs on the same embeddings; without: Keras's loop over batches, 256
        per call.
    dropout: training a linear network for 60 epochs on three blocks of them, with the pipeline's dropout; without:
        Keras's.
    AdamW: the first network with the pipeline's optimizer; without: Keras's.
    one thread: training two such networks at the same time, as components of a run, in one thread each; without: in as
        many threads as TensorFlow chooses.
    frozen search: the same search while the garbage collector ignores older objects, such as the modules of TensorFlow
        and TFX; without: each collection visits them. This is the search of a task on Kubeflow; the executors of the
        local runner are frozen already, where the gain is 0.
    batch in two parts: embedding the photos of six batches with a ResNet50 in EmbeddingGen's model handler, which
        decodes one half of a batch while the network computes the other; without: each batch as a whole.
    huge pages: ten forward passes of a ResNet50 in a new process that uses huge pages; without: pages of 4 kB.
    frozen executor: building and saving a ResNet50 in a forked process whose imported modules are frozen, as those of
        the local runner are; without: not frozen.
    frozen run: creating and compiling the pipeline graph of the demo after the imports of a run have been frozen;
        without: not frozen.
    import TensorFlow, import TFX: the imports of a prediction and of a run, in a new process, with garbage collection
        disabled; without: enabled.

Every measurement has a process of its own, and a round measures each variant once, so that other load on the machine
affects all of them. Figures are medians over the rounds; `ratio` is the time without divided by the time with the
optimization. Remove an optimization whose ratio is below 1.1.

Output on 2 slow CPU cores (two rounds of the cases until "frozen search", three of the others, at another time):

    case                 with s  without s  ratio
    reused heads           5.41       8.90   1.64
    solver                 1.22      19.31  15.85
    few rows               0.47       0.73   1.54
    both kinds at once    10.87      13.12   1.21
    epoch in one step      9.19      46.40   5.05
    dropout                8.16       9.83   1.20
    AdamW                  9.19      11.96   1.30
    one thread             9.55      12.80   1.34
    frozen search          5.41      13.58   2.51
    batch in two parts     7.74       9.12   1.18
    huge pages            11.89      16.73   1.41
    frozen executor        4.09       4.68   1.14
    frozen run             0.38       1.38   3.64
    import TensorFlow      3.07       3.75   1.22
    import TFX             6.34       8.65   1.37
"""

import argparse
import functools
import gc
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import keras_tuner as kt
import numpy as np
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from tfx.dsl.compiler import compiler
from threadpoolctl import threadpool_limits

from components import saved_model
from components.candidates import embedding_gen
from components.candidates.architectures import ARCHITECTURES
from components.candidates.backbone import build_embedder, build_network, pool_blocks, preprocessing
from components.candidates.embedding_features import feature_name
from components.candidates.embedding_gen import BackboneHandler
from components.candidates.hyperparameters import KINDS
from components.file_names import BACKBONE_RECORD_FILE
from components.json_files import write_json
from components.keras_config import keras
from pipeline import huge_pages
from pipeline.datasets.sample_data import write_sample_data
from pipeline.graph import create_pipeline
from pipeline.modules import head, logistic_regression, tuning
from pipeline.modules.head import Records, build_head, make_deterministic, one_element_dataset, use_one_thread
from pipeline.run_context import local_run_context
from pipeline.runners import local as local_runner
from pipeline.settings import load

BREEDS = 6
BATCH_SIZE = 32
EMBEDDING_SIZE = 2048
SIZES = {feature_name("synthetic", 0): EMBEDDING_SIZE}
IMAGE_SIZE = 71
SPACE = {
    "kinds": ["network"],
    "blocks": ["last"],
    "l2": [],
    "units": [0, 50],
    "dropout": [0.2, 0.5, 0.8],
    "learning_rate": [1e-4, 1e-1],
    "weight_decay": [0.0, 1e-3, 1e-2],
}
NETWORK = {"kind": "network", "blocks": "last", "units": 100}
NETWORK |= {"dropout": 0.5, "learning_rate": 1e-3, "weight_decay": 1e-3}
LINEAR_NETWORK = NETWORK | {"blocks": "all", "units": 0}
PENALTIES = (0.3, 0.1, 0.03, 0.01, 0.003)
IMPORTS = {"import TensorFlow": "tensorflow", "import TFX": "pipeline.graph, pipeline.runners.local"}
# Case -> the variants with and without its optimization.
CASES = {
    "reused heads": ("search", "search, new heads"),
    "solver": ("solver", "solver, scikit-learn"),
    "few rows": ("products", "products, few columns"),
    "both kinds at once": ("both kinds", "each kind"),
    "epoch in one step": ("network", "network, batches"),
    "dropout": ("linear network", "linear network, Keras's dropout"),
    "AdamW": ("network", "network, Keras's AdamW"),
    "one thread": ("two networks", "two networks, more threads"),
    "frozen search": ("search", "search, not frozen"),
    "batch in two parts": ("embedding", "embedding, one part"),
    "huge pages": ("forward passes", "forward passes, small pages"),
    "frozen executor": ("executor", "executor, not frozen"),
    "frozen run": ("graph", "graph, not frozen"),
} | {name: (name, f"{name}, collecting") for name in IMPORTS}


class NewHeads(kt.HyperModel):
    """Hypermodel that builds a new network for each trial."""

    def build(self, hp: kt.HyperParameters):
        """Return the untrained head of a trial."""
        return build_head(SIZES, BREEDS, tuning.sample_hyperparameters(hp, SPACE), BATCH_SIZE)


def synthetic_embeddings(photos: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float32 [photos, EMBEDDING_SIZE] and labels int64 [photos]."""
    random = np.random.default_rng(0)
    labels = random.integers(0, BREEDS, photos)
    noise = random.normal(size=(photos, EMBEDDING_SIZE))
    return (np.eye(BREEDS, EMBEDDING_SIZE)[labels] + noise).astype("f4"), labels


def uneven_embeddings(photos: int) -> tuple[np.ndarray, np.ndarray]:
    """The same with a variance that falls with the square of the dimension."""
    embeddings, labels = synthetic_embeddings(photos)
    return embeddings / np.arange(1, EMBEDDING_SIZE + 1, dtype="f4"), labels


def solve(photos: int) -> None:
    """Solve the logistic regressions of all penalties."""
    problems = [logistic_regression.Problem(np.ones(photos, bool), penalty) for penalty in PENALTIES]
    logistic_regression.solve(*uneven_embeddings(photos), BREEDS, problems)


def solve_with_scikit_learn(photos: int) -> None:
    """Solve the same logistic regressions with scikit-learn, each from the solution of the previous one."""
    embeddings, labels = uneven_embeddings(photos)
    squared_length = np.mean(np.sum(embeddings**2, axis=1))
    model = LogisticRegression(warm_start=True, tol=1e-5, max_iter=10_000)
    for penalty in PENALTIES:
        with threadpool_limits(1):
            model.set_params(C=1 / (penalty * squared_length)).fit(embeddings, labels)


def multiply(photos: int, few_rows: bool) -> None:
    """Compute 20 times the logits of all heads, and the sums of the embeddings weighted with them."""
    embeddings = synthetic_embeddings(photos)[0].astype("f8")
    kernels = np.ones([len(PENALTIES) * BREEDS, EMBEDDING_SIZE])
    columns = kernels.T.copy()
    with threadpool_limits(1):
        for _ in range(20):
            if few_rows:
                (kernels @ embeddings.T) @ embeddings
            else:
                embeddings.T @ (embeddings @ columns)


def synthetic_records(photos: int, blocks: int = 1) -> Records:
    """Records of synthetic embeddings; those of all blocks are equal."""
    hashes = [b"%d" % number for number in range(photos)]
    embeddings, labels = synthetic_embeddings(photos)
    sizes = {feature_name("synthetic", depth): EMBEDDING_SIZE for depth in range(blocks)}
    return Records(np.tile(embeddings, blocks), sizes, labels, hashes, hashes)


def train_network(photos: int, hyperparameters: dict[str, Any]) -> None:
    """Train a network for 60 epochs, on the last block or on three."""
    make_deterministic(0)
    records = synthetic_records(photos, {"last": 1, "all": 3}[hyperparameters["blocks"]])
    network = build_head(records.embedding_sizes, BREEDS, hyperparameters, BATCH_SIZE)
    network.fit(one_element_dataset(records), epochs=60, verbose=0)


def train_with_keras(photos: int, hyperparameters: dict[str, Any], name: str) -> None:
    """Train the same network with a class of Keras in place of the pipeline's class of the same name."""
    keras_class = {"Dropout": keras.layers.Dropout, "AdamW": keras.optimizers.AdamW}[name]
    with mock.patch.object(head, name, keras_class):
        train_network(photos, hyperparameters)


def train_network_on_batches(photos: int) -> None:
    """Train the same network with Keras's loop over the batches of a dataset."""
    make_deterministic(0)
    embeddings, labels = synthetic_embeddings(photos)
    own = build_head(SIZES, BREEDS, NETWORK, BATCH_SIZE)
    network = keras.Model(own.inputs, own.outputs)
    network.compile(
        own.optimizer,
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=256,
        jit_compile=False,
    )
    order = tf.data.Dataset.range(photos).shuffle(photos, 0).batch(BATCH_SIZE)
    batches = order.map(lambda rows: (tf.gather(embeddings, rows), tf.gather(labels, rows)))
    network.fit(batches, epochs=60, verbose=0)


def search(hypermodel: kt.HyperModel, photos: int, epochs: int) -> None:
    """Run one search on the embeddings of synthetic photos."""
    make_deterministic(0)
    data = one_element_dataset(synthetic_records(photos))
    with tempfile.TemporaryDirectory() as folder:
        tuner = tuning.HeadSearch(
            hypermodel, list, SPACE, objective="val_loss", max_epochs=epochs, factor=3, seed=0, directory=folder
        )
        tuner.search(x=data, validation_data=data, verbose=0)


def search_kinds(photos: int, epochs: int, searches: list[list[str]]) -> None:
    """Run one search for each list of kinds of heads, on one block and on three, as in the standard profile."""
    use_one_thread()
    make_deterministic(0)
    embeddings, labels = uneven_embeddings(photos)
    records = synthetic_records(photos, blocks=3)._replace(embeddings=np.tile(embeddings, 3), labels=labels)
    space = SPACE | {"blocks": ["last", "all"], "l2": PENALTIES, "objective": "val_loss"}
    for kinds in searches:
        config = {"batch_size": BATCH_SIZE, "seed": 0}
        config["tuner"] = space | {"kinds": kinds, "max_epochs": epochs, "factor": 3}
        with tempfile.TemporaryDirectory() as folder:
            search_of_kinds = tuning.head_search(records, records, BREEDS, config, folder)
            search_of_kinds.tuner.search(**search_of_kinds.fit_kwargs)


def build_blocks(side: int) -> keras.Model:
    """Build a ResNet50 with random weights."""
    return pool_blocks(build_network("resnet50", "random", side, seed=0), "resnet50", ARCHITECTURES["resnet50"].layers)


def save_backbone(side: int, folder: str) -> None:
    """Build, trace and save a ResNet50 with random weights."""
    module = build_embedder(build_blocks(side), preprocessing("resnet50"), side)
    saved_model.save(module, folder, {"serving_default": module.embed})


def write_backbone() -> None:
    """Save a ResNet50 in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        save_backbone(IMAGE_SIZE, folder)


def seconds_of_embedding(parts: int, side: int) -> float:
    """Seconds to embed six batches of images of `side` pixels, with the photos of a batch divided into `parts`."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(embedding_gen, "_PARTS", parts):
        save_backbone(side, folder)
        write_json(folder, BACKBONE_RECORD_FILE, {"precision": "float32"})
        paths = write_sample_data(Path(folder) / "photos", breeds=2, photos=BATCH_SIZE // 2)
        handler = BackboneHandler(folder, BATCH_SIZE)
        model, batch = handler.load_model(), [("train", example_of(path)) for path in paths]
        list(handler.run_inference(batch, model))
        started = time.perf_counter()
        for _ in range(6):
            list(handler.run_inference(batch, model))
        return time.perf_counter() - started


def example_of(photo: Path) -> bytes:
    """Serialized tf.Example of a photo."""
    value = tf.train.Feature(bytes_list=tf.train.BytesList(value=[photo.read_bytes()]))
    return tf.train.Example(features=tf.train.Features(feature={"image_bytes": value})).SerializeToString()


def seconds_of_forward_passes(side: int) -> float:
    """Seconds of ten forward passes of a batch of images of `side` pixels."""
    embed = tf.function(functools.partial(build_blocks(side), training=False))
    pixels = tf.zeros([BATCH_SIZE, side, side, 3])
    embed(pixels)
    started = time.perf_counter()
    for _ in range(10):
        embed(pixels)
    return time.perf_counter() - started


def in_new_process(function: str, environment: dict[str, str]) -> float:
    """Call a function of this module in a new process, with these environment variables in place of huge pages."""
    inherited = {name: value for name, value in os.environ.items() if name != huge_pages.VARIABLE}
    command = [sys.executable, "-c", f"import optimizations; print(optimizations.{function})"]
    environment = inherited | environment
    done = subprocess.run(
        command, cwd=Path(__file__).parent, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout.splitlines()[-1])


def create_graph() -> None:
    """Create and compile the pipeline of the demo profile."""
    with tempfile.TemporaryDirectory() as folder:
        settings = load("demo", [f"data={folder}", f"workdir={folder}"])
        context = local_run_context(settings, "benchmark")
        graph = create_pipeline(settings, context, local_runner.metadata_config(folder))
        compiler.Compiler().compile(graph)


def without_freeze(work: Callable[[], None]) -> None:
    """Run a search whose calls to `gc` do nothing."""
    ignored = SimpleNamespace(collect=int, freeze=int, unfreeze=int)
    with mock.patch.object(tuning, "gc", ignored):
        work()


def seconds_in_fork(work: Callable[[], None], prepare: Callable[[], None] = lambda: None, copies: int = 1) -> float:
    """Seconds of `work` in a forked process, which inherits the imported modules; `prepare` is not counted.

    With several copies, as many processes run at the same time; the result is that of the slowest one.
    """

    def measure(sender: Connection) -> None:
        prepare()
        started = time.perf_counter()
        work()
        sender.send(time.perf_counter() - started)

    processes, receivers = [], []
    for _ in range(copies):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        processes.append(multiprocessing.get_context("fork").Process(target=measure, args=[sender]))
        receivers.append(receiver)
        processes[-1].start()
        sender.close()
    try:
        return max(receiver.recv() for receiver in receivers)
    except EOFError:
        raise SystemExit("a measured process failed; its traceback is above") from None
    finally:
        for process in processes:
            process.join()


def seconds_of_import(modules: str, collect: bool) -> float:
    """Seconds to import `modules` in a new process."""
    disable = "" if collect else "import gc; gc.disable(); "
    code = (
        f"import time; started = time.perf_counter(); {disable}import {modules}; print(time.perf_counter() - started)"
    )
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def variants(photos: int, epochs: int, solved_photos: int, side: int) -> dict[str, Callable[[], float]]:
    """Name -> function that runs this variant once and returns its seconds."""

    def fork(work: Callable[..., None], *arguments, **options) -> Callable[[], float]:
        return functools.partial(seconds_in_fork, functools.partial(work, *arguments), **options)

    reused = functools.partial(search, tuning.HeadHyperModel(SIZES, BREEDS, SPACE, BATCH_SIZE), photos, epochs)
    huge = {huge_pages.VARIABLE: huge_pages.VALUE}
    return {
        "search": fork(reused, prepare=use_one_thread),
        "search, new heads": fork(search, NewHeads(), photos, epochs, prepare=use_one_thread),
        "search, not frozen": fork(without_freeze, reused, prepare=use_one_thread),
        "solver": fork(solve, solved_photos),
        "solver, scikit-learn": fork(solve_with_scikit_learn, solved_photos),
        "products": fork(multiply, solved_photos, True),
        "products, few columns": fork(multiply, solved_photos, False),
        "both kinds": fork(search_kinds, solved_photos, epochs, [list(KINDS)]),
        "each kind": fork(search_kinds, solved_photos, epochs, [[kind] for kind in KINDS]),
        "network": fork(train_network, solved_photos, NETWORK, prepare=use_one_thread),
        "network, batches": fork(train_network_on_batches, solved_photos, prepare=use_one_thread),
        "network, Keras's AdamW": fork(train_with_keras, solved_photos, NETWORK, "AdamW", prepare=use_one_thread),
        "linear network": fork(train_network, solved_photos, LINEAR_NETWORK, prepare=use_one_thread),
        "linear network, Keras's dropout": fork(
            train_with_keras, solved_photos, LINEAR_NETWORK, "Dropout", prepare=use_one_thread
        ),
        "two networks": fork(train_network, solved_photos, NETWORK, prepare=use_one_thread, copies=2),
        "two networks, more threads": fork(train_network, solved_photos, NETWORK, copies=2),
        "embedding": functools.partial(in_new_process, f"seconds_of_embedding(2, {side})", huge),
        "embedding, one part": functools.partial(in_new_process, f"seconds_of_embedding(1, {side})", huge),
        "forward passes": functools.partial(in_new_process, f"seconds_of_forward_passes({side})", huge),
        "forward passes, small pages": functools.partial(in_new_process, f"seconds_of_forward_passes({side})", {}),
        "executor": fork(write_backbone, prepare=gc.freeze),
        "executor, not frozen": fork(write_backbone),
        "graph": fork(create_graph, prepare=gc.freeze),
        "graph, not frozen": fork(create_graph),
    } | {
        f"{name}{suffix}": functools.partial(seconds_of_import, modules, collect)
        for name, modules in IMPORTS.items()
        for suffix, collect in (("", False), (", collecting", True))
    }


def measure(rounds: int, names: list[str], runs: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Median seconds of the variants with these names; a round runs all of them in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            seconds[name].append(runs[name]())
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Measure the variants of the chosen cases and print the ratio of each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="cases to measure; default all")
    parser.add_argument("--rounds", type=int, default=3, help="number of measurements of each variant")
    parser.add_argument("--photos", type=int, default=400, help="number of synthetic embeddings in the search")
    parser.add_argument("--epochs", type=int, default=4, help="number of epochs of the longest trials")
    parser.add_argument(
        "--solved-photos",
        type=int,
        default=1500,
        help="number of embeddings to solve and to train on",
    )
    parser.add_argument("--side", type=int, default=224, help="side of the images of embedded batches in pixels")
    arguments = parser.parse_args()
    runs = variants(arguments.photos, arguments.epochs, arguments.solved_photos, arguments.side)
    names = list(dict.fromkeys(name for case in arguments.cases for name in CASES[case]))
    medians = measure(arguments.rounds, names, runs)
    print(f"{'case':<18}  {'with s':>7}  {'without s':>9}  {'ratio':>5}")
    for case in arguments.cases:
        fast, slow = (medians[name] for name in CASES[case])
        print(f"{case:<18}  {fast:>7.2f}  {slow:>9.2f}  {slow / fast:>5.2f}")


if __name__ == "__main__":
    main()
