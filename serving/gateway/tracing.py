"""W3C trace context: the gateway continues the trace of a request and passes it on to the model server."""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True)
class Trace:
    """The gateway's span in a trace.

    Attributes:
        trace_id: ID of the trace, 32 hex digits.
        span_id: ID of the gateway's span, 16 hex digits.
        flags: Trace flags, 2 hex digits.
        state: The client's `tracestate`, which the gateway passes on unchanged.
    """

    trace_id: str
    span_id: str
    flags: str
    state: str = ""

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> "Trace":
        """Continue the trace in the request headers; start a new trace if there is no valid `traceparent`."""
        span_id = secrets.token_hex(8)
        if parent := _TRACEPARENT.fullmatch(headers.get("traceparent", "")):
            return cls(parent[1], span_id, parent[2], headers.get("tracestate", ""))
        return cls(secrets.token_hex(16), span_id, "00")

    @property
    def traceparent(self) -> str:
        """The `traceparent` header for requests that the gateway sends."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"

    def metadata(self) -> list[tuple[str, str]]:
        """Return the trace context as gRPC metadata."""
        return [("traceparent", self.traceparent), *([("tracestate", self.state)] if self.state else [])]
