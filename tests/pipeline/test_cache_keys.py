"""What TFX's cache compares: which components get other parameters when a setting, a file or a module changes."""

import shutil

import pytest

from components import digests
from pipeline.graph import create_pipeline
from pipeline.run_context import local_run_context
from pipeline.runners.local import metadata_config
from pipeline.settings import load

BRANCHES = ("resnet50", "xception")
# They differ in every run, or hold all settings.
EVERY_RUN = {"Pusher"}


def of_each(*nodes):
    return {f"{node}-{branch}" for node in nodes for branch in BRANCHES}


@pytest.fixture
def photos(generate_photos):
    return generate_photos(breeds=2, photos=2)


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    for branch in BRANCHES:
        (folder / f"{branch}_notop.weights.h5").write_bytes(b"weights")
    return folder


@pytest.fixture
def parameters(photos, weights, tmp_path):
    """Parameters of each component."""

    def compiled(*settings):
        fixed = (f"backbones=[{','.join(BRANCHES)}]", "weights=imagenet", f"weights_dir={weights}")
        options = {"data": str(photos), "workdir": str(tmp_path / "work")}
        config = load("demo", (*fixed, *settings), options=options)
        pipeline = create_pipeline(config, local_run_context(config, "run"), metadata_config(config.workdir))
        return {node.id: dict(node.exec_properties) for node in pipeline.components}

    return compiled


def changed(before, after):
    assert before.keys() == after.keys()
    return {node for node in before if before[node] != after[node]} - EVERY_RUN


@pytest.mark.parametrize(
    ("setting", "nodes"),
    [
        ("trainer.epochs=7", of_each("Trainer")),
        ("trainer.batch_size=8", of_each("Trainer", "Tuner")),
        ("tuner.max_epochs=5", of_each("Tuner")),
        ("image_size=96", of_each("Backbone")),
        ("seed=3", of_each("Backbone", "Tuner", "Trainer")),
        ("split.seed=5", {"ImageExampleGen"}),
        ("top_k=2", {"BackboneSelector"}),
        ("selection.rule=most_accurate", {"BackboneSelector"}),
        ("gate.min_accuracy=0.9", {"ModelGate"}),
        ("workers=1", set()),
        ("card.contact=me", set()),
    ],
)
def test_a_setting_is_a_parameter_of_the_components_that_it_concerns(parameters, setting, nodes):
    assert changed(parameters(), parameters(setting)) == nodes


def test_other_photos_are_another_parameter_of_the_ingestion(parameters, photos):
    before = parameters()
    photo = next(photos.rglob("*.jpg"))
    shutil.copy(photo, photo.with_name("another.jpg"))
    assert changed(before, parameters()) == {"ImageExampleGen"}


def test_other_weights_in_the_file_are_another_parameter_of_that_backbone(parameters, weights):
    before = parameters()
    (weights / "xception_notop.weights.h5").write_bytes(b"others")
    assert changed(before, parameters()) == {"Backbone-xception"}


@pytest.mark.parametrize(
    ("module", "nodes"),
    [
        ("components.release.model_gate", {"ModelGate"}),
        ("components.candidates.evaluator", {*of_each("Evaluator"), "Evaluator-gate", "Evaluator-champion"}),
        ("components.candidates.served_model", {"BackboneSelector", *of_each("Trainer")}),
        ("pipeline.modules.tuning", of_each("Tuner")),
        ("pipeline.modules.head", of_each("Tuner", "Trainer")),
        ("serving.photo", {"ImageExampleGen", "DataGate", "BackboneSelector", "ServingCheck"}),
    ],
)
def test_another_source_of_a_module_is_another_parameter_of_the_components_that_run_it(
    parameters, monkeypatch, tmp_path, module, nodes
):
    before = parameters()
    source = digests._source
    edited = tmp_path / "edited.py"
    edited.write_text(source(module).read_text(encoding="utf-8") + "\n# another version\n", encoding="utf-8")
    monkeypatch.setattr(digests, "_source", lambda name: edited if name == module else source(name))
    assert changed(before, parameters()) == nodes
