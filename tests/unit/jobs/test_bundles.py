"""A bundle that is run again: checked before anything, loaded as it was, and compared with what is here."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import kdscale
from kdscale.config.load import load
from kdscale.errors import ConfigError
from kdscale.jobs.bundles import bundle_of
from kdscale.jobs.command import run_command
from kdscale.jobs.launch_record import packages, torch_cuda
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.report.archive import pack
from tests.fake_report_runs import takd

CONFIG: dict[str, Any] = {
    "name": "small",
    "data": {"name": "synthetic", "options": {"train_rows": 120, "test_rows": 20, "size": 8}},
    "train": {"epochs": 1, "batch_size": 16, "precision": "fp32"},
    "stages": {"student": {"student": {"model": "resnet_cifar", "depth": 8}, "losses": [{"name": "ce"}]}},
}
DOCUMENT = {"schema": 1, "kdscale": "0.1.0", "stages": {}}


def bundle(path: Path, **files: Any) -> Path:
    """A bundle with these files in the place of, or beside, the usual ones."""
    usual = {"bundle.json": json.dumps(DOCUMENT), "sweep.yaml": yaml.safe_dump(CONFIG)}
    path.write_bytes(pack({name: text.encode() for name, text in (usual | files).items() if text is not None}))
    return path


def printed(tell: Any, *arguments: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    tell(*arguments, console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "runs")


def test_another_config_is_no_bundle(root: Root) -> None:
    assert bundle_of("configs/quickstart.yaml", root) is None


def test_it_lies_under_the_runs_and_is_unpacked_once(tmp_path: Path, root: Root) -> None:
    path = bundle(tmp_path / "out.zip")
    first = bundle_of(str(path), root)
    assert first is not None
    assert first.folder.parent == root.path / "bundles"
    (first.folder / "mine.txt").touch()
    second = bundle_of(str(path), root)
    assert second is not None
    assert (second.folder / "mine.txt").exists()
    assert second.load([]).trials == load(first.folder / "sweep.yaml").trials
    assert second.load(["train.lr=0.3"]).trials[0].experiment.train.lr == 0.3


def test_this_machines_defaults_are_not_laid_under_it(
    tmp_path: Path, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "kdscale.yaml").write_text("train: {lr: 0.7}")
    found = bundle_of(str(bundle(tmp_path / "out.zip")), root)
    assert found is not None
    assert found.load([]).trials[0].experiment.train.lr != 0.7


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"schema": 2, "kdscale": "9.0"}, r"schema 2, made by kdscale 9\.0; .* reads up to 1: update kdscale"),
        ({}, "holds no bundle.json that says its schema"),
    ],
)
def test_a_newer_bundle_and_none_at_all_are_refused(
    tmp_path: Path, root: Root, document: dict[str, Any], said: str
) -> None:
    path = bundle(tmp_path / "out.zip", **{"bundle.json": json.dumps(document)})
    with pytest.raises(ConfigError, match=said):
        bundle_of(str(path), root)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"words", "is no zip file"),
        (pack({"a": b"1"}), "holds no bundle.json"),
        (pack({"bundle.json": b"{"}), "bundle.json is no JSON"),
        (None, "no such file"),
    ],
)
def test_the_command_says_in_a_line_what_is_wrong(
    tmp_path: Path, content: bytes | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.zip"
    if content is not None:
        path.write_bytes(content)
    assert run_command(options(path, tmp_path / "runs"), []) == 2
    assert said in capsys.readouterr().err


def options(path: Path, runs: Path) -> Any:
    from argparse import Namespace

    return Namespace(
        config=str(path), overrides=[], cluster="inline", runs=runs, schema=False, list=None, dry_run=True,
        explain=False, show_config=False, smoke=False, prepare=False, fresh=[],
    )  # fmt: skip


def test_a_damaged_bundle_names_the_file(tmp_path: Path, root: Root) -> None:
    path = bundle(tmp_path / "out.zip")
    content = bytearray(path.read_bytes())
    content[content.index(b"sweep.yaml") + 15] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"out\.zip: (is damaged|sweep\.yaml is damaged)"):
        bundle_of(str(path), root)
    assert not (root.path / "bundles").exists()


def test_imported_weights_are_asked_for(tmp_path: Path, root: Root) -> None:
    student = {"model": "resnet_cifar", "depth": 8, "weights": "weights/big.safetensors"}
    config = CONFIG | {"stages": {"teacher": {"student": student, "losses": [{"name": "ce"}]}}}
    stages = {"1" * 64: {"name": "teacher", "imported": "abc123"}}
    files = {"sweep.yaml": yaml.safe_dump(config), "bundle.json": json.dumps(DOCUMENT | {"stages": stages})}
    found = bundle_of(str(bundle(tmp_path / "out.zip", **files)), root)
    assert found is not None
    with pytest.raises(ConfigError, match=r"say stages\.teacher\.student\.weights=FILE, or copy .*hash: abc123\)"):
        found.load([])
    (tmp_path / "own.safetensors").touch()
    found.load([f"stages.teacher.student.weights={tmp_path / 'own.safetensors'}"])


def test_a_plugin_that_is_not_there_is_named(tmp_path: Path, root: Root) -> None:
    config = CONFIG | {
        "plugins": {"path": ["code/plugins"], "allow": ["birds_gone"]},
        "stages": {"student": {"student": {"model": "birds_gone.nets:Net"}, "losses": [{"name": "ce"}]}},
    }
    found = bundle_of(str(bundle(tmp_path / "out.zip", **{"sweep.yaml": yaml.safe_dump(config)})), root)
    assert found is not None
    with pytest.raises(Exception, match=r"birds_gone.*looked in plugins\.path \(.*code/plugins"):
        make_plan(found.load([]), root)


def test_what_differs_is_said_one_a_line(tmp_path: Path, root: Root) -> None:
    here = packages()
    software = {
        "kdscale": "0.0.9", "python": "3.9.1", "cuda": "99.0",
        "packages": here | {"torch": "1.0", "rich": "0.1", "numpy": "0.5"},
    }  # fmt: skip
    files = {
        "software.json": json.dumps(software), "code/kdscale/losses/kd.py": "", "code/plugins/birds.py": "",
        "bundle.json": json.dumps(DOCUMENT | {"stages": {"1" * 64: {"name": "student", "data": "other"}}}),
    }  # fmt: skip
    found = bundle_of(str(bundle(tmp_path / "out.zip", **files)), root)
    assert found is not None
    lines = printed(found.tell_differences, make_plan(found.load([]), root))
    assert f"bundle: kdscale 0.0.9 in the bundle, {kdscale.__version__} here" in lines
    assert f"bundle: torch 1.0 in the bundle, {here['torch']} here" in lines
    assert f"bundle: cuda 99.0 in the bundle, {torch_cuda() or 'none'} here" in lines
    assert any(line.startswith("bundle: 1 other packages differ") for line in lines)
    assert any(line.startswith("bundle: kdscale's code differs in") for line in lines)
    assert printed(found.tell_plugins) == ["bundle: its plug-ins run here: birds.py"]
    assert any(line.startswith("bundle: the data's fingerprint is") for line in lines)
    assert "bundle: 1 of 1 stages are not the bundle's (student)" in lines


def test_nothing_that_differs_is_said_too(tmp_path: Path, root: Root) -> None:
    first = bundle_of(str(bundle(tmp_path / "first.zip")), root)
    assert first is not None
    plan = make_plan(first.load([]), root)
    data = {s.definition["data"]["fingerprint"] for s in plan.stages.values() if s.kind == "train"}
    stages = {digest: {"name": stage.name, "data": next(iter(data))} for digest, stage in plan.stages.items()}
    package = Path(kdscale.__file__).parent
    code = {f"code/kdscale/{p.relative_to(package)}": p.read_text() for p in package.rglob("*.py")}
    import platform

    software = {"kdscale": kdscale.__version__, "python": platform.python_version(), "cuda": torch_cuda()}
    document = {"bundle.json": json.dumps(DOCUMENT | {"stages": stages})}
    files = {"software.json": json.dumps(software | {"packages": packages()})} | document | code
    found = bundle_of(str(bundle(tmp_path / "out.zip", **files)), root)
    assert found is not None
    assert printed(found.tell_differences, plan) == ["bundle: versions, code and data are those of the bundle"]


def test_results_are_compared_with_the_bundles(tmp_path: Path, root: Root) -> None:
    from kdscale.report.results import collect

    sweep = takd(root.path)
    rows = collect(sweep)
    rows[0]["top1"] -= 0.0123
    rows[2]["top1"] = None
    found = bundle_of(str(bundle(tmp_path / "out.zip", **{"results.json": json.dumps(rows)})), root)
    assert found is not None
    assert printed(found.tell_results, sweep) == [
        "bundle: quickstart:teacher: top-1 91.74 in the bundle, 92.97 here: +1.23 points",
        "bundle: quickstart:assistant: top-1 92.45 in the bundle, 92.45 here: the same",
    ]
