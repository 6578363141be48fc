"""Fits the heads of later stages, and compares what each set of stages adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.special import expit

from vlroute.decision.classifier import Prediction
from vlroute.decision.evidence import LATER, EvidenceSource, Passed, StageHead, StageHeads, logit
from vlroute.decision.information import StagedCurve, StagePlan
from vlroute.decision.latency import LatencyModel
from vlroute.decision.target import Target
from vlroute.decision.tradeoff import CalibrationSet, TradeoffCurve, Values
from vlroute.learning.base_learners import fit_right
from vlroute.learning.corpus import Indices
from vlroute.learning.evidence import EvidenceRow
from vlroute.learning.intervals import Interval, Sampling
from vlroute.learning.linear import Dense, calibrate
from vlroute.records import Record
from vlroute.types import MODES, Preset, Stage

#: Minimum number of records with evidence for fitting later stages.
MIN_EVIDENCE = 200
#: Inverse strengths of the L2 penalty. They are smaller than for the stage "prompt", because a hidden state has many
#: columns.
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
USUAL = 1  # position of the usual strength
#: The sets of later stages.
_SETS: tuple[Passed, ...] = (("prefill",), ("answer",), LATER)
#: The preset at which stages are compared.
PRESET: Preset = "balanced"


@dataclass(frozen=True, slots=True)
class FittedStages:
    """Heads of later stages.

    Attributes:
        heads: The heads.
        rows: Records with evidence, as indices.
        later: Their out-of-fold probabilities by passed stages, `[rows, 2]`.
    """

    heads: StageHeads
    rows: Indices
    later: dict[Passed, Values]


def fit_stages(
    records: Sequence[Record],
    prompt: Sequence[Prediction],
    evidence: Mapping[str, EvidenceRow],
    fold: Indices,
    fingerprint: str,
) -> FittedStages | None:
    """Fit the heads of later stages on the logits of the stage "prompt" and the evidence.

    The logits of the stage "prompt" are out of fold, because a router predicts requests that it was not trained on. The
    heads are fitted and evaluated in the same folds.

    Args:
        records: The training records.
        prompt: Their out-of-fold predictions at the stage "prompt".
        evidence: Evidence by id of the record.
        fold: Fold of each record, `[n]`.
        fingerprint: Fingerprint of the checkpoints that gave the evidence.

    Returns:
        The heads; None if fewer than `MIN_EVIDENCE` records have evidence.
    """
    rows = np.asarray([i for i, record in enumerate(records) if record.id in evidence], np.int64)
    if len(rows) < MIN_EVIDENCE:
        return None
    own = [evidence[records[i].id] for i in rows]
    widths = {0 if row.state is None else len(row.state) for row in own}
    width = widths.pop() if len(widths) == 1 else 0
    parts: dict[Stage, Values] = {"answer": np.stack([row.answer for row in own]).astype(np.float64)}
    if width:
        parts["prefill"] = np.stack([row.state for row in own if row.state is not None]).astype(np.float64)
    logits = np.asarray([[logit(prompt[i].p_instruct), logit(prompt[i].p_thinking)] for i in rows])
    right = np.asarray([[float(getattr(records[i], mode).correct) for mode in MODES] for i in rows])
    heads: dict[Passed, StageHead] = {}
    later: dict[Passed, Values] = {}
    for passed in _SETS:
        if all(stage in parts for stage in passed):
            values = np.hstack([logits, *(parts[stage] for stage in passed)])
            heads[passed], later[passed] = _fit(values, right, fold[rows])
    dtypes = {row.dtype for row in own}
    source = EvidenceSource(fingerprint, dtype=dtypes.pop() if len(dtypes) == 1 else "", width=width)
    return FittedStages(StageHeads(source, heads), rows, later)


def evidence_warnings(records: Sequence[Record], evidence: Mapping[str, EvidenceRow]) -> list[str]:
    """What the evidence is not sufficient for, in sentences without a full stop."""
    own = [evidence[record.id] for record in records if record.id in evidence]
    if len(own) < MIN_EVIDENCE:
        return [f"no later stages: {len(own)} of the {len(records)} records have evidence, {MIN_EVIDENCE} are needed"]
    found = []
    if len(own) < len(records):
        found.append(f"{len(records) - len(own)} records have no evidence and are left out of the calibration set")
    widths = {0 if row.state is None else len(row.state) for row in own}
    if len(widths) > 1:
        found.append(
            f"no stage prefill: the hidden states have different widths ({', '.join(map(str, sorted(widths)))})"
        )
    return found


def _fit(values: Values, right: Values, fold: Indices) -> tuple[StageHead, Values]:
    """A calibrated head, and its out-of-fold probabilities."""
    center, scale = values.mean(0).astype(np.float32), values.std(0).astype(np.float32)
    scale[scale == 0] = 1
    nothing = np.zeros((*values.shape[1:], 2), np.float32)
    draft = StageHead(center, scale, nothing, nothing[0])
    standard, weight = draft.standard(values.astype(np.float32)).astype(np.float64), np.ones(len(values))
    fitted = fit_right(Dense(standard), right, weight, fold, STRENGTHS, USUAL)
    sigmoids = calibrate(fitted.unseen, right, weight)
    weights, bias = fitted.weights * sigmoids[:, 0], fitted.bias * sigmoids[:, 0] + sigmoids[:, 1]
    head = replace(draft, weights=weights.astype(np.float32), bias=bias.astype(np.float32))
    return head, expit(fitted.unseen * sigmoids[:, 0] + sigmoids[:, 1])


def later_probabilities(
    heads: StageHeads, predictions: Sequence[Prediction], rows: Sequence[EvidenceRow]
) -> dict[Passed, Values]:
    """Predict at later stages.

    Args:
        heads: Heads of a router.
        predictions: Predictions of the stage "prompt", `[n]`.
        rows: Evidence of the same records, `[n]`.

    Returns:
        Probabilities of both modes by passed stages, `[n, 2]`, for the heads whose evidence all rows have.
    """
    parts: dict[Stage, Values] = {"answer": np.stack([row.answer for row in rows])}
    if all(row.state is not None and len(row.state) == heads.source.width for row in rows):
        parts["prefill"] = np.stack([row.state for row in rows if row.state is not None])
    logits = np.asarray([[logit(one.p_instruct), logit(one.p_thinking)] for one in predictions])
    return {
        passed: head.probabilities(np.hstack([logits, *(parts[stage] for stage in passed)])).astype(np.float64)
        for passed, head in heads.heads.items()
        if all(stage in parts for stage in passed)
    }


@dataclass(frozen=True, slots=True)
class StageComparison:
    """Result of a set of stages on records.

    Attributes:
        stages: The stages.
        accuracy: Accuracy, 0 to 1.
        seconds: Mean seconds, including those of abandoned work.
        shares: Share of requests decided at each stage.
        thinking_share: Share of requests that Thinking answers.
        above: Accuracy minus that of the stage "prompt" at equal mean seconds.
        interval: Its 95 % interval, from paired differences.
        utility: Accuracy minus price × mean seconds, at the price at which the stage "prompt" meets the target.
        better: 95 % interval of the paired difference from the utility of the stage "prompt" alone.
    """

    stages: tuple[Stage, ...]
    accuracy: float
    seconds: float
    shares: tuple[float, ...]
    thinking_share: float
    above: float
    interval: Interval | None
    utility: float
    better: Interval | None


def stage_curves(
    calibration: CalibrationSet, latency: LatencyModel, shared_prompt: bool = False
) -> dict[tuple[Stage, ...], TradeoffCurve]:
    """Compute the trade-off curve of each set of stages for which the calibration records have probabilities.

    Args:
        calibration: The calibration records.
        latency: Converts tokens to seconds.
        shared_prompt: See `StagePlan`.

    Returns:
        The curves by stages, "prompt" alone first.
    """
    curves: dict[tuple[Stage, ...], TradeoffCurve] = {("prompt",): TradeoffCurve(calibration, latency)}
    for passed in _SETS:
        if all(passed[:i] in calibration.later for i in range(1, len(passed) + 1)):
            stages: tuple[Stage, ...] = ("prompt", *passed)
            curves[stages] = StagedCurve(calibration, stages, latency, shared_prompt=shared_prompt)
    return curves


def compare_stages(
    calibration: CalibrationSet,
    latency: LatencyModel,
    shared_prompt: bool = False,
    target: float | Preset = PRESET,
    measured: CalibrationSet | None = None,
    sampling: Sampling | None = None,
) -> list[StageComparison]:
    """Compare all sets of stages for which the calibration records have probabilities.

    Args:
        calibration: The calibration records, from which prices and the value of information are computed.
        latency: Converts tokens to seconds.
        shared_prompt: See `StagePlan`.
        target: A price, or a preset.
        measured: The records on which the stages are compared; by default the calibration records.
        sampling: How these records were drawn; by default independently.

    Returns:
        One comparison per set, "prompt" first.
    """
    measured = measured or calibration
    base = TradeoffCurve(measured, latency)
    right = measured.right.astype(np.float64)
    sampling, alone = sampling or Sampling(len(right)), None
    price: float | None = None
    found = []
    for stages, curve in stage_curves(calibration, latency, shared_prompt).items():
        passed = stages[1:]
        if any(passed[:i] not in measured.later for i in range(1, len(stages))):
            continue
        plan = partial(StagePlan, calibration, stages, latency, shared_prompt=shared_prompt)
        own: float = Target(preset=target).resolve(curve).price if isinstance(target, str) else target
        price = own if price is None else price
        course, at_price = plan(price=own).on(measured), plan(price=price).on(measured)
        answers = np.where(course.thinks, right[:, 1], right[:, 0])
        same = _prompt_answers(base, course.seconds.mean())
        utility = np.where(at_price.thinks, right[:, 1], right[:, 0]) - price * at_price.seconds
        alone = utility if alone is None else alone
        shares = np.bincount(course.stage, minlength=len(stages)) / len(course.stage)
        found.append(
            StageComparison(
                stages, float(answers.mean()), float(course.seconds.mean()), tuple(shares.tolist()),
                float(course.thinks.mean()), float((answers - same).mean()),
                sampling.difference(answers - same) if passed else None, float(utility.mean()),
                sampling.difference(utility - alone) if passed else None,
            )
        )  # fmt: skip
    return found


def recommended(comparisons: Sequence[StageComparison]) -> tuple[Stage, ...]:
    """The stages with the highest utility among those significantly better than "prompt" (95 %), else "prompt"."""
    better = [one for one in comparisons if one.better is not None and one.better[0] > 0]
    return max(better, key=lambda one: one.utility).stages if better else ("prompt",)


def _prompt_answers(curve: TradeoffCurve, seconds: float) -> Values:
    """Expected correctness of each record where the stage "prompt" takes `seconds` on average.

    A mixture of the two nearest operating points: a router would draw one of them for each request.
    """
    order = np.argsort(curve.seconds, kind="stable")
    above = min(int(np.searchsorted(curve.seconds[order], seconds)), len(order) - 1)
    low, high = order[max(above - 1, 0)], order[above]
    span = curve.seconds[high] - curve.seconds[low]
    share = float(np.clip((seconds - curve.seconds[low]) / span, 0, 1)) if span > 0 else 1.0
    gains = [curve.answers(int(position)) for position in (low, high)]
    return (1 - share) * gains[0] + share * gains[1]
