"""Starts the page: `python -m serving.page`; `--help` lists the environment variables."""

import argparse
import os
import sys
from pathlib import Path

from serving.page.settings import Settings, SettingsError, help_text

_APP = Path(__file__).with_name("app.py")
_MAX_MEGABYTES = 20  # of an upload; the gateway takes no more

_FLAGS = {
    "server.headless": "true",
    # Where it listens, whatever a config.toml of other projects in the home or the current folder says.
    "global.developmentMode": "false",
    "server.baseUrlPath": "",
    "server.sslCertFile": "",
    "server.sslKeyFile": "",
    "server.fileWatcherType": "none",
    "server.maxUploadSize": _MAX_MEGABYTES,
    "browser.gatherUsageStats": "false",
    # To print its addresses Streamlit asks a server on the internet for its external one.
    "logger.hideWelcomeMessage": "true",
    "client.toolbarMode": "minimal",
    # A fault of ours is for the log, not for strangers.
    "client.showErrorDetails": "none",
    "theme.paddingTop": "3rem",
    "theme.light.primaryColor": "#a8461f",
    "theme.dark.primaryColor": "#f0a36b",
}


def main() -> int:
    """Becomes Streamlit; returns the exit code of the process if it cannot."""
    argparse.ArgumentParser(
        prog="python -m serving.page",
        description="A web page that shows the breed of a cat in a photo.",
        epilog="environment variables:\n" + help_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    flags = _FLAGS | {"server.address": settings.host, "server.port": settings.port}
    command = ["-m", "streamlit", "run", str(_APP), *(f"--{name}={value}" for name, value in flags.items())]
    # Streamlit's own variables are those of other projects.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIT_")}
    os.execve(sys.executable, [sys.executable, *command], environment)


if __name__ == "__main__":
    sys.exit(main())
