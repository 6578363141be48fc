"""How long answering takes on this machine: prefill plus so much per generated token, for each mode."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from vlroute.modes import MODES, Mode

#: Where nothing was measured: a 2B model decoding one request at a time on a small GPU. An assumption.
ASSUMED_PER_TOKEN = 0.02
ASSUMED_PREFILL = 0.2


class Pace:
    """Seconds per generated token and seconds of prefill per mode; learns from what it observes. Thread-safe.

    An observation moves both figures by `weight` of the difference (exponential moving average), so a machine
    that slows down under load is noticed within some ten answers.

    With a finite `half_life` a slow mode that nobody asks any more is believed to recover: so many seconds halve what
    it takes beyond its fastest. Else what a queue of a minute ago taught would keep requests away for good.
    """

    def __init__(
        self,
        per_token: Mapping[Mode, float] | None = None,
        prefill: Mapping[Mode, float] | None = None,
        *,
        weight: float = 0.1,
        half_life: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A missing mode takes the assumed value. ValueError for seconds < 0, weight outside (0, 1], half-life <= 0."""
        if not 0 < weight <= 1:
            raise ValueError(f"weight must be in (0, 1], not {weight}")
        if not half_life > 0:  # NaN, too
            raise ValueError(f"half_life must be a number of seconds over 0, not {half_life}")
        self._per_token = dict.fromkeys(MODES, ASSUMED_PER_TOKEN) | _checked(per_token or {})
        self._prefill = dict.fromkeys(MODES, ASSUMED_PREFILL) | _checked(prefill or {})
        self._weight, self.half_life, self._clock = weight, half_life, clock
        self._fastest: dict[Mode, tuple[float, float]] = {}  # prefill and per token, of the modes observed
        self._observed_at: dict[Mode, float] = {}
        self._read_seconds = dict.fromkeys(MODES, 0.0)  # moving averages; their ratio is the pace of reading
        self._read_tokens = dict.fromkeys(MODES, 0.0)
        self._lock = threading.Lock()

    def expected(self, mode: Mode, tokens: float, unread: int | None = None) -> float:
        """Seconds until `mode` has generated `tokens`; always finite. ValueError if tokens is not, or < 0.

        `unread`: so many tokens of the prompt are to be read first, where that is known and reading was observed;
        else the mean prefill counts.
        """
        if not 0 <= tokens < math.inf:
            raise ValueError(f"tokens must be finite and >= 0, not {tokens}")
        with self._lock:
            prefill, per_token = self._believed(mode)
            if unread is not None and self._read_tokens[mode]:
                prefill = unread * self._read_seconds[mode] / self._read_tokens[mode]
            seconds = prefill + per_token * tokens
        return min(seconds, sys.float_info.max)

    def observe(
        self, mode: Mode, tokens: int, prefill_seconds: float, decode_seconds: float, read: int | None = None
    ) -> None:
        """Learn from one answer; without tokens only its prefill. ValueError for values < 0 or infinite.

        `read`: how many tokens of the prompt the prefill took in.
        """
        if mode not in MODES or not 0 <= tokens < math.inf or (read is not None and read < 0):
            raise ValueError(f"expected a mode and tokens >= 0, not {mode!r}, {tokens!r} and {read!r}")
        for seconds in (prefill_seconds, decode_seconds):
            _check(seconds)
        with self._lock:
            self._prefill[mode] += self._weight * (prefill_seconds - self._prefill[mode])
            if read:
                self._read_seconds[mode] += self._weight * (prefill_seconds - self._read_seconds[mode])
                self._read_tokens[mode] += self._weight * (read - self._read_tokens[mode])
            if tokens:
                self._per_token[mode] += self._weight * (decode_seconds / tokens - self._per_token[mode])
            prefill, per_token = self._fastest.get(mode, (math.inf, math.inf))
            per_token = min(per_token, decode_seconds / tokens) if tokens else per_token
            self._fastest[mode] = min(prefill, prefill_seconds), per_token
            self._observed_at[mode] = self._clock()

    def _believed(self, mode: Mode) -> tuple[float, float]:
        now = self._prefill[mode], self._per_token[mode]
        if mode not in self._fastest or math.isinf(self.half_life):
            return now
        left = 0.5 ** ((self._clock() - self._observed_at[mode]) / self.half_life)
        prefill, per_token = (
            value - (1 - left) * max(value - fastest, 0.0)
            for value, fastest in zip(now, self._fastest[mode], strict=True)
        )
        return prefill, per_token

    def to_dict(self) -> dict[str, dict[Mode, float]]:
        """`{"per_token": {mode: s}, "prefill": {mode: s}}`, ready for JSON."""
        with self._lock:
            return {"per_token": {**self._per_token}, "prefill": {**self._prefill}}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Pace:
        """The inverse of `to_dict`. ValueError if something is not as it writes it."""
        if set(value) != {"per_token", "prefill"} or not all(isinstance(part, Mapping) for part in value.values()):
            raise ValueError(f"a pace has 'per_token' and 'prefill', each by mode; found {value!r}")
        return cls(value["per_token"], value["prefill"])


def _checked(by_mode: Mapping[Mode, float]) -> dict[Mode, float]:
    for mode, seconds in by_mode.items():
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; modes are {', '.join(MODES)}")
        _check(seconds)
    return dict(by_mode)


def _check(seconds: float) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
        raise ValueError(f"seconds must be a finite number >= 0, not {seconds!r}")
