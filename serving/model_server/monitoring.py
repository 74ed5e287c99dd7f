"""Metrics under the names of TensorFlow Serving, in Prometheus's text format."""

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
    """Counters and histograms; times go in as seconds and come out as microseconds. Any thread may call."""

    def __init__(self):
        self._lock = threading.Lock()
        self._counters: dict[str, dict[_Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._histograms: dict[str, dict[_Labels, _Histogram]] = defaultdict(dict)

    def requested(self, model: str, status: str) -> None:
        """A Predict request has ended with that canonical code."""
        self._count("serving:request_count", 1, model_name=model, status=status)

    def answered(self, model: str, api: str, entrypoint: str, seconds: float) -> None:
        """A request succeeded; `entrypoint` is GRPC or REST."""
        self._observe("serving:request_latency", 1e6 * seconds, model_name=model, API=api, entrypoint=entrypoint)

    def ran(self, model: str, seconds: float) -> None:
        """A signature was run for a request."""
        self._observe("serving:runtime_latency", 1e6 * seconds, model_name=model, API="Predict", runtime="TF1")

    def loaded(self, path: str, status: str, seconds: float) -> None:
        """A load of a SavedModel has ended: success or fail."""
        self._count("cc:saved_model:load_attempt_count", 1, model_path=path, status=status)
        self._count("cc:saved_model:load_latency", round(1e6 * seconds), model_path=path)

    def warmed_up(self, path: str, seconds: float) -> None:
        """Warmup requests of a SavedModel were replayed."""
        self._observe("serving:model_warmup_latency", 1e6 * seconds, model_path=path, status="OK")

    def queued(self, seconds: float) -> None:
        """A request waited that long for its batch."""
        self._observe("serving:batching_session:queuing_latency", 1e6 * seconds)

    def batched(self, size: int, padding: int) -> None:
        """A batch of `size` rows was run, `padding` of which are nobody's."""
        self._count("serving:batching_session:wrapped_run_count", 1)
        self._observe("serving:batching:processed_batch_size", size, _SIZE_BUCKETS)
        self._observe("serving:batching:padding_size", padding, _SIZE_BUCKETS)

    def text(self) -> str:
        """All of them, for Prometheus."""
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
