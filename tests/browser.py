"""Chromium for tests, controlled by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = shutil.which("chromium")
_MISSING = "chromium: not found on PATH; run `make browser` to install it"


@contextmanager
def browser() -> Iterator[Browser]:
    """Start headless Chromium. Without Chromium, skip the test, or fail it in CI."""
    if CHROMIUM is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(_MISSING)
    with sync_playwright() as playwright:
        # The sandbox needs user namespaces, which containers do not have.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            chromium.close()
