from __future__ import annotations

import pytest

from kdscale.config.schema import StageSpec
from kdscale.errors import ConfigError
from kdscale.losses.ce import CrossEntropy
from kdscale.pipeline import engine_limits
from kdscale.pipeline.engine_limits import refuse_what_the_engine_cannot_run
from kdscale.strategies.distill import Distill


def stage(name: str = "deepspeed", zero_stage: int = 0) -> StageSpec:
    return StageSpec.model_validate(
        {
            "name": "s",
            "student": {"model": "resnet_cifar", "depth": 8},
            "passes": {"main": [{"name": "ce"}]},
            "engine": {"name": name, "zero_stage": zero_stage},
        }
    )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_limits, "find_spec", lambda name: object())


def test_what_is_not_installed_is_said_at_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_limits, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"stages\.s\.engine\.name: .* not installed; \./install\.sh deepspeed"):
        refuse_what_the_engine_cannot_run(stage())
    refuse_what_the_engine_cannot_run(stage("ddp"))


@pytest.mark.usefixtures("installed")
def test_a_strategy_says_how_far_it_can_be_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_what_the_engine_cannot_run(stage(zero_stage=3))
    monkeypatch.setattr(Distill, "most_zero_stage", 0)
    refuse_what_the_engine_cannot_run(stage(zero_stage=0))
    with pytest.raises(ConfigError, match=r"stages\.s\.engine\.zero_stage: strategy distill runs up to 0, not 1"):
        refuse_what_the_engine_cannot_run(stage(zero_stage=1))


@pytest.mark.usefixtures("installed")
def test_second_derivatives_want_whole_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CrossEntropy, "needs_input_grad", True)
    refuse_what_the_engine_cannot_run(stage(zero_stage=2))
    with pytest.raises(ConfigError, match=r"stages\.s\.engine\.zero_stage: ce differentiates"):
        refuse_what_the_engine_cannot_run(stage(zero_stage=3))
