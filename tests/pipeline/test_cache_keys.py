"""Cache keys: which components have different parameters after a change of a setting, a file or a module."""

import shutil

import pytest

from components import digests
from pipeline.graph import create_pipeline
from pipeline.run_context import local_run_context
from pipeline.runners.local import metadata_config
from pipeline.settings import load
from tests.model_files import write_model

BRANCHES = ("resnet50", "xception")
# Its parameters differ in every run.
NEVER_CACHED = {"Pusher"}


def in_each_branch(*nodes):
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
    """Function that returns the parameters of each component for the given settings."""

    def parameters_with(*settings):
        fixed = (f"backbones=[{','.join(BRANCHES)}]", "weights=imagenet", f"weights_dir={weights}")
        options = {"data": str(photos), "workdir": str(tmp_path / "work")}
        config = load("demo", (*fixed, *settings), options=options)
        pipeline = create_pipeline(config, local_run_context(config, "run"), metadata_config(config.workdir))
        return {node.id: dict(node.exec_properties) for node in pipeline.components}

    return parameters_with


def changed(before, after):
    assert before.keys() == after.keys()
    return {node for node in before if before[node] != after[node]} - NEVER_CACHED


@pytest.mark.parametrize(
    ("setting", "nodes"),
    [
        ("trainer.epochs=7", in_each_branch("Trainer")),
        ("trainer.batch_size=8", in_each_branch("Trainer", "Tuner")),
        ("tuner.max_epochs=5", in_each_branch("Tuner")),
        ("image_size=96", in_each_branch("Backbone")),
        ("image_size={resnet50: 71, xception: 96}", {"Backbone-xception"}),
        ("precision=bfloat16", in_each_branch("Backbone")),
        ("seed=3", in_each_branch("Backbone", "Tuner", "Trainer")),
        ("split.seed=5", {"ImageExampleGen"}),
        ("top_k=2", {"BackboneSelector"}),
        ("selection.price=1", {"BackboneSelector"}),
        ("gate.min_accuracy=0.9", {"ModelGate"}),
        ("workers=1", set()),
        ("model_card.contact=me", set()),
    ],
)
def test_a_setting_changes_the_parameters_of_the_components_that_use_it(parameters, setting, nodes):
    assert changed(parameters(), parameters(setting)) == nodes


def test_new_photos_change_the_parameters_of_the_ingestion(parameters, photos):
    before = parameters()
    photo = next(photos.rglob("*.jpg"))
    shutil.copy(photo, photo.with_name("another.jpg"))
    assert changed(before, parameters()) == {"ImageExampleGen"}


def test_a_new_weights_file_changes_the_parameters_of_its_backbone(parameters, weights):
    before = parameters()
    (weights / "xception_notop.weights.h5").write_bytes(b"new weights")
    assert changed(before, parameters()) == {"Backbone-xception"}


def test_a_change_of_a_backbone_from_a_file_changes_only_its_parameters(parameters, tmp_path):
    entry = f"name: my_net, model: {write_model(tmp_path / 'net.keras')}"
    before = parameters(f"backbones=[resnet50, {{{entry}}}]")
    assert before["Backbone-my-net"]["weights_digest"] == digests.file_digest(tmp_path / "net.keras")
    for change in ("layers: [top]", "image_size: 64", "licence: MIT"):
        assert changed(before, parameters(f"backbones=[resnet50, {{{entry}, {change}}}]")) == {"Backbone-my-net"}
    write_model(tmp_path / "net.keras", scale=1 / 127)
    assert changed(before, parameters(f"backbones=[resnet50, {{{entry}}}]")) == {"Backbone-my-net"}


@pytest.mark.parametrize(
    ("module", "nodes"),
    [
        ("components.release.model_gate", {"ModelGate"}),
        ("components.candidates.evaluator", {*in_each_branch("Evaluator"), "Evaluator-gate", "Evaluator-champion"}),
        ("components.candidates.backbone", in_each_branch("Backbone", "Trainer")),
        ("components.candidates.embedding_join", in_each_branch("Trainer")),
        ("components.candidates.served_model", {"BackboneSelector", *in_each_branch("Trainer")}),
        ("pipeline.modules.tuning", in_each_branch("Tuner")),
        ("components.candidates.tuner", in_each_branch("Tuner")),
        ("pipeline.modules.event_files", in_each_branch("Tuner", "Trainer")),
        ("pipeline.modules.head", in_each_branch("Tuner", "Trainer")),
        ("serving.photo_normalization", {"ImageExampleGen", "ServingCheck"}),
    ],
)
def test_an_edited_module_changes_the_parameters_of_the_components_that_run_it(
    parameters, monkeypatch, tmp_path, module, nodes
):
    before = parameters()
    source = digests._source_path
    edited = tmp_path / "edited.py"
    edited.write_text(source(module).read_text(encoding="utf-8") + "\n# another version\n", encoding="utf-8")
    monkeypatch.setattr(digests, "_source_path", lambda name: edited if name == module else source(name))
    assert changed(before, parameters()) == nodes
