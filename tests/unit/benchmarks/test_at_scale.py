"""The paper model of a step: what must be true of any such model, and two steps worked out by hand."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.at_scale import GPUS, NETWORKS_GBIT, WORKS, Machine, Work, markdown, step, table

MACHINE = Machine(
    peak_flops=1e15, utilisation=0.5, gpus_a_node=8, inside_bytes_s=400e9, network_share=1.0, gpu_latency_s=0.0,
    host_latency_s=0.0,
)  # fmt: skip
WORK = Work("made up", images=100, parameters=10e6, forward_flops=1e10)


def test_within_a_node_it_is_the_ring_s_time() -> None:
    found = step(WORK, MACHINE, 8, 100.0)
    assert found["compute_s"] == pytest.approx(3 * 100 * 1e10 / 5e14)
    assert found["reduced_s"] == pytest.approx(2 * 7 / 8 * 40e6 / 400e9)


def test_between_nodes_the_network_s_is_added_and_all_but_the_last_bucket_is_hidden() -> None:
    found = step(WORK, MACHINE, 16, 100.0)
    reduced = 2 * 7 / 8 * 40e6 / 400e9 + 2 * 1 / 2 * 40e6 / 12.5e9
    assert found["reduced_s"] == pytest.approx(reduced)
    assert found["exposed_s"] == pytest.approx(reduced / 2), "two buckets of 25 MiB hold 40 MB"


def test_what_cannot_be_hidden_is_seen() -> None:
    slow = step(WORK, MACHINE, 16, 1.0)
    assert slow["exposed_s"] == pytest.approx(slow["reduced_s"] - slow["compute_s"] * 2 / 3 / 2)


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_more_gpus_are_never_more_efficient_and_a_faster_network_never_less(work: Work) -> None:
    machine = Machine()
    by_network = [[step(work, machine, g, gbit)["efficiency"] for g in GPUS] for gbit in NETWORKS_GBIT.values()]
    for efficiencies in by_network:
        assert all(0 < later <= earlier <= 1 for earlier, later in itertools.pairwise(efficiencies))
    for slower, faster in itertools.pairwise(by_network):
        assert all(a <= b for a, b in zip(slower, faster, strict=True))


def test_the_page_holds_every_network_and_assumption() -> None:
    text = markdown(table(Machine()), Machine())
    assert all(work.name in text for work in WORKS)
    assert text.count("| InfiniBand 400 |") == len(WORKS)
    assert "utilisation 0.35" in text
