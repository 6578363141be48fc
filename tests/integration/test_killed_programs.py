"""Killed commands, in small numbers; `make chaos` kills more of them, and the replicas of a cluster."""

from __future__ import annotations

import os

import pytest
from training.chaos import killed_servers, programs

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.mark.parametrize("program", [programs.COLLECT, programs.TRAIN, killed_servers.SERVE], ids=lambda one: one.name)
def test_nothing_is_lost_and_the_next_process_goes_on(program: programs.Program) -> None:
    (found,) = programs.run(program, 2, seed=3)
    assert (found.kills, found.lost, found.unreadable, found.errors) == (2, 0, 0, ())
    assert found.acknowledged > 0 or program is programs.TRAIN  # in which each sixth run is not killed


def test_an_interrupted_suite_continues() -> None:
    done = {"component": "none", "kills": 7, "acknowledged": 5}

    def session(one: programs.Session) -> None:
        for _ in range(one.left):
            one.killed(acknowledged=1)

    program = programs.Program("none", session)
    totals = [(found.kills, found.acknowledged) for found in programs.run(program, 25, done=done)]
    assert totals == [(17, 15), (25, 23)]


def test_faults_are_counted() -> None:
    def session(one: programs.Session) -> None:
        one.lost("a", "b")
        one.killed(1)
        raise ValueError("cannot be read")

    (found,) = programs.run(programs.Program("faulty", session), 1)
    assert (found.kills, found.acknowledged, found.lost, found.unreadable) == (1, 1, 2, 1)
    assert found.errors == ("a", "b", "ValueError: cannot be read")
