"""What a prediction costs: through our gateway, straight from the model server, and the seed project's way.

    python benchmarks/serving.py

Three ways to the same embedded model server and the same model (MobileNetV3Small at 224 px, random weights):

    grpc: the client sends the JPEG to the model server's gRPC, as `serving.client.grpc` does.
    gateway: the client sends the JPEG to our gateway over HTTP, which normalises it and asks the model server.
    seed: the client sends the JPEG over HTTP to a backend that decodes and resizes it to 224 x 224 floats, and sends those
        to a signature that takes pixels; its handler is `async` and the call in it blocks, as in the seed project.

Each client sends its next photo when it has the answer to the last one. `bytes` are those of a request to the model server.
Clients, gateway or backend, and model server share the cores of this machine, and everything goes over its loopback. The
ways take turns, and each figure is the median of its turns. Measured by that command on 2 CPU cores that did nothing else:

    (see below)
"""

import asyncio
import contextlib
import io
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from PIL import Image, ImageChops

from pipeline.sample_data import BREEDS, draw_photo
from serving import stack
from serving.client import ModelChoice
from serving.client.grpc import AsyncGrpcClient

IMAGE_SIZE = 224
# As the photos of public data sets are: half a megapixel at most, compressed for the web.
PHOTO_SIZE, PHOTO_QUALITY, PHOTO_GRAIN = (500, 375), 85, 8
CLIENTS = (1, 8, 32)
MODEL = ModelChoice("catbreeds", label="stable")
WARMUP_SECONDS = 1.0
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

    from components.backbone import decode_photos

    keras.utils.set_random_seed(0)
    network = keras.applications.MobileNetV3Small((IMAGE_SIZE, IMAGE_SIZE, 3), weights=None, classes=len(BREEDS))
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
