"""W3C trace context: the trace of a request goes on through the gateway to the model server."""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True)
class Trace:
    """A span of the gateway in a trace.

    Attributes:
        trace_id: 32 hex digits.
        span_id: 16 hex digits, of the gateway's own span.
        flags: 2 hex digits.
        state: `tracestate` of whoever called, passed on as it is.
    """

    trace_id: str
    span_id: str
    flags: str
    state: str = ""

    @classmethod
    def continued(cls, headers: Mapping[str, str]) -> "Trace":
        """The trace that the caller began; a new one if it did not, or did in a way that is no trace."""
        span_id = secrets.token_hex(8)
        if given := _TRACEPARENT.fullmatch(headers.get("traceparent", "")):
            return cls(given[1], span_id, given[2], headers.get("tracestate", ""))
        return cls(secrets.token_hex(16), span_id, "00")

    @property
    def parent(self) -> str:
        """`traceparent` for whom the gateway calls."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"

    def metadata(self) -> list[tuple[str, str]]:
        """As gRPC metadata."""
        return [("traceparent", self.parent), *([("tracestate", self.state)] if self.state else [])]
