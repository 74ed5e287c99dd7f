"""What a prediction costs: through our gateway, straight from the model server, and the seed project's way.

    python benchmarks/prediction_cost.py

Three ways to the same embedded model server and the same model (MobileNet 0.25 at 224 px, random weights):

    grpc: the client sends the JPEG to the model server's gRPC, as `serving.client.grpc` does.
    gateway: the client sends the JPEG to our gateway over HTTP, which normalises it and asks the model server.
    seed: the client sends the JPEG over HTTP to a backend that decodes and resizes it to 224 x 224 floats and sends
        those to a signature that takes pixels. Its handler is `async`, and the call in it blocks, as in the seed.

Each client sends its photo again when it has its answer. `bytes` are those of a request to the model server. Clients,
gateway or backend, and model server share the cores of this machine, and all goes over its loopback. The ways take
turns; each figure is the median of its turns. What it printed on 2 cores is in docs/serving.md.
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

sys.path.pop(0)  # this folder, where serving.py would be taken for the package

from PIL import Image, ImageChops

from pipeline.datasets.sample_data import BREEDS, draw_photo
from serving.client import ModelChoice
from serving.client.grpc import AsyncGrpcClient
from serving.local import stack
from serving.local.processes import Program, Supervisor
from serving.photo import normalise
from serving.rollout.serving_config import CONFIG_FILE, TRAFFIC_FILE, ServingConfig

IMAGE_SIZE = 224
# As the photos of public data sets are: half a megapixel at most, compressed for the web.
PHOTO_SIZE, PHOTO_QUALITY, PHOTO_GRAIN = (500, 375), 85, 8
CLIENTS = (1, 8, 32)
MODEL = ModelChoice("catbreeds", label="stable")
WARMUP_SECONDS = 1.0
JUDGED_CLIENTS = 8
BOUNDARY = "photo-boundary"

Ask = Callable[[], Awaitable[None]]


class Turn(NamedTuple):
    """What one way did in one turn: requests per second, and latencies in milliseconds."""

    rate: float
    p50: float
    p99: float


# ---- the model ----


def save_model(path: str) -> None:
    """One network behind two signatures: the photo's bytes, and the seed's pixels."""
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
    def of_pixels(pixels):
        probabilities = network(pixels, training=False)
        return {"probabilities": probabilities, "breeds": tf.broadcast_to(names, tf.shape(probabilities))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def of_bytes(image_bytes):
        return of_pixels(decode_photos(image_bytes, IMAGE_SIZE))

    tf.saved_model.save(module, path, signatures={"serving_default": of_bytes, "pixels": of_pixels})


def photo() -> bytes:
    """A JPEG with as much detail as a photo."""
    grain = Image.effect_noise(PHOTO_SIZE, PHOTO_GRAIN).convert("RGB")
    image = ImageChops.add(draw_photo(BREEDS[0], "serving").resize(PHOTO_SIZE), grain, offset=-128)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=PHOTO_QUALITY)
    return buffer.getvalue()


# ---- the seed's way ----


def pixels_request(content: bytes):
    """What the seed's backend sends: 224 x 224 x 3 floats."""
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    image = Image.open(io.BytesIO(content)).convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE))
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.version_label = MODEL.name, MODEL.label
    request.model_spec.signature_name = "pixels"
    request.inputs["pixels"].CopyFrom(tf.make_tensor_proto(np.asarray(image, np.float32)[np.newaxis]))
    return request


def run_seed_backend(port: int, grpc_port: int) -> None:
    """Serves POST /predict until it is killed."""
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
    """A port that nobody listens on."""
    with socket.create_server((stack.LOOPBACK, 0)) as listener:
        return listener.getsockname()[1]


@contextlib.asynccontextmanager
async def grpc_client(port: int, content: bytes) -> AsyncIterator[Ask]:
    """Of the model server; one for all, as connections are shared."""
    async with AsyncGrpcClient(f"{stack.LOOPBACK}:{port}") as client:

        async def ask() -> None:
            await client.ask([content], MODEL, timeout=60)

        yield ask


@contextlib.asynccontextmanager
async def http_client(port: int, path: str, content: bytes) -> AsyncIterator[Ask]:
    """A form over one connection. Nothing but what HTTP needs, so that it takes little from what is measured."""
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=file; filename=cat.jpg\r\n\r\n".encode()
    body = head + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    kind = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"
    request = f"POST {path} HTTP/1.1\r\nHost: x\r\n{kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    reader, writer = await asyncio.open_connection(stack.LOOPBACK, port)

    async def ask() -> None:
        writer.write(request)
        header = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(header.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        answer = await reader.readexactly(length)
        if not header.startswith(b"http/1.1 200"):
            raise RuntimeError(f"{path} answers {header[:40]!r}: {answer[:200]!r}")

    yield ask
    writer.close()


async def take_turn(
    connect: Callable[[], contextlib.AbstractAsyncContextManager[Ask]], clients: int, seconds: float
) -> Turn:
    """Lets so many clients ask, for that long."""
    latencies: list[float] = []
    async with contextlib.AsyncExitStack() as connections:
        asks = [await connections.enter_async_context(connect()) for _ in range(clients)]
        started = time.perf_counter() + WARMUP_SECONDS
        end = started + seconds

        async def client(ask: Ask) -> None:
            while (asked := time.perf_counter()) < end:
                await ask()
                if asked >= started:
                    latencies.append(1000 * (time.perf_counter() - asked))

        await asyncio.gather(*map(client, asks))
        elapsed = time.perf_counter() - started
    latencies.sort()
    return Turn(len(latencies) / elapsed, statistics.median(latencies), latencies[int(0.99 * (len(latencies) - 1))])


# ---- the measurement ----


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[dict[str, int]]:
    """Model server, gateway and the seed's backend, each a process; their ports by way."""
    grpc, rest, gateway, seed = (free_port() for _ in range(4))
    for name, text in ServingConfig((1,), {MODEL.label: 1}).files(MODEL.name, str(folder / MODEL.name)).items():
        (folder / name).write_text(text)
    config, traffic = folder / CONFIG_FILE, folder / TRAFFIC_FILE
    seed_url = stack.local_url(stack.LOOPBACK, seed)
    backend = [sys.executable, __file__, "--child", "seed", str(seed), str(grpc)]
    with Supervisor() as supervisor:
        supervisor.start(stack.model_server(config, MODEL.name, grpc, rest, folder / "model_server.log"))
        supervisor.start(stack.gateway(stack.LOOPBACK, gateway, grpc, MODEL.name, traffic, folder / "gateway.log"))
        supervisor.start(Program("seed's backend", backend, f"{seed_url}/healthz", log=folder / "seed.log"))
        yield {"grpc": grpc, "gateway": gateway, "seed": seed}


def measure(clients: list[int], seconds: float, rounds: int) -> tuple[dict[int, dict[str, Turn]], dict[str, int]]:
    """Medians by number of clients and way, and bytes of a request by way."""
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        content = photo()
        (folder / "photo.jpg").write_bytes(content)
        sent = _prepare(folder)
        with servers(folder) as ports:
            ways = {
                "grpc": lambda: grpc_client(ports["grpc"], normalise(content).data),
                "gateway": lambda: http_client(ports["gateway"], "/v1/breeds:predict", content),
                "seed": lambda: http_client(ports["seed"], "/predict", content),
            }
            turns: dict[int, dict[str, list[Turn]]] = {number: {way: [] for way in ways} for number in clients}
            for number in clients:
                for turn in range(rounds):
                    _say(f"{number} clients, turn {turn + 1} of {rounds}")
                    for way, connect in ways.items():
                        turns[number][way].append(asyncio.run(take_turn(connect, number, seconds)))
    medians = {
        number: {way: Turn(*map(statistics.median, zip(*taken, strict=True))) for way, taken in by_way.items()}
        for number, by_way in turns.items()
    }
    return medians, sent


def _prepare(folder: Path) -> dict[str, int]:
    """Saves the model; bytes of a request by way. In a process of its own: TensorFlow takes part in no turn."""
    command = [sys.executable, __file__, "--child", "prepare", str(folder)]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def prepare(folder: Path) -> dict[str, int]:
    """See `_prepare`."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    save_model(str(folder / MODEL.name / "1"))
    content = (folder / "photo.jpg").read_bytes()
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.version_label = MODEL.name, MODEL.label
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([normalise(content).data]))
    ours = request.ByteSize()
    return {"grpc": ours, "gateway": ours, "seed": pixels_request(content).ByteSize()}


def show(medians: dict[int, dict[str, Turn]], sent: dict[str, int]) -> None:
    """Prints the table, and at `JUDGED_CLIENTS` clients what was to be reached."""
    print(f"{'clients':>7}  {'way':<8}  {'req/s':>7}  {'p50 ms':>7}  {'p99 ms':>7}  {'bytes':>7}")
    for number, by_way in medians.items():
        for way, turn in by_way.items():
            print(f"{number:>7}  {way:<8}  {turn.rate:>7.1f}  {turn.p50:>7.1f}  {turn.p99:>7.1f}  {sent[way]:>7}")
    judged = medians.get(JUDGED_CLIENTS)
    if not judged:
        return
    gateway, seed = judged["gateway"], judged["seed"]
    print(f"at {JUDGED_CLIENTS} clients:")
    _judge("requests per second, gateway / seed", gateway.rate / seed.rate, ">=", 3)
    _judge("bytes to the model server, seed / gateway", sent["seed"] / sent["gateway"], ">=", 8)
    _judge("p50, gateway - grpc, ms", gateway.p50 - judged["grpc"].p50, "<=", 8)


def _judge(what: str, value: float, relation: str, target: float) -> None:
    reached = value >= target if relation == ">=" else value <= target
    print(f"  {what}: {value:.1f} (to reach: {relation} {target}): {'reached' if reached else 'missed'}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS, help="numbers of clients at a time")
    parser.add_argument("--seconds", type=float, default=5, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    match arguments.child:
        case ["prepare", folder]:
            print(json.dumps(prepare(Path(folder))))
        case ["seed", port, grpc_port]:
            run_seed_backend(int(port), int(grpc_port))
        case _:
            show(*measure(arguments.clients, arguments.seconds, arguments.rounds))


if __name__ == "__main__":
    main()
