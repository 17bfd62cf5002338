"""Teachers: frozen whatever happens, the same answers whatever the batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdscale.api import Batch, DatasetInfo
from kdscale.config.schema import StudentConfig
from kdscale.nn.build import build_network
from kdscale.nn.network import Network
from kdscale.teachers.network import NetworkTeacher

INFO = DatasetInfo(10, 1, 28, 100, 20, (0.3,), (0.35,), tuple("abcdefghij"))
CPU = torch.device("cpu")


def network(*taps: str) -> Network:
    built = build_network(StudentConfig(model="resnet_cifar", depth=8), INFO, 28, taps=taps)
    built.train()
    for _ in range(2):  # statistics of a network that has seen something
        built(batch(16).images)
    return built


def batch(count: int) -> Batch:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.zeros(count, dtype=torch.int64), torch.arange(count), view=0)


def teacher(given: Network, precision: str = "fp32", *, fold: bool = True) -> NetworkTeacher:
    return NetworkTeacher("t", given, device=CPU, precision=precision, fold=fold)


def test_answers_as_its_network_does_in_eval() -> None:
    given = network("stage1", "pooled")
    asked = batch(8)
    expected = given.eval()(asked.images)
    for fold in (True, False):
        answer = teacher(given, fold=fold)(asked)
        torch.testing.assert_close(answer.logits, expected.logits, rtol=1e-4, atol=1e-4)
        for found, wanted in zip(answer.features, expected.features, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_says_what_it_provides() -> None:
    assert teacher(network()).provides == {"logits"}
    assert teacher(network("stage2")).provides == {"logits", "features"}


def test_is_no_module_and_keeps_its_fingerprint() -> None:
    taught = teacher(network("stage1"))
    assert not isinstance(taught, nn.Module)
    before = taught.fingerprint()
    for count in (4, 8, 4):
        taught(batch(count))
    assert taught.fingerprint() == before


def test_the_fingerprint_sees_parameters_and_buffers() -> None:
    given = network()
    taught = teacher(given)
    before = taught.fingerprint()
    buffer = given.model.get_buffer("stem.1.running_mean")
    buffer.add_(1e-6)
    assert taught.fingerprint() != before


def test_its_answers_can_be_multiplied_with_what_trains() -> None:
    answer = teacher(network("pooled"))(batch(4))
    assert not answer.logits.requires_grad
    assert not answer.logits.is_inference()
    student = torch.ones(4, 64, requires_grad=True)
    (student * answer.features[0]).sum().backward()
    assert student.grad is not None


def test_a_row_has_the_same_answer_in_any_batch() -> None:
    taught = teacher(network())
    asked = batch(64)
    whole = taught(asked).logits
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    shuffled = Batch(asked.images[order], asked.labels, asked.rows[order], view=0)
    assert torch.equal(taught(shuffled).logits, whole[order])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_close(precision: str) -> None:
    given = network()
    exact, rough = teacher(given)(batch(8)).logits, teacher(given, precision)(batch(8)).logits
    assert rough.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1 * float(exact.abs().max()))
