"""Tokens and seconds of an answer: measured from the records, or assumed if the records do not contain them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlroute.decision.latency import ASSUMED_PER_TOKEN, ASSUMED_PREFILL, LatencyModel
from vlroute.records import Record, outcomes
from vlroute.types import MODES, Mode, other

#: Tokens of an answer. With the assumed latency they take 1.0 and 2.0 s: the means of what was measured on a 2B pair
#: (0.78-1.23 s for Instruct, 1.12-2.41 s for Thinking).
ASSUMED_TOKENS: dict[Mode, float] = {"instruct": 40.0, "thinking": 90.0}


@dataclass(frozen=True, slots=True)
class Assumed:
    """Assumed values, for modes without recorded ones.

    Attributes:
        tokens: Generated tokens of an answer.
        seconds: Prefill, and seconds per token.
    """

    tokens: dict[Mode, float]
    seconds: dict[Mode, tuple[float, float]]


def mean_tokens(records: Sequence[Record]) -> dict[Mode, float]:
    """Return the mean tokens of an answer in each mode; assumed values if no record contains tokens.

    If only one mode has tokens, the ratio of Thinking to Instruct is assumed to be at least that of `ASSUMED_TOKENS`.
    """
    means = {mode: float(np.mean(known)) for mode in MODES if (known := _tokens(records, mode))}
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


def measure_latency(records: Sequence[Record]) -> LatencyModel:
    """Estimate prefill and seconds per token of both modes.

    Decoding takes `seconds` minus `prefill_seconds`. If prefill was not timed, a line is fitted to (tokens, seconds):
    the slope is the time per token, the intercept is the prefill. If tokens are unknown, an answer of `mean_tokens` is
    assumed to take the mean seconds. A mode without seconds gets the values of the other mode, because both models
    have the same size and run on one machine; without any seconds, assumed values are used.
    """
    found = _latencies(records)
    return LatencyModel({mode: found[mode][1] for mode in MODES}, {mode: found[mode][0] for mode in MODES})


def assumed(records: Sequence[Record]) -> Assumed:
    """Return the values that `mean_tokens` and `measure_latency` assume."""
    tokens, latency = mean_tokens(records), _latencies(records)
    return Assumed(
        {mode: round(tokens[mode], 1) for mode in MODES if not _tokens(records, mode)},
        {mode: latency[mode] for mode in MODES if not _timed(records, mode)},
    )


def note(records: Sequence[Record]) -> str:
    """Describe in one to three sentences which tokens and seconds are measured and which are assumed."""
    found, tokens, latency = assumed(records), mean_tokens(records), _latencies(records)
    if not found.seconds:
        timed = min(_timed(records, mode) for mode in MODES)
        share = "" if timed == len(records) else f" (on {timed} of {len(records)} records)"
        parts = [f"Seconds are measured{share}."]
    else:
        figures = ", ".join(
            f"{mode.capitalize()} {latency[mode][0]:.3g} s of prefill and {latency[mode][1]:.3g} s per token, "
            f"{latency[mode][0] + latency[mode][1] * tokens[mode]:.1f} s per answer"
            for mode in found.seconds
        )
        source = "as in the other mode" if len(found.seconds) == 1 else "published figures of a 2B pair"
        missing = " and ".join(mode.capitalize() for mode in found.seconds)
        parts = [f"Seconds are assumed, because the records contain none of {missing}: {figures} ({source})."]
    if found.tokens:
        figures = ", ".join(f"{mode.capitalize()} {tokens[mode]:.3g}" for mode in found.tokens)
        parts.append(f"Tokens of an answer are assumed, because the records contain none: {figures}.")
    return " ".join(parts)


def _tokens(records: Sequence[Record], mode: Mode) -> list[int]:
    """Recorded tokens of the answers in `mode`."""
    return [o.tokens for o in outcomes(records, mode) if o.tokens is not None]


def _timed(records: Sequence[Record], mode: Mode) -> int:
    """Number of records with the seconds of `mode`."""
    return sum(o.seconds is not None for o in outcomes(records, mode))


def _latencies(records: Sequence[Record]) -> dict[Mode, tuple[float, float]]:
    """Prefill and seconds per token of each mode, see `measure_latency`."""
    measured = {mode: _measured(records, mode) for mode in MODES}
    return {mode: measured[mode] or measured[other(mode)] or (ASSUMED_PREFILL, ASSUMED_PER_TOKEN) for mode in MODES}


def _measured(records: Sequence[Record], mode: Mode) -> tuple[float, float] | None:
    """Prefill and seconds per token of `mode`; None if the records contain no seconds of it."""
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
    generated = np.asarray([o.tokens for o in counted], dtype=float)
    if known.any():
        per_token = max(0.0, float((seconds - first)[known].sum() / generated[known].sum()))
        return float(first[known].mean()), per_token
    spread = generated.var()
    slope = float(((generated - generated.mean()) * seconds).mean() / spread) if spread else 0.0
    # noise must not make either part negative
    per_token = min(max(0.0, slope), float(seconds.sum() / generated.sum()))
    return max(0.0, float(seconds.mean() - per_token * generated.mean())), per_token
