"""Entry point of the model server: `python -m serving.model_server --model_base_path=...`; see `--help`."""

import logging
import os
import signal
import sys

from serving.model_server import flags


def exclude_keras() -> None:
    """Make TensorFlow start without Keras, which takes seconds and 180 MB and is not needed to run a SavedModel.

    TensorFlow ignores that the import of Keras fails.
    """
    sys.modules["keras"] = None


def main() -> int:
    """Parse the flags and serve until a stop signal; return the exit code."""
    values = flags.parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s", stream=sys.stderr)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # hides warnings about TensorFlow's own deprecations
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Block the signals before TensorFlow starts threads, which inherit the mask. `serve` waits for both.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    exclude_keras()
    # Imported after the flags are parsed: importing TensorFlow takes seconds.
    from serving.model_server.server import serve

    return serve(values)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stderr.flush()
    # Skip destructors: TensorFlow's would crash a thread that is still loading a version.
    os._exit(code)
