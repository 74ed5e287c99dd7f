"""Precision in which a CPU computes the networks of a model: float32, or bfloat16 on CPUs with AMX.

With bfloat16, oneDNN rounds the inputs of convolutions to bfloat16 and adds in float32. SavedModels and graphs do not
change, and heads, which have no convolutions, are computed in float32. An environment variable selects it, so it works
in any process with TensorFlow on a CPU, such as TensorFlow Serving. On CPUs without bfloat16, oneDNN ignores it.

The other way is the option `auto_mixed_precision_onednn_bfloat16` (`--mixed_precision=bfloat16` in TensorFlow Serving),
with which TensorFlow rewrites the graph. It is faster for Xception and ResNet50, but slower than float32 for
EfficientNet-Lite2 and on CPUs without AMX, and its embeddings differ from those in float32 more than twice as much: 11
of 480 photos got another breed with EfficientNet-Lite2, instead of 1, measured once with `differences` of
`benchmarks/precision.py`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FLOAT32, BFLOAT16, AUTO = "float32", "bfloat16", "auto"
_AMX = {"amx_tile", "amx_bf16"}
_VARIABLE = "TF_SET_ONEDNN_FPMATH_MODE"
_CPU_INFO = Path("/proc/cpuinfo")  # features of the CPU, as Linux lists them


class PrecisionError(ValueError):
    """The CPU of this machine cannot compute in the requested precision."""


class Tolerances(NamedTuple):
    """Largest differences between correct predictions of one model for one photo.

    Attributes:
        probability: Difference in probability on one CPU, for batches of different sizes.
        golden_probability: Difference in probability on another CPU or in another version of TensorFlow.
        golden_distance: Relative difference in `unfamiliarity` on another CPU or in another version of TensorFlow.
    """

    probability: float
    golden_probability: float
    golden_distance: float


_TOLERANCES = {
    # A wrong model, breed or preprocessing changes the first digits of a probability.
    FLOAT32: Tolerances(probability=1e-3, golden_probability=0.02, golden_distance=0.05),
    # A CPU without AMX computes in float32; `benchmarks/precision.py` prints the largest difference.
    BFLOAT16: Tolerances(probability=1e-2, golden_probability=0.05, golden_distance=0.1),
}


def has_amx() -> bool:
    """Return whether this CPU has AMX (Advanced Matrix Extensions) with bfloat16."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(set(line.split()) >= _AMX for line in lines if line.startswith("flags"))


def resolve(setting: str) -> str:
    """Return the precision for the setting `precision`; `auto` is bfloat16 if this CPU has AMX, else float32.

    Raises:
        PrecisionError: If the setting is bfloat16 and this CPU has no AMX.
    """
    if setting == AUTO:
        return usable(BFLOAT16)
    require(setting)
    return setting


def require(precision: str) -> None:
    """Check that this CPU can compute in a precision.

    Raises:
        PrecisionError: If it is bfloat16 and this CPU has no AMX.
    """
    if usable(precision) != precision:
        raise PrecisionError(
            f"precision: {precision} needs a CPU with AMX (flags {' and '.join(sorted(_AMX))} in {_CPU_INFO}), which "
            f"this machine does not have; use another machine, or set precision={FLOAT32}"
        )


def usable(precision: str) -> str:
    """Return `precision` if this CPU can compute in it, else float32."""
    return precision if precision == FLOAT32 or has_amx() else FLOAT32


def precision_of(record: Mapping[str, Any]) -> str:
    """Precision of the networks of a model, from its model record; of a head without networks, float32.

    Records from before models had a precision are of float32 models.
    """
    return record.get("backbone", {}).get("precision", FLOAT32)


def tolerances(record: Mapping[str, Any]) -> Tolerances:
    """Tolerances for the predictions of a model, from its model record."""
    return _TOLERANCES[precision_of(record)]


def environment(precision: str) -> dict[str, str]:
    """Environment variables for a process that computes in a precision, as far as this CPU can."""
    return {_VARIABLE: "BF16" if usable(precision) == BFLOAT16 else ""}


def use(precision: str) -> None:
    """Compute in a precision in this process, as far as this CPU can.

    TensorFlow reads the environment variable at its first convolution, so later calls have no effect.
    """
    os.environ.update(environment(precision))
