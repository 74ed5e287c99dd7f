"""Request batching with the semantics of TensorFlow Serving's BatchingParameters."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent import futures

import numpy as np

from serving.model_server.monitoring import Metrics
from serving.model_server.status import Code, ServingError, as_serving_error, invalid
from serving.protos.model_server_options_pb2 import BatchingParameters

Step = Callable[..., Sequence[np.ndarray]]


class _Task:
    """A request in a batch: its inputs, its number of rows and the future of its outputs."""

    def __init__(self, inputs: Sequence[np.ndarray]):
        self.inputs = inputs
        self.size = len(inputs[0])
        self.outputs: futures.Future[list[np.ndarray]] = futures.Future()
        self.queued = time.perf_counter()


class _Batch:
    """Requests that run together, no later than `due` (seconds of the monotonic clock)."""

    def __init__(self, due: float):
        self.due = due
        self.tasks: list[_Task] = []

    @property
    def size(self) -> int:
        return sum(task.size for task in self.tasks)


class BatchScheduler:
    """Threads that run batches. All models share one scheduler; its threads run until the process ends.

    Args:
        parameters: Batching parameters; unset fields have TensorFlow Serving's defaults.
        metrics: Metrics that record batch sizes and queuing times.

    Raises:
        ValueError: If the parameters contradict each other or are not supported.
    """

    def __init__(self, parameters: BatchingParameters, metrics: Metrics):
        self._max_size = parameters.max_batch_size.value if parameters.HasField("max_batch_size") else 1000
        self._timeout = parameters.batch_timeout_micros.value / 1e6
        self._max_enqueued = (
            parameters.max_enqueued_batches.value if parameters.HasField("max_enqueued_batches") else 10
        )
        self._allowed_sizes = list(parameters.allowed_batch_sizes)
        self._metrics = metrics
        threads = parameters.num_batch_threads.value if parameters.HasField("num_batch_threads") else os.cpu_count()
        if min(self._max_size, self._max_enqueued, threads) < 1 or self._timeout < 0:
            raise ValueError("batching parameters must be positive")
        if parameters.pad_variable_length_inputs:
            raise ValueError("pad_variable_length_inputs is not supported")
        if self._allowed_sizes and (
            self._allowed_sizes != sorted(set(self._allowed_sizes)) or self._allowed_sizes[-1] != self._max_size
        ):
            raise ValueError("allowed_batch_sizes must increase, and the last must equal max_batch_size")
        self._changed = threading.Condition()
        self._queues: dict[Step, deque[_Batch]] = {}
        for number in range(threads):
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True).start()

    def run(self, step: Step, inputs: Sequence[np.ndarray], timeout: float | None = None) -> list[np.ndarray]:
        """Run `step` on `inputs`, possibly together with other requests, and return its outputs. Blocks.

        Args:
            step: Function that takes and returns arrays with the same first dimension. Requests with the same `step`
                can share a batch.
            inputs: Arrays with the same first dimension.
            timeout: Time limit in seconds.

        Raises:
            ServingError: If the request is larger than a batch, the queue is full, the time limit has passed, or the
                batch failed. A failed batch fails all requests in it.
        """
        if any(array.ndim == 0 for array in inputs):
            raise invalid("Batching session Run() input tensors must have at least one dimension")
        if len({len(array) for array in inputs}) > 1:
            raise invalid("Batching session Run() input tensors must have equal 0th-dimension size")
        task = _Task(inputs)
        if task.size > self._max_size:
            raise invalid(f"Task size {task.size} is larger than maximum input batch size {self._max_size}")
        with self._changed:
            batches = self._queues.setdefault(step, deque())
            if not batches or batches[-1].size + task.size > self._max_size:
                if len(batches) >= self._max_enqueued:
                    raise ServingError(
                        Code.UNAVAILABLE, "The batch scheduling queue to which this task was submitted is full"
                    )
                batches.append(_Batch(time.monotonic() + self._timeout))
            batches[-1].tasks.append(task)
            self._changed.notify()
        try:
            return task.outputs.result(timeout)
        except futures.TimeoutError:
            raise ServingError(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification") from None

    def _work(self) -> None:
        while True:
            with self._changed:
                while (batch := self._take()) is None:
                    due = min((batches[0].due for batches in self._queues.values()), default=None)
                    self._changed.wait(None if due is None else max(0.0, due - time.monotonic()))
            self._run(*batch)

    def _take(self) -> tuple[Step, _Batch] | None:
        """Remove and return the full or due batch that has waited longest."""
        now = time.monotonic()
        ready = [
            (batches[0].due, step)
            for step, batches in self._queues.items()
            if len(batches) > 1 or batches[0].size >= self._max_size or batches[0].due <= now
        ]
        if not ready:
            return None
        step = min(ready, key=lambda pair: pair[0])[1]
        batch = self._queues[step].popleft()
        if not self._queues[step]:
            del self._queues[step]
        return step, batch

    def _run(self, step: Step, batch: _Batch) -> None:
        now = time.perf_counter()
        for task in batch.tasks:
            self._metrics.queued(now - task.queued)
        try:
            outputs = self._outputs(step, batch)
        except Exception as error:
            failure = as_serving_error(error)
            for task in batch.tasks:
                task.outputs.set_exception(failure)
        else:
            for task, task_outputs in zip(batch.tasks, outputs, strict=True):
                task.outputs.set_result(task_outputs)

    def _outputs(self, step: Step, batch: _Batch) -> list[list[np.ndarray]]:
        size = next((allowed for allowed in self._allowed_sizes if allowed >= batch.size), batch.size)
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
        return [list(task_outputs) for task_outputs in zip(*split, strict=True)]

    def _merge(self, arrays: Sequence[np.ndarray], size: int) -> np.ndarray:
        """Concatenate `arrays` and pad the result to `size` rows by repeating the first row."""
        if len({array.shape[1:] for array in arrays}) > 1:
            raise invalid(
                "Tensors from different tasks have different shapes and padding is turned off. Set "
                "pad_variable_length_inputs to true, or ensure that all tensors with the same name have equal "
                "dimensions starting with the first dim."
            )
        merged = np.concatenate(arrays)
        return np.concatenate([merged, np.repeat(merged[:1], size - len(merged), axis=0)])
