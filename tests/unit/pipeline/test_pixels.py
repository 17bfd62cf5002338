from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from kdscale.config.schema import StageSpec
from kdscale.errors import ConfigError
from kdscale.nn.input import NetworkInput
from kdscale.nn.network import Network
from kdscale.pipeline.pixels import ask_for_pixels


def network() -> Network:
    given = NetworkInput(given=1, given_size=2, channels=1, size=2, mean=[0.5], std=[0.5])
    return Network(nn.Flatten(), given)


def stage(loss: str, **changes: Any) -> StageSpec:
    return StageSpec.model_validate(
        {
            "name": "s",
            "student": {"model": "resnet_cifar", "depth": 8},
            "teachers": {"t": {"from": "t"}, "u": {"from": "u"}},
            "passes": {"main": [{"name": loss, "teacher": "t"}]},
        }
        | changes
    )


def asked(spec: StageSpec) -> tuple[bool, bool, bool]:
    student, teachers = network(), {"t": network(), "u": network()}
    ask_for_pixels(spec, student, teachers, spec.passes["main"])
    return student.input_grad, teachers["t"].input_grad, teachers["u"].input_grad


def test_only_who_is_differentiated_keeps_its_pixels() -> None:
    assert asked(stage("kd")) == (False, False, False)
    assert asked(stage("at_grad")) == (True, True, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"compile": True}}, r"stages\.s\.losses\.at_grad: .*compile: false"),
        ({"teachers": {"t": {"from": "t", "cache": {}}}}, r"stages\.s\.losses\.at_grad: .*cache of t"),
        ({"teachers": {"t": {"mean": ["u", "v"]}}}, "t is a mean of networks"),
    ],
)
def test_what_cannot_be_differentiated_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asked(stage("at_grad", **changes))
    asked(stage("kd", **changes))
