"""Phases: who is told what, and that nobody is told when nobody measures."""

from __future__ import annotations

import pytest

from kdscale.phases import phase, recorded_by, waiting


class Told:
    def __init__(self) -> None:
        self.said: list[str] = []

    def enter(self, name: str) -> None:
        self.said.append(name)

    def leave(self) -> None:
        self.said.append("/")


def test_phases_nest_and_end_where_they_raise() -> None:
    told = Told()

    with pytest.raises(ZeroDivisionError), recorded_by(told), phase("outer"), phase("inner"):
        raise ZeroDivisionError

    assert told.said == ["outer", "inner", "/", "/"]


def test_nobody_is_told_of_what_began_before_it_measured() -> None:
    told = Told()

    with phase("before"):
        with recorded_by(told), phase("during"):
            pass
        assert told.said == ["during", "/"]

    assert told.said == ["during", "/"]


def test_a_phase_that_outlasts_the_measurement_ends_where_it_began() -> None:
    told = Told()

    with recorded_by(told):
        long = phase("long")
        long.__enter__()
    long.__exit__(None, None, None)

    assert told.said == ["long", "/"]


def test_waiting_is_charged_for_each_item_and_for_the_end() -> None:
    told = Told()

    with recorded_by(told):
        for item in waiting([1, 2], "data"):
            told.said.append(str(item))

    assert told.said == ["data", "/", "1", "data", "/", "2", "data", "/"]
