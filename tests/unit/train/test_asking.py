from __future__ import annotations

import torch

from kdscale.teachers.ensemble import Ensemble
from kdscale.train.asking import ask
from tests.unit.train.made_up import Oracle, batch


def test_each_network_is_asked_once_however_many_listen_to_it() -> None:
    logits = {name: torch.randn(8, 3, generator=torch.Generator().manual_seed(n)) for n, name in enumerate("abc")}
    oracles = {name: Oracle(name, values) for name, values in logits.items()}
    first, second = Ensemble("ab", {"a": 0.5, "b": 0.5}, "logits"), Ensemble("bc", {"b": 0.2, "c": 0.8}, "logits")
    found = ask([first, oracles["b"], oracles["a"], second, oracles["c"]], batch())
    assert list(found) == ["ab", "b", "a", "bc", "c"]
    assert [oracle.asked for oracle in oracles.values()] == [1, 1, 1]
    assert torch.equal(found["a"].logits, logits["a"])
    torch.testing.assert_close(found["ab"].logits, (logits["a"] + logits["b"]) / 2)
    torch.testing.assert_close(found["bc"].logits, 0.2 * logits["b"] + 0.8 * logits["c"])
