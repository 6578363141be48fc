"""Warnings about records and about a router that was trained or assessed on them; each warning is one sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlroute.decision.classifier import Prediction
from vlroute.decision.latency import LatencyModel
from vlroute.decision.policy import Policy
from vlroute.decision.target import PRESETS, Target
from vlroute.decision.tradeoff import CalibrationSet, TradeoffCurve
from vlroute.learning.evaluate import Evaluation
from vlroute.learning.folds import Together
from vlroute.records import Record, outcomes
from vlroute.types import MODES, Mode, other

FEW = 200
#: A calibration error is certain if it is this many times its chance level, and matters if it exceeds it by `MUCH`.
CERTAIN, MUCH = 2, 0.05


def few_records(count: int) -> list[str]:
    """Warn about few records.

    Args:
        count: Number of records.

    Returns:
        The warning; empty if there are enough.
    """
    if count >= FEW:
        return []
    return [f"Only {count} record{'s' * (count > 1)}: the figures are uncertain; a thousand records are better"]


def record_warnings(records: Sequence[Record], together: Together) -> list[str]:
    """Warn about few records, equal prompts and uninformative labels.

    Args:
        records: The training records.
        together: What shares a fold.

    Returns:
        The warnings; empty if there is no problem.
    """
    found = few_records(len(records))
    if len({record.prompt.strip() for record in records}) == 1:
        captioned = any(record.caption for record in records)
        remedy = "; if all requests in production have this prompt, train with --together record"
        what = "only captions distinguish" if captioned else "without captions nothing distinguishes"
        found.append(f"All prompts are equal: {what} the requests" + (remedy if together == "text" else ""))
    return found + _label_warnings(records)


def _label_warnings(records: Sequence[Record]) -> list[str]:
    right = {mode: np.asarray([float(o.correct) for o in outcomes(records, mode)]) for mode in MODES}
    gain = right["thinking"] - right["instruct"]
    found = [
        f"{mode.capitalize()} {_always(values[0])} on every record: all labels of this mode are equal"
        for mode, values in right.items()
        if np.ptp(values) == 0
    ]
    if np.ptp(gain) == 0:
        better = "Neither mode is better" if gain[0] == 0 else f"{_better(gain[0])} is always better by the same amount"
        found.append(f"{better}: there is nothing to learn about which mode to choose")
    elif gain.max() <= 0 or gain.min() >= 0:
        best = _better(-1.0 if gain.max() <= 0 else 1.0)
        found.append(f"{best} is at least as good as the other mode on every record: no record shows the opposite")
    return found


def _always(value: float) -> str:
    return {0.0: "is wrong", 1.0: "is right"}.get(value, f"has the label {value:g}")


def _better(gain: float) -> str:
    return "Thinking" if gain > 0 else "Instruct"


def result_warnings(evaluation: Evaluation) -> list[str]:
    """Warn if the ranking is not better than chance, the probabilities do not fit, or one mode alone is more accurate.

    Args:
        evaluation: An evaluation on records that the router has not seen.

    Returns:
        The warnings; empty if there is no problem.
    """
    found = []
    area = evaluation.figures["area over random"]
    if area.value is not None and area.interval is not None and area.interval[0] <= 0:
        low, high = area.interval
        if high < 0:
            says, verdict = "is below zero", "the router ranks these requests worse than chance"
        else:
            says = "includes zero"
            verdict = "these records do not show that the router ranks requests better than chance"
        found.append(f"The 95 % interval of the area over random, {low:.2f} to {high:.2f}, {says}: {verdict}")
    for mode in MODES:
        error, chance = evaluation.figures[f"ECE {mode}"].value, evaluation.figures[f"chance level of ECE {mode}"].value
        if error is not None and chance is not None and error > max(CERTAIN * chance, chance + MUCH):
            found.append(
                f"The predicted probabilities that {mode.capitalize()} is right are wrong by {error:.2f} on average "
                f"({chance:.2f} would be chance): prices and presets do not have the effects that the router expects"
            )
    rows = {row.name: row for row in evaluation.rows}
    routed, single = rows["routed"], max((rows[f"always {mode}"] for mode in MODES), key=lambda row: row.accuracy)
    if routed.accuracy < single.accuracy - 1e-9:
        cost = ""
        if routed.seconds is not None and single.seconds is not None:
            cost = f", in {routed.seconds:.2f} s per answer instead of {single.seconds:.2f} s"
        found.append(
            f"The router is less accurate than '{single.name}': {routed.accuracy:.1%} instead of "
            f"{single.accuracy:.1%}{cost}"
        )
    return found


def routing_warnings(
    predictions: Sequence[Prediction], calibration: CalibrationSet, latency: LatencyModel, price: float
) -> list[str]:
    """Warn if no request is routed to one of the modes.

    Args:
        predictions: Out-of-fold predictions for the training records.
        calibration: Records on which presets are resolved.
        latency: Of the training records.
        price: Checked beside the default price and the presets.

    Returns:
        The warnings; empty if there is no problem.
    """
    found = []
    for one in dict.fromkeys((Policy().price, price)):
        decisions = [Policy(price=one).decide(prediction, latency) for prediction in predictions]
        chosen = {decision.mode for decision in decisions}
        name = "the default price" if one == Policy().price else "the price"
        if len(chosen) == 1:
            mode: Mode = decisions[0].mode
            needed = min(decision.threshold for decision in decisions)
            highest = max(decision.gain for decision in decisions)
            why = ""
            if mode == "instruct":
                why = f": a gain of at least {needed:.2g} is needed, the highest is {highest:.2g}"
            found.append(
                f"At {name} of {one:g} no record is routed to {other(mode).capitalize()}{why}. Try another price or "
                "a preset (policy='balanced')"
            )
    curve = TradeoffCurve(calibration, latency, Policy().min_coverage, Policy().fallback_mode)
    shares = {Target(preset=preset).resolve(curve).thinking_share for preset in PRESETS}
    if shares in ({0.0}, {1.0}):
        left_out = "Instruct" if shares == {1.0} else "Thinking"
        found.append(f"At every preset ({', '.join(PRESETS)}) no record is routed to {left_out}")
    return found
