from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kdscale.report.headline import savings
from kdscale.report.page import write_report
from kdscale.report.records import SweepRecord
from tests.fake_report_runs import METHODS, REASONS, VIT, FakeStage, Fiction, bench, takd, write_sweep

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks nesting and collects what the tests ask for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [v for k, v in given.items() if k in ("src", "href", "xlink:href", "action", "poster") and v]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def night(runs: Path, methods: Sequence[str] = tuple(METHODS)) -> Path:
    states = {"ce": "done", "kd": "running", "at": "failed", "fitnet": "blocked", "crd": "waiting"}

    def state(stage: FakeStage, values: dict[str, str]) -> str:
        return "done" if stage.name == "teacher" or values["seed"] == "0" else states[values["method"]]

    return bench(runs, "night", methods=methods, state=state)


def early(runs: Path) -> Path:
    return takd(runs, state=lambda stage, values: "running" if stage.name == "teacher" else "waiting")


def single(runs: Path) -> Path:
    return write_sweep(runs, "one", [FakeStage("net")])


def hundred(runs: Path) -> Path:
    stages = [FakeStage("teacher", of=()), FakeStage("student", teachers={"t": "teacher"}, terms=("ce", "kd"))]
    return write_sweep(runs, "random", stages, {"train.lr": [f"{0.001 * 1.07**i:.4g}" for i in range(100)]})


def nothing_yet(runs: Path) -> Path:
    return bench(runs, state=lambda stage, values: "waiting")


def test_what_a_strategy_measures_has_a_curve_of_its_own(tmp_path: Path) -> None:
    path = takd(tmp_path)
    [metrics] = tmp_path.glob("stages/student-*/metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for line in lines:
        if "train/loss" in line["metrics"]:
            line["metrics"] |= {"train/ab/signs": 0.5, "train/images_per_s": 100.0}
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))

    page = Page(write_report(path))

    assert "student: ab" in page.text
    assert "signs" in page.text
    assert "images_per_s" not in page.text


@pytest.mark.parametrize("make", [takd, bench, night, early, single, hundred, nothing_yet])
def test_any_sweep_makes_one_self_contained_page(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    sweep = make(tmp_path)

    page = Page(write_report(sweep))

    assert len(page.source) < 2_000_000
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    assert "default-src 'none'" in page.source
    assert not re.search(r"@import|url\((?!#)", page.source)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not re.search(r"\bNone\b|\bnan\b|\binf\b|Undefined", page.text.replace(REASONS["failed"], ""))


def test_a_finished_chain_shows_everything(tmp_path: Path) -> None:
    page = Page(write_report(takd(tmp_path)))

    for section in ("results", "tradeoff", "curves", "graph", "views", "terms", "classes", "all", "source"):
        assert section in page.ids
    assert "failures" not in page.ids
    assert "The student reaches 90.50\N{NO-BREAK SPACE}% with 77.8\N{NO-BREAK SPACE}K parameters" in page.source
    assert "python launch/sweep.py configs/quickstart.yaml" in page.text
    assert "2.13.0+cpu" in page.text
    assert page.tags.count("img") == 24
    assert "quickstart:student" in page.text


def test_failures_come_first_with_cause_names_and_the_log(tmp_path: Path) -> None:
    page = Page(write_report(night(tmp_path, ["ce", "at"])))

    assert page.ids.index("failures") < page.ids.index("results")
    assert "NonFiniteLoss: term kd became nan" in page.text
    assert 'python launch/logs.py "night:student[at,mine48,s1]"' in page.text
    assert "This sweep is not finished" in page.text
    assert "leads so far" in page.text


def test_what_reuse_saved_is_counted(finished_bench: Path) -> None:
    saved = savings(SweepRecord(finished_bench))

    assert (saved.asked, saved.trained, saved.reused, saved.shared) == (114, 57, 1, 56)
    assert saved.words()[:2] == ["56 trainings fewer because trials share stages", "1 stage done before this launch"]
    assert saved.flops_asked == pytest.approx(57 * VIT.flops * 3 * 54_000 * 12 + saved.flops_paid)


def test_rows_made_with_different_versions_are_pointed_out(tmp_path: Path) -> None:
    sweep = takd(tmp_path)
    state = next((tmp_path / "stages").glob("student-*")) / "state.json"
    state.write_text(state.read_text().replace("2.13.0+cpu", "2.6.0"))

    assert "different torchs: 2.13.0+cpu, 2.6.0" in Page(write_report(sweep)).text


EVIL = "<script>alert(1)</script>&\"'$x_{2}$ {{ 7*191 }} ]]>"


def test_names_from_users_are_text_wherever_they_stand(tmp_path: Path) -> None:
    stages = [
        FakeStage("teacher", EVIL, of=()),
        FakeStage("student", EVIL, teachers={EVIL: "teacher"}, terms=("ce", EVIL)),
    ]
    axes = {"method": ["ce", EVIL], "student": [EVIL, "b"], "seed": ["0", "1"]}

    def state(stage: FakeStage, values: dict[str, str]) -> str:
        return "failed" if values == {"method": EVIL, "student": "b", "seed": "1"} else "done"

    tale = Fiction(state=state, config={"name": EVIL}, results={"class_names": [EVIL] * 10})
    page = Page(write_report(write_sweep(tmp_path, "evil", stages, axes, tale)))

    assert page.tags.count("script") == 1  # the page's own
    assert "1337" not in page.text
    assert "<script>alert(1)</script>" in page.text


def test_many_classes_are_cut_to_those_that_are_lost_most(tmp_path: Path) -> None:
    results = {"per_class": [0.9] * 100, "class_names": [f"class {i}" for i in range(100)]}

    page = Page(write_report(takd(tmp_path, results=results)))

    assert "The 20 of 100 classes on which student falls furthest behind teacher" in page.text
