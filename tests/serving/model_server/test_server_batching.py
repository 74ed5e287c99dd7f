"""BatchScheduler cases that depend on timing in a server process."""

import threading
from concurrent import futures

import numpy as np
import pytest

from serving.model_server.batching import BatchScheduler
from serving.model_server.monitoring import Metrics
from serving.model_server.status import Code, ServingError
from serving.protos.model_server_options_pb2 import BatchingParameters


def scheduler(**parameters: object) -> BatchScheduler:
    message = BatchingParameters(allowed_batch_sizes=parameters.pop("allowed_batch_sizes", []))
    for name, value in parameters.items():
        getattr(message, name).value = value
    return BatchScheduler(message, Metrics())


def test_request_to_a_full_queue_is_unavailable():
    batches = scheduler(max_batch_size=1, num_batch_threads=1, max_enqueued_batches=1)
    started, proceed = threading.Event(), threading.Event()

    def step(values):
        started.set()
        proceed.wait()
        return [values]

    with futures.ThreadPoolExecutor(2) as clients:
        running = clients.submit(batches.run, step, [np.zeros(1)])
        started.wait()
        requests = [running, clients.submit(batches.run, step, [np.ones(1)])]
        while not batches._queues:
            pass
        with pytest.raises(ServingError, match="queue to which this task was submitted is full") as caught:
            batches.run(step, [np.ones(1)])
        proceed.set()
    assert caught.value.code == Code.UNAVAILABLE
    assert [request.result()[0].tolist() for request in requests] == [[0.0], [1.0]]


def test_batch_is_padded_to_an_allowed_size_and_padding_is_not_returned():
    sizes = []

    def step(values):
        sizes.append(len(values))
        return [2 * values]

    batches = scheduler(max_batch_size=8, allowed_batch_sizes=[4, 8])
    assert batches.run(step, [np.array([1, 2, 3])])[0].tolist() == [2, 4, 6]
    assert sizes == [4]


@pytest.mark.parametrize(
    ("output", "text"), [(np.zeros(3), "0th dimension does not equal the sum"), (np.float32(1), "has 0 dimensions")]
)
def test_output_without_a_row_per_input_row_is_a_failed_precondition(output, text):
    with pytest.raises(ServingError, match=text) as caught:
        scheduler().run(lambda values: [output], [np.zeros(2)])
    assert caught.value.code == Code.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ([np.zeros(())], "must have at least one dimension"),
        ([np.zeros(2), np.zeros(3)], "must have equal 0th-dimension size"),
    ],
)
def test_inputs_with_different_numbers_of_rows_are_invalid_arguments(inputs, text):
    with pytest.raises(ServingError, match=text) as caught:
        scheduler().run(lambda *values: values, inputs)
    assert caught.value.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "parameters",
    [{"max_batch_size": 0}, {"num_batch_threads": 0}, {"max_batch_size": 8, "allowed_batch_sizes": [4, 6]}],
)
def test_contradictory_parameters_are_rejected(parameters):
    with pytest.raises(ValueError, match=r"must"):
        scheduler(**parameters)
