"""Canary against stable, by what the gateways measured of both at the same time."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families

from serving import http_client, proxies

_FAILURES = "catbreeds_gateway_model_server_failures"
_SECONDS = "catbreeds_gateway_model_server_seconds"
_TIMEOUT_SECONDS = 10
_SLOW_SHARE = 0.05  # latency is compared at the 95th percentile


class Outcome(enum.Enum):
    """Of a comparison."""

    GOOD = "good"
    BAD = "bad"
    UNDECIDED = "undecided"


class Verdict(NamedTuple):
    """What was found.

    Attributes:
        outcome: of the comparison.
        reason: a sentence with the numbers.
    """

    outcome: Outcome
    reason: str


@dataclasses.dataclass(frozen=True)
class Rules:
    """When a canary is good enough.

    Attributes:
        min_requests: that the canary must have had before it can be good.
        max_error_increase: share of requests that it may fail more often than stable.
        max_latency_ratio: of its 95th percentile to that of stable.
        alpha: one-sided p-value below which a difference is none of chance. It is looked at many times: keep it small.
    """

    min_requests: int = 200
    max_error_increase: float = 0.005
    max_latency_ratio: float = 1.5
    alpha: float = 0.001


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Requests for one label.

    Attributes:
        failed: without an answer.
        slower: bound in seconds -> answers that took longer; the bounds are those of the gateways' histogram.
        answered: number of answers.
    """

    failed: int = 0
    answered: int = 0
    slower: Mapping[float, int] = dataclasses.field(default_factory=dict)

    @property
    def requests(self) -> int:
        """Answered or not."""
        return self.failed + self.answered

    def percentile_bound(self, share: float) -> float:
        """The lowest bound that at most `share` of the answers took longer than; infinite if there is none."""
        return min((bound for bound, n in self.slower.items() if n <= share * self.answered), default=float("inf"))

    def __add__(self, other: "Traffic") -> "Traffic":
        bounds = self.slower.keys() | other.slower.keys()
        slower = {bound: self.slower.get(bound, 0) + other.slower.get(bound, 0) for bound in bounds}
        return Traffic(self.failed + other.failed, self.answered + other.answered, slower)

    def since(self, earlier: "Traffic") -> "Traffic":
        """What came after `earlier`; everything if the gateway has started anew."""
        if earlier.failed > self.failed or earlier.answered > self.answered:
            return self
        slower = {bound: n - earlier.slower.get(bound, 0) for bound, n in self.slower.items()}
        return Traffic(self.failed - earlier.failed, self.answered - earlier.answered, slower)


def read_traffic(address: str) -> dict[str, Traffic]:
    """Traffic by label that a gateway has seen.

    Args:
        address: host:port of the gateway.

    Raises:
        OSError: it does not answer, or not as a gateway does.
    """
    url = f"http://{address}/metrics"
    try:
        with http_client.client(timeout=_TIMEOUT_SECONDS) as client:
            answer = client.get(url)
        if not answer.is_success:
            raise OSError(f"{url}{proxies.through(url)}: answers {answer.status_code} {answer.reason_phrase}")
        return _traffic(answer.text)
    except (httpx.HTTPError, proxies.ProxyError) as error:
        raise OSError(f"{url}{proxies.through(url)}: {error}") from None
    except (ValueError, KeyError, OverflowError) as error:
        raise OSError(f"{url}{proxies.through(url)}: these are no metrics of a gateway: {error!r}") from None


def _traffic(text: str) -> dict[str, Traffic]:
    families = list(text_string_to_metric_families(text))
    samples = [sample for family in families for sample in family.samples if "label" in sample.labels]
    counted: dict[str, dict[str, int]] = {}
    within: dict[str, dict[float, int]] = {}
    for sample in samples:
        label = sample.labels["label"]
        if sample.name == f"{_SECONDS}_bucket":
            within.setdefault(label, {})[float(sample.labels["le"])] = int(sample.value)
        else:
            counted.setdefault(label, {})[sample.name] = int(sample.value)
    traffic = {}
    for label, counts in counted.items():
        answered = counts.get(f"{_SECONDS}_count", 0)
        slower = {bound: answered - n for bound, n in within.get(label, {}).items()}
        traffic[label] = Traffic(counts.get(f"{_FAILURES}_total", 0), answered, slower)
    return traffic


def compare(canary: Traffic, stable: Traffic, rules: Rules) -> Verdict:
    """Whether the canary fails or is slow beyond what chance explains: Fisher's exact test on both."""
    failed = _rate(canary.failed, canary.requests), _rate(stable.failed, stable.requests)
    if failed[0] > failed[1] + rules.max_error_increase and _more(
        canary.failed, canary.requests, stable.failed, stable.requests, rules.alpha
    ):
        return Verdict(
            Outcome.BAD,
            f"it fails {failed[0]:.1%} of {canary.requests} requests, stable {failed[1]:.1%} of {stable.requests}",
        )
    if stable.answered and canary.answered:
        usual = stable.percentile_bound(_SLOW_SHARE)
        found = canary.percentile_bound(_SLOW_SHARE)
        if found > usual * rules.max_latency_ratio and _more(
            canary.slower.get(usual, 0), canary.answered, stable.slower.get(usual, 0), stable.answered, rules.alpha
        ):
            return Verdict(
                Outcome.BAD, f"95 % of its answers take up to {found:g} s, those of stable up to {usual:g} s"
            )
    counts = f"{canary.requests} requests for canary ({failed[0]:.1%} failed), {stable.requests} for stable"
    if canary.requests < rules.min_requests or stable.requests < rules.min_requests:
        return Verdict(Outcome.UNDECIDED, f"too few to judge by: {counts}; {rules.min_requests} of each are wanted")
    return Verdict(Outcome.GOOD, f"not worse than stable: {counts} ({failed[1]:.1%} failed)")


def _rate(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _more(part: int, whole: int, other_part: int, other_whole: int, alpha: float) -> bool:
    """Whether the first share is larger, and chance would hardly make it so."""
    from scipy.stats import fisher_exact  # a second to import

    table = [[part, whole - part], [other_part, other_whole - other_part]]
    return bool(fisher_exact(table, alternative="greater").pvalue < alpha)
