"""What trains beside the student belongs to the strategy: optimised as its term says, synchronised with the student."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdscale import plugins
from kdscale.api import DatasetInfo
from kdscale.config.schema import StageSpec, TrainConfig
from kdscale.errors import ConfigError
from kdscale.nn.sync_bn import SyncBatchNorm, to_sync_bn
from kdscale.optim import make_optimizer
from kdscale.pipeline.assemble import Assembled, Parent, assemble

INFO = DatasetInfo(5, 1, 16, 100, 10, (0.5,), (0.25,), tuple("abcde"))
STUDENT = {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]}
TAPS = {"student": ["stage1", "stage2"], "teacher": ["stage1", "stage2"]}


def assembled(*terms: dict[str, Any], **train: Any) -> Assembled:
    return of_terms([{"name": "ce"}, *({"teacher": "t", "taps": TAPS} | term for term in terms)], train=train)


def of_terms(listed: list[dict[str, Any]], **sections: Any) -> Assembled:
    stage = {"name": "s", "student": STUDENT, "teachers": {"t": {"from": "t"}}, "passes": {"main": listed}}
    spec = StageSpec.model_validate(stage | sections)
    taught = StageSpec.model_validate({"name": "t", "student": {"model": "resnet_cifar", "depth": 8}, "passes": {}})
    return assemble(spec, INFO, {"t": Parent(taught, INFO)}, total_steps=10, train_rows=100)


def optimised(of: Assembled) -> dict[str, tuple[float, float]]:
    """Learning rate factor and weight decay of every parameter."""
    groups = make_optimizer(of.strategy.named_parameters(), TrainConfig(weight_decay=0.01), of.own_rates).param_groups
    rates = {id(p): (group["lr_factor"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: rates[id(parameter)] for name, parameter in of.strategy.named_parameters()}


def test_parts_of_a_term_train_at_the_terms_rate_and_decay() -> None:
    weighed = {"name": "fitnet", "lr": 0.5, "weight_decay": 0.3, "modifiers": [{"name": "prime_aware"}]}
    found = optimised(assembled(weighed, {"name": "crd", "lr": 2.0}, {"name": "ickd"}))
    assert {rate for name, rate in found.items() if name.startswith("student.")} == {(1.0, 0.01)}
    for part in ("terms.fitnet.", "modifiers.fitnet."):
        assert {rate for name, rate in found.items() if name.startswith(part)} == {(0.5, 0.3)}
    assert {rate for name, rate in found.items() if name.startswith("terms.crd.")} == {(2.0, 0.01)}
    assert {rate for name, rate in found.items() if name.startswith("terms.ickd.")} == {(1.0, 0.01)}


@pytest.mark.parametrize("own", [{}, {"weight_decay": 0.3}, {"lr": 0.5, "weight_decay": 0.3}])
def test_variances_never_decay(own: dict[str, float]) -> None:
    found = optimised(assembled({"name": "vid"} | own))
    rates = {kind: {rate for name, rate in found.items() if name.startswith(f"terms.vid.{kind}")} for kind in PARTS}
    assert rates["raw_variances"] == {(own.get("lr", 1.0), 0.0)}
    assert rates["regressors"] == {(own.get("lr", 1.0), own.get("weight_decay", 0.01))}


PARTS = ("raw_variances", "regressors")


@pytest.mark.parametrize("name", plugins.available("losses"))
def test_what_never_decays_is_there(name: str) -> None:
    undecayed = plugins.load("losses", name).undecayed
    if undecayed:
        names = [n for n, _ in assembled({"name": name}).strategy.named_parameters()]
        assert all(any(n.startswith(f"terms.{name}.{part}") for n in names) for part in undecayed)


def test_batch_norm_of_terms_and_modifiers_follows_the_students() -> None:
    strategy = assembled({"name": "fitnet", "modifiers": [{"name": "prime_aware"}]}).strategy

    def norms(part: str) -> list[nn.Module]:
        return [m for path, m in strategy.named_modules() if path.startswith(part) and isinstance(m, _BatchNorm)]

    assert all(norms(part) for part in ("student.", "terms.fitnet.", "modifiers.fitnet."))
    assert not any(isinstance(norm, SyncBatchNorm) for norm in norms(""))
    to_sync_bn(strategy)
    assert all(isinstance(norm, SyncBatchNorm) for norm in norms(""))


WHOLE_BATCH = [n for n in plugins.available("losses") if plugins.load("losses", n).relational or n == "crd"]


@pytest.mark.parametrize("name", WHOLE_BATCH)
def test_a_loss_of_the_whole_batch_is_not_accumulated(name: str) -> None:
    assembled({"name": name})
    with pytest.raises(ConfigError, match=rf"stages\.s\.train\.accumulation: 2 does not go with {name}"):
        assembled({"name": name}, accumulation=2)


PICKS = {"name": "misclassified"}


def test_a_term_whose_modifier_judges_the_teacher_hears_it() -> None:
    heard = of_terms([{"name": "ce", "modifiers": [PICKS]}, {"name": "kd"}]).strategy
    assert heard.figures == ()  # the other term counts every sample
    assert of_terms([{"name": "ce", "modifiers": [PICKS]}]).strategy.figures == ("picked/main",)


def test_several_teachers_are_told_apart_before_one_is_judged() -> None:
    with pytest.raises(
        ConfigError, match=r"losses\.ce: ce needs a teacher: set teacher: NAME \(this stage has: t, u\)"
    ):
        of_terms([{"name": "ce", "modifiers": [PICKS]}], teachers={"t": {"from": "t"}, "u": {"from": "u"}})


@pytest.mark.parametrize("modifier", ["misclassified", "lift_target"])
@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_what_asks_whether_the_teacher_is_right_refuses_mixed_labels(modifier: str, mixing: str) -> None:
    terms = [{"name": "kd", "modifiers": [{"name": modifier}]}]
    of_terms(terms, data={"augment": {mixing: 0.0}})
    with pytest.raises(ConfigError, match=rf"losses\.kd\.modifiers\.{modifier}: .* two labels; set stages\.s\.data"):
        of_terms(terms, data={"augment": {mixing: 0.4}})


def test_samples_are_picked_from_terms_that_have_a_value_for_each() -> None:
    with pytest.raises(
        ConfigError, match=r"losses\.rkd\.modifiers\.misclassified: picks samples, but rkd has one value"
    ):
        assembled({"name": "rkd", "modifiers": [PICKS]})


def test_picked_samples_are_not_accumulated() -> None:
    terms = [{"name": "ce"}, {"name": "kd", "modifiers": [PICKS]}]
    of_terms(terms)
    with pytest.raises(ConfigError, match=r"accumulation: 2 does not go with kd"):
        of_terms(terms, train={"accumulation": 2})


def test_a_modifier_knows_the_temperature_of_its_terms_loss() -> None:
    strategy = of_terms([{"name": "kd", "temperature": 3.0, "modifiers": [{"name": "lift_target"}]}]).strategy
    (lift,) = strategy.get_submodule("modifiers.kd").children()
    assert lift.shapes.temperature == 3.0
