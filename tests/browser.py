"""Chromium from Debian, controlled by Playwright, for tests that need a real browser."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = shutil.which("chromium")
_MISSING = "chromium not found on PATH; install Debian's with `make browser`"


@contextmanager
def browser() -> Iterator[Browser]:
    """Start headless Chromium. Without Chromium, the test is skipped, or fails in CI."""
    if CHROMIUM is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(_MISSING)
    with sync_playwright() as playwright:
        # Chromium's sandbox needs user namespaces, which containers lack.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            chromium.close()
