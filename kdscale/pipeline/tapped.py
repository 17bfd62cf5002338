"""Which taps a stage's terms ask for, of which network, and whose fault a tap is that does not work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kdscale.config.schema import StageSpec, TermConfig
from kdscale.config.stages import term_key
from kdscale.config.taps import Tap, name_of
from kdscale.errors import TapError

__all__ = ["blamed", "wanted_taps"]


def wanted_taps(terms: Sequence[TermConfig], only: str | None) -> dict[str | None, list[Tap]]:
    """Every tap that any term asks for, once, in order; the student's under None.

    Args:
        terms: of all passes.
        only: the stage's one teacher, whom a term means that names none.
    """
    wanted: dict[str | None, list[Tap]] = {None: []}
    for term in terms:
        if term.taps is None:
            continue
        for owner, taps in ((None, term.taps.student), (term.teacher or only, term.taps.teacher)):
            listed = wanted.setdefault(owner, [])
            listed += [tap for tap in dict.fromkeys(taps) if tap not in listed]
    return wanted


@contextmanager
def blamed(spec: StageSpec, owner: str | None, only: str | None) -> Iterator[None]:
    """Put the key path of the first term that asks for it before the error of a tap.

    Args:
        spec: the stage.
        owner: the teacher whose network is built or run within; None for the student.
        only: the stage's one teacher, whom a term means that names none.
    """
    try:
        yield
    except TapError as error:
        asked = list(_asked(spec, owner, only))
        # a module that is not there is known by its name alone, whatever form it should have had
        for called in (str, name_of):
            for key, tap in asked:
                if called(tap) == error.tap:
                    raise TapError(f"{key}: {error}", error.tap) from error
        raise


def _asked(spec: StageSpec, owner: str | None, only: str | None) -> Iterator[tuple[str, Tap]]:
    """Every tap on one network, with the key path under which a term asks for it."""
    side = "student" if owner is None else "teacher"
    for pass_, terms in spec.passes.items():
        for term in terms:
            if term.taps is not None and (owner is None or (term.teacher or only) == owner):
                key = f"{term_key(spec, spec.name, pass_, term.id)}.taps.{side}"
                yield from ((key, tap) for tap in (term.taps.student if owner is None else term.taps.teacher))
