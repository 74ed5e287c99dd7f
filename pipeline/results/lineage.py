"""From a pushed version back to its photos, weights, schema, hyperparameters and code, through ML Metadata."""

import json
from typing import Any

import yaml
from rich.text import Text
from rich.tree import Tree

from components.file_names import PHOTOS_FILE
from components.json_files import read_json_lines
from pipeline.results.run_history import Execution, RunHistory
from serving.registry import Registry

# What a component tells of itself in the tree, from its parameters and from the properties of what it wrote.
_TOLD = {
    "ImageExampleGen": ("data", "data_digest", "photos_train", "photos_eval", "photos_test"),
    "ImportSchemaGen": ("schema_file",),
    "Backbone": ("weights", "weights_dir", "weights_digest", "seed", "image_size"),
    "EmbeddingGen": ("photos",),
    "Tuner": ("objective", "max_epochs", "seed"),
    "Trainer": ("epochs", "batch_size", "seed"),
    "BackboneSelector": ("backbone", "rule"),
    "Evaluator": ("split", "accuracy"),
    "ModelGate": ("policy", "min_accuracy"),
    "ChampionModel": ("version",),
}
_DIGEST = 12
# Parameters of components as earlier versions of this project called them.
_RENAMED = {"code": "code_digest"}  # letters of a digest, enough to tell two apart


class Lineage:
    """All executions that a version of a model rests on.

    Args:
        history: of the workdir it was pushed from.
        registry: that it was pushed to.
        version: its number.

    Raises:
        RegistryError: there is no such version.
        HistoryError: ML Metadata does not know its run.
    """

    def __init__(self, history: RunHistory, registry: Registry, version: int):
        self.version, self._history, self._registry = version, history, registry
        self.admission = registry.admission(version)
        self.pusher = history.execution(self.admission["run_id"], "Pusher")

    def inputs(self, execution: Execution) -> list[Execution]:
        """The executions that wrote what `execution` read; of a selection, only those of the winner."""
        artifacts = execution.inputs
        if execution.node == "BackboneSelector":
            winner = execution.outputs["winner"][0].properties["backbone"]
            artifacts = {
                key: found for key, found in artifacts.items() if key == "report" or key.endswith(f"_{winner}")
            }
        # Models first: their branch is what most people ask for.
        keys = sorted(artifacts, key=lambda key: (not key.startswith("model"), key))
        producers = [self._history.producer(artifact) for key in keys for artifact in artifacts[key]]
        return [*{producer.id: producer for producer in producers}.values()]

    def executions(self) -> list[Execution]:
        """Each once, the newest first."""
        found, todo = {}, [self.pusher]
        while todo:
            execution = todo.pop()
            if execution.id not in found:
                found[execution.id] = execution
                todo += self.inputs(execution)
        return sorted(found.values(), key=lambda execution: -execution.id)

    def photos(self) -> list[dict[str, Any]]:
        """The photos that the model learned from: path, breed, content_hash, width, height.

        Raises:
            FileNotFoundError: the report of the ingestion is gone.
        """
        (examples,) = (e for e in self.executions() if e.node == "ImageExampleGen")
        rows = read_json_lines(examples.outputs["report"][0].uri, PHOTOS_FILE)
        return sorted((row for row in rows if row.get("split") == "train"), key=lambda row: row["path"])

    def document(self) -> dict[str, Any]:
        """Everything as JSON: the origins by name, then each execution with its inputs and outputs."""
        executions = self.executions()
        by_node = {execution.node: execution for execution in executions}
        record = self._registry.record(self.version)
        backbone = record["backbone"]["architecture"]
        data, schema = by_node["ImageExampleGen"], by_node["ImportSchemaGen"]
        return {
            "version": self.version,
            "run": self.pusher.run,
            "pushed_at": self.admission["pushed_at"],
            "commit": self.admission["commit"],
            "settings": _parse_settings(self.admission["settings"]),
            "data": {"data": data.properties["data"], "files_digest": data.properties["data_digest"]}
            | {"learned_digest": record["data_digest"]}
            | {split: data.outputs["examples"][0].properties[f"photos_{split}"] for split in ("train", "eval", "test")},
            "schema": parameters(schema),
            "weights": record["backbone"],
            "hyperparameters": record["hyperparameters"],
            "search": parameters(by_node[f"Tuner-{backbone}"]),
            "code": {e.node: digest for e in executions if (digest := parameters(e).get("code_digest"))},
            "executions": [
                {
                    "id": e.id,
                    "node": e.node,
                    "run": e.run,
                    "finished_at": e.finished_at,
                    "parameters": parameters(e),
                    "inputs": {key: [a.uri for a in found] for key, found in e.inputs.items()},
                    "outputs": {key: [a.uri for a in found] for key, found in e.outputs.items()},
                }
                for e in executions
            ],
        }

    def tree(self) -> Tree:
        """For the terminal: each execution once, below one that read what it wrote; `document` has all edges."""
        labels = "".join(f" ({name})" for name, version in self._registry.labels().items() if version == self.version)
        record = self._registry.record(self.version)
        hyperparameters = " ".join(f"{name}={value:g}" for name, value in record["hyperparameters"].items())
        root = Tree(Text(f"version {self.version}{labels}, pushed {self.admission['pushed_at']}: {hyperparameters}"))
        told: set[int] = set()

        def grow(branch: Tree, execution: Execution) -> None:
            told.add(execution.id)
            twig = branch.add(_label(execution, self.pusher.run))
            for origin in self.inputs(execution):
                if origin.id not in told:
                    grow(twig, origin)

        grow(root, self.pusher)
        return root


def _parse_settings(text: str) -> dict[str, Any]:
    """Parse the settings in admission.json: a JSON object, or YAML if an earlier version of this project wrote it.

    `yaml.safe_load` alone does not suffice: it follows YAML 1.1, in which the JSON number 1e-05 is a string.
    """
    try:
        return json.loads(text)
    except ValueError:
        return yaml.safe_load(text)


def _label(execution: Execution, run: str) -> Text:
    known = {name: value for name, value in parameters(execution).items() if value != ""}
    for artifacts in execution.outputs.values():
        known = artifacts[0].properties | known
    names = (*_TOLD.get(execution.node.partition("-")[0], ()), "code_digest")
    facts = [f"{name}={_short(known[name])}" for name in names if name in known]
    facts += [f"run={execution.run}"] if execution.run != run else []  # found in the cache
    return Text(execution.node, style="bold").append("".join(f" {fact}" for fact in facts), style="not bold dim")


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    is_digest = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return text[:_DIGEST] if is_digest else text


def parameters(execution: Execution) -> dict[str, Any]:
    """Execution properties; those in `custom_config` and its sections stand among them."""
    config = json.loads(execution.properties.get("custom_config") or "{}")
    sections = {
        name: value for section in config.values() if isinstance(section, dict) for name, value in section.items()
    }
    plain = {name: value for name, value in config.items() if not isinstance(value, dict)}
    properties = {name: value for name, value in execution.properties.items() if name != "custom_config"}
    return {_RENAMED.get(name, name): value for name, value in (properties | sections | plain).items()}
