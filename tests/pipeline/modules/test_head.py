"""The head and the search for its hyperparameters, on toy embeddings."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from keras_tuner.errors import FailedTrialError

from components.candidates.trial_metrics import TRIAL_SECONDS
from pipeline.modules import tuning
from pipeline.modules.head import Records, batched_dataset, build_head, make_deterministic, read_records

SIZE, BREEDS = 16, 3
HYPERPARAMETERS = {"units": 8, "dropout": 0.2, "learning_rate": 0.01, "weight_decay": 0.001}


def toy_records(count: int, seed: int) -> Records:
    """Clouds that hardly overlap, one a breed."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, BREEDS, count)
    centres = np.eye(BREEDS, SIZE) * 4
    embeddings = (centres[labels] + draw.normal(size=(count, SIZE))).astype(np.float32)
    return Records(embeddings, labels, [b"%04d" % i for i in range(count)])


@pytest.fixture
def search(monkeypatch, tmp_path):
    """Runs the search of `tuner_fn` on toy records, in a small space unless told otherwise."""

    def run(**space):
        given = iter([toy_records(96, 0), toy_records(48, 1)])
        monkeypatch.setattr(tuning, "read_records", lambda *_: next(given))
        transform = SimpleNamespace(vocabulary_size_by_name=lambda _: BREEDS)
        monkeypatch.setattr(tuning.tft, "TFTransformOutput", lambda _: transform)
        small = {"objective": "val_loss", "max_epochs": 2, "factor": 2, "units": [0, 8], "dropout": [0.2, 0.5]}
        small |= {"learning_rate": [1e-4, 1e-1], "weight_decay": [0.0, 0.01]}
        arguments = SimpleNamespace(
            custom_config={"tuner": small | space, "batch_size": 16, "seed": 0},
            transform_graph_path="",
            train_files=[],
            eval_files=[],
            working_dir=str(tmp_path),
        )
        result = tuning.tuner_fn(arguments)
        result.tuner.search(**result.fit_kwargs)
        return result.tuner.oracle

    return run


def trained(units: int = 8):
    make_deterministic(0)
    head = build_head(SIZE, BREEDS, HYPERPARAMETERS | {"units": units})
    head.fit(batched_dataset(toy_records(192, 0), 16, seed=0), epochs=5, verbose=0)
    return head


def test_same_seed_same_weights():
    first, second = trained(), trained()
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("units", [0, 8])
def test_learns_breeds_that_can_be_told_apart(units):
    head, unseen = trained(units), toy_records(300, 2)
    probabilities = head(unseen.embeddings, training=False).numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (probabilities.argmax(axis=1) == unseen.labels).mean() > 0.9


def test_linear_head_has_one_layer_of_weights():
    head = build_head(SIZE, BREEDS, HYPERPARAMETERS | {"units": 0})
    assert head.count_params() == SIZE * BREEDS + BREEDS
    assert head.input_shape == (None, SIZE)


def test_batches_hold_every_record_once():
    records = toy_records(50, 0)
    plain = [labels for _, labels in batched_dataset(records, 16).as_numpy_iterator()]
    np.testing.assert_array_equal(np.concatenate(plain), records.labels)
    shuffled = batched_dataset(records, 16, seed=0)
    first, second = ([rows for rows, _ in shuffled.as_numpy_iterator()] for _ in range(2))
    assert [len(rows) for rows in first] == [16, 16, 16, 2]
    assert not np.array_equal(first[0], second[0])
    np.testing.assert_array_equal(np.sort(np.concatenate(first), axis=0), np.sort(records.embeddings, axis=0))


def test_read_records_sorts_whatever_the_shards(tmp_path):
    records = toy_records(20, 0)
    draw = np.random.default_rng(3)
    digests = set()
    for name in ("one", "other"):
        _write_shards(tmp_path / name, records, draw.permutation(20))
        read = read_records([f"{tmp_path}/{name}/*.gz"], _TRANSFORM)
        assert read.content_hashes == records.content_hashes
        np.testing.assert_array_equal(read.embeddings, records.embeddings)
        np.testing.assert_array_equal(read.labels, records.labels)
        digests.add(read.digest())
    assert len(digests) == 1


_TRANSFORM = SimpleNamespace(
    transformed_feature_spec=lambda: {
        "embedding": tf.io.FixedLenFeature([SIZE], tf.float32),
        "label": tf.io.FixedLenFeature([1], tf.int64),
        "content_hash": tf.io.FixedLenFeature([1], tf.string),
    }
)


def _write_shards(folder, records: Records, order) -> None:
    folder.mkdir()
    for shard, part in enumerate(np.array_split(order, 3)):
        with tf.io.TFRecordWriter(str(folder / f"{shard}.gz"), "GZIP") as writer:
            for i in part:
                example = tf.train.Example()
                features = example.features.feature
                features["embedding"].float_list.value.extend(records.embeddings[i])
                features["label"].int64_list.value.append(records.labels[i])
                features["content_hash"].bytes_list.value.append(records.content_hashes[i])
                writer.write(example.SerializeToString())


def test_search_is_repeatable_and_times_each_trial(search):
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
def test_a_trial_that_fails_ends_the_search_with_its_hyperparameters_and_its_cause(search, monkeypatch, cause):
    build, built = tuning.HeadHyperModel.build, []

    def build_or_fail(self, hp):
        if hp.values.get("tuner/epochs"):  # a trial; before the first, Keras Tuner builds one to see the space
            built.append(hp)
            if len(built) == 3:
                raise cause
        return build(self, hp)

    monkeypatch.setattr(tuning.HeadHyperModel, "build", build_or_fail)
    with pytest.raises(tuning.TrialError) as raised:
        search()
    assert raised.value.__cause__ is cause
    told = str(raised.value)
    assert re.match(
        r"trial \d+ \(units=\d+, dropout=0\.\d, learning_rate=[\d.e-]+, weight_decay=[\d.]+\) failed: ", told
    )
    assert told.endswith(f"{type(cause).__name__}: {cause}")


@pytest.mark.filterwarnings("ignore:All-NaN axis")
@pytest.mark.parametrize("space", [{"max_epochs": 6}, {"max_epochs": 2, "factor": 10}], ids=["several", "only one"])
def test_trials_whose_loss_is_no_number_end_the_search_with_their_hyperparameters_and_what_to_do(
    search, monkeypatch, space
):
    def not_finite(count: int, seed: int, finite=toy_records) -> Records:
        return finite(count, seed)._replace(embeddings=np.full((count, SIZE), np.nan, np.float32))

    monkeypatch.setattr(sys.modules[__name__], "toy_records", not_finite)
    with pytest.raises(tuning.TrialError) as raised:
        search(units=[0], **space)
    told = str(raised.value)
    assert re.match(r"val_loss is not a number at the end of trial \d+ \(units=0, dropout=0\.\d, learning_rate=", told)
    assert "Lower the upper bound of tuner.learning_rate" in told


def test_search_finds_the_learning_rate_that_learns(search):
    rates = [1e-7, 3e-2]
    best = search(learning_rate=rates, units=[0]).get_best_trials(1)[0]
    assert best.hyperparameters.values["learning_rate"] > 1e-3


def test_continued_trials_go_on_where_the_earlier_one_ended(search):
    oracle = search(learning_rate=[1e-3, 1.1e-3], units=[8], dropout=[0.2], weight_decay=[0.0])
    continued = [t for t in oracle.trials.values() if "tuner/trial_id" in t.hyperparameters.values]
    assert continued
    for trial in continued:
        assert trial.score < oracle.trials[trial.hyperparameters.values["tuner/trial_id"]].score


def test_reused_head_equals_a_new_one():
    hyperparameters = HYPERPARAMETERS | {"dropout": 0.5}
    data = toy_records(64, 0)

    def learn(used_before: bool):
        make_deterministic(0)
        head = tuning._ReusableHead(SIZE, BREEDS, hyperparameters)
        if used_before:
            earlier = head.reset(hyperparameters | {"learning_rate": 0.1, "weight_decay": 0.1, "dropout": 0.8})
            earlier.fit(batched_dataset(data, 16), verbose=0)
        model = head.reset(hyperparameters)
        model.fit(batched_dataset(data, 16), epochs=2, verbose=0)
        return model.get_weights()

    for new, reused in zip(learn(False), learn(True), strict=True):
        np.testing.assert_array_equal(new, reused)
