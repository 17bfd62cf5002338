from __future__ import annotations

import json

import pytest
import torch

from kdscale.api import Losses
from kdscale.errors import NonFiniteLoss
from kdscale.train.metrics import Meter, one

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")


def losses(total: float, **terms: float) -> dict[str, Losses]:
    return {"main": Losses(torch.tensor(total), {name: torch.tensor(value) for name, value in terms.items()})}


def meter() -> Meter:
    return Meter(["ce", "kd"], CPU)


def test_means_since_the_last_read() -> None:
    m = meter()
    for step, (ce, kd) in enumerate([(1.0, 3.0), (2.0, 5.0)]):
        m.add(losses(ce + kd, ce=ce, kd=kd), step)
        m.spend("data", 0.25)
    assert m.read() == {"train/loss": 5.5, "train/term/ce": 1.5, "train/term/kd": 4.0, "time/data_s": 0.25}
    m.add(losses(7.0, ce=3.0, kd=4.0), 2)
    assert m.read() == {"train/loss": 7.0, "train/term/ce": 3.0, "train/term/kd": 4.0}


def test_passes_add_up() -> None:
    general, wise = (
        Losses(torch.tensor(1.0), {"ce": torch.tensor(2.0)}),
        Losses(torch.tensor(4.0), {"kd": torch.tensor(8.0)}),
    )
    m = meter()
    m.add({"general": general, "wise": wise}, 0)
    assert m.read() == {"train/loss": 5.0, "train/term/ce": 2.0, "train/term/kd": 8.0}


def test_figures_are_means_too_under_names_of_their_own() -> None:
    m = Meter(["ce"], CPU, ["gate/entropy"])
    for step, entropy in enumerate([0.5, 1.0]):
        found = {"ce": torch.tensor(1.0)}
        parts = [
            {"main": Losses(torch.tensor(1.0), found, {"gate/entropy": torch.tensor(entropy + d)})} for d in (-1, 1)
        ]
        m.add(one(parts), step)
    assert m.read() == {"train/loss": 1.0, "train/term/ce": 1.0, "train/gate/entropy": 0.75}
    m.add({"main": Losses(torch.tensor(1.0), {"ce": torch.tensor(1.0)}, {"gate/entropy": torch.tensor(NAN)})}, 2)
    with pytest.raises(NonFiniteLoss, match="figure gate/entropy became nan or inf at step 2"):
        m.check()


def test_micro_batches_make_one_step() -> None:
    parts = [losses(1.0, ce=2.0, kd=0.0), losses(3.0, ce=6.0, kd=1.0)]
    together = one(parts)["main"]
    assert together.total.item() == 2.0
    assert {name: value.item() for name, value in together.terms.items()} == {"ce": 4.0, "kd": 0.5}


def test_adding_never_waits_for_the_host() -> None:
    """On the meta device there is no value to wait for: any read of one raises."""
    m = Meter(["ce"], torch.device("meta"))
    m.add({"main": Losses(torch.empty((), device="meta"), {"ce": torch.empty((), device="meta")})}, 0)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("read", ["read", "check"])
def test_the_first_bad_term_is_named_with_its_step(bad: float, read: str) -> None:
    m = meter()
    m.add(losses(3.0, ce=1.0, kd=2.0), 40)
    m.add(losses(bad, ce=1.0, kd=bad), 41)
    m.add(losses(NAN, ce=NAN, kd=NAN), 42)
    with pytest.raises(
        NonFiniteLoss, match=r"term kd became nan or inf at step 41 on rank 0\. Lower train\.lr"
    ) as caught:
        getattr(m, read)()
    assert caught.value.step == 41


def test_a_weighted_sum_that_overflows_is_named_too() -> None:
    m = meter()
    m.add(losses(INF, ce=3e38, kd=3e38), 5)
    with pytest.raises(NonFiniteLoss, match="the loss became nan or inf at step 5 on rank 0") as caught:
        m.check()
    assert caught.value.step == 5


def test_finite_sums_pass_the_check_and_stay() -> None:
    m = meter()
    m.add(losses(3e38, ce=3e38, kd=3e38), 0)
    m.add(losses(3e38, ce=3e38, kd=3e38), 1)  # beyond what fp32 can add
    m.check()
    assert m.read()["train/loss"] == pytest.approx(3e38)


def test_a_checkpoint_holds_its_sums() -> None:
    m, other = meter(), meter()
    for step in range(3):
        m.add(losses(0.1 * step, ce=0.3, kd=1 / 3), step)
        m.spend("teacher", 0.5)
    other.load(json.loads(json.dumps(m.state())))
    for each in (m, other):
        each.add(losses(0.7, ce=0.2, kd=0.1), 3)
    assert other.read() == m.read()  # bitwise


def test_two_ranks_sums_are_taken_up_by_one() -> None:
    """Means over ranks of a step are what one rank of both halves would have seen."""
    ranks = []
    for ce in (1.0, 3.0):
        m = meter()
        m.add(losses(ce, ce=ce, kd=0.0), 0)
        ranks += m.state()["ranks"]
    m = meter()
    m.load({"ranks": ranks})
    assert m.read()["train/term/ce"] == 2.0


def test_after_a_load_only_later_steps_are_blamed() -> None:
    m, fresh = meter(), meter()
    m.add(losses(NAN, ce=NAN, kd=0.0), 3)
    m.load(fresh.state())
    m.check()
    m.add(losses(NAN, ce=0.0, kd=NAN), 9)
    with pytest.raises(NonFiniteLoss, match="term kd became nan or inf at step 9"):
        m.check()
