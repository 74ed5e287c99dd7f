"""Limits of a rollout and the criteria for a canary, with their defaults. The pipeline's settings also use them.

This module imports no gRPC, HTTP or Kubernetes client, so that reading the settings stays fast.
"""

import dataclasses
from typing import NamedTuple

# Share of the gateways' requests that a canary receives.
CANARY_SHARE = 0.1


class RolloutLimits(NamedTuple):
    """Limits on memory, disk space and time.

    Attributes:
        loaded_versions: Number of versions that fit into a model server's memory. With 2, the previous stable version
            stays loaded, so a rollback is immediate.
        keep_versions: Number of newest versions that always stay in the registry.
        load_seconds: Time for a server to load a version.
        starting_seconds: Time for a server to start listening.
        poll_seconds: Time within which a server scans for versions at least once (--file_system_poll_wait_seconds).
            Until then, a reported load error may be from an earlier attempt.
    """

    loaded_versions: int = 2
    keep_versions: int = 10
    load_seconds: float = 600.0
    starting_seconds: float = 60
    poll_seconds: float = 15


@dataclasses.dataclass(frozen=True)
class CanaryCriteria:
    """Criteria that a canary must meet.

    Attributes:
        min_requests: Number of requests that both the canary and the stable version need before the canary can pass.
        max_error_increase: Largest increase over the error rate of the stable version, as a share of the requests.
        max_latency_ratio: Largest ratio of the canary's 95th latency percentile to that of the stable version.
        alpha: One-sided p-value below which a difference counts as significant. The comparison is repeated many times,
            so keep it small.
    """

    min_requests: int = 200
    max_error_increase: float = 0.005
    max_latency_ratio: float = 1.5
    alpha: float = 0.001
