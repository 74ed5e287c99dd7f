"""Settings of the gateway, from environment variables: `CATBREEDS_GATEWAY_PORT=80` is `port`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from serving import photo
from serving.addresses import GATEWAY_PORT, GRPC_PORT, grpc_target_error, without_brackets
from serving.environment import is_service_link

PREFIX = "CATBREEDS_GATEWAY_"


class SettingsError(ValueError):
    """A variable that is unknown or impossible; the message names it and says what to do."""


def _items(value: Any) -> Any:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


_DEFAULT_PORTS = {"http": 80, "https": 443}


def _origin(text: str) -> str:
    """An origin as browsers write it: in lower case, in ASCII, without the port that the scheme implies."""
    if text in ("*", "null"):
        return text
    parts = urlsplit(text)
    if not parts.scheme or not parts.hostname or "@" in parts.netloc or "*" in text:
        raise ValueError("no origin")
    if parts.path not in ("", "/") or "?" in text or "#" in text:
        raise ValueError("no origin")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    port = "" if parts.port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{parts.port}"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}"


def _grpc_target(text: str) -> str:
    if problem := grpc_target_error(text):
        raise ValueError(f"{problem}; write HOST:PORT")
    return text


def _file(text: str) -> str:
    if Path(text).is_dir():
        raise ValueError("is a folder; name the file")
    return text


CommaSeparated = BeforeValidator(_items)
Origin = Annotated[str, AfterValidator(_origin)]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$", to_lower=True)]


class Settings(BaseModel):
    """What can be set; `description` is what `--help` shows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: Annotated[str, AfterValidator(without_brackets)] = Field(
        "0.0.0.0", min_length=1, description="address to listen on"
    )
    port: int = Field(GATEWAY_PORT, ge=1, le=65535, description="port to listen on")
    model_server: Annotated[str, AfterValidator(_grpc_target)] = Field(
        f"localhost:{GRPC_PORT}", min_length=1, description="gRPC address of the model server"
    )
    model_name: str = Field("catbreeds", min_length=1, description="model that is asked for")
    model_label: str | None = Field(
        None,
        min_length=1,
        description="label of the version that is asked for; unset: what the server serves by default",
    )
    traffic_file: Annotated[str, AfterValidator(_file)] | None = Field(
        None, min_length=1, description="file in which rollout says what share of the requests the canary gets"
    )
    deadline_seconds: float = Field(10, gt=0, le=600, description="from a photo that has arrived to its answer")
    read_seconds: float = Field(30, gt=0, le=3600, description="for a photo to arrive")
    grace_seconds: int = Field(30, ge=1, le=3600, description="for requests in flight when it is stopped")
    keep_alive_seconds: int = Field(75, ge=1, le=3600, description="that a connection may be idle")
    max_bytes: int = Field(20_000_000, ge=1, le=photo.MAX_BYTES, description="of a request")
    max_pixels: int | None = Field(
        None,
        ge=photo.MIN_SIDE**2,
        le=photo.MAX_PIXELS,
        description="of a photo; unset: 64,000,000 of a JPEG or HEIC, 24,000,000 of another format",
    )
    max_photos: int = Field(16, ge=1, le=1024, description="in a request; the model server's batches must hold them")
    max_in_flight: int = Field(64, ge=1, description="predictions at a time; more are told to come back")
    decoders: int = Field(2, ge=1, le=256, description="threads that decode photos")
    cors_origins: Annotated[list[Origin], CommaSeparated] = Field(
        [], description="origins whose pages may ask, separated by commas; * for all"
    )
    api_keys: Annotated[list[Sha256], CommaSeparated] = Field(
        [], description="SHA-256 of keys in hex, separated by commas; unset: no key is needed"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="of the log on standard output")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Reads the variables that begin with PREFIX.

        Raises:
            SettingsError: names the variable.
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
        return (
            f"{name}: no such setting; there are {', '.join(PREFIX + field.upper() for field in Settings.model_fields)}"
        )
    if field == "cors_origins":
        return f"{name}: {error['input']!r} is no origin; write https://HOST or https://HOST:PORT, or * for all"
    if field == "api_keys":
        return f"{name}: {error['input']!r} is no SHA-256 in hex; printf %s KEY | sha256sum makes one"
    return f"{name}: {error['msg']} (got {error['input']!r})"


def help_text() -> str:
    """A line for each variable."""
    lines = []
    for field, info in Settings.model_fields.items():
        default = "" if info.default in (None, []) else f" (default {info.default})"
        lines.append(f"  {PREFIX}{field.upper()}\n      {info.description}{default}")
    return "\n".join(lines)
