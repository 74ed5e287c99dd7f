"""Settings of the gateway, read from environment variables: `CATBREEDS_GATEWAY_PORT=80` sets `port`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from serving import photo_normalization
from serving.addresses import GATEWAY_PORT, GRPC_PORT, grpc_target_error, without_brackets
from serving.service_links import is_service_link

PREFIX = "CATBREEDS_GATEWAY_"


class SettingsError(ValueError):
    """A variable is unknown or its value is invalid; the message names the variable and the allowed values."""


def _split_items(value: Any) -> Any:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


_DEFAULT_PORTS = {"http": 80, "https": 443}


def _normalize_origin(text: str) -> str:
    """Return an origin as browsers send it: lower case, ASCII, without the default port of the scheme."""
    if text in ("*", "null"):
        return text
    parts = urlsplit(text)
    if not parts.scheme or not parts.hostname or "@" in parts.netloc or "*" in text:
        raise ValueError("not an origin")
    if parts.path not in ("", "/") or "?" in text or "#" in text:
        raise ValueError("not an origin")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    port = "" if parts.port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{parts.port}"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}"


def _check_grpc_target(text: str) -> str:
    if problem := grpc_target_error(text):
        raise ValueError(f"{problem}; write HOST:PORT")
    return text


def _check_folder(text: str) -> str:
    if Path(text).exists() and not Path(text).is_dir():
        raise ValueError("is a file; set the path of a folder")
    return text


def _check_file(text: str) -> str:
    if Path(text).is_dir():
        raise ValueError("is a folder; set the path of a file")
    return text


CommaSeparated = BeforeValidator(_split_items)
Origin = Annotated[str, AfterValidator(_normalize_origin)]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$", to_lower=True)]


class Settings(BaseModel):
    """Settings of the gateway; `--help` shows their descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: Annotated[str, AfterValidator(without_brackets)] = Field(
        "0.0.0.0", min_length=1, description="address to listen on"
    )
    port: int = Field(GATEWAY_PORT, ge=1, le=65535, description="port to listen on")
    model_server: Annotated[str, AfterValidator(_check_grpc_target)] = Field(
        f"localhost:{GRPC_PORT}", min_length=1, description="gRPC address of the model server"
    )
    model_name: str = Field("catbreeds", min_length=1, description="name of the model to query")
    model_label: str | None = Field(
        None,
        min_length=1,
        description="label of the version to query; unset: the default version of the model server",
    )
    traffic_file: Annotated[str, AfterValidator(_check_file)] | None = Field(
        None,
        min_length=1,
        description="path of the traffic file, which contains the canary's share of the requests",
    )
    deadline_seconds: float = Field(
        10, gt=0, le=600, description="seconds from the arrival of a request body to the response"
    )
    read_seconds: float = Field(30, gt=0, le=3600, description="seconds for a request body to arrive")
    grace_seconds: int = Field(30, ge=1, le=3600, description="seconds for requests in flight to finish at shutdown")
    keep_alive_seconds: int = Field(75, ge=1, le=3600, description="seconds after which an idle connection is closed")
    max_bytes: int = Field(
        20_000_000, ge=1, le=photo_normalization.MAX_BYTES, description="maximum size of a request body in bytes"
    )
    max_pixels: int | None = Field(
        None,
        ge=photo_normalization.MIN_SIDE**2,
        le=photo_normalization.MAX_PIXELS,
        description="maximum pixels of a photo; unset: 64,000,000 for JPEG and HEIC, 24,000,000 for other formats",
    )
    max_photos: int = Field(
        16, ge=1, le=1024, description="maximum photos in a request; must not exceed the model server's batch size"
    )
    max_in_flight: int = Field(
        64, ge=1, description="maximum concurrent prediction requests; further requests get a 503 with Retry-After"
    )
    decoders: int = Field(2, ge=1, le=256, description="number of threads that decode photos")
    cors_origins: Annotated[list[Origin], CommaSeparated] = Field(
        [], description="origins that may send cross-origin requests, separated by commas; * allows all"
    )
    api_keys: Annotated[list[Sha256], CommaSeparated] = Field(
        [], description="SHA-256 digests of the API keys in hex, separated by commas; unset: no API key is required"
    )
    capture_folder: Annotated[str, AfterValidator(_check_folder)] | None = Field(
        None,
        min_length=1,
        description="folder for captured photos with their answers and feedback, which replicas can share; unset: "
        "nothing is captured",
    )
    capture_share: float = Field(0.05, ge=0, le=1, description="share of the photos to capture, chosen at random")
    capture_uncertain: bool = Field(
        True,
        description="whether to capture also the photos that are unfamiliar or may show several breeds",
    )
    capture_max_bytes: int = Field(
        1_000_000_000,
        ge=1_000_000,
        description="maximum size of the captures on disk in bytes; beyond it, the oldest are deleted, those without "
        "feedback first",
    )
    capture_days: int = Field(30, ge=1, le=3650, description="days after which captures are deleted")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="minimum level of log messages on standard output"
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read the variables that start with PREFIX.

        Raises:
            SettingsError: If a variable is unknown or its value is invalid.
        """
        values = {
            name.removeprefix(PREFIX).lower(): value
            for name, value in environment.items()
            if name.startswith(PREFIX) and not is_service_link(name, value)
        }
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError("\n".join(map(_explain, error.errors()))) from None


def _explain(error: Mapping[str, Any]) -> str:
    field = str(error["loc"][0])
    name = PREFIX + field.upper()
    if error["type"] == "extra_forbidden":
        known = ", ".join(PREFIX + field.upper() for field in Settings.model_fields)
        return f"{name}: no such setting; available settings: {known}"
    if field == "cors_origins":
        return (
            f"{name}: {error['input']!r} is not an origin; write https://HOST or https://HOST:PORT, or * to allow all"
        )
    if field == "api_keys":
        # The message does not show the value, which may be a key instead of its digest.
        return f"{name}: not the SHA-256 digest of a key in hex; create one with: printf %s KEY | sha256sum"
    reason = error["msg"].removeprefix("Value error, ")
    return f"{name}: {reason} (got {error['input']!r})"


def help_text() -> str:
    """Return the part of `--help` that describes the variables."""
    lines = []
    for field, info in Settings.model_fields.items():
        default = "" if info.default in (None, []) else f" (default {info.default})"
        lines.append(f"  {PREFIX}{field.upper()}\n      {info.description}{default}")
    return "\n".join(lines)
