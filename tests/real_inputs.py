"""Real photos and weights next to the project; tests that need them are skipped where they are missing."""

from collections.abc import Callable

import pytest

from pipeline.settings import ROOT

_SHARED = ROOT.parent / "shared"
PHOTOS = _SHARED / "data" / "cats480"  # 480 photos of 12 breeds
WEIGHTS = _SHARED / "weights"
LITE2 = WEIGHTS / "efficientnet_lite2_notop.keras"


def needs_real_inputs(test: Callable) -> Callable:
    """Mark a test as `real`, and skip it without the photos and weights."""
    missing = [str(path) for path in (PHOTOS, WEIGHTS, LITE2) if not path.exists()]
    skip = pytest.mark.skipif(bool(missing), reason=f"needs real photos and weights: {', '.join(missing)}")
    return pytest.mark.real(skip(test))
