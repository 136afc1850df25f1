"""The distribution's Chromium without a window, driven by its own chromedriver; nothing is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRIVERS = ("chromedriver", "chromium.chromedriver")
BESIDE = ("/usr/lib/chromium", "/usr/lib/chromium-browser")
"""Where some distributions put the driver."""
OPTIONS = (
    "--headless=new",
    "--window-size=1400,1000",
    "--lang=en",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",  # containers give it 64 MB
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # a page that needs another host does not work
)


def find_program(names: Sequence[str]) -> str:
    """The path of the first of these programs that is installed."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *BESIDE])
    found = next((program for name in names if (program := shutil.which(name, path=path))), None)
    if found is None:
        pytest.fail(
            f"none of {', '.join(names)} is installed: `make test-browser` does that on Debian.", pytrace=False
        )
    return found


@contextmanager
def opened(folder: Path) -> Iterator[WebDriver]:
    """A browser with a profile of its own in `folder`, for as long as the context lasts."""
    options = webdriver.ChromeOptions()
    options.binary_location = find_program(BROWSERS)
    root = ("--no-sandbox",) if os.geteuid() == 0 else ()  # Chromium has no sandbox for root
    for option in (*OPTIONS, *root, f"--user-data-dir={folder}"):
        options.add_argument(option)
    browser = webdriver.Chrome(options, Service(find_program(DRIVERS)))
    browser.set_page_load_timeout(60)
    try:
        yield browser
    finally:
        browser.quit()
