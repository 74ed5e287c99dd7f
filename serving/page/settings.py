"""Settings of the page, from environment variables: `CATBREEDS_PAGE_PORT=80` is `port`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from serving.addresses import GATEWAY_PORT, PAGE_PORT, without_brackets
from serving.environment import is_service_link
from serving.names import is_header_value

PREFIX = "CATBREEDS_PAGE_"


class SettingsError(ValueError):
    """A variable that is unknown or impossible; the message names it and says what to do."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be set; the descriptions are what `--help` shows."""

    gateway: Annotated[str, "address of the gateway, http://HOST:PORT"] = f"http://localhost:{GATEWAY_PORT}"
    api_key: Annotated[str | None, "where the gateway wants one"] = None
    samples: Annotated[Path | None, "folder of photos to try, in it one folder a breed; unset: none are offered"] = None
    host: Annotated[str, "address to listen on"] = "0.0.0.0"
    port: Annotated[int, "port to listen on"] = PAGE_PORT

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Reads the variables that begin with PREFIX; an empty one counts as unset.

        Raises:
            SettingsError: names the variable.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        values = {}
        for variable, text in environment.items():
            name = variable.removeprefix(PREFIX).lower()
            if not variable.startswith(PREFIX) or not text or is_service_link(variable, text):
                continue
            if name not in names:
                there = ", ".join(PREFIX + name.upper() for name in names)
                raise SettingsError(f"{variable}: no such setting; there are {there}")
            try:
                values[name] = _READ.get(name, str)(text)
            except ValueError as error:
                got = "" if name == "api_key" else f" (got {text!r})"
                raise SettingsError(f"{variable}: {error}{got}") from None
        return cls(**values)


def _url(text: str) -> str:
    parts = urlsplit(text)
    plain = parts.scheme in ("http", "https") and parts.path in ("", "/") and not (parts.query or parts.fragment)
    if not plain or not parts.hostname or not set(text).isdisjoint(" {}$<>"):
        raise ValueError("must be the address of the gateway alone, http://HOST:PORT")
    if parts.port is None and parts.netloc.endswith(":"):
        raise ValueError("the port is missing, http://HOST:PORT")
    return text.rstrip("/")


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ValueError("must be a port, 1 to 65535")
    return int(text)


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise ValueError("there is no such folder")
    return Path(text)


def _key(text: str) -> str:
    if not is_header_value(text):
        raise ValueError("must be printable ASCII")
    return text


_READ = {"gateway": _url, "api_key": _key, "host": without_brackets, "port": _port, "samples": _folder}


def help_text() -> str:
    """A line for each variable."""
    lines = []
    for field in dataclasses.fields(Settings):
        default = f" (default {field.default})" if field.default is not None else ""
        lines.append(f"  {PREFIX}{field.name.upper()}\n      {field.type.__metadata__[0]}{default}")
    return "\n".join(lines)
