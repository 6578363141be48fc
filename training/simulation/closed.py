"""Clients that ask again at once: how such a crowd slows each stage, on a simulated replica."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from training.simulation.choosing import ByShare
from training.simulation.replica import Job, Replica
from training.simulation.work import Machine, Request


def asked_again(machine: Machine, requests: Sequence[Request], clients: int) -> list[Job]:
    """All requests, in the order in which they were answered, when each of so many clients asks the next one as soon as
    it has its answer. ValueError for no clients."""
    if clients < 1:
        raise ValueError(f"there must be at least 1 client, not {clients}")
    replica = Replica(machine, ByShare(0.5))
    coming: Iterator[Request] = iter(requests)
    ended: list[Job] = []
    free = clients
    while True:
        while free and (request := next(coming, None)) is not None:
            over = replica.arrive(Job(request, replica.now))
            ended, free = ended + over, free - 1 + len(over)
        if (at := replica.next_at()) == math.inf:
            return ended
        over = replica.advance(at)
        ended, free = ended + over, free + len(over)
