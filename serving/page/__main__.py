"""Start the page: `python -m serving.page`; `--help` lists the environment variables."""

import argparse
import os
import sys
from pathlib import Path

from serving.page.settings import Settings, SettingsError, help_text

_APP = Path(__file__).with_name("app.py")
_MAX_UPLOAD_MB = 20  # the gateway's default limit

_FLAGS = {
    "server.headless": "true",
    # These flags override the config.toml of other projects in the home or current folder.
    "global.developmentMode": "false",
    "server.baseUrlPath": "",
    "server.sslCertFile": "",
    "server.sslKeyFile": "",
    "server.fileWatcherType": "none",
    "server.maxUploadSize": _MAX_UPLOAD_MB,
    "browser.gatherUsageStats": "false",
    # The welcome message contains the external IP address, for which Streamlit queries a server on the internet.
    "logger.hideWelcomeMessage": "true",
    "client.toolbarMode": "minimal",
    # Visitors do not see stack traces; the log contains them.
    "client.showErrorDetails": "none",
    "theme.paddingTop": "3rem",
    "theme.light.primaryColor": "#a8461f",
    "theme.dark.primaryColor": "#f0a36b",
}


def main() -> int:
    """Replace this process with Streamlit; return an exit code if the settings are invalid."""
    argparse.ArgumentParser(
        prog="python -m serving.page",
        description="Web page that shows the breed of a cat in a photo.",
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
    # STREAMLIT_* variables belong to other projects.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIT_")}
    os.execve(sys.executable, [sys.executable, *command], environment)


if __name__ == "__main__":
    sys.exit(main())
