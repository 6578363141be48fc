"""Measure what each stage of a decision adds and costs: `python -m training.bench.stages`.

New pictures, each answered in both modes, one request at a time in each of two processes; the order of the modes
changes from picture to picture. All sets of stages decide on the same answers. Takes 15 minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from training.page import POCKET, argument_parser, environment, publish, step
from vlroute import Answer, Policy, Router, Target, steps
from vlroute.decision.classifier import Prediction
from vlroute.decision.evidence import LATER
from vlroute.decision.information import StagedCurve, StagePlan
from vlroute.decision.latency import LatencyModel
from vlroute.decision.staged import StagedDecision
from vlroute.decision.tradeoff import TradeoffCurve
from vlroute.inputs.messages import parse
from vlroute.learning import Task, area_over_random, draw_evenly, ece, is_right
from vlroute.learning.evidence import Watch
from vlroute.learning.intervals import Sampling
from vlroute.learning.trial import media
from vlroute.pipeline import RequestOptions
from vlroute.types import MODES, Stage

Values = NDArray[np.float64]
SETS: tuple[tuple[Stage, ...], ...] = (("prompt",), ("prompt", "prefill"), ("prompt", "answer"), ("prompt", *LATER))
RESAMPLES, SIMULATIONS = 2000, 200


@dataclass(frozen=True, slots=True)
class Row:
    """One picture.

    Attributes:
        prediction: Prediction at the stage "prompt", with the caption of the vision probe.
        evidence: Evidence of Instruct by stage.
        right: Whether both modes are right.
        seconds: Seconds of both answers, without the decision.
        wasted: Seconds of Instruct until the stages "prefill" and "answer" are decided, without the tower.
        deciding: Seconds of caption and decision.
        tokens: Numbers of generated tokens.
    """

    prediction: Prediction
    evidence: dict[Stage, Any]
    right: tuple[bool, bool]
    seconds: tuple[float, float]
    wasted: tuple[float, float]
    deciding: float
    tokens: tuple[int, int]


def answer_part(model: Path, artifact: Path, count: int, hidden: bool, part: int, parts: int) -> list[Row]:
    tasks = [*draw_evenly(count, f"stages {'hidden' if hidden else 'plain'}", hidden=hidden)][part::parts]
    with Router.from_pretrained(model, router=artifact) as router:
        router.load()
        for mode in MODES:  # the first answers of a process are slower
            ask(router, tasks[0], mode)
        return [measure(router, task, i) for i, task in enumerate(tasks)]


def ask(router: Router, task: Task, mode: Any, watch: Watch | None = None) -> Answer:
    router.forget()
    options = RequestOptions(mode=mode, trial=None if watch is None else watch.trial)
    return steps.run(router.pipeline.answer(parse(task.prompt, **media(task)), options))


def measure(router: Router, task: Task, number: int) -> Row:
    watch = Watch()
    answers = {}
    for mode in MODES if number % 2 else MODES[::-1]:
        answers[mode] = ask(router, task, mode, watch if mode == "instruct" else None)
    instruct, thinking = answers["instruct"], answers["thinking"]
    row = watch.row("")
    assert row is not None
    assert row.state is not None
    decision = router.decide(task.prompt, **media(task))  # the features of the tower are in the cache
    classifier = router.selector.classifier
    assert classifier is not None
    timing = instruct.timing
    return Row(
        classifier.predict(task.prompt, decision.caption), {"prefill": row.state, "answer": row.answer},
        (is_right(task, instruct.text), is_right(task, thinking.text)),
        (instruct.timing.vision + timing.prefill + timing.decode,
         thinking.timing.vision + thinking.timing.prefill + thinking.timing.decode),
        (timing.prefill, timing.prefill + timing.decode), decision.stages[0].seconds,
        (instruct.usage.completion_tokens, thinking.usage.completion_tokens),
    )  # fmt: skip


def latency_of(rows: Sequence[Row]) -> LatencyModel:
    """The speed of this run: mean prefill, and mean seconds per token after it."""
    prefill = float(np.mean([row.wasted[0] for row in rows]))
    tokens = np.asarray([row.tokens for row in rows]).sum(0)
    decode = np.asarray([row.seconds for row in rows]).sum(0) - len(rows) * prefill
    per_token = np.maximum(decode / tokens, 1e-6)
    return LatencyModel(dict(zip(MODES, per_token.tolist(), strict=True)), dict.fromkeys(MODES, prefill))


@dataclass(frozen=True, slots=True)
class Routed:
    """Result of a policy on the rows.

    Attributes:
        right: Whether the answers are right.
        seconds: Seconds with all costs of deciding.
        stage: Number of the stage of the decision.
        thinks: Whether Thinking answers.
    """

    right: Values
    seconds: Values
    stage: NDArray[np.int64]
    thinks: NDArray[np.bool_]


def route(rows: Sequence[Row], classifier: Any, plan: StagePlan, latency: LatencyModel, shared: bool) -> Routed:
    """Decide each row as a router with these stages does."""
    found = []
    for row in rows:
        policy = Policy(price=plan.price)
        decision = policy.decide(row.prediction, latency)
        staged = StagedDecision(decision, row.prediction, policy, latency, classifier.stages, plan, shared)
        later = list(plan.stages[1:])
        while staged.goes_on:
            stage = later.pop(0)
            staged.judge(stage, row.evidence[stage], 0.0)
        passed, thinks = staged.decision.stage, staged.decision.mode == "thinking"
        wasted = 0.0 if passed == "prompt" else row.wasted[LATER.index(passed)] - row.wasted[0] * shared
        took = row.deciding + (row.seconds[1] + wasted if thinks else row.seconds[0])
        found.append((row.right[thinks], took, plan.stages.index(passed), thinks))
    right, seconds, places, thinking = (np.asarray(column) for column in zip(*found, strict=True))
    return Routed(right.astype(float), seconds, places, thinking)


def at_seconds(rows: Sequence[Row], latency: LatencyModel, seconds: float) -> Values:
    """Expected correctness where the stage "prompt" takes `seconds` on average: a mixture of two prices."""
    gain = np.asarray([row.prediction.gain for row in rows])
    expected = np.asarray([
        [latency.expected("instruct", row.prediction.tokens_instruct),
         latency.expected("thinking", row.prediction.tokens_thinking)] for row in rows
    ])  # fmt: skip
    rate = np.where(gain > 0, gain / np.maximum(expected[:, 1] - expected[:, 0], 1e-9), -np.inf)
    order = np.argsort(-rate, kind="stable")
    took = np.asarray([row.seconds for row in rows])
    extra = np.concatenate([[0.0], np.cumsum((took[:, 1] - took[:, 0])[order])])
    means = (took[:, 0].sum() + extra) / len(rows) + np.mean([row.deciding for row in rows])
    most = int((rate > 0).sum())
    right = np.asarray([row.right for row in rows], float)
    position = int(np.searchsorted(means[: most + 1], seconds))
    if position == 0 or position > most:
        sent = np.arange(len(rows)) < min(position, most)
        answers = np.empty(len(rows))
        answers[order] = np.where(sent, right[order, 1], right[order, 0])
        return answers
    share = (seconds - means[position - 1]) / (means[position] - means[position - 1])
    answers = right[:, 0].copy()
    answers[order[: position - 1]] = right[order[: position - 1], 1]
    last = order[position - 1]
    answers[last] = (1 - share) * right[last, 0] + share * right[last, 1]
    return answers


def interval(each: Values) -> dict[str, float]:
    """Mean in points, the ends of its 95 % bootstrap interval, and the lower end of a one-sided one."""
    rng = np.random.default_rng(0)
    means = [100 * each[rng.integers(len(each), size=len(each))].mean() for _ in range(RESAMPLES)]
    low, one_sided, high = np.quantile(means, (0.025, 0.05, 0.975))
    return {"points": 100 * float(each.mean()), "low": float(low), "high": float(high), "one_sided": float(one_sided)}


def debiased_ece(p: Values, right: Values) -> float:
    """ECE minus its mean for calibrated probabilities, at least 0."""
    rng = np.random.default_rng(0)
    chance = np.mean([ece(p, (rng.random(len(p)) < p).astype(float)) for _ in range(SIMULATIONS)])
    return max(0.0, float(ece(p, right) - chance))


def probabilities(rows: Sequence[Row], classifier: Any, stages: tuple[Stage, ...]) -> Values:
    if len(stages) == 1:
        return np.asarray([(row.prediction.p_instruct, row.prediction.p_thinking) for row in rows])
    return np.asarray([
        classifier.stages.predict(
            (row.prediction.p_instruct, row.prediction.p_thinking), {one: row.evidence[one] for one in stages[1:]}
        )
        for row in rows
    ])  # fmt: skip


def summarize(rows: Sequence[Row], classifier: Any, shared: bool) -> dict[str, Any]:
    latency = latency_of(rows)
    records = classifier.calibration
    right = np.asarray([row.right for row in rows], float)
    gain = right[:, 1] - right[:, 0]
    whole = area_over_random(gain, right[:, 0], right[:, 1])
    table = []
    for stages in SETS:
        curve = TradeoffCurve(records, latency) if len(stages) == 1 else StagedCurve(
            records, stages, latency, shared_prompt=shared
        )  # fmt: skip
        price = Target(preset="balanced").resolve(curve).price
        routed = route(
            rows, classifier, StagePlan(records, stages, latency, price, shared_prompt=shared), latency, shared
        )
        p = probabilities(rows, classifier, stages)
        scores = p[:, 1] - p[:, 0]
        same = at_seconds(rows, latency, float(routed.seconds.mean()))
        captured = Sampling(len(rows)).share_of_oracle_area(scores, gain)
        table.append({
            "stages": stages, "price": price, "accuracy": float(routed.right.mean()),
            "seconds": float(routed.seconds.mean()), "thinking": float(routed.thinks.mean()),
            "shares": [float((routed.stage == i).mean()) for i in range(len(stages))],
            "above": interval(routed.right - same), "captured": area_over_random(scores, *right.T) / whole,
            "captured_interval": captured,
            "ece": {mode: debiased_ece(p[:, i], right[:, i]) for i, mode in enumerate(MODES)},
            "brier": {mode: float(((p[:, i] - right[:, i]) ** 2).mean()) for i, mode in enumerate(MODES)},
        })  # fmt: skip
    last = probabilities(rows, classifier, SETS[-1])
    known = {mode: right[:, 1] - last[:, 0] if mode == "thinking" else last[:, 1] - right[:, 0] for mode in MODES}
    return {
        "known": {mode: area_over_random(scores, *right.T) / whole for mode, scores in known.items()},
        "pictures": len(rows), "stages": table, "oracle": float(right.max(1).mean()),
        "always": {mode: {"accuracy": float(right[:, i].mean()),
                          "seconds": float(np.mean([row.seconds[i] for row in rows]))} for i, mode in enumerate(MODES)},
        "deciding": float(np.mean([row.deciding for row in rows])),
    }  # fmt: skip


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--count", type=int, default=3024, help="pictures of each kind")
    parser.add_argument("--model", type=Path, default=POCKET, help="folder of a pair or a hybrid, with its router")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    folder = options.model / "router"
    with Router.from_pretrained(options.model, router=folder) as router:
        router.load()
        classifier, identity = router.selector.classifier, router.identity
        shared = router.pair.instruct.model is router.pair.thinking.model
    if classifier is None or classifier.stages is None:
        parser.error(f"{folder} has no later stages; train it on records with evidence")
    found = {}
    for hidden in (True, False):
        step(f"{options.count} pictures, {'hidden difficulty' if hidden else 'plain'}")
        work = [
            delayed(answer_part)(options.model, folder, options.count, hidden, part, options.jobs)
            for part in range(options.jobs)
        ]
        rows = [row for part in Parallel(options.jobs)(work) for row in part]
        found["hidden" if hidden else "plain"] = summarize(rows, classifier, shared)
    figures = {**found, "model": str(identity), "shared": shared, "where": environment()}
    publish("stages_hybrid" if shared else "stages", figures, options.out)


if __name__ == "__main__":
    main()
