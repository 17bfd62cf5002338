"""Assistants, dense guidance, growing and early snapshots come to plain distillation where they should, bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch

from kdscale.config.digest import stage_digest
from kdscale.config.schema import StageSpec
from tests.distributed import reductions
from tests.distributed.ranks import run_on_ranks

TWO_RANKS = """
import torch
from kdscale import ranks
from tests.distributed.reductions import compare, drops

torch.set_num_threads(1)
ranks.join("gloo", timeout_s=60)
compare()
drops()
ranks.leave()
print("equal")
"""


def digest_of(spec: StageSpec) -> str:
    """With the references of its teachers for the digests of their stages."""
    parents = {role: (str(ref.from_).partition("@")[0], str(ref.from_)) for role, ref in spec.teachers.items()}
    return stage_digest(spec, parents=parents, fingerprint="pixels", revisions={})


def test_on_one_rank() -> None:
    reductions.compare()


def test_a_drop_on_one_rank() -> None:
    reductions.drops()


def test_on_two_ranks(root: Path) -> None:
    run_on_ranks(TWO_RANKS, root)


def test_what_is_written_the_same_way_is_the_same_stage() -> None:
    """A one-hop chain and a hand-written student under a teacher of that name share a folder."""
    chain = reductions.specs("takd")["student"]
    plain = reductions.specs("blkd")["student"]
    renamed = plain.model_copy(update={"teachers": {"teacher": plain.teachers["t"]}})
    assert digest_of(chain) == digest_of(renamed)


def test_two_terms_of_one_teacher_are_one_of_their_weights_sum() -> None:
    """Y := T: where the previous student is the teacher itself, lam KL + gam KL is (lam + gam) KL."""
    found = {name: reductions.gradient(name) for name in ("gskd of the teacher alone", "blkd")}
    for name, expected in found["blkd"].items():
        torch.testing.assert_close(found["gskd of the teacher alone"][name], expected, rtol=1e-4, atol=1e-6)
