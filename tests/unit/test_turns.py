from __future__ import annotations

import threading

import pytest
import torch

from kdscale import ranks, turns


def test_each_rank_is_one_of_many_and_the_process_itself_is_alone() -> None:
    assert turns.run(3, lambda: (ranks.rank(), ranks.world())) == [(0, 3), (1, 3), (2, 3)]
    assert (ranks.rank(), ranks.world()) == (0, 1)
    assert turns.run(1, lambda: (ranks.rank(), threading.current_thread())) == [(0, threading.current_thread())]


def test_collectives_give_what_a_process_group_gives() -> None:
    def work() -> tuple[float, float, list[str], str]:
        mine = torch.tensor(float(ranks.rank() + 1))
        ranks.barrier()
        total, most = ranks.mean_(mine.clone()).item(), ranks.max_(mine.clone()).item()
        return total, most, ranks.gather_objects(f"r{ranks.rank()}"), ranks.broadcast_object(f"r{ranks.rank()}")

    assert turns.run(3, work) == [(2.0, 3.0, ["r0", "r1", "r2"], "r0")] * 3


def test_a_sum_in_place_leaves_what_others_have_yet_to_read() -> None:
    def work() -> list[float]:
        own = torch.tensor([float(10 ** ranks.rank())])
        return [ranks.sum_(own).item() for _ in range(3)]

    assert turns.run(2, work) == [[11.0, 22.0, 44.0]] * 2


def test_gathered_rows_have_the_gradient_of_one_process() -> None:
    rows = torch.arange(12.0).reshape(6, 2)

    def loss(of: torch.Tensor) -> torch.Tensor:
        return (of @ of.T).square().mean()

    whole = rows.clone().requires_grad_()
    loss(whole).backward()

    def work() -> torch.Tensor:
        own = rows[3 * ranks.rank() : 3 * ranks.rank() + 3].clone().requires_grad_()
        loss(ranks.gather_with_gradient(own)).backward()
        assert own.grad is not None
        return own.grad / ranks.world()

    torch.testing.assert_close(torch.cat(turns.run(2, work)), whole.grad)


def test_what_a_rank_draws_does_not_depend_on_the_others() -> None:
    def work(waits: bool) -> list[float]:
        torch.default_generator.manual_seed(ranks.rank())
        found = []
        for _ in range(3):
            found.append(torch.rand(1).item())
            if waits:
                ranks.barrier()
        return found

    assert turns.run(3, lambda: work(waits=True)) == turns.run(3, lambda: work(waits=False))


@pytest.mark.parametrize("bad", [0, 2])
def test_the_first_error_ends_all_ranks(bad: int) -> None:
    after: list[int] = []

    def work() -> None:
        ranks.barrier()
        if ranks.rank() == bad:
            raise ValueError(f"rank {bad}")
        ranks.barrier()
        after.append(ranks.rank())

    with pytest.raises(ValueError, match=f"rank {bad}"):
        turns.run(3, work)
    assert not after
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rank ")]
