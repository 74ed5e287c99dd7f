"""Metrics with TensorFlow Serving's names, in the Prometheus text format."""

import bisect
import threading
from collections import defaultdict
from itertools import accumulate

_LATENCY_BUCKETS = [10 * 1.8**power for power in range(33)]  # microseconds
_SIZE_BUCKETS = [float(2**power) for power in range(15)]

_Labels = tuple[tuple[str, str], ...]


class _Histogram:
    def __init__(self, bounds: list[float]):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_right(self.bounds, value)] += 1
        self.sum += value


class Metrics:
    """Thread-safe counters and histograms. Methods take seconds; metrics are in microseconds."""

    def __init__(self):
        self._lock = threading.Lock()
        self._counters: dict[str, dict[_Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._histograms: dict[str, dict[_Labels, _Histogram]] = defaultdict(dict)

    def requested(self, model: str, status: str) -> None:
        """Count a Predict request that ended with this canonical status code."""
        self._count("serving:request_count", 1, model_name=model, status=status)

    def succeeded(self, model: str, api: str, entrypoint: str, seconds: float) -> None:
        """Record the latency of a successful request; `entrypoint` is GRPC or REST."""
        self._observe("serving:request_latency", 1e6 * seconds, model_name=model, API=api, entrypoint=entrypoint)

    def ran(self, model: str, seconds: float) -> None:
        """Record the time that a signature took to run for a request."""
        self._observe("serving:runtime_latency", 1e6 * seconds, model_name=model, API="Predict", runtime="TF1")

    def loaded(self, path: str, status: str, seconds: float) -> None:
        """Count a load of a SavedModel and its time; `status` is success or fail."""
        self._count("cc:saved_model:load_attempt_count", 1, model_path=path, status=status)
        self._count("cc:saved_model:load_latency", round(1e6 * seconds), model_path=path)

    def warmed_up(self, path: str, seconds: float) -> None:
        """Record the time that the warmup requests of a SavedModel took."""
        self._observe("serving:model_warmup_latency", 1e6 * seconds, model_path=path, status="OK")

    def queued(self, seconds: float) -> None:
        """Record the time that a request waited for its batch."""
        self._observe("serving:batching_session:queuing_latency", 1e6 * seconds)

    def batched(self, size: int, padding: int) -> None:
        """Record a batch of `size` rows, `padding` of which are padding."""
        self._count("serving:batching_session:wrapped_run_count", 1)
        self._observe("serving:batching:processed_batch_size", size, _SIZE_BUCKETS)
        self._observe("serving:batching:padding_size", padding, _SIZE_BUCKETS)

    def text(self) -> str:
        """Return all metrics in the Prometheus text format."""
        lines = []
        with self._lock:
            for name, counters in sorted(self._counters.items()):
                lines.append(f"# TYPE {name} counter")
                lines += [f"{name}{_braced(labels)} {value:.0f}" for labels, value in counters.items()]
            for name, histograms in sorted(self._histograms.items()):
                lines.append(f"# TYPE {name} histogram")
                for labels, histogram in histograms.items():
                    bounds = [f"{bound:g}" for bound in histogram.bounds] + ["+Inf"]
                    counts = list(accumulate(histogram.counts))
                    for bound, count in zip(bounds, counts, strict=True):
                        lines.append(f"{name}_bucket{_braced((*labels, ('le', bound)))} {count}")
                    lines.append(f"{name}_sum{_braced(labels)} {histogram.sum:g}")
                    lines.append(f"{name}_count{_braced(labels)} {counts[-1]}")
        return "\n".join(lines) + "\n"

    def _count(self, name: str, amount: float, **labels: str) -> None:
        with self._lock:
            self._counters[f":tensorflow:{name}"][tuple(labels.items())] += amount

    def _observe(self, name: str, value: float, bounds: list[float] = _LATENCY_BUCKETS, **labels: str) -> None:
        with self._lock:
            histograms = self._histograms[f":tensorflow:{name}"]
            histograms.setdefault(tuple(labels.items()), _Histogram(bounds)).add(value)


def _braced(labels: _Labels) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
