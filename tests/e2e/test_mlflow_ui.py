"""What a person sees in the real MLflow UI, in a headless browser, through the links that `track.py ui` prints.

Screenshots go to $SCREENSHOTS where that is set.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_runs import FakeSweep, plan
from tests.mlflow_server import free_port
from tests.tracking_store import StoredRun, stored_runs

webdriver = pytest.importorskip("selenium.webdriver", reason="the dev extra's selenium is not installed")
ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no headless browser: apt-get install chromium chromium-driver"
)
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=2800,1300",
]  # fmt: skip
AXES = {"method": ["ce", "kd", "crd"], "student": ["mine48", "mine96", "r18"], "seed": ["0", "1"]}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> FakeSweep:
    """Eighteen trials: one is running, one has failed, the others are done."""
    made = plan(tmp_path_factory.mktemp("ui") / "runs", "birds", AXES)
    made.stage("teacher").start().finish()
    running = made.stage("student", method="crd", student="r18", seed="1")
    failed = made.stage("student", method="crd", student="r18", seed="0")
    for stage in made.each("student"):
        if stage not in (running, failed):
            stage.start().finish()
    failed.start().train(120).end("failed", reason="NonFiniteLoss: term crd became nan at step 120")
    running.start().train(200)
    return made


@pytest.fixture(scope="module")
def links(sweep: FakeSweep) -> Iterator[dict[str, str]]:
    """The links that the command prints, while it serves them; the database is made from the spools."""
    assert not (sweep.root / "mlflow.db").exists()
    command = [sys.executable, str(ROOT / "launch" / "track.py"), "ui", "birds", "--runs", str(sweep.root)]
    serving = subprocess.Popen([*command, "--port", str(free_port())], stdout=subprocess.PIPE, text=True)
    assert serving.stdout is not None
    found: dict[str, str] = {}
    for line in serving.stdout:
        if match := re.fullmatch(r"birds: (.*?)\s+(http\S+)\n", line):
            found[match[1]] = match[2]
        if line.startswith("serving"):
            break
    yield found
    serving.send_signal(signal.SIGINT)
    assert serving.wait(30) == 0, "Ctrl-C is how it ends"
    serving.stdout.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The runs table as a person reads it."""

    def __init__(self, browser: Any, link: str, shot: str) -> None:
        self._browser, self._shot = browser, shot
        browser.get("about:blank")
        browser.get(link)

    def wait(self, happens: str, script: str, seconds: float = 90.0) -> Any:
        until = time.monotonic() + seconds
        while not (answer := self._browser.execute_script(script)):
            assert time.monotonic() < until, f"not seen: {happens}"
            time.sleep(0.5)
        return answer

    def rows(self, at_least: int) -> list[str]:
        """Names of the runs, from top to bottom."""
        script = """
            const cells = [...document.querySelectorAll('.ag-pinned-left-cols-container .ag-row')];
            const rows = cells.map(c => [+c.getAttribute('row-index'), c.querySelector('a')?.innerText ?? '']);
            rows.sort((a, b) => a[0] - b[0]);
            return rows.length >= arguments_length ? rows.map(r => r[1]) : null;
        """.replace("arguments_length", str(at_least))
        found: list[str] = self.wait(f"{at_least} rows", script)
        self.photograph()
        return found

    def column(self, title: str) -> list[str]:
        """Texts of one column, from top to bottom."""
        script = f"""
            const headers = [...document.querySelectorAll('.ag-header-cell')];
            const header = headers.find(h => h.innerText.trim() === '{title}');
            if (!header) return null;
            const id = header.getAttribute('col-id');
            const cells = [...document.querySelectorAll('.ag-cell')].filter(c => c.getAttribute('col-id') === id);
            const place = c => +c.closest('.ag-row').getAttribute('row-index');
            return cells.sort((a, b) => place(a) - place(b)).map(c => c.innerText.trim());
        """
        found: list[str] = self.wait(f"column {title}", script)
        return found

    def text(self, wanted: str) -> str:
        """The page's text, once it holds what is wanted."""
        script = f"const t = document.body.innerText; return t.includes({wanted!r}) ? t : null"
        found: str = self.wait(wanted, script)
        self.photograph()
        return found

    def photograph(self) -> None:
        if folder := os.environ.get("SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._browser.save_screenshot(str(Path(folder) / f"{self._shot}.png"))


def expected(sweep: FakeSweep, level: str, figure: str) -> list[StoredRun]:
    runs = [run for run in stored_runs(sweep.root / "mlflow.db") if run.level == level and figure in run.figures]
    return sorted(runs, key=lambda run: -run.figures[figure])


def test_the_links_say_what_they_show(links: dict[str, str]) -> None:
    assert list(links) == [
        "trials, best first", "best under 5 M parameters", "means over seeds", "curves",
    ]  # fmt: skip


def test_trials_come_best_first_with_their_figures(browser: Any, sweep: FakeSweep, links: dict[str, str]) -> None:
    page = Page(browser, links["trials, best first"], "trials")
    best = expected(sweep, "trial", "final/top1")
    names = page.rows(18)
    assert names[:16] == [run.name for run in best]
    assert sorted(names[16:]) == ["crd · r18 · s0", "crd · r18 · s1"], "without a figure they come last"
    assert page.column("final/top1")[:3] == [f"{run.figures['final/top1']:.6g}" for run in best[:3]]
    assert page.column("final/gain_over_ce")[0].startswith("0.0")
    assert page.column("method")[0] == best[0].params["method"]
    assert page.column("kdscale.state")[:16] == ["done"] * 16


def test_the_best_under_five_million_parameters(browser: Any, sweep: FakeSweep, links: dict[str, str]) -> None:
    page = Page(browser, links["best under 5 M parameters"], "small")
    small = [r for r in expected(sweep, "trial", "final/top1") if r.figures["model/params_m"] < 5]
    assert len(small) == 12
    assert page.rows(12) == [run.name for run in small]
    assert set(page.column("model/params_m")) == {"1.18", "4.63"}


def test_means_over_seeds_with_intervals(browser: Any, sweep: FakeSweep, links: dict[str, str]) -> None:
    page = Page(browser, links["means over seeds"], "means")
    means = expected(sweep, "group", "final/top1_mean")
    assert page.rows(8) == [run.name for run in means]
    assert page.column("n") == ["2"] * 8
    assert page.column("final/top1_ci95")[0] == f"{means[0].figures['final/top1_ci95']:.6g}"


def test_seeds_lie_over_each_other_as_curves(browser: Any, sweep: FakeSweep, links: dict[str, str]) -> None:
    page = Page(browser, links["curves"], "curves")
    text = page.text("val/top1")
    assert "train/loss" in text
    assert "model/flops_g" not in text, "only curves"
    lines = "return document.querySelectorAll('.scatterlayer .trace').length >= 30 ? 1 : 0"
    page.wait("ten curves in each of three charts", lines)
    page.photograph()


def test_a_sweep_unfolds_into_its_runs(browser: Any, sweep: FakeSweep, links: dict[str, str]) -> None:
    base = links["curves"].split("?")[0]
    start = "workflowType=machine_learning&searchFilter=&orderByKey=attributes.start_time&orderByAsc=false"
    page = Page(browser, f"{base}?{start}", "nested")
    assert page.rows(1) == ["birds"], "one row a sweep, folded"
    browser.find_element("css selector", ".ag-row button").click()
    total = len(stored_runs(sweep.root / "mlflow.db"))
    names = page.rows(20)
    assert names[0] == "birds"
    assert "student @ kd · r18 · s1" in names
    assert f"{total} matching runs" in page.text("matching runs")


def test_a_trials_page_says_where_it_comes_from(browser: Any, sweep: FakeSweep, links: dict[str, str]) -> None:
    (run,) = [r for r in stored_runs(sweep.root / "mlflow.db") if r.name == "kd · mine96 · s1"]
    base = links["curves"].split("?")[0]
    page = Page(browser, f"{base}/{run.id}", "trial")
    text = page.text("Parent run")
    for wanted in ("birds", "resnet_cifar depth=56", "final/top1", "kdscale.digest", "mine96", "Finished"):
        assert wanted in text
    page = Page(browser, f"{base}/{run.id}/artifacts", "artifacts")
    assert "config.yaml" in page.text("config.yaml")


def test_a_failed_stages_page_says_why(browser: Any, sweep: FakeSweep, links: dict[str, str]) -> None:
    (run,) = [r for r in stored_runs(sweep.root / "mlflow.db") if r.name == "student @ crd · r18 · s0"]
    page = Page(browser, f"{links['curves'].split('?')[0]}/{run.id}", "failed")
    text = page.text("About this run")
    assert "Failed" in text
    assert "NonFiniteLoss" in text
