"""Measure the cost of a prediction through the gateway, directly over gRPC, and through a backend that sends pixels.

    python benchmarks/prediction_cost.py

The benchmark compares three paths to the same embedded model server and model (MobileNet 0.25 at 224 px with random
weights):

    grpc: the client sends the JPEG to the gRPC port of the model server, with `serving.client.grpc`.
    gateway: the client sends the JPEG over HTTP to the gateway, which normalizes it and queries the model server.
    pixels: the client sends the JPEG over HTTP to a simple backend, which decodes it, resizes it to 224 x 224 and sends
        the pixels as floats to the model server. The request handler is `async` but blocks on the gRPC call, as in the
        project that this one replaces.

Each client sends its next request when it has received the response to the last one. `bytes` is the size of a request
to the model server. Clients, gateway or backend, and model server share the cores of this machine and communicate over
its loopback interface. The paths alternate; each figure is the median over the rounds. docs/serving.md shows the output
on 2 cores.
"""

import argparse
import asyncio
import contextlib
import io
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageChops

from pipeline.datasets.sample_data import BREEDS, draw_photo
from serving.client import ModelChoice
from serving.client.grpc import AsyncGrpcClient
from serving.local import stack
from serving.local.processes import Program, Supervisor
from serving.photo_normalization import normalize
from serving.rollout.serving_config import CONFIG_FILE, TRAFFIC_FILE, ServingConfig

IMAGE_SIZE = 224
# Like the photos of public data sets: at most half a megapixel, compressed for the web.
PHOTO_SIZE, PHOTO_QUALITY, PHOTO_GRAIN = (500, 375), 85, 8
CLIENTS = (1, 8, 32)
MODEL = ModelChoice("catbreeds", label="stable")
WARMUP_SECONDS = 1.0
TARGET_CLIENTS = 8
MULTIPART_BOUNDARY = "photo-boundary"

SendRequest = Callable[[], Awaitable[None]]


class LoadResult(NamedTuple):
    """Throughput in requests per second, and latencies in milliseconds."""

    rate: float
    p50: float
    p99: float


# ---- the model ----


def save_model(path: str) -> None:
    """Save one network with two signatures: `serving_default` takes the bytes of photos, `pixels` takes pixels."""
    import keras
    import tensorflow as tf

    from components.candidates.backbone import decode_photos

    keras.utils.set_random_seed(0)
    shape = (IMAGE_SIZE, IMAGE_SIZE, 3)
    network = keras.applications.MobileNet(shape, alpha=0.25, weights=None, classes=len(BREEDS))
    module = tf.Module()
    module.weights = [variable.value for variable in network.variables]
    names = [breed.name for breed in BREEDS]

    @tf.function(input_signature=[tf.TensorSpec([None, IMAGE_SIZE, IMAGE_SIZE, 3], tf.float32, "pixels")])
    def classify_pixels(pixels):
        probabilities = network(pixels, training=False)
        return {"probabilities": probabilities, "breeds": tf.broadcast_to(names, tf.shape(probabilities))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def classify_photos(image_bytes):
        return classify_pixels(decode_photos(image_bytes, IMAGE_SIZE))

    tf.saved_model.save(module, path, signatures={"serving_default": classify_photos, "pixels": classify_pixels})


def synthetic_photo() -> bytes:
    """Return a JPEG with as much detail as a real photo."""
    grain = Image.effect_noise(PHOTO_SIZE, PHOTO_GRAIN).convert("RGB")
    image = ImageChops.add(draw_photo(BREEDS[0], "serving").resize(PHOTO_SIZE), grain, offset=-128)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=PHOTO_QUALITY)
    return buffer.getvalue()


# ---- the backend that sends pixels ----


def pixels_request(content: bytes):
    """Return a Predict request with the pixels of a photo, float32 [1, 224, 224, 3]."""
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    image = Image.open(io.BytesIO(content)).convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE))
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.version_label = MODEL.name, MODEL.label
    request.model_spec.signature_name = "pixels"
    request.inputs["pixels"].CopyFrom(tf.make_tensor_proto(np.asarray(image, np.float32)[np.newaxis]))
    return request


def run_pixels_backend(port: int, grpc_port: int) -> None:
    """Serve POST /predict until the process is terminated."""
    import grpc
    import uvicorn
    from fastapi import FastAPI, UploadFile
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    app = FastAPI()
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(f"{stack.LOOPBACK}:{grpc_port}"))

    @app.get("/healthz")
    async def health() -> dict:
        return {}

    @app.post("/predict")
    async def predict(file: UploadFile) -> dict[str, float]:
        outputs = stub.Predict(pixels_request(await file.read()), timeout=10).outputs
        names = [name.decode() for name in outputs["breeds"].string_val]
        return dict(zip(names, outputs["probabilities"].float_val, strict=True))

    uvicorn.run(app, host=stack.LOOPBACK, port=port, log_level="warning")


# ---- clients ----


def free_port() -> int:
    """Return an unused port."""
    with socket.create_server((stack.LOOPBACK, 0)) as listener:
        return listener.getsockname()[1]


@contextlib.asynccontextmanager
async def grpc_client(port: int, content: bytes) -> AsyncIterator[SendRequest]:
    """Yield a function that sends `content` to the model server over gRPC."""
    async with AsyncGrpcClient(f"{stack.LOOPBACK}:{port}") as client:

        async def send_request() -> None:
            await client.predict_normalized([content], MODEL, timeout=60)

        yield send_request


@contextlib.asynccontextmanager
async def http_client(port: int, path: str, content: bytes) -> AsyncIterator[SendRequest]:
    """Yield a function that sends `content` as a form over one HTTP connection.

    It is a minimal HTTP client, so that it takes little CPU time from the measured servers.
    """
    head = f"--{MULTIPART_BOUNDARY}\r\nContent-Disposition: form-data; name=file; filename=cat.jpg\r\n\r\n".encode()
    body = head + content + f"\r\n--{MULTIPART_BOUNDARY}--\r\n".encode()
    content_type = f"Content-Type: multipart/form-data; boundary={MULTIPART_BOUNDARY}"
    request = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\n{content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
    reader, writer = await asyncio.open_connection(stack.LOOPBACK, port)

    async def send_request() -> None:
        writer.write(request)
        header = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(header.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        body = await reader.readexactly(length)
        if not header.startswith(b"http/1.1 200"):
            raise RuntimeError(f"{path}: unexpected response {header[:40]!r}: {body[:200]!r}")

    yield send_request
    writer.close()


async def apply_load(
    connect: Callable[[], contextlib.AbstractAsyncContextManager[SendRequest]], clients: int, seconds: float
) -> LoadResult:
    """Send requests from `clients` concurrent clients for `seconds` seconds, after a warm-up."""
    latencies: list[float] = []
    async with contextlib.AsyncExitStack() as connections:
        senders = [await connections.enter_async_context(connect()) for _ in range(clients)]
        started = time.perf_counter() + WARMUP_SECONDS
        end = started + seconds

        async def run_client(send_request: SendRequest) -> None:
            while (sent := time.perf_counter()) < end:
                await send_request()
                if sent >= started:
                    latencies.append(1000 * (time.perf_counter() - sent))

        await asyncio.gather(*map(run_client, senders))
        elapsed = time.perf_counter() - started
    latencies.sort()
    return LoadResult(
        len(latencies) / elapsed, statistics.median(latencies), latencies[int(0.99 * (len(latencies) - 1))]
    )


# ---- the measurement ----


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[dict[str, int]]:
    """Start the model server, the gateway and the backend that sends pixels; yield the port of each path."""
    grpc, rest, gateway, pixels = (free_port() for _ in range(4))
    for name, text in ServingConfig((1,), {MODEL.label: 1}).files(MODEL.name, str(folder / MODEL.name)).items():
        (folder / name).write_text(text)
    config, traffic = folder / CONFIG_FILE, folder / TRAFFIC_FILE
    pixels_url = stack.local_url(stack.LOOPBACK, pixels)
    backend = [sys.executable, __file__, "--child", "pixels", str(pixels), str(grpc)]
    with Supervisor() as supervisor:
        supervisor.start(stack.model_server(config, MODEL.name, grpc, rest, folder / "model_server.log"))
        supervisor.start(stack.gateway(stack.LOOPBACK, gateway, grpc, MODEL.name, traffic, folder / "gateway.log"))
        supervisor.start(Program("pixels backend", backend, f"{pixels_url}/healthz", log=folder / "pixels.log"))
        yield {"grpc": grpc, "gateway": gateway, "pixels": pixels}


def measure(clients: list[int], seconds: float, rounds: int) -> tuple[dict[int, dict[str, LoadResult]], dict[str, int]]:
    """Measure all paths.

    Returns:
        The medians over the rounds, by number of clients and path; and the bytes of a request to the model server, by
        path.
    """
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        content = synthetic_photo()
        (folder / "photo.jpg").write_bytes(content)
        request_bytes = _prepare_in_process(folder)
        with servers(folder) as ports:
            connections = {
                "grpc": lambda: grpc_client(ports["grpc"], normalize(content).data),
                "gateway": lambda: http_client(ports["gateway"], "/v1/breeds:predict", content),
                "pixels": lambda: http_client(ports["pixels"], "/predict", content),
            }
            results: dict[int, dict[str, list[LoadResult]]] = {
                number: {path: [] for path in connections} for number in clients
            }
            for number in clients:
                for completed in range(rounds):
                    _log(f"{number} clients, round {completed + 1} of {rounds}")
                    for path, connect in connections.items():
                        results[number][path].append(asyncio.run(apply_load(connect, number, seconds)))
    medians = {
        number: {path: LoadResult(*map(statistics.median, zip(*rows, strict=True))) for path, rows in by_path.items()}
        for number, by_path in results.items()
    }
    return medians, request_bytes


def _prepare_in_process(folder: Path) -> dict[str, int]:
    """Call `prepare` in a new process, so that this process does not load TensorFlow."""
    command = [sys.executable, __file__, "--child", "prepare", str(folder)]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def prepare(folder: Path) -> dict[str, int]:
    """Save the model and return the bytes of a request to the model server, by path."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    save_model(str(folder / MODEL.name / "1"))
    content = (folder / "photo.jpg").read_bytes()
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.version_label = MODEL.name, MODEL.label
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([normalize(content).data]))
    size = request.ByteSize()
    return {"grpc": size, "gateway": size, "pixels": pixels_request(content).ByteSize()}


def print_results(medians: dict[int, dict[str, LoadResult]], request_bytes: dict[str, int]) -> None:
    """Print the table, and the targets at `TARGET_CLIENTS` clients."""
    print(f"{'clients':>7}  {'path':<8}  {'req/s':>7}  {'p50 ms':>7}  {'p99 ms':>7}  {'bytes':>7}")
    for number, by_path in medians.items():
        for path, result in by_path.items():
            columns = f"{result.rate:>7.1f}  {result.p50:>7.1f}  {result.p99:>7.1f}  {request_bytes[path]:>7}"
            print(f"{number:>7}  {path:<8}  {columns}")
    results = medians.get(TARGET_CLIENTS)
    if not results:
        return
    gateway, pixels = results["gateway"], results["pixels"]
    print(f"at {TARGET_CLIENTS} clients:")
    _print_target("requests per second, gateway / pixels", gateway.rate / pixels.rate, ">=", 3)
    size_ratio = request_bytes["pixels"] / request_bytes["gateway"]
    _print_target("request bytes, pixels / gateway", size_ratio, ">=", 8)
    _print_target("p50 in ms, gateway - grpc", gateway.p50 - results["grpc"].p50, "<=", 8)


def _print_target(quantity: str, value: float, relation: str, target: float) -> None:
    reached = value >= target if relation == ">=" else value <= target
    print(f"  {quantity}: {value:.1f} (target: {relation} {target}): {'reached' if reached else 'missed'}")


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure all paths and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS, help="numbers of concurrent clients")
    parser.add_argument("--seconds", type=float, default=5, help="duration of each measurement in seconds")
    parser.add_argument("--rounds", type=int, default=3, help="number of measurements of each path")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    match arguments.child:
        case ["prepare", folder]:
            print(json.dumps(prepare(Path(folder))))
        case ["pixels", port, grpc_port]:
            run_pixels_backend(int(port), int(grpc_port))
        case _:
            print_results(*measure(arguments.clients, arguments.seconds, arguments.rounds))


if __name__ == "__main__":
    main()
