"""Who else is at work on this machine: a measurement beside others says little."""

from __future__ import annotations

import time
from collections.abc import Sequence

import psutil


class Others:
    """Cores' worth of processor time that other processes took since this was made (or `since` was last asked)."""

    def __init__(self, own: Sequence[psutil.Process]) -> None:
        """`own`: processes that do not count as others; they must be alive when asked."""
        self._own = own
        self._at, self._busy = time.perf_counter(), self._others()

    def since(self) -> float:
        at, busy = time.perf_counter(), self._others()
        found = (busy - self._busy) / max(at - self._at, 1e-9)
        self._at, self._busy = at, busy
        return max(found, 0.0)

    def _others(self) -> float:
        all = psutil.cpu_times()
        # what a hypervisor gave to other machines is gone for this one, too; guests count as user already
        taken = sum(getattr(all, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
        return float(taken - sum(sum(process.cpu_times()[:2]) for process in self._own))


def wait_for_quiet(most: float = 300.0, cores: float = 0.1, seconds: float = 5.0) -> float:
    """Until others take less than `cores` for `seconds`, at most `most` seconds; gives what they took last."""
    until, others, taken = time.monotonic() + most, Others([psutil.Process()]), 0.0
    while most:
        time.sleep(seconds)
        taken = others.since()
        if taken < cores or time.monotonic() >= until:
            break
    return taken
