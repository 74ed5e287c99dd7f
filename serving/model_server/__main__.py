"""Starts the server: `python -m serving.model_server --model_base_path=...`; `--help` lists the flags."""

import logging
import os
import signal
import sys

from serving.model_server import flags


def main() -> int:
    """Returns the exit code of the process."""
    values = flags.parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s", stream=sys.stderr)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it tells of its own deprecations
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Before TensorFlow starts threads, which inherit it. `serve` waits for these two.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    # After the flags: TensorFlow takes seconds to import.
    from serving.model_server.server import serve

    return serve(values)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stderr.flush()
    # A version that is still loading would crash in an orderly end, under TensorFlow's destructors.
    os._exit(code)
