"""Equal architectures are run once a process, and what is refused is refused whatever came before."""

from __future__ import annotations

from typing import Any

import pytest

from kdscale.api import DatasetInfo
from kdscale.config.schema import StageSpec
from kdscale.errors import ConfigError
from kdscale.pipeline import dry_run as module
from kdscale.pipeline.assemble import Parent
from kdscale.pipeline.dry_run import dry_run

INFO = DatasetInfo(5, 1, 16, 100, 10, (0.5,), (0.25,), tuple("abcde"))
NET = {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]}
TEACHER = StageSpec.model_validate({"name": "t", "student": NET, "passes": {}})


def tried(term: dict[str, Any], **sections: Any) -> module.DryRun:
    stage = {"name": "s", "student": NET, "teachers": {"t": {"from": "t"}}, "passes": {"main": [{"name": "ce"}, term]}}
    return dry_run(StageSpec.model_validate(stage | sections), INFO, {"t": Parent(TEACHER, INFO)})


def test_rates_and_seeds_make_no_other_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_seen", {})
    first = tried({"name": "kd"})
    assert tried({"name": "kd"}, seed=3, train={"lr": 0.5, "epochs": 7}) is first
    assert tried({"name": "logits"}) is not first


@pytest.mark.parametrize(
    ("term", "sections", "said"),
    [
        (
            {"name": "rkd", "taps": {"student": ["pooled"], "teacher": ["pooled"]}},
            {"train": {"accumulation": 2}}, "rkd, which",
        ),
        ({"name": "kd", "modifiers": [{"name": "misclassified"}]}, {"data": {"augment": {"mixup": 0.5}}}, "two labels"),
        ({"name": "kd", "modifiers": [{"name": "lift_target"}]}, {"data": {"augment": {"cutmix": 1.0}}}, "two labels"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_after_what_does(
    term: dict[str, Any], sections: dict[str, Any], said: str
) -> None:
    tried(term)
    with pytest.raises(ConfigError, match=said):
        tried(term, **sections)
