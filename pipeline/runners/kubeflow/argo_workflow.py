"""Status of a run, read from the Argo Workflow that Kubeflow Pipelines creates for it."""

import base64
import gzip
import json
import re
import zlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

# Argo's phase of a node -> state of the task in API v2beta1, which has no state for an omitted task.
_STATES = {
    "Pending": "PENDING",
    "Running": "RUNNING",
    "Succeeded": "SUCCEEDED",
    "Skipped": "SKIPPED",
    "Failed": "FAILED",
    "Error": "FAILED",
    "Omitted": "OMITTED",
}
_ROOT, _DRIVER = "root", "-driver"


class WorkflowError(ValueError):
    """The Workflow does not contain the states of its tasks; the message gives the reason."""


@dataclass(frozen=True)
class Node:
    """A node of a Workflow: a task or one of its pods.

    Attributes:
        name: Display name in Argo: TASK, TASK-driver, executor(0).
        task: Name of the task; "root" for the pipeline, "" for the Workflow.
        is_driver: Whether the node belongs to the driver of the task.
        state: PENDING, RUNNING, SUCCEEDED, SKIPPED, FAILED or OMITTED.
        message: Reason of the failure, or "".
        pod: Name of the pod, or "" for a node without a pod.
        start, end: Times of start and end, or None.
    """

    name: str
    task: str
    is_driver: bool
    state: str
    message: str
    pod: str
    start: datetime | None
    end: datetime | None


@dataclass(frozen=True)
class Workflow:
    """Last status of a Workflow that the server stored.

    Attributes:
        namespace: Namespace of the pods.
        nodes: All nodes, in order of their start times.
        message: Reason of the failure of the whole Workflow, or "".
    """

    namespace: str
    nodes: tuple[Node, ...]
    message: str = ""

    def tasks(self) -> dict[str, Node]:
        """Map each task to its node."""
        return {node.task: node for node in self.nodes if node.name == node.task}

    def failures(self) -> list[Node]:
        """Return the last failed pod of each failed task or driver, or its node if no pod failed."""
        failed = [node for node in self.nodes if node.state == "FAILED"]
        tasks = {node.task: node for node in failed if node.name in (node.task, f"{node.task}{_DRIVER}")}
        pods = {node.task: node for node in failed if node.pod}
        causes = {task: pods.get(task, node) for task, node in tasks.items()}
        # The pipeline itself fails only because one of its tasks does.
        return [node for task, node in causes.items() if node.pod or task != _ROOT]


def read_workflow(manifest: str) -> Workflow:
    """Parse a Workflow in JSON, whose nodes may be compressed.

    Raises:
        WorkflowError: If it is not a Workflow or does not contain its nodes.
    """
    try:
        document = json.loads(manifest)
        metadata, status = document["metadata"], document["status"]
        nodes = status.get("nodes") or {}
        if status.get("compressedNodes"):
            nodes = json.loads(gzip.decompress(base64.b64decode(status["compressedNodes"])))
        elif status.get("offloadNodeStatusVersion"):
            raise WorkflowError("Argo Workflows stores the status of the nodes in a separate database")
        parsed = [_parse_node(metadata, node) for node in nodes.values()]
    except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zlib.error) as error:
        if isinstance(error, WorkflowError):
            raise
        raise WorkflowError(f"the server's Workflow cannot be read ({type(error).__name__}: {error})") from None
    if not parsed:
        message = status.get("message", "")
        raise WorkflowError(f"the server's Workflow has no node status{': ' + message if message else ''}")
    parsed.sort(key=lambda node: (node.start is None, node.start and node.start.timestamp(), node.name))
    return Workflow(metadata.get("namespace", ""), tuple(parsed), status.get("message", ""))


def _parse_node(metadata: dict[str, Any], node: dict[str, Any]) -> Node:
    # Names are WORKFLOW.root.TASK.executor(0), WORKFLOW.root.TASK-driver and WORKFLOW.root-driver. If Argo retries all
    # templates, they are WORKFLOW(0).root(0).TASK(0).executor(0) and WORKFLOW(0).root(0).TASK-driver(0).
    path = re.sub(r"\(\d+\)", "", node["name"]).split(".")[1:]
    name = path[1 if len(path) > 1 else 0] if path else ""
    identity = node["id"].rpartition("-")[2]
    return Node(
        name=node.get("displayName", ""),
        task=name.removesuffix(_DRIVER),
        is_driver=name.endswith(_DRIVER),
        state=_STATES.get(node.get("phase", ""), "PENDING"),
        message=node.get("message", ""),
        pod=f"{metadata['name']}-{node['templateName']}-{identity}" if node.get("type") == "Pod" else "",
        start=_parse_time(node.get("startedAt")),
        end=_parse_time(node.get("finishedAt")),
    )


def _parse_time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
