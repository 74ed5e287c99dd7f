"""The served model combines backbones and a head; photos and their embeddings give equal predictions."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from components import saved_model
from components.candidates.embedding_features import feature_name
from components.candidates.served_model import ServedModel, embedding_specs
from components.file_names import BACKBONE_RECORD_FILE
from components.json_files import read_json, write_json
from serving.model_files import MODEL_RECORD_FILE, WARMUP_FILE, read_record
from serving.precision import precision_of

BREEDS = ["Rex", "Münsterkatze", "Van"]
PHOTOS = [tf.io.encode_jpeg(tf.fill([height, 9, 3], tf.constant(90, tf.uint8))).numpy() for height in (5, 11, 40)]


class Backbone(tf.Module):
    """A backbone whose embedding has the first `size` powers of the scaled number of bytes of the photo."""

    def __init__(self, name: str, size: int):
        super().__init__()
        self.feature = feature_name(name, 0)
        self.scale = tf.Variable(0.001)
        self.size = size

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def embed(self, image_bytes):
        length = tf.cast(tf.strings.length(image_bytes), tf.float32) * self.scale
        return {self.feature: tf.stack([length ** (power + 1) for power in range(self.size)], axis=1)}


class Head(tf.Module):
    """A linear classifier with the signatures of `pipeline.modules.candidate_model.CandidateModel`."""

    def __init__(self, sizes: dict[str, int]):
        super().__init__()
        shape = (sum(sizes.values()), len(BREEDS))
        self.kernel = tf.Variable(np.random.default_rng(0).normal(size=shape).astype(np.float32))

        @tf.function(input_signature=embedding_specs(sizes))
        def classify(*embeddings):
            probabilities = tf.nn.softmax(tf.concat(embeddings, axis=1) @ self.kernel)
            return {"probabilities": probabilities, "breeds": tf.broadcast_to(BREEDS, tf.shape(probabilities))}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "breed")])
        def encode_labels(breed):
            return {"label": tf.argmax(tf.cast(breed[:, tf.newaxis] == BREEDS, tf.int64), axis=1)}

        @tf.function(input_signature=embedding_specs(sizes))
        def explain(*embeddings):
            outputs = classify(*embeddings)
            return outputs | {"in_set": outputs["probabilities"] > 0.3, "embedding": tf.concat(embeddings, axis=1)}

        self.endpoints = {
            "classify_embedding": classify,
            "explain_embedding": explain,
            "transform_labels": encode_labels,
        }


def embedding_sizes(sizes: tuple[int, ...]) -> dict[str, int]:
    """Lengths of the embeddings of the backbones toy0, toy1, ..."""
    return {feature_name(f"toy{number}", 0): size for number, size in enumerate(sizes)}


@pytest.fixture
def write_saved_models(tmp_path):
    """Function that writes backbones with the given embedding sizes and a head; returns their directories."""

    def write(*sizes: int, head_sizes: dict[str, int] | None = None) -> tuple[list[str], str]:
        paths = []
        for number, size in enumerate(sizes):
            path, backbone = str(tmp_path / f"backbone{number}"), Backbone(f"toy{number}", size)
            saved_model.save(backbone, path, {"serving_default": backbone.embed})
            record = {
                "name": f"toy{number}",
                "architecture": f"toy{number}",
                "weights": "random",
                "weights_digest": f"w{number}",
                "image_size": 32 + number,
                "precision": "float32",
                "embedding_sizes": {backbone.feature: size},
                "parameters": 1,
                "multiply_adds": 10 + number,
            }
            write_json(path, BACKBONE_RECORD_FILE, record)
            paths.append(path)
        head_sizes = head_sizes or embedding_sizes(sizes)
        head, path = Head(head_sizes), str(tmp_path / "head")
        saved_model.save(head, path, head.endpoints)
        record = {"breeds": BREEDS, "hyperparameters": {"units": 0}, "settings": {"seed": 0}, "parameters": 7}
        write_json(path, MODEL_RECORD_FILE, record | {"embedding_sizes": head_sizes})
        return paths, path

    return write


@pytest.mark.parametrize("sizes", [(4,), (2, 3)])
def test_photos_and_their_embeddings_give_equal_predictions(write_saved_models, tmp_path, sizes):
    backbones, head = write_saved_models(*sizes)
    ServedModel(backbones, head, top_k=2).save(str(tmp_path / "served"), "catbreeds")
    model = tf.saved_model.load(str(tmp_path / "served"))
    photos = tf.constant(PHOTOS)
    modules, classifier = [Backbone(f"toy{n}", size) for n, size in enumerate(sizes)], Head(embedding_sizes(sizes))
    embeddings = {name: values for module in modules for name, values in module.embed(photos).items()}
    expected = classifier.endpoints["classify_embedding"](*embeddings.values())
    served = model.signatures["serving_default"](image_bytes=photos)
    np.testing.assert_allclose(served["probabilities"], expected["probabilities"], atol=1e-6)
    assert [name.decode() for name in served["breeds"].numpy()[2]] == BREEDS
    by_embedding = model.signatures["classify_embedding"](**embeddings)
    np.testing.assert_allclose(by_embedding["probabilities"], expected["probabilities"], atol=1e-6)
    explained = model.signatures["explain"](image_bytes=photos)
    np.testing.assert_allclose(explained["probabilities"], served["probabilities"], atol=1e-6)
    np.testing.assert_array_equal(explained["in_set"], served["probabilities"] > 0.3)
    top = model.signatures["top_k"](image_bytes=photos)
    assert top["probabilities"].shape == (3, 2)
    order = np.argsort(-expected["probabilities"].numpy(), axis=1)[:, :2]
    assert [[name.decode() for name in row] for row in top["breeds"].numpy()] == [[BREEDS[i] for i in r] for r in order]
    labels = model.signatures["transform_labels"](breed=tf.constant(["Van", "Rex"]))["label"]
    assert labels.numpy().tolist() == [2, 0]


def test_warmup_requests_ask_for_the_outputs_that_clients_read(write_saved_models, tmp_path):
    backbones, head = write_saved_models(4)
    ServedModel(backbones, head, top_k=2).save(str(tmp_path / "served"), "catbreeds")
    records = tf.data.TFRecordDataset(str(tmp_path / "served" / WARMUP_FILE)).as_numpy_iterator()
    requests = [prediction_log_pb2.PredictionLog.FromString(record).predict_log.request for record in records]
    assert {request.model_spec.signature_name: list(request.output_filter) for request in requests} == {
        "serving_default": ["probabilities", "breeds"],
        "top_k": ["probabilities", "breeds"],
        "explain": ["probabilities", "breeds", "in_set"],
    }


def test_record_of_several_backbones_has_the_same_keys_as_a_record_of_one(write_saved_models, tmp_path):
    backbones, head = write_saved_models(2, 3)
    ServedModel(backbones, head, top_k=5).save(str(tmp_path / "served"), "catbreeds")
    record = read_record(tmp_path / "served")
    assert record["backbone"]["architecture"] == "toy0+toy1"
    assert record["backbone"]["weights"] == "random"
    assert [part["image_size"] for part in record["backbone"]["parts"]] == [32, 33]
    assert precision_of(record) == "float32"
    assert record["parameters"] == 1 + 1 + 7
    assert record["backbone"]["multiply_adds"] == 10 + 11
    assert record["settings"] == {"seed": 0, "top_k": 5}
    assert len(record["model_digest"]) == 64


def test_model_digest_depends_on_the_backbone(write_saved_models, tmp_path):
    (backbone,), head = write_saved_models(2)
    digests = set()
    for number in range(2):
        record = read_json(backbone, BACKBONE_RECORD_FILE) | {"weights_digest": f"w{number}"}
        write_json(backbone, BACKBONE_RECORD_FILE, record)
        ServedModel([backbone], head, top_k=5).save(str(tmp_path / str(number)), "catbreeds")
        digests.add(read_record(tmp_path / str(number))["model_digest"])
    assert len(digests) == 2


def test_model_digest_does_not_depend_on_the_last_digits_of_thresholds(write_saved_models, tmp_path):
    backbones, head = write_saved_models(2)
    digests = set()
    for number in range(2):
        explain = {"level": 0.95, "set_threshold": 0.2 + 1e-9 * number}
        write_json(head, MODEL_RECORD_FILE, read_json(head, MODEL_RECORD_FILE) | {"explain": explain})
        ServedModel(backbones, head, top_k=5).save(str(tmp_path / str(number)), "catbreeds")
        record = read_record(tmp_path / str(number))
        assert record["explain"] == explain
        digests.add(record["model_digest"])
    assert len(digests) == 1


def test_head_with_a_different_embedding_size_is_rejected(write_saved_models):
    backbones, head = write_saved_models(2, head_sizes={"embedding_toy0_0": 3})
    with pytest.raises(ValueError, match=r"takes embeddings of .*_0': 3}, but .* return .*_0': 2}"):
        ServedModel(backbones, head, top_k=5)


def test_latency_is_in_milliseconds(write_saved_models):
    backbones, head = write_saved_models(2)
    assert 0 < ServedModel(backbones, head, top_k=5).latency_ms() < 10_000
