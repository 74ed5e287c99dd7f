"""Command-line flags, with the names of `tensorflow_model_server`. Does not import TensorFlow: `--help` is fast."""

import argparse
import os
from collections.abc import Sequence
from importlib.metadata import version

from serving.addresses import GRPC_PORT, LOOPBACK

# Flags of tensorflow_model_server 2.19 for features that this server does not implement.
_UNSUPPORTED = (
    "enable_cors_support",
    "enable_per_model_metrics",
    "enable_profiler",
    "enable_serialization_as_tensor_content",
    "enable_signature_method_name_check",
    "flush_filesystem_caches",
    "mixed_precision",
    "num_load_threads",
    "num_unload_threads",
    "per_process_gpu_memory_fraction",
    "platform_config_file",
    "prefer_tflite_model",
    "remove_unused_fields_from_bundle_metagraph",
    "rest_api_enable_cors_support",
    "skip_initialize_tpu",
    "ssl_config_file",
    "tensorflow_session_config_file",
    "tensorflow_session_parallelism",
    "tensorflow_use_mlir_tf_xla_bridge",
    "thread_pool_factory_config_file",
    "use_alts_credentials",
    "use_tflite_model",
    "xla_cpu_compilation_enabled",
)
_THREADS = 4 * (os.cpu_count() or 1)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags. Exits with code 2 and an error that names the flag if a flag is unknown or not supported."""
    parser = _parser()
    values, unknown = parser.parse_known_args(arguments)
    for argument in unknown:
        name = argument.partition("=")[0]
        if name.lstrip("-") in _UNSUPPORTED:
            parser.error(f"{name}: this is a flag of tensorflow_model_server; the embedded server does not support it")
    if unknown:
        parser.error(f"unknown argument: {unknown[0]}")
    if not values.model_config_file and not values.model_base_path:
        parser.error("no model to serve; set --model_base_path or --model_config_file")
    if values.batching_parameters_file and not values.enable_batching:
        parser.error("--batching_parameters_file requires --enable_batching")
    if values.monitoring_config_file and not values.rest_api_port:
        parser.error("--monitoring_config_file requires --rest_api_port, which serves the metrics")
    if not (values.port or values.grpc_socket_path or values.rest_api_port):
        parser.error("--port and --rest_api_port are both 0 and --grpc_socket_path is empty; set at least one of them")
    return values


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.model_server",
        description="Serves SavedModels over the API of TensorFlow Serving.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"TensorFlow Library: {version('tensorflow')}")

    def text(name: str, default: str, help: str) -> None:
        parser.add_argument(f"--{name}", default=default, metavar="TEXT", help=help)

    def number(name: str, default: int, help: str) -> None:
        parser.add_argument(f"--{name}", default=default, type=int, metavar="N", help=f"{help} (default {default})")

    def switch(name: str, default: bool, help: str) -> None:
        parser.add_argument(
            f"--{name}", default=default, type=_boolean, nargs="?", const=True, metavar="BOOL", help=help
        )

    # tensorflow_model_server does not have this flag: it listens on all addresses.
    text("host", LOOPBACK, f"IP address to listen on; 0.0.0.0 listens on all addresses (default {LOOPBACK})")
    number("port", GRPC_PORT, "TCP port of the gRPC API; 0 disables it")
    text("grpc_socket_path", "", "path of a UNIX socket for the gRPC API, in addition to the port")
    text("grpc_channel_arguments", "", "channel arguments of the gRPC server: name=value,name=value")
    number("grpc_max_threads", _THREADS, "maximum number of concurrent gRPC requests")
    switch("enable_grpc_healthcheck_service", False, "serve grpc.health.v1.Health")
    number("rest_api_port", 0, "TCP port of the REST API; 0 disables it")
    number("rest_api_num_threads", _THREADS, "maximum number of concurrent REST requests")
    number("rest_api_timeout_in_ms", 30_000, "timeout of a REST request in milliseconds")
    text("model_name", "default", "model name; ignored with --model_config_file")
    text("model_base_path", "", "directory whose subdirectories are version numbers; ignored with --model_config_file")
    text("model_config_file", "", "path of a ModelServerConfig in protobuf text format")
    number("model_config_file_poll_wait_seconds", 0, "seconds between reads of that file; 0: read it once")
    number("file_system_poll_wait_seconds", 1, "seconds between scans for versions; 0: scan once, negative: never scan")
    number("max_num_load_retries", 5, "maximum number of retries of a failed load")
    number("load_retry_interval_micros", 60_000_000, "microseconds between load retries")
    switch("allow_version_labels_for_unavailable_models", False, "allow new labels for versions that are not available")
    switch(
        "force_allow_any_version_labels_for_unavailable_models",
        False,
        "also allow existing labels to move to such versions",
    )
    switch(
        "enable_model_warmup", True, "replay assets.extra/tf_serving_warmup_requests before a version becomes available"
    )
    number("num_request_iterations_for_warmup", 1, "number of runs of each warmup request")
    text("saved_model_tags", "serve", "comma-separated tags of the graph in the SavedModel")
    switch("enable_batching", False, "run concurrent requests as one batch")
    text("batching_parameters_file", "", "path of BatchingParameters in protobuf text format")
    text("monitoring_config_file", "", "path of a MonitoringConfig in protobuf text format")
    number("tensorflow_intra_op_parallelism", 0, "threads per operation; 0: TensorFlow decides")
    number("tensorflow_inter_op_parallelism", 0, "operations that run in parallel; 0: TensorFlow decides")
    return parser


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1"):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")
