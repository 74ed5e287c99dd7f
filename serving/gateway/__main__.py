"""Start the gateway: `python -m serving.gateway`; `--help` lists the environment variables."""

import argparse
import errno
import os
import signal
import socket
import sys
from pathlib import Path

import structlog
import uvicorn

from serving import proxies
from serving.addresses import address, listen
from serving.gateway import logs
from serving.gateway.app import create_app
from serving.gateway.settings import PREFIX, Settings, SettingsError, help_text

_BACKLOG = 2048


def main() -> int:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight; return the exit code of the process."""
    argparse.ArgumentParser(
        prog="python -m serving.gateway",
        description="HTTP gateway: accepts photos of cats and returns the breeds that a model server predicts.",
        epilog="environment variables:\n" + help_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    try:
        settings = Settings.from_environment(os.environ)
        proxies.find(settings.model_server)
        _create_folder(settings.capture_folder)
        listener = _listen(settings)
    except (SettingsError, proxies.ProxyError) as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure(settings.log_level)
    # After a graceful shutdown, uvicorn raises the signal again; without a handler, it would kill the process.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    config = uvicorn.Config(
        create_app(settings),
        log_config=None,
        access_log=False,
        server_header=False,
        # Otherwise uvicorn reads both from WEB_CONCURRENCY and FORWARDED_ALLOW_IPS, which other programs set.
        workers=1,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.grace_seconds,
    )
    structlog.get_logger().info("starting", **settings.model_dump(exclude={"api_keys"}))
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def _create_folder(path: str | None) -> None:
    try:
        if path:
            Path(path).mkdir(parents=True, exist_ok=True)
            # A full disk must not keep the gateway from starting, so this writes nothing.
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise SettingsError(f"{PREFIX}CAPTURE_FOLDER: cannot write to {path}: {error.strerror}") from None


def _listen(settings: Settings) -> socket.socket:
    try:
        return listen(settings.host, settings.port, _BACKLOG)
    except OSError as error:
        host_and_port = address(settings.host, settings.port)
        raise SettingsError(f"{PREFIX}HOST, {PREFIX}PORT: cannot listen on {host_and_port}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
