"""The flags, spelled as `tensorflow_model_server` spells them. Imports no TensorFlow, so that `--help` is quick."""

import argparse
import os
from collections.abc import Sequence
from importlib.metadata import version

from serving.addresses import LOOPBACK

# Flags of tensorflow_model_server 2.19 that change what it does in ways this server cannot.
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
    """Values by the names of the flags. A flag that cannot be served ends the process with code 2, by its name."""
    parser = _parser()
    values, unknown = parser.parse_known_args(arguments)
    for argument in unknown:
        name = argument.partition("=")[0]
        if name.lstrip("-") in _UNSUPPORTED:
            parser.error(f"{name}: tensorflow_model_server has this flag, the embedded server does not support it")
    if unknown:
        parser.error(f"unknown argument: {unknown[0]}")
    if not values.model_config_file and not values.model_base_path:
        parser.error("give --model_base_path or --model_config_file")
    if values.batching_parameters_file and not values.enable_batching:
        parser.error("--batching_parameters_file needs --enable_batching")
    if values.monitoring_config_file and not values.rest_api_port:
        parser.error("--monitoring_config_file needs --rest_api_port, where the metrics are served")
    if not (values.port or values.grpc_socket_path or values.rest_api_port):
        parser.error("--port and --rest_api_port are both 0: there is nothing to listen on")
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

    # The one flag that tensorflow_model_server does not have: it listens on all addresses.
    text("host", LOOPBACK, f"IP address to listen on; 0.0.0.0 for all (default {LOOPBACK})")
    number("port", 8500, "TCP port of gRPC; 0 switches it off")
    text("grpc_socket_path", "", "UNIX socket of gRPC, beside the port")
    text("grpc_channel_arguments", "", "options of the gRPC server, name=value,name=value")
    number("grpc_max_threads", _THREADS, "gRPC requests that are worked on at a time")
    switch("enable_grpc_healthcheck_service", False, "answer grpc.health.v1.Health")
    number("rest_api_port", 0, "TCP port of REST; 0 switches it off")
    number("rest_api_num_threads", _THREADS, "REST requests that are worked on at a time")
    number("rest_api_timeout_in_ms", 30_000, "time of a REST request")
    text("model_name", "default", "name of the model in --model_base_path")
    text("model_base_path", "", "directory whose integer subdirectories are versions; unused with --model_config_file")
    text("model_config_file", "", "file with a ModelServerConfig in protobuf text format")
    number("model_config_file_poll_wait_seconds", 0, "seconds between readings of that file; 0: it is read once")
    number("file_system_poll_wait_seconds", 1, "seconds between looks for versions; 0: one look, negative: none")
    number("max_num_load_retries", 5, "times that a failed load is tried again")
    number("load_retry_interval_micros", 60_000_000, "microseconds between those")
    switch("allow_version_labels_for_unavailable_models", False, "new labels may point to versions that do not serve")
    switch("force_allow_any_version_labels_for_unavailable_models", False, "moved labels may, too")
    switch("enable_model_warmup", True, "replay assets.extra/tf_serving_warmup_requests before a version serves")
    number("num_request_iterations_for_warmup", 1, "times that each warmup request is run")
    text("saved_model_tags", "serve", "tags of the graph in the SavedModel, separated by commas")
    switch("enable_batching", False, "run concurrent requests as one")
    text("batching_parameters_file", "", "file with BatchingParameters in protobuf text format")
    text("monitoring_config_file", "", "file with a MonitoringConfig in protobuf text format")
    number("tensorflow_intra_op_parallelism", 0, "threads of one operation; 0: TensorFlow decides")
    number("tensorflow_inter_op_parallelism", 0, "operations at a time; 0: TensorFlow decides")
    return parser


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1"):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise argparse.ArgumentTypeError(f"neither true nor false: {text!r}")
