"""The variants, rendered once."""

import pytest

from tests.serving.k8s.variants import OVERLAYS, Variant, variants


@pytest.fixture(scope="session")
def rendered(tmp_path_factory) -> dict[str, list[Variant]]:
    """Variants by overlay; the last one has everything switched on."""
    return {overlay: variants(overlay, tmp_path_factory.mktemp(overlay)) for overlay in OVERLAYS}
