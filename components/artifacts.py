"""Artifact types of our own. Their type names are import paths, as Kubeflow needs; facts go in custom properties."""

from tfx.types.artifact import Artifact


class IngestReport(Artifact):
    """`photos.jsonl`: a line for each file found, kept or left out; `report.json`: counts by breed and split."""

    TYPE_NAME = "components.IngestReport"


class DataVerdict(Artifact):
    """`verdict.json`: what DataGate found in order, and its warnings."""

    TYPE_NAME = "components.DataVerdict"


class Comparison(Artifact):
    """`comparison.json`: every candidate with its measurements, the winner and the reason."""

    TYPE_NAME = "components.Comparison"


class GateDecision(Artifact):
    """`gate.json`: whether the candidate may serve, and why; custom property `refused`: 1 or 0, of nothing new 0."""

    TYPE_NAME = "components.GateDecision"


class ServingReport(Artifact):
    """`serving_check.json`: what a model server answered when it was called with the candidate."""

    TYPE_NAME = "components.ServingReport"


class RetrainDecision(Artifact):
    """`retrain.json`: whether anything is new since a version that was pushed; custom property `retrain`: 1 or 0."""

    TYPE_NAME = "components.RetrainDecision"


class Metrics(Artifact):
    """Numbers, each a custom property, that the Kubeflow UI shows as rows and compares across runs."""

    TYPE_NAME = "system.Metrics"


class ClassificationMetrics(Artifact):
    """A confusion matrix in the custom property `confusionMatrix`, which the Kubeflow UI draws."""

    TYPE_NAME = "system.ClassificationMetrics"


class HTML(Artifact):
    """A page that the Kubeflow UI shows. Its URI is a file."""

    TYPE_NAME = "system.HTML"


class Markdown(Artifact):
    """A text that the Kubeflow UI shows. Its URI is a file."""

    TYPE_NAME = "system.Markdown"


class PushRecord(Artifact):
    """`push.json`: the version that was pushed, or none and why."""

    TYPE_NAME = "components.PushRecord"


class RolloutRecord(Artifact):
    """`rollout.json`: what became of the version that was pushed."""

    TYPE_NAME = "components.RolloutRecord"
