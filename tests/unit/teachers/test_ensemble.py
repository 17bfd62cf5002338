"""An ensemble against the formulas, in float64: what is averaged, where, and with which weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from kdscale.api import Outputs, Shapes, Term
from kdscale.cache.layout import Layout
from kdscale.config.schema import MeanOf
from kdscale.errors import CacheMiss, ShapeError
from kdscale.losses.kd import SoftTargets
from kdscale.strategies.distill import Distill
from kdscale.teachers.ensemble import Ensemble
from tests.unit.cache.answers import Answer, answer, read, seen, written
from tests.unit.train import made_up

BOTH: list[MeanOf] = ["logits", "probabilities"]
TEMPERATURES = st.sampled_from([0.5, 1.0, 4.0, 20.0])
NAMES = ("a", "b", "c", "d")


@st.composite
def members(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Two to four answers to one batch, float64, and shares that add up to 1."""
    count, rows, classes = draw(st.integers(2, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    logits = draw(st.sampled_from([0.1, 3.0, 100.0])) * rng.standard_normal((count, rows, classes))
    shares = rng.dirichlet([1.0] * count)
    return dict(zip(NAMES, torch.from_numpy(logits), strict=False)), dict(zip(NAMES, shares.tolist(), strict=False))


def taught(logits: dict[str, Tensor]) -> dict[str, Outputs]:
    return {name: Outputs(values) for name, values in logits.items()}


def asked(ensemble: Ensemble, answers: dict[str, Outputs], temperature: float) -> Tensor:
    """What a loss at this temperature sees."""
    logits = next(iter(answers.values())).logits
    return ensemble(answers).at(temperature, torch.zeros_like(logits)).logits


# --------------------------------------------------------------------------- the two means


@given(drawn=members(), temperature=TEMPERATURES)
def test_the_mean_of_logits(drawn: tuple[dict[str, Tensor], dict[str, float]], temperature: float) -> None:
    logits, shares = drawn
    expected = sum(shares[name] * logits[name].numpy() for name in shares)
    found = Ensemble("both", shares, "logits")(taught(logits))
    np.testing.assert_allclose(found.logits, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.at(temperature, found.logits).logits, expected, rtol=1e-12, atol=1e-12)


@given(drawn=members(), temperature=TEMPERATURES)
def test_the_mean_of_probabilities(drawn: tuple[dict[str, Tensor], dict[str, float]], temperature: float) -> None:
    logits, shares = drawn
    ensemble = Ensemble("both", shares, "probabilities")
    for t, found in (
        (temperature, asked(ensemble, taught(logits), temperature)),
        (1.0, ensemble(taught(logits)).logits),
    ):
        expected = sum(shares[name] * softmax(logits[name].numpy() / t, axis=1) for name in shares)
        np.testing.assert_allclose(softmax(found.numpy() / t, axis=1), expected, rtol=1e-9, atol=1e-300)


def test_the_two_differ_and_the_second_by_temperature() -> None:
    answers = taught({"a": torch.tensor([[4.0, 0.0, 0.0]]), "b": torch.tensor([[0.0, 2.0, 0.0]])})
    means = [asked(Ensemble("both", {"a": 0.5, "b": 0.5}, of), answers, t) for of in BOTH for t in (1.0, 4.0)]
    centred = [(mean - mean.mean()).tolist()[0] for mean in means]
    assert centred[0] == centred[1]
    assert centred[2] != pytest.approx(centred[3], abs=0.1)
    assert centred[0] != pytest.approx(centred[2], abs=0.1)


@pytest.mark.parametrize("of", BOTH)
def test_shares_belong_to_names(of: MeanOf) -> None:
    logits = {"a": torch.tensor([[3.0, 0.0]]), "b": torch.tensor([[0.0, 3.0]])}
    backwards = dict(reversed(logits.items()))
    for given_ in (logits, backwards):
        found = asked(Ensemble("both", {"b": 0.9, "a": 0.1}, of), taught(given_), 1.0)
        assert found.argmax().item() == 1
    assert asked(Ensemble("both", {"b": 0.1, "a": 0.9}, of), taught(logits), 1.0).argmax().item() == 0


@given(drawn=members(), temperature=TEMPERATURES, of=st.sampled_from(BOTH))
def test_members_that_agree_are_one_teacher(
    drawn: tuple[dict[str, Tensor], dict[str, float]], temperature: float, of: MeanOf
) -> None:
    logits, shares = drawn
    same = dict.fromkeys(shares, logits["a"])
    found = asked(Ensemble("both", shares, of), taught(same), temperature)
    expected = log_softmax(logits["a"].numpy() / temperature, axis=1)
    np.testing.assert_allclose(log_softmax(found.numpy() / temperature, axis=1), expected, rtol=1e-9, atol=1e-9)


# --------------------------------------------------------------------------- precision


@pytest.mark.parametrize("of", BOTH)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_answers_in_float32_what_networks_answer_in_less(of: MeanOf, dtype: torch.dtype) -> None:
    logits = {"a": torch.tensor([[8.0, 1.0]], dtype=dtype), "b": torch.tensor([[7.0, 3.0]], dtype=dtype)}
    shares = {"a": 0.3, "b": 0.7}
    found = asked(Ensemble("both", shares, of), taught(logits), 4.0)
    exact = asked(Ensemble("both", shares, of), taught({k: v.double() for k, v in logits.items()}), 4.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)


def test_a_class_that_nobody_believes_in_keeps_its_logarithm() -> None:
    answers = taught(dict.fromkeys("ab", torch.tensor([[0.0, -500.0]])))  # exp(-500) is 0 in float32
    found = asked(Ensemble("both", {"a": 0.5, "b": 0.5}, "probabilities"), answers, 1.0)
    assert (found[0, 0] - found[0, 1]).item() == pytest.approx(500.0)


# --------------------------------------------------------------------------- members from records


RESIDUALS = ["uniform", "ghost", "to_target", "sampled", "renorm"]


def recorded(given_: Answer, residual: str, temperatures: tuple[float, ...] = (1.0, 4.0)) -> tuple[Outputs, Layout]:
    draws = 8 if residual == "sampled" else 0
    layout = Layout(20, "topk", k=3, residual=residual, draws=draws, temperatures=temperatures)
    return read(written(given_, layout), given_, layout), layout


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_sparse_members_are_completed_at_the_terms_temperature_first(residual: str, temperature: float) -> None:
    first, second = answer(1, 6, 20), answer(2, 6, 20)._replace(labels=answer(1, 6, 20).labels)
    student = torch.randn(6, 20, generator=torch.Generator().manual_seed(3))
    (sparse, layout), live = recorded(first, residual), Outputs(second.logits)
    found = Ensemble("both", {"a": 0.7, "b": 0.3}, "probabilities")({"a": sparse, "b": live}).at(temperature, student)
    expected = 0.7 * seen(first, layout, temperature, student)
    expected += 0.3 * (second.logits.double() / temperature).softmax(1)
    torch.testing.assert_close((found.logits.double() / temperature).softmax(1), expected, rtol=1e-4, atol=1e-6)


def test_the_mean_of_completed_logits() -> None:
    first, second = answer(1, 6, 20), answer(2, 6, 20)
    a, b = recorded(first, "uniform")[0], recorded(second, "ghost")[0]
    student = torch.randn(6, 20, generator=torch.Generator().manual_seed(3))
    found = Ensemble("both", {"a": 0.25, "b": 0.75}, "logits")({"a": a, "b": b}).at(4.0, student).logits
    torch.testing.assert_close(found, 0.25 * a.at(4.0, student).logits + 0.75 * b.at(4.0, student).logits)


def test_a_temperature_that_a_members_records_lack() -> None:
    a, b = recorded(answer(1, 6, 20), "uniform", (1.0, 4.0))[0], recorded(answer(2, 6, 20), "uniform", (1.0,))[0]
    outputs = Ensemble("both", {"a": 0.5, "b": 0.5}, "logits")({"a": a, "b": b})
    with pytest.raises(CacheMiss, match="no log-sum for temperature 4, only for 1"):
        outputs.at(4.0, torch.zeros(6, 20))


# --------------------------------------------------------------------------- in a term


@pytest.mark.parametrize("of", BOTH)
def test_a_term_hears_it_and_gradients_reach_the_student_only(of: MeanOf) -> None:
    torch.manual_seed(0)
    student = made_up.Linear().double()
    batch = made_up.batch()
    logits = {name: torch.randn(8, 3, dtype=torch.float64, requires_grad=True) for name in "ab"}
    answers = taught(logits)
    answers["both"] = Ensemble("both", {"a": 0.7, "b": 0.3}, of)(answers)
    config = SoftTargets.Config(temperature=4)
    term = Term("kd", SoftTargets(config, Shapes(3)), lambda step: 1.0, "both", temperatures=(4.0, 4.0))
    losses = Distill(student, {"main": [term]})(batch, answers, "main")
    losses.total.backward()

    z = {name: values.detach().numpy() for name, values in logits.items()}
    if of == "logits":
        p = softmax((0.7 * z["a"] + 0.3 * z["b"]) / 4, axis=1)
    else:
        p = 0.7 * softmax(z["a"] / 4, axis=1) + 0.3 * softmax(z["b"] / 4, axis=1)
    log_q = log_softmax(student(batch.images).logits.detach().numpy() / 4, axis=1)
    expected = 16 * (p * (np.log(p) - log_q)).sum(1).mean()
    assert losses.total.item() == pytest.approx(expected, rel=1e-12)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(values.grad is None for values in logits.values())


def test_members_that_tell_other_classes_apart() -> None:
    answers = {"a": Outputs(torch.zeros(2, 3)), "b": Outputs(torch.zeros(2, 4))}
    with pytest.raises(ShapeError, match=r"teachers\.both: its members tell different .*\(a 3, b 4\)"):
        Ensemble("both", {"a": 0.5, "b": 0.5}, "logits")(answers)


def test_it_holds_nothing_that_could_train() -> None:
    assert not isinstance(Ensemble("both", {"a": 0.5, "b": 0.5}, "logits"), nn.Module)
