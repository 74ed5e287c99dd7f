"""Which version of the model answers a request: the one in service, or the canary for a share of the requests."""

import hashlib
import time
from pathlib import Path

import structlog

from serving.client import ModelChoice
from serving.gateway.settings import Settings
from serving.labels import CANARY
from serving.traffic_split import read_canary_share

_LOG = structlog.get_logger()
_KEPT_SECONDS = 1.0


class Routing:
    """Requests with the same key get the same version for as long as the share stays; when it grows, none goes back.

    Args:
        settings: name and label of the model, and the file that says the share.

    Attributes:
        stable: the version in service.
    """

    def __init__(self, settings: Settings):
        self.stable = ModelChoice(settings.model_name, label=settings.model_label)
        self._canary = ModelChoice(settings.model_name, label=CANARY)
        self._file = Path(settings.traffic_file) if settings.traffic_file else None
        self._share, self._kept_until = 0.0, 0.0

    def choose(self, key: str) -> ModelChoice:
        """What the model server is asked for.

        Args:
            key: of whoever asks.
        """
        place = int.from_bytes(hashlib.sha256(key.encode(errors="replace")).digest()[:8]) / 2**64
        return self._canary if place < self._canary_share() else self.stable

    def _canary_share(self) -> float:
        if self._file and time.monotonic() >= self._kept_until:
            self._kept_until = time.monotonic() + _KEPT_SECONDS
            try:
                self._share = read_canary_share(self._file.read_text(encoding="utf-8"))
            except FileNotFoundError:
                self._share = 0.0
            except (OSError, ValueError) as error:
                _LOG.error("traffic file", path=str(self._file), error=str(error))
        return self._share
