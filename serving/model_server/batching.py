"""Concurrent requests of one signature run as one, by the rules of TensorFlow Serving's BatchingParameters."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent import futures

import numpy as np

from serving.model_server.messages import BatchingParameters
from serving.model_server.monitoring import Metrics
from serving.model_server.status import Code, ServingError, as_serving_error, invalid

Step = Callable[..., Sequence[np.ndarray]]


class _Task:
    """One request in a batch: its inputs, the number of its rows, and its future answer."""

    def __init__(self, inputs: Sequence[np.ndarray]):
        self.inputs = inputs
        self.size = len(inputs[0])
        self.answer: futures.Future[list[np.ndarray]] = futures.Future()
        self.queued = time.perf_counter()


class _Batch:
    """Requests that will be run together, at `due` (seconds of the monotonic clock) at the latest."""

    def __init__(self, due: float):
        self.due = due
        self.tasks: list[_Task] = []

    @property
    def size(self) -> int:
        return sum(task.size for task in self.tasks)


class BatchScheduler:
    """Threads that run batches. It is shared by all models and is never stopped: the process ends.

    Args:
        parameters: what is not set is as in TensorFlow Serving.
        metrics: gets the sizes of batches and the times in the queue.

    Raises:
        ValueError: the parameters contradict each other.
    """

    def __init__(self, parameters: BatchingParameters, metrics: Metrics):
        self._most = parameters.max_batch_size.value if parameters.HasField("max_batch_size") else 1000
        self._wait = parameters.batch_timeout_micros.value / 1e6
        self._most_waiting = (
            parameters.max_enqueued_batches.value if parameters.HasField("max_enqueued_batches") else 10
        )
        self._sizes = list(parameters.allowed_batch_sizes)
        self._metrics = metrics
        threads = parameters.num_batch_threads.value if parameters.HasField("num_batch_threads") else os.cpu_count()
        if min(self._most, self._most_waiting, threads) < 1 or self._wait < 0:
            raise ValueError("batching parameters must be positive")
        if parameters.pad_variable_length_inputs:
            raise ValueError("pad_variable_length_inputs is not supported")
        if self._sizes and (self._sizes != sorted(set(self._sizes)) or self._sizes[-1] != self._most):
            raise ValueError("allowed_batch_sizes must increase, and the last must equal max_batch_size")
        self._changed = threading.Condition()
        self._waiting: dict[Step, deque[_Batch]] = {}
        for number in range(threads):
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True).start()

    def run(self, step: Step, inputs: Sequence[np.ndarray], timeout: float | None = None) -> list[np.ndarray]:
        """What `step` answers to `inputs`, from a run that others may share. Blocks.

        Args:
            step: takes and returns arrays of the same first dimension; requests of one `step` share runs.
            inputs: of one first dimension.
            timeout: seconds.

        Raises:
            ServingError: the request does not fit into a batch, the queue is full, time is up, or the run failed:
                then it fails for everyone in it.
        """
        if any(array.ndim == 0 for array in inputs):
            raise invalid("Batching session Run() input tensors must have at least one dimension")
        if len({len(array) for array in inputs}) > 1:
            raise invalid("Batching session Run() input tensors must have equal 0th-dimension size")
        task = _Task(inputs)
        if task.size > self._most:
            raise invalid(f"Task size {task.size} is larger than maximum input batch size {self._most}")
        with self._changed:
            batches = self._waiting.setdefault(step, deque())
            if not batches or batches[-1].size + task.size > self._most:
                if len(batches) >= self._most_waiting:
                    raise ServingError(
                        Code.UNAVAILABLE, "The batch scheduling queue to which this task was submitted is full"
                    )
                batches.append(_Batch(time.monotonic() + self._wait))
            batches[-1].tasks.append(task)
            self._changed.notify()
        try:
            return task.answer.result(timeout)
        except futures.TimeoutError:
            raise ServingError(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification") from None

    def _work(self) -> None:
        while True:
            with self._changed:
                while (found := self._take()) is None:
                    due = min((batches[0].due for batches in self._waiting.values()), default=None)
                    self._changed.wait(None if due is None else max(0.0, due - time.monotonic()))
            self._run(*found)

    def _take(self) -> tuple[Step, _Batch] | None:
        """The batch that waits longest of those that are full or due."""
        now = time.monotonic()
        ready = [
            (batches[0].due, step)
            for step, batches in self._waiting.items()
            if len(batches) > 1 or batches[0].size >= self._most or batches[0].due <= now
        ]
        if not ready:
            return None
        step = min(ready, key=lambda pair: pair[0])[1]
        batch = self._waiting[step].popleft()
        if not self._waiting[step]:
            del self._waiting[step]
        return step, batch

    def _run(self, step: Step, batch: _Batch) -> None:
        now = time.perf_counter()
        for task in batch.tasks:
            self._metrics.queued(now - task.queued)
        try:
            answers = self._answers(step, batch)
        except Exception as error:
            failure = as_serving_error(error)
            for task in batch.tasks:
                task.answer.set_exception(failure)
        else:
            for task, answer in zip(batch.tasks, answers, strict=True):
                task.answer.set_result(answer)

    def _answers(self, step: Step, batch: _Batch) -> list[list[np.ndarray]]:
        size = next((allowed for allowed in self._sizes if allowed >= batch.size), batch.size)
        self._metrics.batched(size, padding=size - batch.size)
        outputs = step(
            *(self._merge(arrays, size) for arrays in zip(*(task.inputs for task in batch.tasks), strict=True))
        )
        for output in outputs:
            if output.ndim == 0:
                raise ServingError(Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
            if len(output) != size:
                raise ServingError(
                    Code.FAILED_PRECONDITION,
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
                    "input tensors",
                )
        ends = np.cumsum([task.size for task in batch.tasks])
        split = [np.split(output, ends)[:-1] for output in outputs]
        return [list(answer) for answer in zip(*split, strict=True)]

    def _merge(self, arrays: Sequence[np.ndarray], size: int) -> np.ndarray:
        """One array of `size` rows; if there are fewer, the first is repeated."""
        if len({array.shape[1:] for array in arrays}) > 1:
            raise invalid(
                "Tensors from different tasks have different shapes and padding is turned off. Set "
                "pad_variable_length_inputs to true, or ensure that all tensors with the same name have equal "
                "dimensions starting with the first dim."
            )
        merged = np.concatenate(arrays)
        return np.concatenate([merged, np.repeat(merged[:1], size - len(merged), axis=0)])
