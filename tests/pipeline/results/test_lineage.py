"""Lineage follows the winner's branch only, also through several backbones, and in metadata of earlier versions."""

import json
from types import SimpleNamespace

import pytest

from pipeline.results.lineage import Lineage
from pipeline.results.run_history import Artifact, Execution

CANDIDATES = [
    {"name": "lite2", "backbones": [0]},
    {"name": "resnet50", "backbones": [1]},
    {"name": "xception", "backbones": [2]},
    {"name": "ensemble", "backbones": [0, 2]},
]


class History:
    """Executions that BackboneSelector's inputs come from; each has one output, whose URI is the node."""

    def __init__(self):
        self._executions = {}

    def add(self, node: str, inputs: dict[str, str] | None = None, properties=None, output_properties=None) -> None:
        """Add an execution.

        Args:
            node: ID of the node.
            inputs: Node that produced the artifact of each input channel.
            properties: Properties of the execution.
            output_properties: Properties of its output, `winner`.
        """
        sources = {key: self._executions[source].outputs["winner"] for key, source in (inputs or {}).items()}
        number = len(self._executions)
        outputs = {"winner": [Artifact(number, "Model", node, output_properties or {})]}
        execution = Execution(number, node, "run", False, "", properties or {}, sources, outputs)
        self._executions[node] = execution

    def execution(self, run: str, node: str) -> Execution:
        return self._executions[node]

    def producer(self, artifact: Artifact) -> Execution:
        return self._executions[artifact.uri]


def upstream_of_selector(winner: str, names: list[str], properties: dict) -> list[str]:
    """Nodes upstream of a pushed version whose BackboneSelector has channels with these suffixes.

    Args:
        winner: Name of the winner.
        names: Suffix of the channels of each of CANDIDATES.
        properties: Parameters of BackboneSelector.
    """
    history, inputs = History(), {"report": "ImageExampleGen"}
    history.add("ImageExampleGen")
    for candidate, suffix in zip(CANDIDATES, names, strict=False):
        name = candidate["name"]
        for node, key in (("Backbone", "backbone"), ("Trainer", "model"), ("Trainer", "model_run")):
            if (node, name) != ("Backbone", "ensemble"):
                if f"{node}-{name}" not in inputs.values():
                    history.add(f"{node}-{name}")
                inputs[f"{key}_{suffix}"] = f"{node}-{name}"
    history.add("BackboneSelector", inputs, properties, {"backbone": winner})
    history.add("Pusher", {"model": "BackboneSelector"})
    registry = SimpleNamespace(admission=lambda version: {"run_id": "run"})
    return sorted(
        execution.node for execution in Lineage(history, registry, 1).executions() if execution.node != "Pusher"
    )


@pytest.mark.parametrize(
    ("winner", "nodes"),
    [
        ("resnet50", ["Backbone-resnet50", "BackboneSelector", "ImageExampleGen", "Trainer-resnet50"]),
        (
            "ensemble",
            ["Backbone-lite2", "Backbone-xception", "BackboneSelector", "ImageExampleGen", "Trainer-ensemble"],
        ),
    ],
)
def test_only_the_branches_that_the_winner_uses_are_upstream(winner, nodes):
    upstream = upstream_of_selector(winner, ["0", "1", "2", "3"], {"candidates": json.dumps(CANDIDATES)})
    assert upstream == nodes


def test_channels_named_by_the_backbone_are_read():
    """Metadata of earlier versions."""
    upstream = upstream_of_selector("resnet50", ["lite2", "resnet50", "xception"], {})
    assert {"Backbone-resnet50", "Trainer-resnet50"} <= set(upstream)
    assert not any("xception" in node or "lite2" in node for node in upstream)
