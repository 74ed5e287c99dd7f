"""The head and its hyperparameter search, on synthetic embeddings."""

import contextlib
import re
import sys
from itertools import product
from types import SimpleNamespace

import keras_tuner as kt
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft
from keras_tuner.errors import FailedTrialError

from components.candidates.trial_metrics import TRIAL_SECONDS
from components.keras_config import keras
from pipeline.modules import head, training, tuning
from pipeline.modules.head import (
    Dropout,
    Network,
    Records,
    ReusableHead,
    build_head,
    hyperparameters_of,
    make_deterministic,
    one_element_dataset,
    read_records,
    read_splits,
    require_memory,
)

SIZE, BREEDS = 16, 3
SIZES = {"embedding_net_0": 12, "embedding_net_1": 4}
NETWORK = {"kind": "network", "blocks": "all", "units": 8, "dropout": 0.2, "learning_rate": 0.01, "weight_decay": 0.001}
SOLVED = {"kind": "logistic_regression", "blocks": "all", "l2": 0.01}


def synthetic_records(count: int, seed: int) -> Records:
    """Records with one cluster of embeddings per breed; clusters hardly overlap."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, BREEDS, count)
    centres = np.eye(BREEDS, SIZE) * 4
    embeddings = (centres[labels] + random.normal(size=(count, SIZE))).astype(np.float32)
    hashes = [b"%04d" % i for i in range(count)]
    return Records(embeddings, SIZES, labels, hashes, hashes)


@pytest.fixture
def search(monkeypatch, tmp_path):
    """Function that runs the search of `tuner_fn` on synthetic records; arguments override a small search space."""

    def run(**space):
        splits = {"train": synthetic_records(96, 0), "eval": synthetic_records(48, 1)}
        monkeypatch.setattr(tuning, "read_splits", lambda *_: (None, splits))
        transform = SimpleNamespace(vocabulary_size_by_name=lambda _: BREEDS)
        monkeypatch.setattr(tuning.tft, "TFTransformOutput", lambda _: transform)
        small_space = {"objective": "val_loss", "kinds": ["network"], "blocks": ["last", "all"], "l2": [0.01, 0.1]}
        small_space |= {"max_epochs": 2, "factor": 2, "units": [0, 8], "dropout": [0.2, 0.5]}
        small_space |= {"learning_rate": [1e-4, 1e-1], "weight_decay": [0.0, 0.01]}
        arguments = SimpleNamespace(
            custom_config={"tuner": small_space | space, "batch_size": 16, "seed": 0},
            transform_graph_path="",
            train_files=[],
            eval_files=[],
            working_dir=str(tmp_path),
        )
        result = tuning.tuner_fn(arguments)
        result.tuner.search(**result.fit_kwargs)
        return result.tuner.oracle

    return run


def train_head(units: int = 8):
    make_deterministic(0)
    head = build_head(SIZES, BREEDS, NETWORK | {"units": units}, batch_size=16)
    head.fit(one_element_dataset(synthetic_records(192, 0)), epochs=5, verbose=0)
    return head


def test_equal_seeds_give_equal_weights():
    first, second = train_head(), train_head()
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("units", [0, 8])
def test_head_learns_separable_breeds(units):
    head, unseen = train_head(units), synthetic_records(300, 2)
    probabilities = head(unseen.embeddings, training=False).numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (probabilities.argmax(axis=1) == unseen.labels).mean() > 0.9


@pytest.mark.parametrize("hyperparameters", [SOLVED, NETWORK | {"units": 0}], ids=["solved", "network"])
def test_linear_head_has_one_layer_for_the_used_blocks(hyperparameters):
    for blocks, used in (("all", SIZE), ("last", SIZES["embedding_net_0"])):
        head = build_head(SIZES, BREEDS, hyperparameters | {"blocks": blocks}, batch_size=16)
        assert head.count_params() == used * BREEDS + BREEDS
        assert head.input_shape == (None, SIZE)


def test_head_for_the_last_block_ignores_the_other_blocks():
    head, records = build_head(SIZES, BREEDS, NETWORK | {"blocks": "last"}, batch_size=16), synthetic_records(50, 0)
    head.set_weights([np.random.default_rng(0).normal(size=weights.shape) for weights in head.get_weights()])
    changed = records.embeddings.copy()
    changed[:, SIZES["embedding_net_0"] :] += 1
    np.testing.assert_array_equal(head(changed, training=False), head(records.embeddings, training=False))
    assert not np.array_equal(head(records.embeddings + 1, training=False), head(changed, training=False))


def test_each_epoch_trains_on_each_photo_once_in_a_new_order():
    batches = []

    class Recorder(keras.layers.Layer):
        def call(self, inputs, training=False):
            if training:
                tf.numpy_function(lambda values: batches.append(values[:, 0]), [inputs], [])
            return inputs

    inputs = keras.Input([SIZE])
    outputs = keras.layers.Dense(BREEDS, "softmax")(Recorder()(inputs))
    network = Network(inputs, outputs, batch_size=16)
    network.compile("sgd", jit_compile=False)
    records = synthetic_records(50, 0)
    records.embeddings[:, 0] = np.arange(50)
    network.fit(one_element_dataset(records), epochs=2, verbose=0)
    assert [len(batch) for batch in batches] == 2 * [16, 16, 16, 2]
    first, second = np.concatenate(batches[:4]), np.concatenate(batches[4:])
    assert not np.array_equal(first, second)
    for numbers in (first, second):
        np.testing.assert_array_equal(np.sort(numbers), np.arange(50))


def test_network_learns_as_keras_does():
    """Without dropout and with one batch, the order of the photos does not matter."""
    records = synthetic_records(50, 0)
    own = build_head(SIZES, BREEDS, NETWORK | {"dropout": 0.0}, batch_size=50)
    inputs = keras.Input([SIZE])
    hidden = keras.layers.Dense(NETWORK["units"], "relu")(inputs)
    expected = keras.Model(inputs, keras.layers.Dense(BREEDS, "softmax")(hidden))
    optimizer = keras.optimizers.AdamW(NETWORK["learning_rate"], weight_decay=NETWORK["weight_decay"])
    expected.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    expected.set_weights(own.get_weights())
    data = one_element_dataset(records)
    histories = [model.fit(data, validation_data=data, epochs=20, verbose=0).history for model in (own, expected)]
    assert histories[0].keys() == histories[1].keys()
    for name, values in histories[1].items():
        np.testing.assert_allclose(histories[0][name], values, rtol=1e-3, err_msg=name)
    for one, other in zip(own.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_a_photo_of_a_breed_that_is_not_in_train_is_an_error(method):
    records = synthetic_records(50, 0)
    records.labels[7] = -1
    network = build_head(SIZES, BREEDS, NETWORK, batch_size=16)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a breed that is not in train"):
        getattr(network, method)(one_element_dataset(records), verbose=0)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.999999])
@pytest.mark.parametrize("length", [4, 7])
def test_dropout_drops_the_given_fraction_and_keeps_the_mean(rate, length):
    keras.utils.set_random_seed(0)
    dropout, inputs = Dropout(rate), np.full([30_000, length], 2, np.float32)
    first, second = (dropout(inputs, training=True).numpy() for _ in range(2))
    kept = np.unique(first[first != 0])
    assert len(kept) <= 1
    np.testing.assert_allclose(kept, 2 / (1 - rate), rtol=1e-4)
    np.testing.assert_allclose((first == 0).mean(axis=0), rate, atol=0.02)
    assert rate == 0 or not np.array_equal(first, second) or not first.any()
    np.testing.assert_array_equal(dropout(inputs, training=False), inputs)


def test_loaded_weights_continue_the_training(tmp_path):
    data = one_element_dataset(synthetic_records(50, 0))
    first, second = (ReusableHead(SIZES, BREEDS, NETWORK, batch_size=16).reset(NETWORK) for _ in range(2))
    first.fit(data, epochs=2, verbose=0)
    first.save_weights(tmp_path / "weights")
    second.load_weights(tmp_path / "weights")
    for model in (first, second):
        model.fit(data, epochs=2, verbose=0)
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_read_records_does_not_depend_on_the_shards(tmp_path):
    records = synthetic_records(20, 0)
    random = np.random.default_rng(3)
    digests = set()
    for name in ("first", "second"):
        _write_shards(tmp_path / name, records, random.permutation(20))
        records_read = read_records([f"{tmp_path}/{name}/*"], _TRANSFORM)
        assert records_read.content_hashes == records.content_hashes
        np.testing.assert_array_equal(records_read.embeddings, records.embeddings)
        np.testing.assert_array_equal(records_read.labels, records.labels)
        digests.add(records_read.digest())
    assert len(digests) == 1


def test_splits_share_one_array_and_are_sorted_separately(tmp_path):
    parts = {"train": synthetic_records(20, 0), "eval": synthetic_records(6, 1)}
    for name, records in parts.items():
        _write_shards(tmp_path / name, records, np.random.default_rng(3).permutation(len(records.labels)))
    photos, splits = read_splits({name: [f"{tmp_path}/{name}/*"] for name in parts}, _TRANSFORM)
    assert photos.content_hashes == parts["train"].content_hashes + parts["eval"].content_hashes
    np.testing.assert_array_equal(photos.labels, np.concatenate([part.labels for part in parts.values()]))
    for name, records in parts.items():
        np.testing.assert_array_equal(splits[name].embeddings, records.embeddings)
        assert np.shares_memory(splits[name].embeddings, photos.embeddings)


@pytest.mark.parametrize("component", ["Tuner", "Trainer"])
def test_embeddings_that_do_not_fit_in_memory_are_not_read(monkeypatch, tmp_path, component):
    _write_shards(tmp_path / "photos", synthetic_records(20, 0), range(20))
    monkeypatch.setattr(tft, "TFTransformOutput", lambda _: _TRANSFORM)
    monkeypatch.setattr(head.np, "empty", lambda *_: pytest.fail("embeddings are read"))
    monkeypatch.setattr(head, "available_memory", lambda: 4000)
    trial = kt.HyperParameters()
    for name, value in SOLVED.items():
        trial.Fixed(name, value)
    files = [f"{tmp_path}/photos/*"]
    arguments = SimpleNamespace(
        custom_config={"tuner": {"blocks": ["last", "all"], "l2": [0.1]}, "trainer": {}, "seed": 0},
        transform_graph_path="",
        transform_output="",
        train_files=files,
        eval_files=files,
        working_dir="",
        hyperparameters=trial.get_config(),
    )
    message = rf"{component} needs 0\.0 GB of memory for 40 photos with embeddings of 16 numbers, and 0\.0 GB are avail"
    with pytest.raises(MemoryError, match=f"{message}.*tuner.blocks=.last"):
        {"Tuner": tuning.tuner_fn, "Trainer": training.run_fn}[component](arguments)


@pytest.mark.parametrize(("blocks", "sufficient"), [("all", False), ("last", True)])
def test_heads_on_the_last_blocks_need_less_memory(monkeypatch, blocks, sufficient):
    monkeypatch.setattr(head, "available_memory", lambda: 300_000)
    with contextlib.nullcontext() if sufficient else pytest.raises(MemoryError):
        require_memory("Trainer", blocks, 0, 1000, {"embedding_net_0": 8, "embedding_net_1": 8})


_TRANSFORM = SimpleNamespace(
    vocabulary_by_name=lambda _: [b"Manx"] * BREEDS,
    vocabulary_size_by_name=lambda _: BREEDS,
    transform_raw_features=lambda features: features,
    raw_feature_spec=lambda: {
        **{name: tf.io.FixedLenFeature([size], tf.float32) for name, size in SIZES.items()},
        "label": tf.io.FixedLenFeature([1], tf.int64),
        "content_hash": tf.io.FixedLenFeature([1], tf.string),
        "near_duplicate_group": tf.io.FixedLenFeature([1], tf.string),
    },
)


def _write_shards(folder, records: Records, order) -> None:
    folder.mkdir()
    for shard, part in enumerate(np.array_split(order, 3)):
        with tf.io.TFRecordWriter(str(folder / f"{shard}")) as writer:
            for i in part:
                example = tf.train.Example()
                features = example.features.feature
                last, previous = np.split(records.embeddings[i], [SIZES["embedding_net_0"]])
                features["embedding_net_1"].float_list.value.extend(previous)
                features["embedding_net_0"].float_list.value.extend(last)
                features["label"].int64_list.value.append(records.labels[i])
                features["content_hash"].bytes_list.value.append(records.content_hashes[i])
                features["near_duplicate_group"].bytes_list.value.append(records.groups[i])
                writer.write(example.SerializeToString())


def test_search_is_reproducible_and_records_seconds_per_trial(search):
    oracles = [search() for _ in range(2)]
    first, second = ([(t.trial_id, t.score) for t in oracle.get_best_trials(oracle.max_trials)] for oracle in oracles)
    assert first == second
    assert len(first) == oracles[0].max_trials
    for trial in oracles[0].trials.values():
        assert trial.status == "COMPLETED"
        assert trial.hyperparameters.values[TRIAL_SECONDS] > 0


@pytest.mark.parametrize(
    "cause", [ValueError("shapes differ"), MemoryError("8 GB"), KeyError("seconds"), FailedTrialError("no")]
)
def test_failed_trial_ends_the_search_with_hyperparameters_and_cause(search, monkeypatch, cause):
    build, built = tuning.HeadHyperModel.build, []

    def build_or_fail(self, hp):
        if hp.values.get("tuner/epochs"):  # false when Keras Tuner builds a model to read the search space
            built.append(hp)
            if len(built) == 3:
                raise cause
        return build(self, hp)

    monkeypatch.setattr(tuning.HeadHyperModel, "build", build_or_fail)
    with pytest.raises(tuning.TrialError) as raised:
        search()
    assert raised.value.__cause__ is cause
    message = str(raised.value)
    assert re.match(
        r"trial \d+ \(kind=network, blocks=(last|all), units=\d+, dropout=0\.\d, learning_rate=[\d.e-]+, "
        r"weight_decay=[\d.]+\) failed: ",
        message,
    )
    assert message.endswith(f"{type(cause).__name__}: {cause}")


@pytest.mark.filterwarnings("ignore:All-NaN axis")
@pytest.mark.parametrize("space", [{"max_epochs": 6}, {"max_epochs": 2, "factor": 10}], ids=["several", "one"])
def test_trials_with_nan_loss_end_the_search_with_hyperparameters_and_remedy(search, monkeypatch, space):
    def close_to_overflow(count: int, seed: int, finite_records=synthetic_records) -> Records:
        return finite_records(count, seed)._replace(embeddings=np.full((count, SIZE), 3e38, np.float32))

    monkeypatch.setattr(sys.modules[__name__], "synthetic_records", close_to_overflow)
    with pytest.raises(tuning.TrialError) as raised:
        search(units=[0], **space)
    message = str(raised.value)
    assert re.match(
        r"val_loss is not a number at the end of trial \d+ \(kind=network, blocks=(last|all), units=0, dropout=0\.\d, ",
        message,
    )
    assert "Lower the upper bound of tuner.learning_rate" in message


@pytest.mark.parametrize("split", ["train", "eval"])
def test_embeddings_that_are_not_finite_end_the_search_with_a_remedy(search, monkeypatch, split):
    def infinite(count: int, seed: int, finite_records=synthetic_records) -> Records:
        records = finite_records(count, seed)
        if seed == ["train", "eval"].index(split):
            records.embeddings[3, 2] = np.inf
        return records

    monkeypatch.setattr(sys.modules[__name__], "synthetic_records", infinite)
    with pytest.raises(tuning.TrialError, match=f"embeddings of {split} are not finite: inspect the statistics"):
        search(kinds=["logistic_regression"])


def test_embeddings_of_one_block_are_searched_once(search, monkeypatch):
    sizes = {"embedding_net_0": SIZE}
    monkeypatch.setattr(
        sys.modules[__name__],
        "synthetic_records",
        lambda *a, all_=synthetic_records: all_(*a)._replace(embedding_sizes=sizes),
    )
    oracle = search(kinds=["logistic_regression", "network"])
    assert {trial.hyperparameters.get("blocks") for trial in oracle.trials.values()} == {"last"}


def test_search_includes_a_logistic_regression_for_each_penalty_and_choice_of_blocks(search):
    oracle = search(kinds=["logistic_regression", "network"])
    trials = oracle.get_best_trials(oracle.max_trials)
    assert len(trials) == len(oracle.trials)
    solved = [t.hyperparameters.values for t in trials if t.hyperparameters.get("kind") == "logistic_regression"]
    assert {(values["blocks"], values["l2"]) for values in solved} == set(product(["last", "all"], [0.01, 0.1]))
    assert all(values[TRIAL_SECONDS] > 0 for values in solved)
    assert any(t.hyperparameters.get("kind") == "network" for t in trials)
    # Two epochs are too few for a network; the solved heads are converged.
    assert trials[0].hyperparameters.get("kind") == "logistic_regression"


@pytest.mark.parametrize("objective", ["val_loss", "val_accuracy"])
def test_score_of_a_logistic_regression_is_that_of_the_trained_head(search, objective):
    best = search(kinds=["logistic_regression"], objective=objective).get_best_trials(1)[0]
    train, evaluation = synthetic_records(96, 0), synthetic_records(48, 1)
    head = training.fit_head(train, evaluation, BREEDS, hyperparameters_of(best.hyperparameters), {}).head
    head.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    loss, accuracy = head.evaluate(evaluation.embeddings, evaluation.labels, verbose=0)
    assert best.score == pytest.approx(loss if objective == "val_loss" else accuracy, abs=1e-4)


def test_search_without_networks_has_only_logistic_regressions(search):
    oracle = search(kinds=["logistic_regression"])
    assert len(oracle.trials) == oracle.max_trials == 4


def test_search_finds_a_working_learning_rate(search):
    rates = [1e-7, 3e-2]
    best = search(learning_rate=rates, units=[0], max_epochs=6).get_best_trials(1)[0]
    assert best.hyperparameters.values["learning_rate"] > 1e-3


def test_continued_trials_improve_on_the_trial_they_continue(search):
    oracle = search(learning_rate=[1e-3, 1.1e-3], units=[8], dropout=[0.2], weight_decay=[0.0])
    continued = [t for t in oracle.trials.values() if "tuner/trial_id" in t.hyperparameters.values]
    assert continued
    for trial in continued:
        assert trial.score < oracle.trials[trial.hyperparameters.values["tuner/trial_id"]].score


def test_reused_head_equals_a_new_head():
    hyperparameters = NETWORK | {"dropout": 0.5}
    data = synthetic_records(64, 0)

    def train(used_before: bool):
        make_deterministic(0)
        head = ReusableHead(SIZES, BREEDS, hyperparameters, batch_size=16)
        if used_before:
            earlier = head.reset(hyperparameters | {"learning_rate": 0.1, "weight_decay": 0.1, "dropout": 0.8})
            earlier.fit(one_element_dataset(data), verbose=0)
        model = head.reset(hyperparameters)
        model.fit(one_element_dataset(data), epochs=2, verbose=0)
        return model.get_weights()

    for new, reused in zip(train(False), train(True), strict=True):
        np.testing.assert_array_equal(new, reused)


def test_the_training_of_a_network_is_traced_once(monkeypatch):
    traces = []
    train_step = Network.train_step
    monkeypatch.setattr(Network, "train_step", lambda *arguments: traces.append(1) or train_step(*arguments))
    network = build_head(SIZES, BREEDS, NETWORK, batch_size=16)
    network.fit(one_element_dataset(synthetic_records(100, 0)), epochs=2, verbose=0)
    assert len(traces) == 1
