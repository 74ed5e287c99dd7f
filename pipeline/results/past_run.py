"""What a run left, for those who look closer than its report: notebooks above all."""

from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.evaluation_result import EvaluationResult, read_evaluation_result
from components.file_names import COMPARISON_FILE, PHOTOS_FILE, TRAINING_FILE, TUNER_RESULTS_FILE
from components.json_files import read_json, read_json_lines
from components.photo_examples import read_images
from pipeline.results.run_history import Execution, RunHistory
from serving.names import printable

if TYPE_CHECKING:
    from pipeline.modules.head import Records


class PastRun:
    """A run of a workdir; what its components wrote is read when it is asked for.

    Args:
        workdir: of `catbreeds run`.
        reached: a component; the newest run that finished it is taken.

    Raises:
        HistoryError: there is no such run.
    """

    def __init__(self, workdir: str | Path, reached: str):
        self._history = RunHistory(workdir)
        self.id = self._history.last_run(reached)

    def execution(self, node: str) -> Execution:
        """What became of a component.

        Raises:
            HistoryError: the run did not get as far.
        """
        return self._history.execution(self.id, node)

    def uri(self, node: str, key: str) -> str:
        """Where a component's output is; raises as `execution`."""
        return self.execution(node).outputs[key][0].uri

    @cached_property
    def photos(self) -> list[dict[str, Any]]:
        """A row for each file found, by path.

        Those kept have path, breed, split, content_hash, width and height; those left out path, breed, kind and reason,
        and `like` where it is another photo.
        """
        return sorted(read_json_lines(self.uri("ImageExampleGen", "report"), PHOTOS_FILE), key=lambda r: r["path"])

    @property
    def data(self) -> str:
        """Folder or archive that the photos came from."""
        return self.execution("ImageExampleGen").properties["data"]

    def images(self, split: str, wanted: Collection[str]) -> dict[str, bytes]:
        """Photos as the models get them; see `components.photo_examples`."""
        return read_images(self.uri("ImageExampleGen", "examples"), split, wanted)

    def files(self, paths: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """Files of the data as they are there, also those left out: path as in `photos`, and content.

        Raises:
            DataError: the data is not there any more.
            PhotoError: a file cannot be read.
        """
        from components.ingestion.photo_source import open_source

        source = open_source(self.data)
        real = {printable(path): path for path in source.files().files}
        wanted = {real.get(path, path): path for path in paths}
        return ((wanted[path], fetch()) for path, fetch in source.read(list(wanted)))

    @cached_property
    def comparison(self) -> dict[str, Any]:
        """comparison.json: the candidates, the winner and the reason."""
        return read_json(self.uri("BackboneSelector", "comparison"), COMPARISON_FILE)

    def trials(self, backbone: str) -> list[dict[str, Any]]:
        """A row for each trial of the search: its score, hyperparameters and epochs."""
        return read_json(self.uri(f"Tuner-{backbone}", "tuner_results"), TUNER_RESULTS_FILE)

    def training(self, backbone: str) -> dict[str, Any]:
        """training.json: epochs, history, latency and size of the candidate."""
        return read_json(self.uri(f"Trainer-{backbone}", "model_run"), TRAINING_FILE)

    def evaluation(self, backbone: str) -> EvaluationResult:
        """The candidate on eval."""
        return read_evaluation_result(self.uri(f"Evaluator-{backbone}", "evaluation"))

    def records(self, backbone: str, split: str) -> "Records":
        """What the head of a backbone learned from (train) or was judged by (eval): standardised embeddings."""
        import tensorflow_transform as tft

        from pipeline.modules.head import read_records

        node = f"Transform-{backbone}"
        pattern = f"{self.uri(node, 'transformed_examples')}/Split-{split}/*"
        return read_records([pattern], tft.TFTransformOutput(self.uri(node, "transform_graph")))
