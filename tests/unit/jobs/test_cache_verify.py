"""`launch/cache.py verify`: damage is found, named and mended; records are those of the live teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from kdscale.cache.folder import CacheFolder
from kdscale.cache.reader import CacheReader
from kdscale.cache.writer import BlockWriter
from kdscale.errors import StageError
from kdscale.jobs.cache_places import CachePlace
from kdscale.jobs.cache_verify import recompute, repair, verify
from kdscale.pipeline.artifacts import Root
from tests.small_caches import damage

Of = Callable[[str], CachePlace]


def judged(root: Root, capsys: Any, name: str | None = None, *, code: int = 0, **options: Any) -> list[Any]:
    """What `--json` says."""
    capsys.readouterr()
    known = {"records": 0, "seed": 0, "mends": False, "as_json": True}
    assert verify(root, name, Console(width=200), **{**known, **options}) == code
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    return list(document["caches"])


def content(folder: CacheFolder) -> list[bytes]:
    return [folder.shard(0).read_bytes(), (folder.path / "blocks.bin").read_bytes()]


def overwrite(place: CachePlace, block: int, records: Any) -> None:
    """Put other records in a block's place, with a checksum that fits."""
    writer = BlockWriter(place.opened)
    damage(place, block)
    assert writer.discard(block)
    assert writer.take(block)
    writer.write(block, records)
    writer.close()


def test_whole_caches_match(caches: Root, capsys: Any) -> None:
    found = judged(caches, capsys)
    assert [(one["read"], one["absent"], one["bad"]) for one in found] == [(8, 0, [])] * 3


def test_records_are_those_of_the_live_teacher_byte_by_byte(caches: Root, capsys: Any) -> None:
    for one in judged(caches, capsys, records=40):
        assert (one["difference"]["records"], one["difference"]["equal"]) == (40, 40)
        assert one["difference"]["logits"] == one["difference"]["pooled"] == one["difference"]["indices"] == 0
        assert not any(one["difference"]["probabilities"].values())


def test_more_records_than_there_are_is_all_of_them(caches: Root, place: Of) -> None:
    assert recompute(place("exact"), caches, 10_000, seed=3).records == 2 * 108


def test_a_damaged_block_is_named_and_mended(caches: Root, place: Of, capsys: Any) -> None:
    known, folder = place("mixed"), place("mixed").opened
    before = content(folder)
    damage(known, 3)
    damage(known, 5)
    (one,) = judged(caches, capsys, "small:mixed", code=1)
    rows = folder.rows_of(5)
    assert [bad["block"] for bad in one["bad"]] == [3, 5]
    assert one["bad"][1] == {
        "file": "records-00000.bin", "block": 5, "view": 1, "first_row": int(rows[0]), "last_row": int(rows[-1]),
    }  # fmt: skip
    (one,) = judged(caches, capsys, "small:mixed", mends=True)
    assert one["repaired"] == 2
    assert content(folder) == before
    assert judged(caches, capsys, "small:mixed")[0]["bad"] == []


def test_a_file_that_was_cut_off_is_mended(caches: Root, place: Of) -> None:
    folder = place("exact").opened
    before = content(folder)
    with folder.shard(0).open("r+b") as file:
        file.truncate(6 * folder.manifest.block_bytes)
    bad = CacheReader(folder).verify()
    assert bad == [6, 7]
    assert repair(place("exact"), caches, bad) == bad
    assert content(folder) == before


def test_the_screen_names_block_and_mend(caches: Root, place: Of, capsys: Any) -> None:
    damage(place("exact"), 0)
    assert verify(caches, None, Console(width=200), records=5, seed=0, mends=False, as_json=False) == 1
    text = capsys.readouterr().out
    assert "8 blocks read, 1 DAMAGED" in text
    assert "records-00000.bin  block 0  view 0  rows" in text
    assert f"verify {place('exact').path.name} --repair" in text
    assert "probabilities at temperature 4: 0" in text


def test_records_of_another_teacher_are_found_though_their_checksums_fit(caches: Root, place: Of, capsys: Any) -> None:
    folder = place("exact").opened
    records = CacheReader(folder).gather(folder.rows_of(0), 0).view("<f4")
    overwrite(place("exact"), 0, (records + np.float32(0.01)).view(np.uint8))
    assert judged(caches, capsys, "small:exact")[0]["bad"] == []
    (one,) = judged(caches, capsys, "small:exact", records=216, code=1)
    assert one["difference"]["beyond"] == len(folder.rows_of(0))
    assert one["difference"]["logits"] == pytest.approx(0.01, rel=1e-3)


def test_a_teacher_that_was_retrained_is_refused_and_nothing_is_thrown_away(
    caches: Root, place: Of, capsys: Any
) -> None:
    known = place("exact")
    teacher = caches.stage(known.teacher["stage"])
    assert teacher is not None
    weights = teacher.snapshot("last")
    other = next(stage for stage in caches.stages() if stage.name == "sparse").snapshot("last")
    weights.write_bytes(other.read_bytes())
    damage(known, 2)
    before = content(known.opened)
    with pytest.raises(StageError, match="is not what its stage wrote"):
        repair(known, caches, [2])
    from kdscale.checkpoint import file_hash

    teacher.write_state(weights={"last": file_hash(weights)})
    with pytest.raises(StageError, match=r"was trained again and has .* now"):
        repair(place("sparse"), caches, [2])
    problems = [one["problem"] for one in judged(caches, capsys, records=3, code=1)]
    assert ["was trained again" in problem for problem in problems] == [True] * 3, "each cache is looked at"
    assert content(known.opened) == before


def test_a_teacher_that_is_gone_is_said(caches: Root, place: Of) -> None:
    teacher = caches.stage(place("exact").teacher["stage"])
    assert teacher is not None
    known = place("exact")
    teacher.take_out("a test")
    with pytest.raises(StageError, match=r"asking its teacher again takes teacher from .*, which is missing"):
        recompute(known, Root(caches.path), 1, 0)


def test_without_anybody_who_knows_the_data_it_says_what_would_help(caches: Root, place: Of) -> None:
    known = place("exact")
    known.uses.clear()
    with pytest.raises(StageError, match="nothing says where its data is"):
        recompute(known, caches, 1, 0)


def test_a_read_only_root_is_looked_through_but_not_mended(caches: Root, place: Of, capsys: Any) -> None:
    damage(place("exact"), 1)
    mine = Root(caches.path.parent / "mine", [caches.path])
    name = place("exact").path.name
    assert judged(mine, capsys, name, code=1, records=500)[0]["difference"]["equal"] == 2 * 108 - 32
    (one,) = judged(mine, capsys, name, code=1, mends=True)
    assert "read-only root" in one["problem"]


def test_blocks_that_are_absent_are_counted_and_not_called_damaged(caches: Root, place: Of, capsys: Any) -> None:
    with (place("exact").path / "blocks.bin").open("r+b") as file:
        file.truncate(5 * 16)
    (one,) = judged(caches, capsys, "small:exact", records=200)
    assert (one["read"], one["absent"], one["wrong"]) == (5, 3, False)
    assert one["difference"]["equal"] == 108 + 32


def test_a_cache_that_cannot_be_opened_is_wrong(caches: Root, place: Of, capsys: Any) -> None:
    (place("exact").path / "rows.bin").write_bytes(b"")
    found = judged(caches, capsys, code=1)
    assert sum("rows_hash" in one["problem"] for one in found) == 1


def test_stopped_in_the_middle_of_a_repair_leaves_blocks_whole_or_absent(
    caches: Root, place: Of, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdscale.train.filler import Filler

    known, calls = place("exact"), []
    whole = Filler._encoded

    def stopped(self: Filler, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, batch)

    before = content(known.opened)
    for block in (1, 6):
        damage(known, block)
    monkeypatch.setattr(Filler, "_encoded", stopped)
    with pytest.raises(KeyboardInterrupt):
        repair(known, caches, [1, 6])
    monkeypatch.undo()
    assert CacheReader(known.opened).verify() == []
    missing = known.opened.missing().tolist()
    assert missing
    from kdscale.jobs.cache_teacher import filler_of

    assert filler_of(known, caches).fill(missing)
    assert content(known.opened) == before
