"""A real browser for tests: Debian's Chromium, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = shutil.which("chromium")
_MISSING = "there is no chromium on PATH: `make browser` installs Debian's"


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium without a window. Where there is none, the test is skipped, but in CI it fails."""
    if CHROMIUM is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(_MISSING)
    with sync_playwright() as playwright:
        # Containers have no user namespaces for its sandbox.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            chromium.close()
