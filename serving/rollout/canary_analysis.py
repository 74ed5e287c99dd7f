"""Compare the canary with the stable version by the metrics that the gateways collect for both at the same time."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families

from serving import http_client, proxies
from serving.rollout.limits import CanaryCriteria

_FAILURES = "catbreeds_gateway_model_server_failures"
_SECONDS = "catbreeds_gateway_model_server_seconds"
_TIMEOUT_SECONDS = 10
_TAIL_SHARE = 0.05  # latency is compared at the 95th percentile


class Outcome(enum.Enum):
    """Outcome of a canary analysis."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class CanaryAnalysis(NamedTuple):
    """Result of comparing the canary with the stable version.

    Attributes:
        outcome: Whether the canary meets the criteria.
        reason: Sentence that gives the reason with the numbers.
    """

    outcome: Outcome
    reason: str


@dataclasses.dataclass(frozen=True)
class RequestStats:
    """Counts of the requests for one label.

    Attributes:
        failed: Number of requests for which the model server returned no prediction.
        succeeded: Number of requests with a prediction.
        slower_than: Number of successful requests that took longer, by bound in seconds. The bounds are the buckets of
            the gateways' latency histogram.
    """

    failed: int = 0
    succeeded: int = 0
    slower_than: Mapping[float, int] = dataclasses.field(default_factory=dict)

    @property
    def requests(self) -> int:
        """Number of all requests."""
        return self.failed + self.succeeded

    def percentile_bound(self, share: float) -> float:
        """Return the lowest bound that at most `share` of the successes exceed; infinity if no bound qualifies."""
        return min(
            (bound for bound, count in self.slower_than.items() if count <= share * self.succeeded),
            default=float("inf"),
        )

    def __add__(self, other: "RequestStats") -> "RequestStats":
        bounds = self.slower_than.keys() | other.slower_than.keys()
        slower_than = {bound: self.slower_than.get(bound, 0) + other.slower_than.get(bound, 0) for bound in bounds}
        return RequestStats(self.failed + other.failed, self.succeeded + other.succeeded, slower_than)

    def since(self, earlier: "RequestStats") -> "RequestStats":
        """Return the counts since `earlier`; all counts if the gateway has restarted since."""
        if earlier.failed > self.failed or earlier.succeeded > self.succeeded:
            return self
        slower_than = {bound: count - earlier.slower_than.get(bound, 0) for bound, count in self.slower_than.items()}
        return RequestStats(self.failed - earlier.failed, self.succeeded - earlier.succeeded, slower_than)


def read_request_stats(address: str) -> dict[str, RequestStats]:
    """Read a gateway's metrics.

    Args:
        address: Address of the gateway, host:port.

    Returns:
        Stats by label since the gateway started.

    Raises:
        OSError: If the gateway does not respond, or the response is not a gateway's metrics.
    """
    url = f"http://{address}/metrics"
    try:
        with http_client.client(timeout=_TIMEOUT_SECONDS) as client:
            response = client.get(url)
        if not response.is_success:
            raise OSError(f"{url}{proxies.through(url)}: HTTP {response.status_code} {response.reason_phrase}")
        return _parse_metrics(response.text)
    except (httpx.HTTPError, proxies.ProxyError) as error:
        raise OSError(f"{url}{proxies.through(url)}: {error}") from None
    except (ValueError, KeyError, OverflowError) as error:
        raise OSError(f"{url}{proxies.through(url)}: not the metrics of a gateway: {error!r}") from None


def _parse_metrics(text: str) -> dict[str, RequestStats]:
    families = list(text_string_to_metric_families(text))
    samples = [sample for family in families for sample in family.samples if "label" in sample.labels]
    counters: dict[str, dict[str, int]] = {}  # by label, then by name
    buckets: dict[str, dict[float, int]] = {}  # by label, then by bound
    for sample in samples:
        label = sample.labels["label"]
        if sample.name == f"{_SECONDS}_bucket":
            buckets.setdefault(label, {})[float(sample.labels["le"])] = int(sample.value)
        else:
            counters.setdefault(label, {})[sample.name] = int(sample.value)
    stats = {}
    for label, counts in counters.items():
        succeeded = counts.get(f"{_SECONDS}_count", 0)
        slower_than = {bound: succeeded - count for bound, count in buckets.get(label, {}).items()}
        stats[label] = RequestStats(counts.get(f"{_FAILURES}_total", 0), succeeded, slower_than)
    return stats


def compare(canary: RequestStats, stable: RequestStats, criteria: CanaryCriteria) -> CanaryAnalysis:
    """Test whether the canary's error rate or latency is significantly worse, with Fisher's exact test for each."""
    canary_rate, stable_rate = _rate(canary.failed, canary.requests), _rate(stable.failed, stable.requests)
    if canary_rate > stable_rate + criteria.max_error_increase and _is_share_greater(
        canary.failed, canary.requests, stable.failed, stable.requests, criteria.alpha
    ):
        return CanaryAnalysis(
            Outcome.FAIL,
            f"the canary failed {canary_rate:.1%} of {canary.requests} requests, "
            f"stable {stable_rate:.1%} of {stable.requests}",
        )
    if stable.succeeded and canary.succeeded:
        stable_bound = stable.percentile_bound(_TAIL_SHARE)
        canary_bound = canary.percentile_bound(_TAIL_SHARE)
        if canary_bound > stable_bound * criteria.max_latency_ratio and _is_share_greater(
            canary.slower_than.get(stable_bound, 0),
            canary.succeeded,
            stable.slower_than.get(stable_bound, 0),
            stable.succeeded,
            criteria.alpha,
        ):
            return CanaryAnalysis(
                Outcome.FAIL,
                f"the canary's 95th percentile latency is up to {canary_bound:g} s, stable's up to {stable_bound:g} s",
            )
    counts = f"{canary.requests} requests for canary ({canary_rate:.1%} failed), {stable.requests} for stable"
    if canary.requests < criteria.min_requests or stable.requests < criteria.min_requests:
        return CanaryAnalysis(
            Outcome.INCONCLUSIVE, f"too few requests: {counts}; {criteria.min_requests} of each are needed"
        )
    return CanaryAnalysis(Outcome.PASS, f"not worse than stable: {counts} ({stable_rate:.1%} failed)")


def _rate(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _is_share_greater(part: int, whole: int, other_part: int, other_whole: int, alpha: float) -> bool:
    """Return whether the first share is significantly greater than the second."""
    from scipy.stats import fisher_exact  # the import takes a second

    table = [[part, whole - part], [other_part, other_whole - other_part]]
    return bool(fisher_exact(table, alternative="greater").pvalue < alpha)
