"""Which mode a simulated request gets: by share, or by the router's own policy at the pace that its replica shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from training.simulation.work import Request
from vlroute.decision.pace import Pace
from vlroute.decision.policy import Policy
from vlroute.modes import MODES, Mode


class Choosing(Protocol):
    """One replica's decisions. `now`: the simulated time, which the replica sets before each call."""

    now: float

    def choose(self, request: Request, queue: Mapping[Mode, float]) -> Mode:
        """`queue`: seconds until a row of each mode is free, as far as the replica can know."""

    def observe(self, mode: Mode, tokens: int, prefill: float, decode: float) -> None:
        """An answer was written: `tokens` in all, seconds of reading and of writing."""


class ByShare:
    """So many think, by chance, whatever the load. ValueError for a share outside 0..1."""

    def __init__(self, share: float, seed: int = 0) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"the thinking share must lie in 0..1, not {share:g}")
        self.now = 0.0
        self._share, self._chance = share, np.random.default_rng([seed, 3])

    def choose(self, request: Request, queue: Mapping[Mode, float]) -> Mode:
        return "thinking" if self._chance.random() < self._share else "instruct"

    def observe(self, mode: Mode, tokens: int, prefill: float, decode: float) -> None:
        pass


class ByRouter:
    """The price rule, at a pace that follows the answers as `vlroute.judge` has it follow.

    With `queue` the seconds until a row is free count among the expected ones: the price rule follows load. (Over
    endpoints the router does about that, as waiting there shows in the seconds to the first token.)
    """

    def __init__(self, policy: Policy, pace: Pace, queue: bool = False) -> None:
        self._policy, self._start, self._queue = policy, pace.to_dict(), queue
        self.now = 0.0
        self._pace = Pace(self._start["per_token"], self._start["prefill"], clock=lambda: self.now)

    def again(self) -> ByRouter:
        """The same from its start: each replica learns a pace of its own."""
        return ByRouter(self._policy, Pace.from_dict(self._start), self._queue)

    def choose(self, request: Request, queue: Mapping[Mode, float]) -> Mode:
        """ValueError for a request without a prediction."""
        if request.predicted is None:
            raise ValueError("a router decides on predictions: make requests with its classifier")
        pace = self._pace
        if self._queue and any(queue.values()):
            now = pace.to_dict()
            pace = Pace(now["per_token"], {mode: now["prefill"][mode] + queue[mode] for mode in MODES})
        return self._policy.decide(request.predicted, pace).mode

    def observe(self, mode: Mode, tokens: int, prefill: float, decode: float) -> None:
        self._pace.observe(mode, tokens, prefill, decode)
