"""`make demo`: three backbones are compared, the winner passes the gate and is pushed, and reruns use the cache."""

import json
import math
import re

import numpy as np
import pytest

from components.candidates.embedding_features import embedding_features
from pipeline.datasets.sample_data import BREEDS, draw_photo
from tests.running import catbreeds, run_pipeline

BACKBONES = ("xception", "resnet50", "efficientnetb7")


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def unseen_photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("unseen") / "photo.jpg"
    draw_photo(BREEDS[0], "unseen").save(path, quality=90)
    return path


@pytest.fixture(scope="module")
def winner(demo, tf):
    """Backbone of the winner, and directory and loaded SavedModel of the pushed version."""
    comparison = json.loads((demo.workdir / "report" / "comparison.json").read_text())
    path = demo.workdir / "serving" / "catbreeds" / "1"
    return comparison["winner"], path, tf.saved_model.load(str(path))


def embeddings(demo, backbone, tf):
    """Content hash -> embeddings of the eval photos from EmbeddingGen, by name."""
    folder = demo.artifact(f"EmbeddingGen-{backbone}", "embeddings") / "Split-eval"
    return {
        f["content_hash"].bytes_list.value[0]: {name: list(f[name].float_list.value) for name in embedding_features(f)}
        for f in features_of(folder, tf)
    }


def photos(demo, tf):
    """Content hash -> bytes of the eval photos."""
    folder = demo.artifact("ImageExampleGen", "examples") / "Split-eval"
    return {
        f["content_hash"].bytes_list.value[0]: f["image_bytes"].bytes_list.value[0] for f in features_of(folder, tf)
    }


def features_of(folder, tf):
    files = sorted(map(str, folder.glob("*")))
    compression = "GZIP" if files[0].endswith(".gz") else ""
    for record in tf.data.TFRecordDataset(files, compression).as_numpy_iterator():
        yield tf.train.Example.FromString(record).features.feature


def test_output_has_table_verdict_report_and_warning_about_random_weights(demo):
    output = demo.process.stdout
    for text in (*BACKBONES, "Gate: Passed: pushed as version 1.", "random weights", "report/index.html", "[ 1/30]"):
        assert text in output
    assert "Traceback" not in output
    components = [line for line in output.splitlines() if line.startswith("[")]
    assert all(re.search(r" run +\d+\.\d s  \d+\.\d GB$", line) for line in components)
    assert "TensorFlow" not in demo.process.stderr


def test_statistics_do_not_count_the_values_of_photos(demo, tf):
    from components.ingestion.data_drift import load_statistics

    (file,) = (demo.artifact("StatisticsGen", "statistics") / "Split-train").iterdir()
    (dataset,) = load_statistics(str(file)).datasets
    kinds = {feature.path.step[0]: feature.WhichOneof("stats") for feature in dataset.features}
    assert kinds["image_bytes"] == "bytes_stats"  # otherwise all photos would be in memory
    assert kinds["breed"] == "string_stats"


def test_the_winner_has_the_highest_accuracy_after_the_price_of_its_size(demo):
    comparison = json.loads((demo.workdir / "report" / "comparison.json").read_text())
    assert comparison["price"] > 0
    rows = {row["backbone"]: row for row in comparison["candidates"]}
    points = {name: 100 * row["oof_accuracy"] for name, row in rows.items()}
    doublings = {name: math.log2(row["parameters"] / rows["xception"]["parameters"]) for name, row in rows.items()}
    assert comparison["winner"] == max(rows, key=lambda name: points[name] - comparison["price"] * doublings[name])


def test_comparison_is_complete(demo):
    comparison = json.loads((demo.workdir / "report" / "comparison.json").read_text())
    assert sorted(row["backbone"] for row in comparison["candidates"]) == sorted(BACKBONES)
    for row in comparison["candidates"]:
        for accuracy in ("eval_accuracy", "oof_accuracy"):
            low, high = row[f"{accuracy}_ci95"]
            assert 0 <= low <= row[accuracy] <= high <= 1
        low, high = row["difference_ci95"]
        assert low <= row["difference_to_winner"] <= high
        assert row["top3_accuracy"] >= row["eval_accuracy"]
        for measured in ("eval_loss", "tuning_seconds", "embedding_seconds", "training_seconds", "latency_ms_p50"):
            assert row[measured] > 0
        assert row["tuning_trials"] == 2 * 5 + 10  # logistic regressions for each block and penalty, and Hyperband
        assert row["parameters"] > 20e6
        assert row["saved_model_bytes"] > 4 * row["parameters"]
        own = {"logistic_regression": {"l2"}, "network": {"units", "dropout", "learning_rate", "weight_decay"}}
        assert set(row["hyperparameters"]) == {"kind", "blocks"} | own[row["hyperparameters"]["kind"]]
    assert comparison["winner"] in BACKBONES
    assert comparison["reason"]
    assert sum(comparison["split_sizes"].values()) == 240
    assert sorted(comparison["breeds"]) == sorted(path.name for path in demo.photos.iterdir())


def test_gate_json_describes_the_pushed_candidate(demo):
    gate = json.loads((demo.artifact("ModelGate", "decision") / "gate.json").read_text())
    assert gate["blessed"]
    assert gate["champion"] is None
    comparison = json.loads((demo.artifact("BackboneSelector", "comparison") / "comparison.json").read_text())
    assert gate["candidate"]["test_photos"] == comparison["split_sizes"]["test"]
    assert any("min_accuracy" in reason for reason in gate["reasons"])


def test_trainer_uses_the_hyperparameters_of_the_tuner(demo):
    for backbone in BACKBONES:
        best = demo.artifact(f"Tuner-{backbone}", "best_hyperparameters") / "best_hyperparameters.txt"
        tuned = json.loads(best.read_text())["values"]
        record = demo.artifact(f"Trainer-{backbone}", "model") / "Format-Serving/assets.extra/catbreeds.json"
        used = json.loads(record.read_text())["hyperparameters"]
        assert used == {name: tuned[name] for name in used}


def test_serving_equals_training(winner, demo, tf):
    backbone, _, model = winner
    assert_serving_equals_training(demo, backbone, model.signatures["serving_default"], tf)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_served_model_of_each_backbone_predicts_the_same_as_backbone_and_head(demo, backbone, tf):
    from components.candidates.served_model import ServedModel

    paths = [demo.artifact(f"{node}-{backbone}", "model") / "Format-Serving" for node in ("Backbone", "Trainer")]
    model = ServedModel([str(paths[0])], str(paths[1]), top_k=5)
    assert_serving_equals_training(demo, backbone, model.endpoints["serving_default"], tf)


def assert_serving_equals_training(demo, backbone, serve, tf):
    """Check that `serve` predicts the same for photos as the head for the embeddings of EmbeddingGen."""
    embedded, images = embeddings(demo, backbone, tf), photos(demo, tf)
    keys = sorted(images)[:8]
    head = tf.saved_model.load(str(demo.artifact(f"Trainer-{backbone}", "model") / "Format-Serving"))
    names = list(embedded[keys[0]])
    assert len(names) == 3
    inputs = {name: tf.constant([embedded[key][name] for key in keys]) for name in names}
    by_embedding = head.signatures["classify_embedding"](**inputs)
    served = serve(image_bytes=tf.constant([images[key] for key in keys]))
    assert served["breeds"].numpy().tolist() == by_embedding["breeds"].numpy().tolist()
    np.testing.assert_allclose(served["probabilities"], by_embedding["probabilities"], atol=1e-4)


def test_pushed_model_stores_each_variable_once(winner):
    _, path, _ = winner
    record = json.loads((path / "assets.extra/catbreeds.json").read_text())
    written = sum(file.stat().st_size for file in (path / "variables").iterdir())
    assert 4 * record["parameters"] <= written < 4.2 * record["parameters"]


def test_pushed_model_uses_only_core_operations(winner, tf):
    _, path, _ = winner
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    graph = SavedModel.FromString((path / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    functions = {function.signature.name for function in graph.library.function}
    operations = {node.op for node in nodes} - functions
    unknown = {op for op in operations if not hasattr(tf.raw_ops, op)}
    assert unknown <= {"NoOp"}
    assert not operations & {"DecodeWebP", "DecodeJxl", "PyFunc", "EagerPyFunc"}


def test_pushed_model_predicts_the_breeds_for_photos_of_any_size(demo, unseen_photo, tf):
    model = tf.saved_model.load(str(demo.workdir / "serving" / "catbreeds" / "1"))
    tiny = tf.io.encode_png(tf.zeros([40, 300, 3], tf.uint8))
    outputs = model.signatures["serving_default"](image_bytes=tf.stack([tf.constant(unseen_photo.read_bytes()), tiny]))
    names = [name.decode() for name in outputs["breeds"].numpy()[0]]
    assert sorted(names) == sorted(path.name for path in demo.photos.iterdir())
    np.testing.assert_allclose(outputs["probabilities"].numpy().sum(axis=1), 1, atol=1e-5)
    top = model.signatures["top_k"](image_bytes=tf.constant([unseen_photo.read_bytes()]))
    best = int(outputs["probabilities"].numpy()[0].argmax())
    assert top["breeds"].numpy()[0, 0].decode() == names[best]
    assert top["probabilities"].shape == (1, 5)


def test_pushed_model_equals_the_winner_and_has_warmup_requests(demo, tf):
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    winner = demo.artifact("BackboneSelector", "winner") / "Format-Serving"
    pushed = demo.workdir / "serving" / "catbreeds" / "1"
    for path in filter(lambda path: path.is_file(), winner.rglob("*")):
        assert (pushed / path.relative_to(winner)).read_bytes() == path.read_bytes()
    warmup = tf.data.TFRecordDataset(str(pushed / "assets.extra/tf_serving_warmup_requests"))
    requests = [PredictionLog.FromString(r).predict_log.request for r in warmup.as_numpy_iterator()]
    assert {request.model_spec.signature_name for request in requests} == {"serving_default", "top_k", "explain"}


def test_pushed_model_explains_its_predictions(winner, unseen_photo, tf):
    _, path, model = winner
    explain = json.loads((path / "assets.extra/catbreeds.json").read_text())["explain"]
    noise = tf.io.encode_png(tf.cast(tf.random.stateless_uniform([90, 90, 3], [0, 0], 0, 256, tf.int32), tf.uint8))
    photos = tf.stack([tf.constant(unseen_photo.read_bytes()), noise])
    expected = model.signatures["serving_default"](image_bytes=photos)["probabilities"].numpy()
    outputs = {name: value.numpy() for name, value in model.signatures["explain"](image_bytes=photos).items()}
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-6)
    thresholds = np.minimum(explain["set_threshold"], expected.max(axis=1, keepdims=True))
    np.testing.assert_array_equal(outputs["in_set"], outputs["probabilities"] >= thresholds)
    np.testing.assert_array_equal(outputs["unfamiliar"], outputs["unfamiliarity"] > explain["unfamiliar_threshold"])
    assert outputs["embedding"].shape[0] == 2


def test_coverage_and_size_of_prediction_sets_are_measured_on_test_and_shown(demo):
    outcomes = demo.artifact("Evaluator-gate", "evaluation") / "outcomes.jsonl"
    rows = [json.loads(line) for line in outcomes.read_text().splitlines()]
    explain = json.loads((demo.workdir / "report" / "gate.json").read_text())["candidate"]["explain"]
    assert explain["sets"]["covered"] == sum(row["in_set"] for row in rows)
    assert explain["sets"]["mean_size"] == pytest.approx(np.mean([row["set_size"] for row in rows]))
    assert explain["flagged"]["unfamiliar"] == sum(row["unfamiliar"] for row in rows)
    sentence = f"contained the right breed for {explain['sets']['covered']} of {len(rows)} test photos"
    for page in ("report/index.html", "serving/catbreeds/1/model_card.html"):
        assert sentence in (demo.workdir / page).read_text()


def test_metrics_agree_with_the_outcomes_of_single_photos(demo):
    folder = demo.artifact("Evaluator-gate", "evaluation")
    metrics = json.loads((folder / "metrics.json").read_text())
    outcomes = [json.loads(line) for line in (folder / "outcomes.jsonl").read_text().splitlines()]
    assert metrics["overall"]["accuracy"] == pytest.approx(np.mean([row["correct"] for row in outcomes]), abs=1e-5)
    loss = -np.mean([np.log(row["probability"]) for row in outcomes])
    assert metrics["overall"]["loss"] == pytest.approx(loss, rel=1e-2)
    confusion = np.array(metrics["confusion"]["rows"])
    assert confusion.sum() == len(outcomes)
    assert np.trace(confusion) == sum(row["correct"] for row in outcomes)
    assert sum(row["photos"] for row in metrics["breeds"].values()) == len(outcomes)


def test_report_shows_the_verdict_and_needs_no_network(demo):
    page = (demo.workdir / "report" / "index.html").read_text()
    for text in (*BACKBONES, "Passed: pushed as version 1.", "random weights"):
        assert text in page
    assert "http://" not in page
    assert "https://" not in page


def test_predict_uses_the_stable_version(demo, unseen_photo, tmp_path):
    response = json.loads(catbreeds("predict", unseen_photo, "--workdir", demo.workdir, "--json").stdout)
    assert response["photos"][0]["model"] == {"name": "catbreeds", "version": 1}
    probabilities = [row["probability"] for row in response["photos"][0]["predictions"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-4)
    assert response["photos"][0]["predictions"][0]["breed"] in response["photos"][0]["prediction_set"]
    assert response["photos"][0]["unfamiliar"] in (True, False)
    broken = tmp_path / "broken.jpg"
    broken.write_text("no photo")
    failed = catbreeds("predict", broken, "--workdir", demo.workdir)
    assert failed.returncode == 2
    assert str(broken) in failed.stderr


def test_second_run_finds_nothing_new_and_third_run_uses_the_cache(demo):
    second = run_pipeline(demo.photos, demo.workdir)
    assert second.process.returncode == 0
    assert "Nothing new" in second.process.stdout
    # These components read the champion, which did not exist in the first run.
    assert second.ran == {"DataGate", "ChampionModel", "Evaluator-champion", "ModelGate", "ServingCheck", "Pusher"}
    assert json.loads((demo.workdir / "report" / "gate.json").read_text())["pushed_version"] is None
    third = run_pipeline(demo.photos, demo.workdir)
    assert third.ran == {"Pusher"}
    assert [path.name for path in (demo.workdir / "serving" / "catbreeds").iterdir() if path.name.isdigit()] == ["1"]


def test_only_the_winner_has_a_served_model(demo):
    heads = [demo.artifact(f"Trainer-{backbone}", "model") / "Format-Serving" for backbone in BACKBONES]
    for head in heads:
        assert sum(file.stat().st_size for file in head.rglob("*") if file.is_file()) < 5e6
