"""Measure the throughput of direct gRPC, of the gateway, and of a backend that sends pixels, and the CPU time of each.

    python benchmarks/serving_throughput.py
    python benchmarks/serving_throughput.py --memory

The benchmark sends photos in several ways to the same embedded model server and model (a backbone of the project at 224
px with random weights, with a head and an explainer):

    grpc: the client sends the JPEG, normalized beforehand, to the gRPC port of the model server, with
        `serving.client.grpc`.
    gateway: the client sends the JPEG over HTTP to the gateway, which normalizes it and queries the model server.
    pixels: the client sends the JPEG over HTTP to a simple backend, which decodes it, resizes it to 224 x 224 and sends
        the pixels as floats to the model server. The request handler is `async` but blocks on the gRPC call, as in the
        project that this one replaces.
    grpc batch, gateway batch: like `grpc` and `gateway`, but the model server batches concurrent requests with the
        parameters in serving/k8s/components/batching.

Each client sends its next request when it has received the response to the last one. Clients, gateway or backend, and
model server share the cores of this machine and communicate over its loopback interface. The paths alternate; each
figure is the median over the rounds. docs/serving.md shows the output on 2 cores.

    req/s, p50 ms, p99 ms: throughput, median and 99th percentile of the latency.
    client, front, server: CPU time per request in milliseconds of the process with the clients, of the gateway or
        backend, and of the model server.
    bytes: size of a request to the model server.

With `--memory`, it prints the resident memory of a process that takes the steps of the model server one after the
other. "private" memory belongs to the process; the rest are pages of library files, which processes share and the
system can drop. Two other processes show what Keras adds, which the model server does not import, and what TensorFlow
takes without its Python API.
"""

import argparse
import asyncio
import contextlib
import ctypes
import dataclasses
import functools
import importlib.util
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import psutil
from PIL import Image, ImageChops

from pipeline.datasets.sample_data import BREEDS, draw_photo
from serving.addresses import LOOPBACK, free_ports
from serving.client import ModelChoice
from serving.client.grpc import AsyncGrpcClient
from serving.local import stack
from serving.local.processes import Program, Supervisor
from serving.model_files import CLIENT_OUTPUTS, EXPLAIN_SIGNATURE
from serving.photo_normalization import normalize
from serving.rollout.serving_config import CONFIG_FILE, TRAFFIC_FILE, ServingConfig

IMAGE_SIZE = 224
# Like the photos of public data sets: at most half a megapixel, compressed for the web.
PHOTO_SIZE, PHOTO_QUALITY, PHOTO_GRAIN = (500, 375), 85, 8
CLIENTS = (1, 8, 32)
MODEL = ModelChoice("catbreeds", label="stable")
EXPLAINER_PHOTOS, EXPLAINER_LEVEL = 100, 0.95
BATCHING_PARAMETERS = Path(__file__).parents[1] / "serving" / "k8s" / "components" / "batching" / "batching.config"
BATCHING_FLAGS = ["--enable_batching=true", f"--batching_parameters_file={BATCHING_PARAMETERS}"]
DIRECT, BATCH = "", " batch"
BATCH_SIZES = (2, 4, 8, 16)
WARMUP_SECONDS = 1.0
TIMEOUT_SECONDS = 60  # for many clients on a slow machine
TARGET_CLIENTS = 8
MULTIPART_BOUNDARY = "photo-boundary"

SendRequest = Callable[[], Awaitable[None]]


class LoadResult(NamedTuple):
    """Throughput in requests per second; latencies, and CPU time per request of each process, in milliseconds."""

    rate: float
    p50: float
    p99: float
    client_cpu: float
    front_cpu: float
    server_cpu: float


# ---- the model ----


def save_model(path: str, backbone: str) -> None:
    """Save a network with random weights, a head and an explainer, with the signatures of a pushed version.

    The signature `pixels` takes the pixels of photos in place of their bytes.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    from components import saved_model
    from components.candidates.architectures import ARCHITECTURES
    from components.candidates.backbone import build_network, decode_photos, pool_blocks, preprocessing
    from pipeline.modules.explanation import Explainer

    names = [breed.name for breed in BREEDS]
    blocks = pool_blocks(build_network(backbone, "random", IMAGE_SIZE, 0), backbone, ARCHITECTURES[backbone].layers)
    preprocess = preprocessing(backbone)
    size = sum(output.shape[-1] for output in blocks.outputs)
    head = keras.Sequential([keras.Input([size]), keras.layers.Dense(len(names), "softmax")])
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(EXPLAINER_PHOTOS, size)).astype(np.float32)
    labels = random.integers(len(names), size=EXPLAINER_PHOTOS)
    probabilities = head(embeddings).numpy()
    module = tf.Module()
    module.explainer = Explainer(embeddings, labels, embeddings, labels, probabilities, EXPLAINER_LEVEL)
    module.weights = [variable.value for network in (blocks, head) for variable in network.variables]

    def embed(pixels):
        return tf.concat(list(blocks(preprocess(pixels), training=False).values()), axis=1)

    def classify(embedding):
        probabilities = head(embedding, training=False)
        return {"probabilities": probabilities, "breeds": tf.broadcast_to(names, tf.shape(probabilities))}

    photos = tf.TensorSpec([None], tf.string, "image_bytes")

    @tf.function(input_signature=[photos], autograph=False)
    def serving_default(image_bytes):
        return classify(embed(decode_photos(image_bytes, IMAGE_SIZE)))

    @tf.function(input_signature=[photos], autograph=False)
    def explain(image_bytes):
        embedding = embed(decode_photos(image_bytes, IMAGE_SIZE))
        outputs = classify(embedding)
        return outputs | module.explainer(embedding, outputs["probabilities"])

    @tf.function(input_signature=[tf.TensorSpec([None, IMAGE_SIZE, IMAGE_SIZE, 3], tf.float32, "pixels")])
    def pixels(pixels):
        return classify(embed(pixels))

    signatures = {"serving_default": serving_default, EXPLAIN_SIGNATURE: explain, "pixels": pixels}
    saved_model.save(module, path, signatures, for_tensorflow_serving=True)


def synthetic_photo(size: tuple[int, int] = PHOTO_SIZE) -> bytes:
    """Return a JPEG with as much detail as a real photo."""
    grain = Image.effect_noise(size, PHOTO_GRAIN).convert("RGB")
    image = ImageChops.add(draw_photo(BREEDS[0], "serving").resize(size), grain, offset=-128)
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
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(f"{LOOPBACK}:{grpc_port}"))

    @app.get("/healthz")
    async def health() -> dict:
        return {}

    @app.post("/predict")
    async def predict(file: UploadFile) -> dict[str, float]:
        outputs = stub.Predict(pixels_request(await file.read()), timeout=TIMEOUT_SECONDS).outputs
        names = [name.decode() for name in outputs["breeds"].string_val]
        return dict(zip(names, outputs["probabilities"].float_val, strict=True))

    # With the default of 5 s, a handler that blocks lets connections expire.
    uvicorn.run(app, host=LOOPBACK, port=port, log_level="warning", timeout_keep_alive=75)


# ---- clients ----


@contextlib.asynccontextmanager
async def grpc_client(port: int, content: bytes) -> AsyncIterator[SendRequest]:
    """Yield a function that sends `content` to the model server over gRPC."""
    photo = normalize(content).data
    async with AsyncGrpcClient(f"{LOOPBACK}:{port}") as client:

        async def send_request() -> None:
            await client.predict_normalized([photo], MODEL, timeout=TIMEOUT_SECONDS)

        yield send_request


@contextlib.asynccontextmanager
async def http_client(path: str, port: int, content: bytes) -> AsyncIterator[SendRequest]:
    """Yield a function that sends `content` as a form over one HTTP connection.

    It is a minimal HTTP client, so that it takes little CPU time from the measured servers.
    """
    head = f"--{MULTIPART_BOUNDARY}\r\nContent-Disposition: form-data; name=file; filename=cat.jpg\r\n\r\n".encode()
    body = head + content + f"\r\n--{MULTIPART_BOUNDARY}--\r\n".encode()
    content_type = f"Content-Type: multipart/form-data; boundary={MULTIPART_BOUNDARY}"
    request = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\n{content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
    reader, writer = await asyncio.open_connection(LOOPBACK, port)

    async def send_request() -> None:
        writer.write(request)
        header = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(header.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        body = await reader.readexactly(length)
        if not header.startswith(b"http/1.1 200"):
            raise RuntimeError(f"{path}: unexpected response {header[:40]!r}: {body[:200]!r}")

    yield send_request
    writer.close()


CONNECT = {
    "grpc": grpc_client,
    "gateway": functools.partial(http_client, "/v1/breeds:predict"),
    "pixels": functools.partial(http_client, "/predict"),
}


async def apply_load(
    connect: Callable[[], contextlib.AbstractAsyncContextManager[SendRequest]],
    clients: int,
    seconds: float,
    processes: Sequence[psutil.Process | None],
) -> LoadResult:
    """Send requests from `clients` concurrent clients for `seconds` seconds, after a warm-up.

    Args:
        connect: Function that connects one client.
        clients: Number of clients.
        seconds: Duration in seconds.
        processes: Processes of the clients, of the gateway or backend, and of the model server; None if there is none.
    """
    latencies: list[float] = []

    async def run_client(send_request: SendRequest, end: float) -> None:
        while (sent := time.perf_counter()) < end:
            await send_request()
            latencies.append(1000 * (time.perf_counter() - sent))

    async with contextlib.AsyncExitStack() as connections:
        senders = [await connections.enter_async_context(connect()) for _ in range(clients)]
        for duration in (WARMUP_SECONDS, seconds):
            latencies.clear()
            cpu, started = [cpu_ms(process) for process in processes], time.perf_counter()
            await asyncio.gather(*(run_client(send_request, started + duration) for send_request in senders))
            elapsed = time.perf_counter() - started
            cpu = [cpu_ms(process) - before for process, before in zip(processes, cpu, strict=True)]
    latencies.sort()
    requests = len(latencies)
    return LoadResult(
        requests / elapsed,
        statistics.median(latencies),
        latencies[int(0.99 * (requests - 1))],
        *(used / requests for used in cpu),
    )


def cpu_ms(process: psutil.Process | None) -> float:
    """Return the CPU time that a process has used, in milliseconds."""
    return 1000 * sum(process.cpu_times()[:2]) if process else 0.0


# ---- the measurement ----


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[dict[str, tuple[int, list[psutil.Process | None]]]]:
    """Start all servers.

    Yields:
        The port of each path, and the processes of the clients, of the gateway or backend, and of the model server.
    """
    for name, text in ServingConfig((1,), {MODEL.label: 1}).files(MODEL.name, str(folder / MODEL.name)).items():
        (folder / name).write_text(text)
    this_process = psutil.Process()
    with Supervisor() as supervisor:

        def start(program: Program) -> psutil.Process:
            others = this_process.children()
            with contextlib.redirect_stdout(sys.stderr):  # it reports when a program starts slowly
                supervisor.start(program)
            (process,) = (child for child in this_process.children() if child not in others)
            return process

        paths = {}
        for suffix, flags in ((DIRECT, []), (BATCH, BATCHING_FLAGS)):
            grpc, rest, http = free_ports(3)
            log = folder / f"model_server{suffix}.log"
            program = stack.model_server(folder / CONFIG_FILE, MODEL.name, grpc, rest, log)
            server = start(dataclasses.replace(program, command=[*program.command, *flags]))
            log = folder / f"gateway{suffix}.log"
            program = stack.gateway(LOOPBACK, http, grpc, MODEL.name, folder / TRAFFIC_FILE, log)
            deadline = {"CATBREEDS_GATEWAY_DEADLINE_SECONDS": str(TIMEOUT_SECONDS)}
            gateway = start(dataclasses.replace(program, environment={**program.environment, **deadline}))
            paths |= {
                f"grpc{suffix}": (grpc, [this_process, None, server]),
                f"gateway{suffix}": (http, [this_process, gateway, server]),
            }
            if suffix == DIRECT:
                (http,) = free_ports(1)
                command = [sys.executable, __file__, "--child", "pixels", str(http), str(grpc)]
                url, log = f"{stack.local_url(LOOPBACK, http)}/healthz", folder / "pixels.log"
                paths["pixels"] = http, [this_process, start(Program("backend", command, url, log=log)), server]
        yield paths


def measure(
    backbone: str, photo_size: tuple[int, int], clients: list[int], seconds: float, rounds: int
) -> tuple[dict[int, dict[str, LoadResult]], dict[str, int]]:
    """Measure all paths.

    Returns:
        The medians over the rounds, by number of clients and path; and the bytes of a request to the model server, by
        path.
    """
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        content = synthetic_photo(photo_size)
        (folder / "photo.jpg").write_bytes(content)
        request_bytes = _prepare_in_process(folder, backbone)
        with servers(folder) as paths:
            results = {number: {path: [] for path in paths} for number in clients}
            for number in clients:
                for completed in range(rounds):
                    _log(f"{number} clients, round {completed + 1} of {rounds}")
                    for path, (port, processes) in paths.items():
                        connect = functools.partial(CONNECT[path.split()[0]], port, content)
                        results[number][path].append(asyncio.run(apply_load(connect, number, seconds, processes)))
                        _log(f"  {path}: {results[number][path][-1].rate:.1f} requests per second")
    medians = {
        number: {path: LoadResult(*map(statistics.median, zip(*rows, strict=True))) for path, rows in by_path.items()}
        for number, by_path in results.items()
    }
    return medians, request_bytes


def _prepare_in_process(folder: Path, backbone: str) -> dict[str, int]:
    """Call `prepare` in a new process, so that this process does not load TensorFlow."""
    command = [sys.executable, __file__, "--child", "prepare", str(folder), backbone]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def prepare(folder: Path, backbone: str) -> dict[str, int]:
    """Save the model and return the bytes of a request to the model server, by path."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    save_model(str(folder / MODEL.name / "1"), backbone)
    content = (folder / "photo.jpg").read_bytes()
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.version_label = MODEL.name, MODEL.label
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([normalize(content).data]))
    size = request.ByteSize()
    return {"grpc": size, "gateway": size, "pixels": pixels_request(content).ByteSize()}


def print_results(medians: dict[int, dict[str, LoadResult]], request_bytes: dict[str, int]) -> None:
    """Print the table, and the targets at `TARGET_CLIENTS` clients."""
    columns = ("req/s", "p50 ms", "p99 ms", "client", "front", "server", "bytes")
    print("  ".join((f"{'clients':>7}", f"{'path':<13}", *(f"{column:>7}" for column in columns))))
    for number, by_path in medians.items():
        for path, result in by_path.items():
            values = [f"{value:>7.1f}" for value in result]
            print("  ".join((f"{number:>7}", f"{path:<13}", *values, f"{request_bytes[path.split()[0]]:>7}")))
    results = medians.get(TARGET_CLIENTS)
    if not results:
        return
    rate = {path: result.rate for path, result in results.items()}
    print(f"at {TARGET_CLIENTS} clients:")
    _print_target("requests per second, gateway / grpc", rate["gateway"] / rate["grpc"], ">=", 0.87)
    _print_target("requests per second, gateway / pixels", rate["gateway"] / rate["pixels"], ">=", 1)
    size_ratio = request_bytes["pixels"] / request_bytes["gateway"]
    _print_target("request bytes, pixels / gateway", size_ratio, ">=", 8)
    print(f"  requests per second, grpc batch / grpc: {rate['grpc batch'] / rate['grpc']:.2f}")


def _print_target(quantity: str, value: float, relation: str, target: float) -> None:
    reached = value >= target if relation == ">=" else value <= target
    print(f"  {quantity}: {value:.2f} (target: {relation} {target}): {'reached' if reached else 'missed'}")


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- memory ----


def print_memory(step: str) -> None:
    """Print the resident memory of this process and how much of it is private, in megabytes."""
    values = dict(re.findall(r"(VmRSS|RssAnon):\s+(\d+) kB", Path("/proc/self/status").read_text()))
    print(f"{step:<52}  {int(values['VmRSS']) / 1000:>8.0f}  {int(values['RssAnon']) / 1000:>8.0f}", flush=True)


def print_memory_of_steps(model_dir: str, photo_file: str) -> None:
    """Take the steps of the model server in this process, and print the memory after each."""
    import grpc  # noqa: F401
    import numpy as np

    from serving.model_server import flags
    from serving.model_server.__main__ import exclude_keras

    print_memory("Python, gRPC, NumPy")
    exclude_keras()
    import tensorflow  # noqa: F401

    print_memory("import TensorFlow without Keras")
    from serving.model_server.manager import return_freed_memory
    from serving.model_server.model import Model
    from serving.model_server.monitoring import Metrics

    values, metrics = flags.parse([f"--model_base_path={model_dir}"]), Metrics()
    model = Model(MODEL.name, 1, model_dir, values, None, metrics)
    print_memory("load the model")
    return_freed_memory()
    print_memory("return freed memory to the system")

    def predict(signature: str, photos: int, outputs: Sequence[str] = (), version: Model = model) -> None:
        content = Path(photo_file).read_bytes()
        version.predict(signature, {"image_bytes": np.array([content] * photos, object)}, outputs)

    predict("serving_default", 1)
    print_memory("first request for serving_default")
    predict(EXPLAIN_SIGNATURE, 1, CLIENT_OUTPUTS)
    print_memory("first request for explain, outputs that clients read")
    predict(EXPLAIN_SIGNATURE, 1)
    print_memory("first request for explain, all outputs")
    with futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: predict(EXPLAIN_SIGNATURE, 1, CLIENT_OUTPUTS), range(64)))
    print_memory("64 requests from 8 threads")
    for photos in BATCH_SIZES:
        predict(EXPLAIN_SIGNATURE, photos, CLIENT_OUTPUTS)
    print_memory(f"batches of {', '.join(map(str, BATCH_SIZES))} photos")
    second_version = Model(MODEL.name, 2, model_dir, values, None, metrics)
    return_freed_memory()
    print_memory("load a second version")
    predict(EXPLAIN_SIGNATURE, 1, CLIENT_OUTPUTS, second_version)
    print_memory("first request for the second version")
    for photos in BATCH_SIZES:
        predict(EXPLAIN_SIGNATURE, photos, CLIENT_OUTPUTS, second_version)
    print_memory("batches for the second version")


def print_memory_of_keras() -> None:
    """Import TensorFlow with Keras, and print the memory."""
    import tensorflow  # noqa: F401

    print_memory("import TensorFlow with Keras")


def print_memory_of_tensorflow(model_dir: str) -> None:
    """Load the model with the C API of TensorFlow's library, and print the memory."""
    folder = Path(importlib.util.find_spec("tensorflow").submodule_search_locations[0])
    ctypes.CDLL(str(folder / "libtensorflow_framework.so.2"), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(folder / "libtensorflow_cc.so.2"), ctypes.RTLD_GLOBAL)
    print_memory("load TensorFlow's C++ library")
    pointer = ctypes.c_void_p
    for name in ("TF_NewGraph", "TF_NewSessionOptions", "TF_NewStatus", "TF_LoadSessionFromSavedModel"):
        getattr(library, name).restype = pointer
    library.TF_LoadSessionFromSavedModel(
        pointer(library.TF_NewSessionOptions()),
        None,
        model_dir.encode(),
        (ctypes.c_char_p * 1)(b"serve"),
        1,
        pointer(library.TF_NewGraph()),
        None,
        pointer(status := library.TF_NewStatus()),
    )
    if library.TF_GetCode(pointer(status)):
        raise RuntimeError(f"{model_dir}: TensorFlow's C API cannot load the model")
    print_memory("load the model")


def measure_memory(backbone: str) -> None:
    """Print the table of `--memory`."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        photo = folder / "photo.jpg"
        photo.write_bytes(synthetic_photo())
        _prepare_in_process(folder, backbone)
        model = folder / MODEL.name / "1"
        size = sum(file.stat().st_size for file in model.rglob("*") if file.is_file()) / 1e6
        print(f"{f'resident memory in MB; model: {backbone}, {size:.0f} MB':<52}  {'total':>8}  {'private':>8}")
        print("model server:", flush=True)
        run = functools.partial(subprocess.run, check=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"})
        run([sys.executable, __file__, "--child", "memory", model, photo])
        print("other processes:", flush=True)
        run([sys.executable, __file__, "--child", "keras"])
        run([sys.executable, __file__, "--child", "tensorflow", model])


# ---- command line ----


def main() -> None:
    """Measure all paths and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet50", help="backbone of the model (default: %(default)s)")
    parser.add_argument("--photo-size", type=int, nargs=2, default=PHOTO_SIZE, help="width and height of the photo")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS, help="numbers of concurrent clients")
    parser.add_argument("--seconds", type=float, default=5, help="duration of each measurement in seconds")
    parser.add_argument("--rounds", type=int, default=3, help="number of measurements of each path")
    parser.add_argument("--memory", action="store_true", help="measure the memory of the model server")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    match arguments.child:
        case ["prepare", folder, backbone]:
            print(json.dumps(prepare(Path(folder), backbone)))
        case ["pixels", port, grpc_port]:
            run_pixels_backend(int(port), int(grpc_port))
        case ["memory", model, photo]:
            print_memory_of_steps(model, photo)
        case ["keras"]:
            print_memory_of_keras()
        case ["tensorflow", model]:
            print_memory_of_tensorflow(model)
        case _ if arguments.memory:
            measure_memory(arguments.backbone)
        case _:
            size = tuple(arguments.photo_size)
            print_results(*measure(arguments.backbone, size, arguments.clients, arguments.seconds, arguments.rounds))


if __name__ == "__main__":
    main()
