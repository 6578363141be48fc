"""Expected seconds of an answer on this machine: prefill plus seconds per generated token, for each mode."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vlroute.checks import shown
from vlroute.types import MODES, Mode, other

#: Assumed seconds if nothing was measured: a 2B model that decodes one request at a time on a small GPU.
ASSUMED_PER_TOKEN = 0.02
ASSUMED_PREFILL = 0.2
#: Seconds after which the weight of recent answers is halved.
HALF_LIFE = 30.0
# Time constants of the usual speed in half-lives, for slower and for faster answers. They depend on time, not on the
# number of answers. Load can only make a machine slower, so faster answers have more weight.
SLOWER, FASTER = 20, 10
#: Half-lives after which a mode without requests follows the usual speed of the other mode, on a shared machine.
STALE = 4
#: Half-lives after which a mode without requests is assumed to be slower than its prior by the factor of the other.
UNOBSERVED = 20
#: For the usual speed, an answer counts as at most this many times slower or faster than usual.
OUTLIER = 4.0
#: The most seconds of a stored estimate. Products with numbers of tokens are then finite.
MOST_STORED = 1e9
_MOST = sys.float_info.max


@dataclass(slots=True)
class _Work:
    """One kind of work in one mode: moving averages of seconds and of amounts; their ratio is seconds per unit.

    Attributes:
        prior: Seconds per unit before the first observation.
        usual_seconds: Slowly moving average of the seconds.
        usual_amount: The same for the amounts.
        recent_seconds: Quickly moving average of the seconds.
        recent_amount: The same for the amounts.
        at: Time of the last observation of this mode.
        fresh: 1 after an observation; reduced by each later observation of the other mode if both share a machine.
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

    The *recent* speed is an exponential moving average: each answer moves it by `weight` of the difference, so that it
    reacts to load within about ten answers. The *usual* speed changes much more slowly, over minutes of answers.
    Without answers, the estimate returns to the usual speed with the given half-life. Therefore a busy minute does not
    keep requests away from a mode permanently, and a machine that is always slow keeps its slow estimate.

    Args:
        per_token: Seconds per generated token by mode; missing modes get `ASSUMED_PER_TOKEN`.
        prefill: Seconds of the prefill by mode; missing modes get `ASSUMED_PREFILL`.
        weight: Weight of an answer in the recent speed, above 0 and up to 1.
        half_life: Seconds after which half of the difference between recent and usual speed is gone.
        shared: Whether both modes run on one machine. A slowdown of one mode then also raises the estimate of the other
            one, unless that mode has equally recent answers. With a server for each mode, the estimate of a mode
            without requests returns to its usual speed, independently of the other mode.
        clock: Returns the time in seconds.

    Raises:
        ValueError: An argument is out of range.
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
        if not 0 < weight <= 1:
            raise ValueError(f"weight must be in (0, 1], not {weight}")
        if not half_life > 0:  # NaN, too
            raise ValueError(f"half_life must be a number of seconds above 0, not {half_life}")
        self.shared = shared
        self._weight, self._half_life, self._clock = weight, half_life, clock
        self._per_token = _kind(dict.fromkeys(MODES, ASSUMED_PER_TOKEN) | _checked(per_token or {}))
        self._prefill = _kind(dict.fromkeys(MODES, ASSUMED_PREFILL) | _checked(prefill or {}))
        self._per_prompt_token: _Kind = {}  # nothing is assumed
        self._lock = threading.Lock()

    def expected(self, mode: Mode, tokens: float, uncached_tokens: int | None = None) -> float:
        """Expected seconds of an answer.

        Args:
            mode: The mode.
            tokens: Number of generated tokens.
            uncached_tokens: Number of prompt tokens to prefill, if known. It is used once a prefill with a token count
                was observed in either mode; otherwise the mean prefill time is used.

        Returns:
            Seconds until the mode has generated the tokens; always finite.

        Raises:
            ValueError: `tokens` is negative or not finite.
        """
        if not 0 <= tokens <= _MOST:  # infinity and too large integers, too
            raise ValueError(f"tokens must be finite and >= 0, not {shown(tokens)}")
        with self._lock:
            now = self._clock()
            if uncached_tokens is not None and self._per_prompt_token:
                prefill = uncached_tokens * self._estimate(self._per_prompt_token, mode, now)
            else:
                prefill = self._estimate(self._prefill, mode, now)
            seconds = prefill + self._estimate(self._per_token, mode, now) * tokens
        return min(seconds, _MOST)

    def seconds_per_token(self, mode: Mode) -> float:
        """Expected seconds for each generated token of a mode."""
        with self._lock:
            return self._estimate(self._per_token, mode, self._clock())

    def observe(
        self, mode: Mode, tokens: int, prefill_seconds: float, decode_seconds: float, uncached_tokens: int | None = None
    ) -> None:
        """Update the estimates with one answer.

        Args:
            mode: The mode that answered.
            tokens: Number of generated tokens. Fewer than two do not change the seconds per token, because the first
                token belongs to the prefill.
            prefill_seconds: Seconds until the first token.
            decode_seconds: Seconds after it.
            uncached_tokens: Number of prompt tokens that were prefilled, if known.

        Raises:
            ValueError: A value is negative or not finite.
        """
        if mode not in MODES or not all(0 <= count <= _MOST for count in (tokens, uncached_tokens or 0)):
            found = f"{shown(mode)}, {shown(tokens)} and {shown(uncached_tokens)}"
            raise ValueError(f"expected a mode and finite numbers of tokens >= 0, not {found}")
        for seconds in (prefill_seconds, decode_seconds):
            _check(seconds)
        with self._lock:
            now = self._clock()
            self._learn(self._prefill, mode, prefill_seconds, 1.0, now)
            if uncached_tokens:
                first = prefill_seconds, float(uncached_tokens)
                self._per_prompt_token = self._per_prompt_token or {
                    mode: _Work(first[0] / first[1], *first) for mode in MODES
                }
                self._learn(self._per_prompt_token, mode, *first, now)
            if tokens > 1:
                self._learn(self._per_token, mode, decode_seconds / tokens, 1.0, now)

    def _learn(self, kind: _Kind, mode: Mode, seconds: float, amount: float, now: float) -> None:
        own, that, weight = kind[mode], kind[other(mode)], self._weight
        own.recent_seconds = self._estimate(kind, mode, now) * own.recent_amount
        own.recent_seconds += weight * (seconds - own.recent_seconds)
        own.recent_amount += weight * (amount - own.recent_amount)
        if own.at > -math.inf:  # the first answer of a process is often slower
            self._follow(own, that, seconds, amount, now)
        own.at, own.fresh = now, 1.0
        if self.shared:
            that.fresh *= 1 - weight

    def _follow(self, own: _Work, that: _Work, seconds: float, amount: float, now: float) -> None:
        """Move the usual speed towards the observation, and that of the other mode if its own answers are old."""
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

    def _estimate(self, kind: _Kind, mode: Mode, now: float) -> float:
        """Seconds per unit at time `now`: the recent speed, which decays to the usual one."""
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
        """The current estimates as `{"per_token": {mode: seconds}, "prefill": {mode: seconds}}`, for JSON."""
        with self._lock:
            now = self._clock()
            return {
                name: {mode: self._estimate(kind, mode, now) for mode in MODES}
                for name, kind in (("per_token", self._per_token), ("prefill", self._prefill))
            }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> LatencyModel:
        """The inverse of `to_dict`.

        Args:
            value: What `to_dict` returned.

        Returns:
            A latency model with these estimates.

        Raises:
            ValueError: The value has another form.
        """
        if (
            not isinstance(value, Mapping)
            or set(value) != {"per_token", "prefill"}
            or not all(isinstance(part, Mapping) for part in value.values())
        ):
            raise ValueError(f"a latency model has 'per_token' and 'prefill', each by mode; found {shown(value)}")
        stored = cls(value["per_token"], value["prefill"])
        if any(seconds > MOST_STORED for part in value.values() for seconds in part.values()):
            raise ValueError(f"seconds of a latency model must be at most {MOST_STORED:g}; found {shown(value)}")
        return stored


def _kind(by_mode: Mapping[Mode, float]) -> _Kind:
    return {mode: _Work(seconds, seconds, 1.0, seconds, 1.0) for mode, seconds in by_mode.items()}


def _ratio(value: float, to: float) -> float:
    """`value / to`; 1 if `to` is 0."""
    return min(value / to, 1e9) if to else 1.0


def _checked(by_mode: Mapping[Mode, float]) -> dict[Mode, float]:
    for mode, seconds in by_mode.items():
        if mode not in MODES:
            raise ValueError(f"unknown mode {shown(mode)}; modes are {', '.join(MODES)}")
        _check(seconds)
    return dict(by_mode)


def _check(seconds: float) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= _MOST:
        raise ValueError(f"seconds must be a finite number >= 0, not {shown(seconds)}")
