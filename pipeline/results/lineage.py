"""Trace a pushed version through ML Metadata to its photos, weights, schema, hyperparameters and code."""

import json
from typing import Any

import yaml
from rich.text import Text
from rich.tree import Tree

from components.candidates.hyperparameters import describe_hyperparameters
from components.file_names import PHOTOS_FILE
from components.ingestion.splits import SPLITS
from components.json_files import read_json_lines
from pipeline.node_ids import branch_node_id
from pipeline.results.run_history import Execution, RunHistory
from serving.registry import Registry

# Properties shown in the tree for each component, from its parameters and its output artifacts.
_SHOWN_PROPERTIES = {
    "ImageExampleGen": ("data", "data_digest", "photos_train", "photos_eval", "photos_test", "photos_captured"),
    "ImportSchemaGen": ("schema_file",),
    "Backbone": ("weights", "weights_dir", "model_file", "weights_digest", "seed", "image_size", "precision"),
    "EmbeddingGen": ("photos",),
    "Tuner": ("objective", "max_epochs", "seed"),
    "Trainer": ("epochs", "batch_size", "seed"),
    "BackboneSelector": ("backbone", "price", "price_unit", "rule"),
    "Evaluator": ("split", "accuracy"),
    "ModelGate": ("policy", "min_accuracy"),
    "ChampionModel": ("version",),
}
# Number of characters shown of a digest.
_SHORT_DIGEST = 12
# Former names of component parameters in metadata from earlier versions of this project.
_RENAMED_PARAMETERS = {"code": "code_digest"}


class Lineage:
    """All executions upstream of a pushed version.

    Args:
        history: Run history of the workdir that the version was pushed from.
        registry: Registry that contains the version.
        version: Number of the version.

    Raises:
        RegistryError: If the version does not exist.
        HistoryError: If ML Metadata has no record of its run.
    """

    def __init__(self, history: RunHistory, registry: Registry, version: int):
        self.version, self._history, self._registry = version, history, registry
        self.admission = registry.admission(version)
        self.pusher = history.execution(self.admission["run_id"], "Pusher")

    def inputs(self, execution: Execution) -> list[Execution]:
        """Return the executions that produced the inputs of `execution`; for BackboneSelector, only the winner's."""
        artifacts = execution.inputs
        if execution.node == "BackboneSelector":
            channels = {"report", *_channels_of_winner(execution)}
            artifacts = {key: inputs for key, inputs in artifacts.items() if key in channels}
        # Models first, because their branch is the most relevant one.
        keys = sorted(artifacts, key=lambda key: (not key.startswith("model"), key))
        producers = [self._history.producer(artifact) for key in keys for artifact in artifacts[key]]
        return [*{producer.id: producer for producer in producers}.values()]

    def executions(self) -> list[Execution]:
        """Each upstream execution once, newest first."""
        visited, pending = {}, [self.pusher]
        while pending:
            execution = pending.pop()
            if execution.id not in visited:
                visited[execution.id] = execution
                pending += self.inputs(execution)
        return sorted(visited.values(), key=lambda execution: -execution.id)

    def photos(self) -> list[dict[str, Any]]:
        """Return the training photos of the model, sorted by path; see `pipeline.results.past_run.PastRun.photos`.

        Raises:
            FileNotFoundError: If the report of ImageExampleGen has been deleted.
        """
        (examples,) = (e for e in self.executions() if e.node == "ImageExampleGen")
        rows = read_json_lines(examples.outputs["report"][0].uri, PHOTOS_FILE)
        return sorted((row for row in rows if row.get("split") == "train"), key=lambda row: row["path"])

    def document(self) -> dict[str, Any]:
        """Return the lineage as a JSON document: inputs by name, then each execution with its inputs and outputs."""
        executions = self.executions()
        by_node = {execution.node: execution for execution in executions}
        record = self._registry.record(self.version)
        winner = _winner(by_node["BackboneSelector"])
        data, schema = by_node["ImageExampleGen"], by_node["ImportSchemaGen"]
        photos = data.outputs["examples"][0].properties
        return {
            "version": self.version,
            "run": self.pusher.run,
            "pushed_at": self.admission["pushed_at"],
            "commit": self.admission["commit"],
            "settings": _parse_settings(self.admission["settings"]),
            "data": {"data": data.properties["data"], "files_digest": data.properties["data_digest"]}
            | {"learned_digest": record["data_digest"]}
            | {split: photos[f"photos_{split}"] for split in SPLITS}
            | {
                "captured": photos.get("photos_captured", 0),
                "learned_captures": self.admission.get("captures", {}).get("learned", []),
            },
            "schema": parameters(schema),
            "weights": record["backbone"],
            "hyperparameters": record["hyperparameters"],
            "search": parameters(by_node[branch_node_id("Tuner", winner)]),
            "code": {e.node: digest for e in executions if (digest := parameters(e).get("code_digest"))},
            "executions": [
                {
                    "id": e.id,
                    "node": e.node,
                    "run": e.run,
                    "finished_at": e.finished_at,
                    "parameters": parameters(e),
                    "inputs": {key: [artifact.uri for artifact in artifacts] for key, artifacts in e.inputs.items()},
                    "outputs": {key: [artifact.uri for artifact in artifacts] for key, artifacts in e.outputs.items()},
                }
                for e in executions
            ],
        }

    def tree(self) -> Tree:
        """Return the lineage as a tree for the terminal. Each execution appears once; `document` has all edges."""
        labels = "".join(f" ({name})" for name, version in self._registry.labels().items() if version == self.version)
        record = self._registry.record(self.version)
        head = describe_hyperparameters(record["hyperparameters"])
        root = Tree(Text(f"version {self.version}{labels}, pushed {self.admission['pushed_at']}: {head}"))
        visited: set[int] = set()

        def add_execution(parent: Tree, execution: Execution) -> None:
            visited.add(execution.id)
            node = parent.add(_label(execution, self.pusher.run))
            for producer in self.inputs(execution):
                if producer.id not in visited:
                    add_execution(node, producer)

        add_execution(root, self.pusher)
        return root


def _winner(selector: Execution) -> str:
    return selector.outputs["winner"][0].properties["backbone"]


def _channels_of_winner(selector: Execution) -> set[str]:
    """Input channels of BackboneSelector that the winner depends on, see `number_channels`."""
    winner = _winner(selector)
    if "candidates" not in selector.properties:  # an earlier version named the channels by the backbone
        return {key for key in selector.inputs if key.endswith(f"_{winner}")}
    candidates = json.loads(selector.properties["candidates"])
    number, backbones = next(
        (number, candidate["backbones"]) for number, candidate in enumerate(candidates) if candidate["name"] == winner
    )
    own = {key for key in selector.inputs if key.endswith(f"_{number}")}
    return own | {f"backbone_{backbone}" for backbone in backbones}


def _parse_settings(text: str) -> dict[str, Any]:
    """Parse the settings in admission.json: a JSON object, or YAML if an earlier version of this project wrote it.

    `yaml.safe_load` alone does not suffice: it follows YAML 1.1, in which the JSON number 1e-05 is a string.
    """
    try:
        return json.loads(text)
    except ValueError:
        return yaml.safe_load(text)


def _label(execution: Execution, run: str) -> Text:
    properties = {name: value for name, value in parameters(execution).items() if value != ""}
    for artifacts in execution.outputs.values():
        properties = artifacts[0].properties | properties
    names = (*_SHOWN_PROPERTIES.get(execution.node.partition("-")[0], ()), "code_digest")
    facts = [f"{name}={_format_value(properties[name])}" for name in names if name in properties]
    facts += [f"run={execution.run}"] if execution.run != run else []  # cached result of another run
    return Text(execution.node, style="bold").append("".join(f" {fact}" for fact in facts), style="not bold dim")


def _format_value(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    is_digest = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return text[:_SHORT_DIGEST] if is_digest else text


def parameters(execution: Execution) -> dict[str, Any]:
    """Execution properties, with the entries of `custom_config` and its sections merged in."""
    config = json.loads(execution.properties.get("custom_config") or "{}")
    sections = {
        name: value for section in config.values() if isinstance(section, dict) for name, value in section.items()
    }
    plain = {name: value for name, value in config.items() if not isinstance(value, dict)}
    properties = {name: value for name, value in execution.properties.items() if name != "custom_config"}
    return {_RENAMED_PARAMETERS.get(name, name): value for name, value in (properties | sections | plain).items()}
