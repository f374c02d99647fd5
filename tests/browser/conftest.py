"""A headless Chromium without a network, and the console of every page it opens."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
)  # fmt: skip


def start_chromium(profile: Path) -> Any:
    """A driver of a browser that keeps its data in `profile`, and the console of its pages."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.ChromeService(shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=driver)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A driver of one browser for all tests of a worker."""
    pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("Chromium or its driver is not installed (Debian: chromium chromium-driver)")
    found = start_chromium(tmp_path_factory.mktemp("chromium"))
    yield found
    found.quit()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """The browser with the network cut off; the test fails if a page complains on its console."""
    chromium.execute_cdp_cmd("Network.enable", {})
    chromium.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    chromium.get_log("browser")
    yield chromium
    assert chromium.get_log("browser") == []


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go: TRITTER_MEM_SCREENSHOTS, else a temporary folder."""
    named = os.environ.get("TRITTER_MEM_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
