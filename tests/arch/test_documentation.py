"""The documentation agrees with the code: the commands, options, configs, keys, messages and tests that it names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.pages import commands, language, methods
from docs.pages.commands import scripts
from docs.pages.markdown import formula
from kdscale import plugins
from kdscale.config.load import load
from kdscale.config.schema import Experiment, StageConfig
from kdscale.config.show import json_schema
from kdscale.jobs.slurm.profile import Profile
from tests.documented import PAGES, PLACEHOLDER, ROOT, Fence, calls, fences, options_of

COMMANDS = [fence for fence in fences() if fence.commands]
YAML = [fence for fence in fences() if fence.info == "yaml"]
OTHERS = {
    "--time-min", "--quick", "--write", "--golden", "--check", "--wrap", "--partition", "--nodes", "--exclusive",
    "--signal", "--no-deps", "--strict", "--system-site-packages",
}  # fmt: skip
"""Options of SLURM, pip, the benchmarks and the tests, where a page names one alone."""
BASE = "kdscale:methods/kd.yaml"


def place(fence: Fence) -> str:
    return f"{fence.page}:{fence.line}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# --------------------------------------------------------------------------- commands


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_that_a_page_shows_is_one_of_that_command(page: Path) -> None:
    for script, verb, flags in calls(page.read_text()):
        unknown = set(flags) - options_of(script, verb)
        assert not unknown, f"launch/{script}.py {verb} has no {', '.join(unknown)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_an_option_alone_is_one_of_some_command(page: Path) -> None:
    known = {option for script in scripts() for option in options_of(script)} | OTHERS
    alone = re.findall(r"`(--[a-z][\w-]*)[^`]*`", page.read_text())
    assert set(alone) <= known


@pytest.mark.parametrize("fence", COMMANDS, ids=place)
def test_every_fence_of_commands_is_run_or_says_what_it_needs(fence: Fence) -> None:
    whole_page = "<!-- all commands need: " in (ROOT / fence.page).read_text()
    if fence.mark.startswith("run by: "):
        for name in fence.mark.removeprefix("run by: ").split(", "):
            assert (ROOT / name).is_file(), f"{place(fence)}: no {name}"
        return
    runs = fence.info == "bash" and fence.mark in ("", "exits 2")
    assert runs or whole_page or fence.mark.startswith("needs: "), (
        f"{place(fence)}: write ```bash and tests/e2e/test_documented_commands.py runs it, or put "
        "<!-- needs: a cluster --> or <!-- run by: tests/... --> above it"
    )
    if runs:
        assert not [line for line in fence.commands if PLACEHOLDER.search(line)], "a pattern cannot be run"


def test_the_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    found = {script for script, _, _ in calls(readme)} | set(re.findall(r"\b(\w+)\.py\b", readme))
    assert set(scripts()) - found == {"import"}, "import.py is named by the error that asks for it"


def test_the_page_of_commands_has_every_option() -> None:
    page = commands.page()
    for script in scripts():
        assert f"## {script} " in page
        assert not [option for option in options_of(script) if not re.search(rf"^ .*{option}\b", page, re.M)]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        named = re.findall(r"(?:^|`)make ([a-z-]+)(?=\s|`|$)", page.read_text(), re.M)
        assert set(named) <= targets, page


# --------------------------------------------------------------------------- configs


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_configs_and_files_that_it_names_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"kdscale:((?:base|methods|pipelines|papers)/[\w/-]+\.yaml)", text):
        assert (ROOT / "configs" / name).is_file(), name
    shown = {fence.title for fence in fences()} | {"kdscale/losses/logits.py"}
    for name in re.findall(r"\b((?:configs|kdscale|benchmarks|tests|docs)/[\w/.-]+\.(?:ya?ml|py|md|json))\b", text):
        own = name in shown or name.startswith("tests/unit/losses/test_")  # what a reader is shown how to write
        assert own or (ROOT / name).is_file(), name


@pytest.mark.parametrize("fence", YAML, ids=place)
def test_yaml_is_a_config_or_a_part_of_one(fence: Fence, tmp_path: Path) -> None:
    for other in fences():
        if other.title.endswith(".py") and other.page == fence.page:
            (tmp_path / other.title).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / other.title).write_text(other.text)
    said = yaml.safe_load(fence.text)
    if isinstance(said, dict) and set(said) <= set(Profile.model_fields):
        Profile.model_validate(said)
        return
    path = tmp_path / "shown.yaml"
    path.write_text(fence.text if _is_whole(said) else yaml.safe_dump(_around(said)))
    assert load(path, user_config=tmp_path / "none").trials


def _is_whole(said: Any) -> bool:
    return isinstance(said, dict) and ("extends" in said or bool({"chain", "dense", "grow"} & set(said)))


def _around(said: Any) -> dict[str, Any]:
    """A config in which a fragment stands where it belongs."""
    if isinstance(said, list):
        said = {"losses": [{"name": "ce"}, *(term for term in said if term["name"] != "ce")]}
    top = set(Experiment.model_fields) | set(json_schema()["properties"])
    if set(said) <= top or any("." in key for key in said):
        return {"extends": BASE, **said}
    assert set(said) <= set(StageConfig.model_fields)
    return {"extends": BASE, "stages": {"student": said}}


@pytest.mark.parametrize("fence", [fence for fence in fences() if fence.info == "python"], ids=place)
def test_python_is_python(fence: Fence) -> None:
    compile(fence.text, place(fence), "exec")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("p*/*.yaml")), ids=name_of)
def test_a_configs_head_shows_the_command_that_runs_it(path: Path) -> None:
    shown = re.findall(r"^#\s+python launch/sweep\.py (\S+)", path.read_text(), re.M)
    assert name_of(path) in shown, "the site shows it as the command"


# --------------------------------------------------------------------------- the language


def test_every_key_is_described_and_shown() -> None:
    schema = json_schema()
    page = language.page()
    for name, definition in [("", schema), *schema["$defs"].items()]:
        for key, value in definition.get("properties", {}).items():
            assert f"| `{key}` |" in page
            assert value.get("description") or "$ref" in value, f"{name}.{key} says nothing of itself"


def test_the_page_says_which_keys_are_hashed() -> None:
    train = language.page().split("## `train`")[1].split("\n## ")[0]
    marks = {row.split("|")[1].strip(" `"): row.split("|")[-2].strip() for row in train.splitlines() if "| `" in row}
    assert (marks["lr"], marks["compile"], marks["checkpoint_every_steps"]) == ("yes", "no", "no")


# --------------------------------------------------------------------------- methods


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in ("losses", "modifiers") for name in plugins.available(kind)]
)
def test_every_loss_and_modifier_has_a_formula_that_can_be_typeset(kind: str, name: str) -> None:
    found = methods.formulas(kind, name)
    assert found, "Formula: in the module's docstring, LaTeX, one a line, a deeper indent to go on with one"
    for latex in found:
        assert "<math" in formula(latex)
        assert "\\" not in re.sub(r"<[^>]*>", "", formula(latex)), f"not understood: {latex}"


# --------------------------------------------------------------------------- what is said


def templates() -> Iterator[str]:
    """Every text in the code, with … for what is filled in."""
    for path in (*(ROOT / "kdscale").rglob("*.py"), *(ROOT / "launch").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
                yield _template(node)


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[sd]|\{\w*\}", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _template(node.left) + _template(node.right)
    return "…"


def test_every_message_on_the_page_of_troubles_is_one_that_the_code_has() -> None:
    said = re.findall(r"^### `(.*)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.M)
    assert len(said) > 40
    every = "\n".join(templates())
    for message in said:
        parts = [part.strip() for part in message.split("…") if part.strip(" ;:.,()")]
        pattern = "[^\n]*".join(re.escape(part) for part in parts)
        assert re.search(pattern, every), f"nothing in the code says: {message}"


def test_tests_that_the_page_of_equality_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "equal.md").read_text())
    assert len(named) > 10
    for path, function in named:
        assert f"def {function}" in (ROOT / path).read_text(), f"{path}::{function}"
