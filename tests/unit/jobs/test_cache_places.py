"""A cache is found by its digest, by a path, and by whoever reads or fills it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kdscale.errors import CacheError, ConfigError
from kdscale.jobs.cache_places import CachePlace, cache_named, caches_of
from kdscale.pipeline.artifacts import Root

Of = Callable[[str], CachePlace]


def test_digest_path_and_stage_name_the_same_cache(caches: Root, place: Of) -> None:
    expected = place("exact").path
    fill = next(use.stage.path.name for use in place("exact").uses if use.fills)
    for text in (
        expected.name[:4],
        expected.name,
        str(expected),
        str(expected / "manifest.json"),
        "latest:exact",
        fill,
    ):
        assert cache_named(text, caches).path == expected


def test_each_cache_knows_who_reads_and_who_fills_it(place: Of) -> None:
    known = {name: sorted(use.stage.name for use in place(name).uses) for name in ("exact", "sparse", "mixed")}
    assert known == {
        "exact": ["exact", "teacher-cache"],
        "sparse": ["sparse"],
        "mixed": ["mixed", "teacher-cache"],
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("zz", "nothing under .* is called 'zz'; .*its caches are "),
        ("small:teacher", "reads and fills no cache"),
        ("small:nobody", "has no stage 'nobody'"),
        ("small", "is a sweep: name a student"),
        ("./nowhere", "there is no such file or folder; its caches are "),
    ],
)
def test_a_bad_name_says_what_there_is(caches: Root, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        cache_named(text, caches)


def test_a_beginning_that_fits_several_is_refused(caches: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdscale.jobs.cache_places._begins", lambda text, place: True)
    with pytest.raises(ConfigError, match="could be any of the caches"):
        cache_named("ab", caches)


def test_a_student_whose_cache_is_gone_is_told_so(caches: Root, place: Of) -> None:
    found = place("exact").path
    found.rename(found.with_name(".away"))
    with pytest.raises(ConfigError, match=r"exact-.* is not filled yet; its caches are"):
        cache_named("small:exact", caches)


def test_a_damaged_manifest_hides_no_other_cache(caches: Root, place: Of) -> None:
    (place("exact").path / "manifest.json").write_text("{")
    found = {p.path.name: p for p in caches_of(caches)}
    assert len(found) == 3
    (broken,) = (p for p in found.values() if p.folder is None)
    with pytest.raises(CacheError, match="cannot be read"):
        _ = broken.opened


def test_caches_of_a_root_to_reuse_from_are_read_only(caches: Root, place: Of, tmp_path: object) -> None:
    other = Root(caches.path.parent / "mine", [caches.path])
    assert [p.writable for p in caches_of(other)] == [False] * 3
    assert cache_named(place("exact").path.name, other).folder is not None
    assert not cache_named(place("exact").path.name, other).opened.writable


def test_a_retrained_teacher_leaves_a_cache_nobody_is_of(caches: Root, place: Of) -> None:
    old = place("exact")
    teacher = caches.stage(old.teacher["stage"])
    assert teacher is not None
    teacher.write_state(weights={"last": "another", "best": "another"})
    for use in old.uses:
        use.stage.write_state(state="waiting", consumed={})
    again = next(p for p in caches_of(caches) if p.path == old.path)
    assert [again.is_of(use) for use in again.uses] == [False, False]
