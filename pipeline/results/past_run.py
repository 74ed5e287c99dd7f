"""Access to the artifacts of a past run, mainly for notebooks."""

from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.candidates.hyperparameters import read_trials
from components.evaluation_result import EvaluationResult, read_evaluation_result
from components.file_names import COMPARISON_FILE, OUT_OF_FOLD_FILE, PHOTOS_FILE, TRAINING_FILE
from components.json_files import read_json, read_json_lines
from components.photo_examples import read_images
from pipeline.node_ids import branch_node_id
from pipeline.results.run_history import Execution, RunHistory
from serving.names import printable

if TYPE_CHECKING:
    from pipeline.modules.head import Records


class PastRun:
    """A run in a workdir; artifacts are read on first access.

    Args:
        workdir: Workdir of `catbreeds run`.
        reached: Name of a component; the newest run that finished this component is used.

    Raises:
        HistoryError: If no run finished the component.
    """

    def __init__(self, workdir: str | Path, reached: str):
        self._history = RunHistory(workdir)
        self.id = self._history.last_run(reached)

    def execution(self, node: str) -> Execution:
        """Return the execution of a component in this run.

        Raises:
            HistoryError: If the run did not finish the component.
        """
        return self._history.execution(self.id, node)

    def uri(self, node: str, key: str) -> str:
        """URI of a component's output; raises the errors of `execution`."""
        return self.execution(node).outputs[key][0].uri

    @cached_property
    def photos(self) -> list[dict[str, Any]]:
        """One row for each file, sorted by path.

        Photos have path, breed, split, content_hash, near_duplicate_group, width and height. Excluded files have path,
        breed, kind and reason; duplicates also have `like`, the path of the other photo.
        """
        return sorted(read_json_lines(self.uri("ImageExampleGen", "report"), PHOTOS_FILE), key=lambda r: r["path"])

    @property
    def data(self) -> str:
        """Folder or archive with the photos."""
        return self.execution("ImageExampleGen").properties["data"]

    def images(self, split: str, content_hashes: Collection[str]) -> dict[str, bytes]:
        """Photos as fed to the models; see `components.photo_examples`."""
        return read_images(self.uri("ImageExampleGen", "examples"), split, content_hashes)

    def files(self, paths: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """Original files of the data, including excluded ones: pairs of path (as in `photos`) and content.

        Raises:
            DataError: If the data no longer exists.
            PhotoError: If a file cannot be read.
        """
        from components.ingestion.photo_source import open_source

        source = open_source(self.data)
        raw_paths = {printable(path): path for path in source.contents().files}
        printable_paths = {raw_paths.get(path, path): path for path in paths}
        return ((printable_paths[path], fetch()) for path, fetch in source.read(list(printable_paths)))

    @cached_property
    def comparison(self) -> dict[str, Any]:
        """Contents of comparison.json: the candidates, the winner and the reason."""
        return read_json(self.uri("BackboneSelector", "comparison"), COMPARISON_FILE)

    def trials(self, backbone: str) -> list[dict[str, Any]]:
        """One row for each trial of the search; see `components.candidates.hyperparameters.read_trials`."""
        return read_trials(self.uri(branch_node_id("Tuner", backbone), "tuner_results"))

    def training(self, backbone: str) -> dict[str, Any]:
        """Contents of training.json: seconds, epochs and history (None for a solved head) of the final training."""
        return read_json(self.uri(branch_node_id("Trainer", backbone), "model_run"), TRAINING_FILE)

    def out_of_fold(self, backbone: str) -> list[dict[str, Any]]:
        """One row for each photo of train and eval; see `pipeline.modules.cross_validation.out_of_fold_rows`."""
        return read_json_lines(self.uri(branch_node_id("Trainer", backbone), "model_run"), OUT_OF_FOLD_FILE)

    def evaluation(self, backbone: str) -> EvaluationResult:
        """Evaluation of the candidate on eval."""
        return read_evaluation_result(self.uri(branch_node_id("Evaluator", backbone), "evaluation"))

    def records(self, backbone: str, split: str) -> "Records":
        """Standardized embeddings with labels: input of the head in training (train) or evaluation (eval)."""
        import tensorflow_transform as tft

        from pipeline.modules.head import read_records

        inputs = self.execution(branch_node_id("Trainer", backbone)).inputs
        pattern = f"{inputs['examples'][0].uri}/Split-{split}/*"
        return read_records([pattern], tft.TFTransformOutput(inputs["transform_graph"][0].uri))
