"""What Prometheus is told."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

disable_created_metrics()  # a second series for each, which nobody looks at
# Each a quarter more than the one before: rollout compares what versions take, and sees no finer than this.
MODEL_SERVER_SECONDS = tuple(round(0.002 * 1.25**n, 4) for n in range(40))
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters of one gateway.

    Attributes:
        registry: holds them.
        requests: by route and HTTP code.
        seconds: of whole requests, by route.
        decode_seconds: of reading forms and normalising their photos, by request.
        model_server_seconds: of asking the model server, retries included, by the label that was asked for.
        model_server_failures: requests that got no answer from it, by the label.
        canary_fallbacks: requests for the canary that were answered by stable, because there is none.
        in_flight: predictions at work.
    """

    def __init__(self):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        common = {"namespace": "catbreeds", "subsystem": "gateway", "registry": self.registry}
        timed = common | {"buckets": _SECONDS}
        self.requests = Counter("requests", "Requests answered.", ["route", "code"], **common)
        self.seconds = Histogram("request_seconds", "Whole requests.", ["route"], **timed)
        self.decode_seconds = Histogram("decode_seconds", "Normalising the photos of a request.", **timed)
        self.model_server_seconds = Histogram(
            "model_server_seconds", "Asking the model server.", ["label"], buckets=MODEL_SERVER_SECONDS, **common
        )
        self.model_server_failures = Counter(
            "model_server_failures", "Requests without an answer from the model server.", ["label"], **common
        )
        self.canary_fallbacks = Counter("canary_fallbacks", "Requests that found no canary.", **common)
        self.in_flight = Gauge("in_flight", "Predictions at work.", **common)
