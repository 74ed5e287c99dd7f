"""The classifier head of a candidate: builds the network, trains or solves it, and prepares its training data."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras_tuner as kt
import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from components.candidates.embedding_features import embedding_features, feature_depth
from components.keras_config import keras
from components.memory import available_memory

_BATCH = 1024  # photos that are read at a time
# Peak memory of the Tuner, as measured by benchmarks/scale.py; the Trainer needs less. Bytes for each number of an
# embedding (records, dataset and its conversion), for each number that the solver uses, and for each of its logits.
_BYTES_PER_NUMBER, _BYTES_PER_USED_NUMBER, _BYTES_PER_LOGIT = 13, 8, 40


class Records(NamedTuple):
    """Photos in memory, sorted by their content hashes.

    Attributes:
        embeddings: Standardized embeddings, float32 [n, d]; those of the last blocks are the first columns.
        embedding_sizes: Number of columns of each embedding, in the order of the columns.
        labels: Indices of the breeds, int64 [n].
        content_hashes: Content hashes of the n photos.
        groups: IDs of the groups of near-duplicates of the n photos.
    """

    embeddings: np.ndarray
    embedding_sizes: dict[str, int]
    labels: np.ndarray
    content_hashes: list[bytes]
    groups: list[bytes]

    def digest(self) -> str:
        """SHA-256 of the pairs of content hash and label."""
        digest = hashlib.sha256()
        for content_hash, label in zip(self.content_hashes, self.labels, strict=True):
            digest.update(content_hash + b"\0%d\0" % label)
        return digest.hexdigest()

    def subset(self, rows: np.ndarray) -> "Records":
        """Return the photos with the indices `rows`, which must be ascending."""
        return self._replace(
            embeddings=self.embeddings[rows],
            labels=self.labels[rows],
            content_hashes=[self.content_hashes[row] for row in rows],
            groups=[self.groups[row] for row in rows],
        )


def read_records(file_patterns: list[str], transform: tft.TFTransformOutput) -> Records:
    """Read the embeddings of one split; see `read_splits`."""
    return read_splits({"": file_patterns}, transform)[0]


def read_splits(
    splits: dict[str, list[str]],
    transform: tft.TFTransformOutput,
    check: Callable[[int, dict[str, int]], None] = lambda photos, embedding_sizes: None,
) -> tuple[Records, dict[str, Records]]:
    """Read and transform embeddings and sort those of each split, so that training does not depend on Beam's sharding.

    Each file is read twice, so that each embedding is in memory only once: first the hashes, labels and groups, which
    give the order, then the embeddings.

    Args:
        splits: Glob patterns of the TFRecord files of each split.
        transform: Output of Transform.
        check: Function of the number of photos and of `Records.embedding_sizes`, called before embeddings are read.

    Returns:
        The photos of all splits, and those of each split; both use the same memory.
    """
    spec = transform.raw_feature_spec()
    names = embedding_features(spec)
    sizes = {name: spec[name].shape[0] for name in names}
    files = {
        split: sorted(path for pattern in patterns for path in tf.io.gfile.glob(pattern))
        for split, patterns in splits.items()
    }
    others = {name: feature for name, feature in spec.items() if name not in sizes}
    columns, orders = {}, {}
    for split, paths in files.items():
        batches = [
            {name: value.numpy().reshape(-1) for name, value in batch.items()}
            for batch in _batches(paths, others, transform)
        ]
        columns[split] = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        hashes = columns[split]["content_hash"]
        orders[split] = np.array(sorted(range(len(hashes)), key=hashes.__getitem__))
    photos = sum(map(len, orders.values()))
    check(photos, sizes)
    embeddings, start, records = np.empty([photos, sum(sizes.values())], np.float32), 0, {}
    for split, order in orders.items():
        part = embeddings[start : start + len(order)]
        rows = iter(np.split(np.argsort(order), range(_BATCH, len(order), _BATCH)))
        for batch in _batches(files[split], {name: spec[name] for name in names}, transform):
            part[next(rows)] = np.concatenate([batch[name] for name in names], axis=1)
        column = {name: values[order] for name, values in columns[split].items()}
        hashes, groups = list(column["content_hash"]), list(column["near_duplicate_group"])
        records[split] = Records(part, sizes, column["label"], hashes, groups)
        start += len(order)
    joined = Records(
        embeddings,
        sizes,
        np.concatenate([split.labels for split in records.values()]),
        [value for split in records.values() for value in split.content_hashes],
        [value for split in records.values() for value in split.groups],
    )
    return joined, records


def _batches(
    files: list[str], spec: dict[str, tf.io.FixedLenFeature], transform: tft.TFTransformOutput
) -> Iterator[dict[str, tf.Tensor]]:
    """Yield what Transform makes of the features in `spec`, for `_BATCH` examples at a time."""
    for batch in tf.data.TFRecordDataset(files).batch(_BATCH):
        yield transform.transform_raw_features(tf.io.parse_example(batch, spec))


def require_memory(component: str, blocks: str, heads: int, photos: int, embedding_sizes: dict[str, int]) -> None:
    """Check that the memory of this machine or container suffices to fit heads to all photos.

    Args:
        component: Name of the component, for the message.
        blocks: See `used_columns`.
        heads: Number of linear heads that are solved together, times the number of breeds.
        photos: Number of photos.
        embedding_sizes: See `Records`.

    Raises:
        MemoryError: If the memory does not suffice.
    """
    length, used = sum(embedding_sizes.values()), used_columns(embedding_sizes, blocks)
    needed = photos * (_BYTES_PER_NUMBER * length + _BYTES_PER_USED_NUMBER * used + _BYTES_PER_LOGIT * heads)
    available = available_memory()
    if available is not None and needed > available:
        raise MemoryError(
            f"{component} needs {needed / 1e9:.1f} GB of memory for {photos:,} photos with embeddings of {length:,} "
            f"numbers, and {available / 1e9:.1f} GB are available. Use a machine with more memory (on a cluster: "
            "kubeflow.training_resources), run one component at a time (--set workers=1), use only the last block of "
            "each backbone (--set tuner.blocks=[last]), or, if the embeddings are those of the ensemble, exclude it "
            "(--set ensemble=false)"
        )


def used_columns(embedding_sizes: dict[str, int], blocks: str) -> int:
    """Number of first columns of the embeddings that a head uses.

    Args:
        embedding_sizes: See `Records`.
        blocks: "last" for the last block of each backbone, "all" for all blocks.
    """
    return sum(size for name, size in embedding_sizes.items() if blocks == "all" or feature_depth(name) == 0)


def hyperparameters_of(hp: kt.HyperParameters) -> dict[str, Any]:
    """Values of a trial that determine its head, without those that only describe the search."""
    return {name: value for name, value in hp.values.items() if "/" not in name}


def build_head(
    embedding_sizes: dict[str, int],
    breeds: int,
    hyperparameters: dict,
    batch_size: int | None = None,
    dropout: keras.Variable | None = None,
) -> keras.Model:
    """Build a head: embeddings float32 [n, d] -> probabilities float32 [n, breeds].

    A network is also compiled. `fit` trains it on the dataset of `one_element_dataset`.

    Args:
        embedding_sizes: See `Records`; the sum is d.
        breeds: Number of classes.
        hyperparameters: Values of `kind` and `blocks` (see `used_columns`). A network also has `units` (hidden units; 0
            for none), `dropout` (rate), `learning_rate` and `weight_decay`.
        batch_size: Photos per training step of a network.
        dropout: Dropout rate to use instead of the one in `hyperparameters`.
    """
    inputs = keras.Input([sum(embedding_sizes.values())])
    used = used_columns(embedding_sizes, hyperparameters["blocks"])
    features = inputs if used == inputs.shape[1] else inputs[:, :used]
    if hyperparameters["kind"] == "network":
        features = Dropout(hyperparameters["dropout"] if dropout is None else dropout)(features)
        if hyperparameters["units"]:
            features = keras.layers.Dense(hyperparameters["units"], activation="relu")(features)
    # Zero initialization as in BiT (Kolesnikov et al., ECCV 2020). With few photos, training does not remove the noise
    # of random initial weights.
    outputs = keras.layers.Dense(breeds, "softmax", kernel_initializer="zeros")(features)
    if hyperparameters["kind"] != "network":
        return keras.Model(inputs, outputs)
    network = Network(inputs, outputs, batch_size)
    network.compile(
        AdamW(hyperparameters["learning_rate"], weight_decay=hyperparameters["weight_decay"]),
        jit_compile=False,  # compiled steps are slower on a CPU
    )
    # TensorFlow traces a training step a second time if the first trace creates variables, as those of the optimizer.
    network.optimizer.build(network.trainable_variables)
    return network


class Network(keras.Model):
    """Keras model that trains a whole epoch per call of `train_step`.

    A step on a batch is so short that the overhead of Keras's loop over batches would dominate. Gain: "epoch in one
    step" of `benchmarks/optimizations.py`.

    Args:
        inputs: Input of the network.
        outputs: Output of the network.
        batch_size: Photos per training step.
    """

    def __init__(self, inputs, outputs, batch_size: int):
        super().__init__(inputs=inputs, outputs=outputs)
        self._batch_size = batch_size
        self._order_seeds = keras.random.SeedGenerator()

    def train_step(self, data):
        """Train one epoch, in a new order, on all photos: embeddings float32 [n, d] and labels int64 [n]."""
        embeddings, labels = data
        photos, targets = tf.shape(labels)[0], self._targets(labels)
        order = keras.random.shuffle(tf.range(photos), seed=self._order_seeds)

        def train_batch(start, loss, correct):
            rows = order[start : start + self._batch_size]
            batch_targets = tf.gather(targets, rows)
            with tf.GradientTape() as tape:
                probabilities = self(tf.gather(embeddings, rows), training=True)
                batch_loss, batch_correct = _loss_and_correct(batch_targets, probabilities)
                mean_loss = batch_loss / tf.cast(tf.shape(rows)[0], tf.float32)
            self.optimizer.apply(tape.gradient(mean_loss, self.trainable_weights), self.trainable_weights)
            return start + self._batch_size, loss + batch_loss, correct + batch_correct

        _, loss, correct = tf.while_loop(lambda start, *_: start < photos, train_batch, [0, 0.0, 0])
        return _means(loss, correct, photos)

    def test_step(self, data):
        """Loss and accuracy on all photos, as for `train_step`."""
        embeddings, labels = data
        return _means(*_loss_and_correct(self._targets(labels), self(embeddings, training=False)), tf.shape(labels)[0])

    def _targets(self, labels):
        """Labels, int64 [n] -> one-hot, float32 [n, breeds]; -1, a breed that is not in train, is an error."""
        tf.debugging.assert_non_negative(labels, "a photo has a breed that is not in train")
        return tf.one_hot(labels, self.output_shape[-1])

    def save_weights(self, filepath, overwrite=True):
        """Write all variables for `load_weights`; Keras Tuner calls it for each epoch that improves a trial.

        Keras's own method searches all layers for variables.
        """
        with open(filepath, "wb") as file:
            np.savez(file, *[variable.numpy() for variable in self.variables + self.optimizer.variables])

    def load_weights(self, filepath):
        """Read the variables that `save_weights` of a network of the same size wrote."""
        with np.load(filepath) as values:
            for variable, value in zip(self.variables + self.optimizer.variables, values.values(), strict=True):
                variable.assign(value)

    def build_from_config(self, config):
        """Do nothing, because the constructor created all variables. Keras Tuner calls it before it loads weights."""


def _loss_and_correct(targets: tf.Tensor, probabilities: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Sum of the cross-entropies, and number of photos whose most probable breed is the right one.

    Args:
        targets: Right breeds, one-hot, float32 [n, breeds].
        probabilities: Predictions, float32 [n, breeds].
    """
    losses = keras.losses.categorical_crossentropy(targets, probabilities)
    correct = tf.argmax(probabilities, axis=1) == tf.argmax(targets, axis=1)
    return tf.reduce_sum(losses), tf.math.count_nonzero(correct, dtype=tf.int32)


def _means(loss: tf.Tensor, correct: tf.Tensor, photos: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"loss": loss / tf.cast(photos, tf.float32), "accuracy": correct / photos}


class ReusableHead:
    """A network that can be trained again without a new graph: see `reset`.

    Hyperparameters except `units` and `blocks` are variables. Gain: "reused heads" of `benchmarks/optimizations.py`.

    Args:
        embedding_sizes: See `Records`.
        breeds: Number of classes.
        hyperparameters: See `build_head`.
        batch_size: Photos per training step.
    """

    def __init__(self, embedding_sizes: dict[str, int], breeds: int, hyperparameters: dict, batch_size: int):
        self._dropout = keras.Variable(0.0, trainable=False, name="dropout")
        self._model = build_head(embedding_sizes, breeds, hyperparameters, batch_size, self._dropout)
        optimizer = self._model.optimizer
        optimizer.weight_decay = keras.Variable(0.0, trainable=False, name="weight_decay")
        self._initial_values = [
            (variable, variable.numpy()) for variable in self._model.variables + optimizer.variables
        ]

    def reset(self, hyperparameters: dict) -> keras.Model:
        """Reset all weights and the optimizer state, set `hyperparameters`, and return the model."""
        for variable, value in self._initial_values:
            variable.assign(value)
        self._dropout.assign(hyperparameters["dropout"])
        self._model.optimizer.learning_rate.assign(hyperparameters["learning_rate"])
        self._model.optimizer.weight_decay.assign(hyperparameters["weight_decay"])
        return self._model


class Dropout(keras.layers.Layer):
    """Dropout that draws 16 random bits for each number; Keras's Dropout draws 32 and converts them to a float.

    Gain: "dropout" of `benchmarks/optimizations.py`.

    Args:
        rate: Fraction of the numbers that are dropped, at least 0 and below 1; rounded down to a multiple of 2^-16.
    """

    def __init__(self, rate: float | keras.Variable):
        super().__init__()
        self._rate = rate
        self._seeds = keras.random.SeedGenerator()

    def call(self, inputs, training=False):
        """Drop numbers of `inputs`, float32 [n, d], and scale the others, if `training`."""
        if not training:
            return inputs
        photos, length = tf.shape(inputs)[0], inputs.shape[1]
        words = tf.random.stateless_uniform([photos, -(-length // 4)], self._seeds.next(), None, None, tf.uint64)
        numbers = tf.reshape(tf.bitcast(words, tf.uint16), [photos, -1])[:, :length]
        kept = numbers >= tf.cast(tf.floor(self._rate * 2.0**16), tf.uint16)
        return inputs * tf.cast(kept, inputs.dtype) / (1 - self._rate)


class AdamW(keras.optimizers.AdamW):
    """AdamW that updates a variable with one op of TensorFlow; Keras's AdamW uses about 15.

    Gain: "AdamW" of `benchmarks/optimizations.py`.
    """

    def update_step(self, gradient, variable, learning_rate):
        """See Keras's Adam."""
        index = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


def one_element_dataset(records: Records) -> tf.data.Dataset:
    """Return a dataset with one element: embeddings float32 [n, d] and labels int64 [n] of all photos."""
    options = tf.data.Options()
    # To optimize the graph of a dataset, TensorFlow copies the embeddings into the graph.
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    return tf.data.Dataset.from_tensors((records.embeddings, records.labels)).with_options(options)


def eval_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Cross-entropy and accuracy on eval, with Keras's names.

    Args:
        labels: Indices of the true breeds, int64 [n].
        probabilities: Predictions, float [n, breeds].
    """
    of_true_breed = probabilities[np.arange(len(labels)), labels].astype(float)
    return {
        "val_loss": float(-np.log(np.maximum(of_true_breed, np.finfo(float).eps)).mean()),
        "val_accuracy": float(np.mean(probabilities.argmax(axis=1) == labels)),
    }


def use_one_thread() -> None:
    """Let TensorFlow compute in one thread, if it has not computed anything in this process.

    The steps of a head are so small that dividing them among threads takes more CPU time than it saves, and components
    run in parallel. Results do not depend on the number of cores. Gain: "one thread" of `benchmarks/optimizations.py`.
    """
    with contextlib.suppress(RuntimeError):  # TensorFlow has started its threads
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def make_deterministic(seed: int) -> None:
    """Set all random seeds and deterministic ops, so that equal inputs give equal models.

    Call it before each search and each training.
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
