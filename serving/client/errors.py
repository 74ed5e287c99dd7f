"""Errors of the clients. A photo that cannot be used raises `serving.photo_normalization.PhotoError` instead."""


class ClientError(Exception):
    """The server returned no prediction. The message gives the reason and can be shown to users."""


class Unavailable(ClientError):
    """The server is unreachable, overloaded or shutting down. A later retry may succeed.

    Attributes:
        retry_after: Seconds to wait before a retry, as sent by the server; None if it sent none.
    """

    def __init__(self, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.retry_after = retry_after


class Unreachable(Unavailable):
    """No connection to the address could be established."""


class Busy(Unavailable):
    """The gateway is processing its maximum number of concurrent requests."""


class TimedOut(ClientError):
    """The server did not respond within the timeout."""


class NotServed(ClientError):
    """The server does not serve the requested model, version or label, or has not loaded it yet."""


class RequestRejected(ClientError):
    """The server, or the client itself, rejects the request: wrong API key, address or parameter, for example."""


class WrongAddress(RequestRejected):
    """The address is malformed or belongs to another kind of server, for example because it includes a path."""


class NoSuchCapture(RequestRejected):
    """The gateway stores no photo with this token: it expired, was deleted, or could not be stored."""


class InvalidKey(RequestRejected):
    """The key contains characters that an HTTP header cannot carry."""


class BadResponse(ClientError):
    """The server failed, or its response is not that of a breed classifier."""


def is_unknown_label(text: str) -> bool:
    """Return whether TensorFlow Serving reports an unknown label, for which it has no status code of its own."""
    return "Unrecognized servable version label" in text
