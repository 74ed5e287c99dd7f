"""Settings of the page, read from environment variables: `CATBREEDS_PAGE_PORT=80` sets `port`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from serving.addresses import GATEWAY_PORT, PAGE_PORT, without_brackets
from serving.names import is_header_value
from serving.service_links import is_service_link

PREFIX = "CATBREEDS_PAGE_"


class SettingsError(ValueError):
    """A variable is unknown or its value is invalid; the message names the variable and the allowed values."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the page; `--help` shows their descriptions."""

    gateway: Annotated[str, "address of the gateway, http://HOST:PORT"] = f"http://localhost:{GATEWAY_PORT}"
    api_key: Annotated[str | None, "API key, if the gateway requires one"] = None
    samples: Annotated[Path | None, "folder of sample photos, with one folder per breed; unset: no samples"] = None
    review_captures: Annotated[
        Path | None, "folder of captured photos; with review_photos, the page is for their review; see docs/feedback.md"
    ] = None
    review_photos: Annotated[Path | None, "photo folder that accepted photos are copied to"] = None
    host: Annotated[str, "address to listen on"] = "0.0.0.0"
    port: Annotated[int, "port to listen on"] = PAGE_PORT

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read the variables that start with PREFIX; an empty variable counts as unset.

        Raises:
            SettingsError: If a variable is unknown or its value is invalid.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        values = {}
        for variable, text in environment.items():
            name = variable.removeprefix(PREFIX).lower()
            if not variable.startswith(PREFIX) or not text or is_service_link(variable, text):
                continue
            if name not in names:
                known = ", ".join(PREFIX + name.upper() for name in names)
                raise SettingsError(f"{variable}: no such setting; available settings: {known}")
            try:
                values[name] = _PARSERS.get(name, str)(text)
            except ValueError as error:
                got = "" if name == "api_key" else f" (got {text!r})"
                raise SettingsError(f"{variable}: {error}{got}") from None
        if ("review_captures" in values) != ("review_photos" in values):
            raise SettingsError(f"{PREFIX}REVIEW_CAPTURES and {PREFIX}REVIEW_PHOTOS must be set together")
        return cls(**values)


def _parse_url(text: str) -> str:
    parts = urlsplit(text)
    has_no_path = parts.scheme in ("http", "https") and parts.path in ("", "/") and not (parts.query or parts.fragment)
    if not has_no_path or not parts.hostname or not set(text).isdisjoint(" {}$<>"):
        raise ValueError("must be the address of the gateway without a path, http://HOST:PORT")
    if parts.port is None and parts.netloc.endswith(":"):
        raise ValueError("the port is missing; write http://HOST:PORT")
    return text.rstrip("/")


def _parse_port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ValueError("must be a port number, 1 to 65535")
    return int(text)


def _parse_folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise ValueError("folder not found")
    return Path(text)


def _parse_key(text: str) -> str:
    if not is_header_value(text):
        raise ValueError("must be printable ASCII")
    return text


_PARSERS = {
    "gateway": _parse_url,
    "api_key": _parse_key,
    "host": without_brackets,
    "port": _parse_port,
    "samples": _parse_folder,
    "review_captures": _parse_folder,
    "review_photos": _parse_folder,
}


def help_text() -> str:
    """Return the part of `--help` that describes the variables."""
    lines = []
    for field in dataclasses.fields(Settings):
        default = f" (default {field.default})" if field.default is not None else ""
        lines.append(f"  {PREFIX}{field.name.upper()}\n      {field.type.__metadata__[0]}{default}")
    return "\n".join(lines)
