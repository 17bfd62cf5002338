"""The site of the documentation as a reader opens it: a file, in a browser that reaches nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="the dev extra's selenium is not installed")
ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no headless browser: apt-get install chromium chromium-driver"
    ),
]
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-quic",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--window-size=1300,1200",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.implicitly_wait(30)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, check=True, capture_output=True, timeout=200, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    return folder.as_uri()


def test_formulas_are_drawn_and_nothing_is_asked_of_the_network(browser: Any, site: str) -> None:
    browser.get(f"{site}/methods/losses/dkd.html")
    fraction, *_ = browser.find_elements("css selector", ".formula math mfrac")
    top, bottom = fraction.find_elements("xpath", "./*")
    assert top.location["y"] + top.size["height"] <= bottom.location["y"] + 1, "numerator above denominator"
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    assert not [name for name in asked if not name.startswith(("file:", "data:"))]
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_the_search_finds_what_a_page_says(browser: Any, site: str) -> None:
    browser.get(f"{site}/recovery.html")
    browser.execute_script("document.querySelector('#__search').click()")
    browser.find_element("css selector", "input.md-search__input").send_keys("decoupled")
    found = browser.find_element("css selector", ".md-search-result__item a")
    assert found.get_attribute("href").partition("?")[0].endswith("/methods/losses/dkd.html")
