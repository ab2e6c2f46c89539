"""Chromium, driven as a user would drive it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

__all__ = ["chromium", "log_in", "resize"]


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("Chromium and chromedriver are not installed")
    profile = tempfile.mkdtemp(prefix="mlbatch-chromium-")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless=new",
        # Root may not use Chromium's sandbox, and containers have little shared memory.
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--no-proxy-server",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=driver)
    )
    try:
        yield browser
    finally:
        browser.quit()
        shutil.rmtree(profile, ignore_errors=True)


def log_in(browser: Any, root: str, token: str, theme: str = "light") -> None:
    """Hold a login's cookie, and the choice of light or dark that Airflow's pages keep."""
    browser.get(f"{root}/api/v2/version")
    # The page of an earlier test went on to ask about a task that the test had removed.
    browser.get_log("browser")
    path = urlsplit(root).path or "/"
    browser.add_cookie({"name": "_token", "value": token, "path": path, "httpOnly": True})
    browser.execute_script("localStorage.setItem('theme', arguments[0])", theme)


def resize(browser: Any, width: int, height: int = 900) -> None:
    """Give the page exactly this many pixels; a window has a least width of its own."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
