"""How long answering takes on this machine: prefill plus so much per generated token, for each mode."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vlroute.types import MODES, Mode, other

#: Where nothing was measured: a 2B model decoding one request at a time on a small GPU. An assumption.
ASSUMED_PER_TOKEN = 0.02
ASSUMED_PREFILL = 0.2
#: Seconds after which half of what recent answers showed is forgotten.
HALF_LIFE = 30.0
# Rates at which the usual pace changes, in half-lives: they depend on time, not on the number of answers. Load can
# only make a machine slower, so faster answers have more weight.
SLOWER, FASTER = 20, 10
#: Half-lives after which a mode without requests follows the usual pace of the other mode, on a shared machine.
STALE = 4
#: Half-lives after which a mode without requests is assumed to be slower than its prior by the factor of the other.
UNOBSERVED = 20
#: For the usual pace, an answer counts as at most this many times slower or faster than usual.
OUTLIER = 4.0
_MOST = sys.float_info.max


@dataclass(slots=True)
class _Work:
    """One kind of work in one mode: moving averages of seconds and of the amount of work; the pace is their ratio.

    `prior`: seconds per unit before the first observation. `at`: time of the last observation of this mode. `fresh`: 1
    after an observation; reduced by each later observation of the other mode if both share a machine.
    """

    prior: float
    usual_seconds: float
    usual_amount: float = 1.0
    recent_seconds: float = 0.0
    recent_amount: float = 0.0
    at: float = -math.inf
    fresh: float = 1.0

    @property
    def usual(self) -> float:
        return self.usual_seconds / self.usual_amount

    @property
    def recent(self) -> float:
        return self.recent_seconds / self.recent_amount if self.recent_amount else self.usual


_Kind = dict[Mode, _Work]


class LatencyModel:
    """Expected seconds of prefill and per generated token in each mode, updated with each answer. Thread-safe.

    The *recent* pace is an exponential moving average: each answer moves it by `weight` of the difference, so it reacts
    to load within about ten answers. The *usual* pace changes much more slowly, over minutes of answers. Without
    answers, the estimate returns to the usual pace with the given `half_life`. So a busy minute does not keep requests
    away from a mode permanently, and a machine that is always slow keeps its slow estimate.

    `shared`: both modes run on one machine. A slowdown of one mode then also raises the estimate of the other mode,
    unless that mode has equally recent answers. If each mode has its own server, and so its own queue, the estimate of
    a mode without requests returns to its usual pace, independently of the other mode.
    """

    def __init__(
        self,
        per_token: Mapping[Mode, float] | None = None,
        prefill: Mapping[Mode, float] | None = None,
        *,
        weight: float = 0.1,
        half_life: float = HALF_LIFE,
        shared: bool = True,
        clock: Callable[[], float] = lambda: time.monotonic(),
    ) -> None:
        """A missing mode takes the assumed value. ValueError for seconds < 0, weight outside (0, 1], half-life <= 0."""
        if not 0 < weight <= 1:
            raise ValueError(f"weight must be in (0, 1], not {weight}")
        if not half_life > 0:  # NaN, too
            raise ValueError(f"half_life must be a number of seconds over 0, not {half_life}")
        self.shared = shared
        self._weight, self._half_life, self._clock = weight, half_life, clock
        self._per_token = _kind(dict.fromkeys(MODES, ASSUMED_PER_TOKEN) | _checked(per_token or {}))
        self._prefill = _kind(dict.fromkeys(MODES, ASSUMED_PREFILL) | _checked(prefill or {}))
        self._reading: _Kind = {}  # per prompt token; nothing is assumed
        self._lock = threading.Lock()

    def expected(self, mode: Mode, tokens: float, uncached_tokens: int | None = None) -> float:
        """Seconds until `mode` has generated `tokens`; always finite. ValueError if tokens is not, or < 0.

        `uncached_tokens`: number of prompt tokens to prefill, if known. It is used once a prefill with a token count
        was observed in either mode; otherwise the mean prefill time is used.
        """
        if not 0 <= tokens < math.inf:
            raise ValueError(f"tokens must be finite and >= 0, not {tokens}")
        with self._lock:
            now = self._clock()
            if uncached_tokens is not None and self._reading:
                prefill = uncached_tokens * self._believed(self._reading, mode, now)
            else:
                prefill = self._believed(self._prefill, mode, now)
            seconds = prefill + self._believed(self._per_token, mode, now) * tokens
        return min(seconds, _MOST)

    def observe(
        self, mode: Mode, tokens: int, prefill_seconds: float, decode_seconds: float, read: int | None = None
    ) -> None:
        """Learn from one answer. ValueError for values < 0 or infinite.

        `read`: number of prompt tokens that were prefilled. An answer of fewer than two tokens does not change the
        decoding pace, because its first token belongs to the prefill.
        """
        if mode not in MODES or not 0 <= tokens < math.inf or (read is not None and read < 0):
            raise ValueError(f"expected a mode and tokens >= 0, not {mode!r}, {tokens!r} and {read!r}")
        for seconds in (prefill_seconds, decode_seconds):
            _check(seconds)
        with self._lock:
            now = self._clock()
            self._learn(self._prefill, mode, prefill_seconds, 1.0, now)
            if read:
                first = prefill_seconds, float(read)
                self._reading = self._reading or {mode: _Work(first[0] / first[1], *first) for mode in MODES}
                self._learn(self._reading, mode, prefill_seconds, float(read), now)
            if tokens > 1:
                self._learn(self._per_token, mode, decode_seconds / tokens, 1.0, now)

    def _learn(self, kind: _Kind, mode: Mode, seconds: float, amount: float, now: float) -> None:
        own, that, weight = kind[mode], kind[other(mode)], self._weight
        own.recent_seconds = self._believed(kind, mode, now) * own.recent_amount
        own.recent_seconds += weight * (seconds - own.recent_seconds)
        own.recent_amount += weight * (amount - own.recent_amount)
        if own.at > -math.inf:  # the first answer of a process is often slower
            self._follow(own, that, seconds, amount, now)
        own.at, own.fresh = now, 1.0
        if self.shared:
            that.fresh *= 1 - weight

    def _follow(self, own: _Work, that: _Work, seconds: float, amount: float, now: float) -> None:
        """Move the usual pace towards the observation, and that of the other mode if its own answers are old."""
        usual, gap = own.usual, now - own.at
        if usual:
            like_usual = min(usual * amount, _MOST)
            seconds = min(max(seconds, like_usual / OUTLIER), like_usual * OUTLIER, _MOST)
        slower = seconds > usual * amount
        share = min(self._weight, 1 - self._left(gap, SLOWER if slower else FASTER))
        own.usual_seconds += share * (seconds - own.usual_seconds)
        own.usual_amount += share * (amount - own.usual_amount)
        if self.shared:
            stale = 1 - self._left(now - that.at, STALE)
            that.usual_seconds = min(that.usual_seconds * (1 + stale * (_ratio(own.usual, usual) - 1)), _MOST)
        like = min(that.prior * that.usual_amount * _ratio(own.usual, own.prior), _MOST)
        share = (1 - self._left(gap, UNOBSERVED)) * (1 - self._left(now - that.at, UNOBSERVED))
        that.usual_seconds += share * (like - that.usual_seconds)

    def _believed(self, kind: _Kind, mode: Mode, now: float) -> float:
        """Seconds per unit at time `now`: the recent pace, which decays to the usual pace."""
        own, that = kind[mode], kind[other(mode)]
        slowdown = 1.0
        if self.shared:
            slowdown += self._left(now - that.at) * (_ratio(that.recent, that.usual) - 1)
        left = own.fresh * self._left(now - own.at)
        return left * own.recent + (1 - left) * min(own.usual * slowdown, _MOST)

    def _left(self, seconds: float, times: float = 1.0) -> float:
        """Remaining weight after `seconds`; `times`: multiple of the half-life."""
        return 0.0 if math.isinf(seconds) else 0.5 ** (seconds / (times * self._half_life))

    def to_dict(self) -> dict[str, dict[Mode, float]]:
        """`{"per_token": {mode: s}, "prefill": {mode: s}}`, the current estimates, for JSON."""
        with self._lock:
            now = self._clock()
            return {
                name: {mode: self._believed(kind, mode, now) for mode in MODES}
                for name, kind in (("per_token", self._per_token), ("prefill", self._prefill))
            }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> LatencyModel:
        """The inverse of `to_dict`. ValueError if something is not as it writes it."""
        if set(value) != {"per_token", "prefill"} or not all(isinstance(part, Mapping) for part in value.values()):
            raise ValueError(f"a pace has 'per_token' and 'prefill', each by mode; found {value!r}")
        return cls(value["per_token"], value["prefill"])


def _kind(by_mode: Mapping[Mode, float]) -> _Kind:
    return {mode: _Work(seconds, seconds, 1.0, seconds, 1.0) for mode, seconds in by_mode.items()}


def _ratio(value: float, to: float) -> float:
    """`value / to`; 1 if `to` is 0."""
    return min(value / to, 1e9) if to else 1.0


def _checked(by_mode: Mapping[Mode, float]) -> dict[Mode, float]:
    for mode, seconds in by_mode.items():
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; modes are {', '.join(MODES)}")
        _check(seconds)
    return dict(by_mode)


def _check(seconds: float) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
        raise ValueError(f"seconds must be a finite number >= 0, not {seconds!r}")
