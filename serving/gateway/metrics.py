"""Prometheus metrics of the gateway."""

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from serving.client.answers import Answer
from serving.drift_result import DriftResult

disable_created_metrics()  # a second series per metric, which nothing reads
# Each bound is 25% above the previous one. The rollout compares the latency of versions at this resolution.
MODEL_SERVER_SECONDS = tuple(round(0.002 * 1.25**n, 4) for n in range(40))
_PROBABILITIES = (*(tenth / 10 for tenth in range(1, 10)), 0.95, 0.99)
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Metrics of one gateway process.

    Attributes:
        registry: Registry of all metrics.
        requests: Requests by route and HTTP status code.
        seconds: Duration of requests by route.
        decode_seconds: Time per request for parsing the form and normalizing its photos.
        model_server_seconds: Duration of successful requests to the model server, with retries, by requested label.
        model_server_failures: Failed requests to the model server, by requested label.
        photos: Photos with a prediction, by requested label and version.
        ambiguous_photos: Those whose prediction set has several breeds.
        unfamiliar_photos: Those that are unlike all photos that the model was trained on.
        breeds: Photos with a prediction, by version and predicted breed.
        confidence: Probability of the predicted breed, by version.
        captures: Captured photos, by reason: random (share) or uncertain.
        captures_dropped: Photos that were chosen but not captured, by reason: busy (too many wait to be written), full
            (the photo exceeds the maximum size), or failed (the disk returned an error).
        feedback: Feedback on captured photos by verdict: right, wrong, not_a_cat or unsure. Feedback that replaces
            earlier feedback counts again.
        drift_ratio: Distance divided by its threshold in the last result of `catbreeds drift`, by version and feature;
            above 1, the feature has drifted. Absent if there were too few photos.
        drift_photos: Captured photos in that comparison, by version.
        drift_time: Time of that comparison, in seconds since the epoch, by version.
        canary_fallbacks: Requests for the canary that the stable version served, because no canary is loaded.
        in_flight: Prediction requests in progress.
    """

    def __init__(self):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        common = {"namespace": "catbreeds", "subsystem": "gateway", "registry": self.registry}
        timed = common | {"buckets": _SECONDS}
        self.requests = Counter("requests", "HTTP requests.", ["route", "code"], **common)
        self.seconds = Histogram("request_seconds", "Duration of HTTP requests.", ["route"], **timed)
        self.decode_seconds = Histogram("decode_seconds", "Time to parse a request and normalize its photos.", **timed)
        self.model_server_seconds = Histogram(
            "model_server_seconds",
            "Duration of successful requests to the model server.",
            ["label"],
            buckets=MODEL_SERVER_SECONDS,
            **common,
        )
        self.model_server_failures = Counter(
            "model_server_failures", "Failed requests to the model server.", ["label"], **common
        )
        by_version = ["label", "version"]
        self.photos = Counter("photos", "Photos with a prediction.", by_version, **common)
        self.ambiguous_photos = Counter(
            "ambiguous_photos", "Photos whose prediction set has several breeds.", by_version, **common
        )
        self.unfamiliar_photos = Counter(
            "unfamiliar_photos", "Photos unlike all photos that the model was trained on.", by_version, **common
        )
        self.breeds = Counter("breeds", "Photos by predicted breed.", ["version", "breed"], **common)
        self.confidence = Histogram(
            "confidence", "Probability of the predicted breed.", ["version"], buckets=_PROBABILITIES, **common
        )
        self.captures = Counter("captures", "Captured photos.", ["reason"], **common)
        self.captures_dropped = Counter(
            "captures_dropped", "Photos that were chosen but not captured.", ["reason"], **common
        )
        self.feedback = Counter("feedback", "Feedback on captured photos.", ["verdict"], **common)
        self.drift_ratio = Gauge("drift_ratio", "Distance of drift / threshold.", ["version", "feature"], **common)
        self.drift_photos = Gauge("drift_photos", "Captured photos in the comparison.", ["version"], **common)
        self.drift_time = Gauge("drift_timestamp_seconds", "Time of the comparison.", ["version"], **common)
        self.canary_fallbacks = Counter("canary_fallbacks", "Requests for the canary that stable served.", **common)
        self.in_flight = Gauge("in_flight", "Prediction requests in progress.", **common)

    def set_drift(self, result: DriftResult | None) -> None:
        """Replace the result of the last comparison of captured photos with test photos; None removes it."""
        for gauge in (self.drift_ratio, self.drift_photos, self.drift_time):
            gauge.clear()
        if result:
            version = str(result.version)
            self.drift_photos.labels(version).set(result.photos)
            self.drift_time.labels(version).set(result.time)
            for feature, ratio in result.ratios.items():
                self.drift_ratio.labels(version, feature).set(ratio)

    def count_answers(self, label: str, answers: Sequence[Answer]) -> None:
        """Count the photos of a request by the version that answered.

        Args:
            label: Requested label.
            answers: Answers for the photos, with all breeds, from one version.
        """
        version = str(answers[0].model.version)
        self.photos.labels(label, version).inc(len(answers))
        self.ambiguous_photos.labels(label, version).inc(sum(len(row.prediction_set or ()) > 1 for row in answers))
        self.unfamiliar_photos.labels(label, version).inc(sum(bool(row.unfamiliar) for row in answers))
        for answer in answers:
            self.breeds.labels(version, answer.best.breed).inc()
            self.confidence.labels(version).observe(answer.best.probability)
