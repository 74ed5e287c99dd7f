"""Choose the version of the model for a request: the stable version, or the canary for a share of the requests."""

import hashlib
import time
from pathlib import Path

import structlog

from serving.client import ModelChoice
from serving.gateway.settings import Settings
from serving.labels import CANARY
from serving.traffic_split import read_canary_share

_LOG = structlog.get_logger()
_CACHE_SECONDS = 1.0


class Routing:
    """Traffic split by request key.

    Requests with the same key get the same version while the canary's share is constant. When the share grows, keys
    only move from stable to the canary.

    Args:
        settings: Settings with the name and label of the model and the path of the traffic file.

    Attributes:
        stable: The stable version.
    """

    def __init__(self, settings: Settings):
        self.stable = ModelChoice(settings.model_name, label=settings.model_label)
        self._canary = ModelChoice(settings.model_name, label=CANARY)
        self._file = Path(settings.traffic_file) if settings.traffic_file else None
        self._share, self._cached_until = 0.0, 0.0

    def choose(self, key: str) -> ModelChoice:
        """Return the version to query.

        Args:
            key: Key of the end user or client.
        """
        position = int.from_bytes(hashlib.sha256(key.encode(errors="replace")).digest()[:8]) / 2**64
        return self._canary if position < self._canary_share() else self.stable

    def _canary_share(self) -> float:
        if self._file and time.monotonic() >= self._cached_until:
            self._cached_until = time.monotonic() + _CACHE_SECONDS
            try:
                self._share = read_canary_share(self._file.read_text(encoding="utf-8"))
            except FileNotFoundError:
                self._share = 0.0
            except (OSError, ValueError) as error:
                _LOG.error("cannot read the traffic file", path=str(self._file), error=str(error))
        return self._share
