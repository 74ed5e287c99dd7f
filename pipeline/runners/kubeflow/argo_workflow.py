"""What Argo Workflows records of a run: the Workflow that Kubeflow Pipelines makes of a compiled pipeline."""

import base64
import gzip
import json
import re
import zlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

# Phase of a node -> state of the task, as API v2beta1 names it. It leaves out the state of an omitted task.
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
    """The Workflow does not hold what became of its tasks; the message says why."""


@dataclass(frozen=True)
class Node:
    """A node of a Workflow: a task, or one of the pods that do its work.

    Attributes:
        name: as Argo displays it: TASK, TASK-driver, executor(0).
        task: the task that it belongs to; "root" is the pipeline, "" the Workflow.
        is_driver: whether it belongs to the driver of the task.
        state: PENDING, RUNNING, SUCCEEDED, SKIPPED, FAILED or OMITTED.
        message: why it failed; "" where Argo does not say.
        pod: name of its pod; "" for a node without one.
        start, end: when it started and ended; None while it has not.
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
    """A Workflow as the server last stored it.

    Attributes:
        namespace: of its pods.
        nodes: all of them, in order of their starts.
        message: why it failed as a whole; "" where Argo does not say.
    """

    namespace: str
    nodes: tuple[Node, ...]
    message: str = ""

    def tasks(self) -> dict[str, Node]:
        """Task -> its node."""
        return {node.task: node for node in self.nodes if node.name == node.task}

    def failures(self) -> list[Node]:
        """For each task that failed, itself or in its driver: the last pod that failed, or the task without a pod."""
        failed = [node for node in self.nodes if node.state == "FAILED"]
        tasks = {node.task: node for node in failed if node.name in (node.task, f"{node.task}{_DRIVER}")}
        pods = {node.task: node for node in failed if node.pod}
        found = {task: pods.get(task, node) for task, node in tasks.items()}
        # A pipeline fails because its tasks do.
        return [node for task, node in found.items() if node.pod or task != _ROOT]


def read_workflow(manifest: str) -> Workflow:
    """Reads a Workflow in JSON, also one with compressed nodes.

    Raises:
        WorkflowError: it is no Workflow, or its nodes are not in it.
    """
    try:
        document = json.loads(manifest)
        metadata, status = document["metadata"], document["status"]
        nodes = status.get("nodes") or {}
        if status.get("compressedNodes"):
            nodes = json.loads(gzip.decompress(base64.b64decode(status["compressedNodes"])))
        elif status.get("offloadNodeStatusVersion"):
            raise WorkflowError("Argo Workflows keeps the status of the nodes in a database of its own")
        found = [_node(metadata, node) for node in nodes.values()]
    except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zlib.error) as error:
        if isinstance(error, WorkflowError):
            raise
        raise WorkflowError(f"the server's Workflow cannot be read ({type(error).__name__}: {error})") from None
    if not found:
        why = status.get("message", "")
        raise WorkflowError(f"the server's Workflow has no status of its nodes{': ' + why if why else ''}")
    found.sort(key=lambda node: (node.start is None, node.start and node.start.timestamp(), node.name))
    return Workflow(metadata.get("namespace", ""), tuple(found), status.get("message", ""))


def _node(metadata: dict[str, Any], node: dict[str, Any]) -> Node:
    # WORKFLOW.root.TASK.executor(0), WORKFLOW.root.TASK-driver, WORKFLOW.root-driver; where Argo retries everything,
    # WORKFLOW(0).root(0).TASK(0).executor(0), WORKFLOW(0).root(0).TASK-driver(0).
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
        start=_time(node.get("startedAt")),
        end=_time(node.get("finishedAt")),
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
