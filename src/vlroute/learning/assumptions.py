"""Assumed tokens and seconds, for records that lack them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlroute.decision.latency import ASSUMED_PER_TOKEN, ASSUMED_PREFILL
from vlroute.records import Record, outcomes
from vlroute.types import MODES, Mode, other

#: Tokens of an answer. At the assumed pace they take 1.0 and 2.0 s: the means of what was measured on a 2B pair
#: (0.78-1.23 s for Instruct, 1.12-2.41 s for Thinking).
ASSUMED_TOKENS: dict[Mode, float] = {"instruct": 40.0, "thinking": 90.0}


@dataclass(frozen=True, slots=True)
class Assumed:
    """Assumed figures of an answer, for modes without recorded figures; empty if nothing was assumed.

    `tokens`: generated tokens. `seconds`: prefill and seconds per token.
    """

    tokens: dict[Mode, float]
    seconds: dict[Mode, tuple[float, float]]


def known_tokens(records: Sequence[Record], mode: Mode) -> list[int]:
    """Recorded tokens of the answers in `mode`."""
    return [o.tokens for o in outcomes(records, mode) if o.tokens is not None]


def mean_tokens(records: Sequence[Record]) -> dict[Mode, float]:
    """Mean tokens of an answer in each mode; assumed values if no record contains tokens.

    If only one mode has tokens, the ratio of Thinking to Instruct is assumed to be at least that of `ASSUMED_TOKENS`.
    """
    means = {mode: float(np.mean(known)) for mode in MODES if (known := known_tokens(records, mode))}
    found: dict[Mode, float] = {}
    for mode in MODES:
        scaled = ASSUMED_TOKENS[mode] / ASSUMED_TOKENS[other(mode)] * means.get(other(mode), 0.0)
        if mode in means:
            found[mode] = means[mode]
        elif other(mode) not in means:
            found[mode] = ASSUMED_TOKENS[mode]
        else:
            found[mode] = (max if mode == "thinking" else min)(scaled, ASSUMED_TOKENS[mode])
    return found


def timed(records: Sequence[Record], mode: Mode) -> int:
    """Number of records with the seconds of `mode`."""
    return sum(o.seconds is not None for o in outcomes(records, mode))


def measured_latency(records: Sequence[Record], mode: Mode) -> tuple[float, float] | None:
    """Prefill and seconds per token of `mode`, estimated from the records; None if they contain no seconds of it.

    Decoding takes `seconds` minus `prefill_seconds`. If prefill was not timed, a line is fitted to (tokens, seconds):
    the slope is the time per token, the intercept is the prefill. If tokens are unknown, an answer of `mean_tokens` is
    assumed to take the mean seconds.
    """
    every = [o for o in outcomes(records, mode) if o.seconds is not None]
    counted = [o for o in every if o.tokens]
    if not every:
        return None
    seconds = np.asarray([o.seconds for o in counted or every], dtype=float)
    first = np.asarray([np.nan if o.prefill_seconds is None else o.prefill_seconds for o in counted or every])
    known = ~np.isnan(first)
    if not counted:
        tokens = max(mean_tokens(records)[mode], 1.0)
        share = ASSUMED_PREFILL / (ASSUMED_PREFILL + ASSUMED_PER_TOKEN * tokens)
        prefill = float(first[known].mean()) if known.any() else share * float(seconds.mean())
        return prefill, max(0.0, float(seconds.mean()) - prefill) / tokens
    written = np.asarray([o.tokens for o in counted], dtype=float)
    if known.any():
        per_token = max(0.0, float((seconds - first)[known].sum() / written[known].sum()))
        return float(first[known].mean()), per_token
    spread = written.var()
    slope = float(((written - written.mean()) * seconds).mean() / spread) if spread else 0.0
    # noise must not make either part negative
    per_token = min(max(0.0, slope), float(seconds.sum() / written.sum()))
    return max(0.0, float(seconds.mean() - per_token * written.mean())), per_token


def latencies(records: Sequence[Record]) -> dict[Mode, tuple[float, float]]:
    """Prefill and seconds per token of each mode. A mode without seconds gets the pace of the other one, because both
    models have one size and run on one machine; without any seconds, the assumed values are used."""
    measured = {mode: measured_latency(records, mode) for mode in MODES}
    return {mode: measured[mode] or measured[other(mode)] or (ASSUMED_PREFILL, ASSUMED_PER_TOKEN) for mode in MODES}


def assumed(records: Sequence[Record]) -> Assumed:
    """The values that `mean_tokens` and `latencies` assume."""
    tokens, latency = mean_tokens(records), latencies(records)
    return Assumed(
        {mode: round(tokens[mode], 1) for mode in MODES if not known_tokens(records, mode)},
        {mode: latency[mode] for mode in MODES if not timed(records, mode)},
    )


def note(records: Sequence[Record]) -> str:
    """One to three sentences that say which tokens and seconds are measured and which are assumed."""
    found, tokens, latency = assumed(records), mean_tokens(records), latencies(records)
    if not found.seconds:
        parts = [f"Seconds are measured{_share(records, [timed(records, mode) for mode in MODES])}."]
    else:
        figures = ", ".join(
            f"{mode.capitalize()} {latency[mode][0]:.3g} s of prefill and {latency[mode][1]:.3g} s a token, "
            f"{latency[mode][0] + latency[mode][1] * tokens[mode]:.1f} s an answer"
            for mode in found.seconds
        )
        source = "as in the other mode" if len(found.seconds) == 1 else "published figures of a 2B pair"
        missing = " and ".join(mode.capitalize() for mode in found.seconds)
        parts = [f"Seconds are assumed, because the records hold none of {missing}: {figures} ({source})."]
    if found.tokens:
        figures = ", ".join(f"{mode.capitalize()} {tokens[mode]:.3g}" for mode in found.tokens)
        parts.append(f"Tokens of an answer are assumed, because the records hold none: {figures}.")
    return " ".join(parts)


def _share(records: Sequence[Record], counts: Sequence[int]) -> str:
    return "" if min(counts) == len(records) else f" (on {min(counts)} of {len(records)} records)"
