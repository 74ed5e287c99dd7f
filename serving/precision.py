"""Precision in which a CPU computes the networks of a model: float32, or bfloat16 on CPUs with AMX.

With bfloat16, TensorFlow rewrites each graph before it runs: convolutions and matrix products get inputs in bfloat16.
The SavedModel does not change. `use` sets an option of TensorFlow in this process; TensorFlow Serving has the flag
`--mixed_precision=bfloat16` for it. The environment variable TF_SET_ONEDNN_FPMATH_MODE=BF16 is not used: it is slower,
does not make EfficientNetB7 faster, and its results depend on the number of photos in a batch. On a CPU without AMX,
the rewritten graph of Xception takes more than twice the time of float32.

GPUs are not affected. This module imports TensorFlow only in `use`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FLOAT32, BFLOAT16, AUTO = "float32", "bfloat16", "auto"
_AMX = {"amx_tile", "amx_bf16"}
_CPU_INFO = Path("/proc/cpuinfo")  # features of the CPU, as Linux lists them


class PrecisionError(ValueError):
    """The CPU of this machine cannot compute in the requested precision."""


class Tolerances(NamedTuple):
    """Largest differences between correct predictions of one model for one photo.

    Attributes:
        probability: Difference in probability on one CPU, in another version of TensorFlow or a batch of another size.
        golden_probability: Difference in probability on another CPU or in another version of TensorFlow.
        golden_distance: Relative difference in `unfamiliarity` on another CPU or in another version of TensorFlow.
    """

    probability: float
    golden_probability: float
    golden_distance: float


_TOLERANCES = {
    # A wrong model, breed or preprocessing changes the first digits of a probability.
    FLOAT32: Tolerances(probability=1e-3, golden_probability=0.02, golden_distance=0.05),
    # Other sums round to another number in bfloat16. A CPU without AMX computes in float32.
    BFLOAT16: Tolerances(probability=1e-2, golden_probability=0.1, golden_distance=0.1),
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


def use(precision: str) -> None:
    """Make TensorFlow compute in a precision in this process, as far as this CPU can.

    Other threads that have already called a function of TensorFlow keep their precision. It does not apply to sessions.
    """
    import tensorflow as tf

    rewrite = usable(precision) == BFLOAT16
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": rewrite})
