from __future__ import annotations

import pytest

from kdscale.errors import ConfigError
from kdscale.report.where import Filter

NAMES = ["params_m", "top1", "val/top1", "seed", "method", "train.lr"]
ROW = {"params_m": 4.6, "top1": 0.83, "seed": "1", "method": "crd", "train.lr": "0.05"}


def keeps(text: str, row: dict[str, float | str | None] | None = None) -> bool:
    return Filter(text, NAMES, ["crd", "kd"])(row or dict(ROW))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("params_m<=5", True),
        ("params_m <= 5 and top1 > 0.9", False),
        ("params_m > 5 or method == 'crd'", True),
        ("not method == kd", True),
        ("method in (kd, crd)", True),
        ("method not in ['kd']", True),
        ("seed == 1", True),
        ("seed < 1", False),
        ("seed in (0, 1)", True),
        ("train.lr == 0.05", True),
        ("train.lr * 2 > 0.05 + 0.04", True),
        ("0 < params_m < 5", True),
        ("-params_m < 0", True),
        ("params_m / 0 < 5", False),
        ("method != seed", True),
        ("method < 3", False),
    ],
)
def test_conditions(text: str, want: bool) -> None:
    assert keeps(text) is want


def test_a_figure_that_is_not_there_yet_meets_nothing() -> None:
    assert not keeps("top1 > 0", {**ROW, "top1": None})
    assert not keeps("top1 <= 1", {**ROW, "top1": None})


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('x')",
        "top1.__class__",
        "[x for x in (1,)]",
        "(lambda: 1)()",
        "2 ** 99999999",
        "f'{top1}'",
        "top1 if seed else 0",
        "(top1 := 3)",
        "True",
        "top1 << 3",
        "params_m <=",
        "params_m = 5",
        "",
        "(" * 400,
        "1+" * 600 + "1",
        "x\0",
    ],
)
def test_everything_else_is_refused_before_any_row_is_looked_at(text: str) -> None:
    with pytest.raises(ConfigError, match="--where"):
        Filter(text, NAMES)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean params_m"):
        Filter("parms_m < 5", NAMES)


def test_says_which_figures_it_looks_at() -> None:
    assert Filter("top1 > 0.5 and params_m < 3", NAMES).used == {"top1", "params_m"}
