"""Why there is no answer. What is wrong with a photo is a `serving.photo.PhotoError`."""


class ClientError(Exception):
    """There is no answer; the message says why, fit to be shown."""


class Unavailable(ClientError):
    """Nobody listens there, or the server is overloaded or stopping. Asking again later may help.

    Attributes:
        retry_after: seconds after which the server wants to be asked again; None if it did not say.
    """

    def __init__(self, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.retry_after = retry_after


class Unreachable(Unavailable):
    """Nobody listens at the address."""


class Busy(Unavailable):
    """The gateway has more requests than it takes at a time."""


class TimedOut(ClientError):
    """No answer within the time."""


class NotServed(ClientError):
    """The server is there and does not serve that model, version or label (yet)."""


class RequestRejected(ClientError):
    """The server does not take such a request from this client: wrong key, wrong address, wrong parameter."""


class WrongAddress(RequestRejected):
    """The address is none, or not that of such a server: it has a path that is not the server's, for example."""


class InvalidKey(RequestRejected):
    """No HTTP header can carry the key."""


class BadResponse(ClientError):
    """The server failed, or answers something else than a breed classifier does."""


def is_unknown_label(text: str) -> bool:
    """Whether TensorFlow Serving refused a label: its code is that of a malformed request."""
    return "Unrecognized servable version label" in text
