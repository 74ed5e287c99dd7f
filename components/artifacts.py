"""Artifact types of this project. Kubeflow requires type names that are import paths; facts are custom properties."""

from tfx.types.artifact import Artifact


class IngestReport(Artifact):
    """`photos.jsonl`: one line for each file, used or excluded; `report.json`: counts by breed and split."""

    TYPE_NAME = "components.IngestReport"


class DataVerdict(Artifact):
    """`verdict.json`: the result of DataGate and its warnings."""

    TYPE_NAME = "components.DataVerdict"


class Comparison(Artifact):
    """`comparison.json`: all candidates with their measurements, the winner and the reason."""

    TYPE_NAME = "components.Comparison"


class GateDecision(Artifact):
    """`gate.json`: whether the candidate passed the gate, and why; custom property `refused`: 1 if rejected, else 0."""

    TYPE_NAME = "components.GateDecision"


class ServingReport(Artifact):
    """`serving_check.json`: predictions of a model server that loaded the candidate."""

    TYPE_NAME = "components.ServingReport"


class RetrainDecision(Artifact):
    """`retrain.json`: whether no pushed version was trained from these inputs; custom property `retrain`: 1 or 0."""

    TYPE_NAME = "components.RetrainDecision"


class Metrics(Artifact):
    """Numeric custom properties, which the Kubeflow UI shows as rows and compares across runs."""

    TYPE_NAME = "system.Metrics"


class ClassificationMetrics(Artifact):
    """A confusion matrix in the custom property `confusionMatrix`, which the Kubeflow UI plots."""

    TYPE_NAME = "system.ClassificationMetrics"


class HTML(Artifact):
    """An HTML page that the Kubeflow UI shows. The URI is the path of a file."""

    TYPE_NAME = "system.HTML"


class Markdown(Artifact):
    """A Markdown page that the Kubeflow UI shows. The URI is the path of a file."""

    TYPE_NAME = "system.Markdown"


class PushRecord(Artifact):
    """`push.json`: the pushed version, or why no version was pushed."""

    TYPE_NAME = "components.PushRecord"


class RolloutRecord(Artifact):
    """`rollout.json`: the outcome of the rollout of the pushed version."""

    TYPE_NAME = "components.RolloutRecord"
