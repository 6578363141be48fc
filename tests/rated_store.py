"""A store with rated answers whose true probabilities are known, and the artifact that decided on them."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from pathlib import Path

from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.policy import Policy
from vlroute.inputs.messages import parse
from vlroute.learning.calibration import calibration_set
from vlroute.learning.fit import fit_classifier
from vlroute.records import Outcome, Record
from vlroute.store import Store
from vlroute.types import MODES, Answer, ModelIdentity, Timing, Usage, other

#: A question and the probabilities that Instruct and Thinking are right. Only the first two are in the first records.
COLORS = "Which color has the {}?", (0.9, 0.9)
COUNTS = "How many of the {} are there?", (0.5, 0.9)
LEDGERS = "Reconcile the ledger of the {} with the invoice.", (0.05, 0.95)
#: A price at which Thinking is worth its seconds for counts only, according to the first artifact.
PRICE = 0.2
THINGS = ("cup", "door", "lamp", "tree", "stone", "chair", "bottle", "ship")


@cache
def _first_artifact() -> ComplexityClassifier:
    rng = random.Random(0)
    records = []
    for number in range(80):
        wording, p = (COLORS, COUNTS)[number % 2]
        instruct, thinking = (Outcome(rng.random() < p[mode], (10, 80)[mode], (0.3, 1.7)[mode], 0.1) for mode in (0, 1))
        records.append(Record(f"r{number}", wording.format(rng.choice(THINGS)), None, instruct, thinking))
    fitted = fit_classifier(records, learner="words")
    predictions = [fitted.predict(one.prompt) for one in records]
    calibration = calibration_set(records, predictions)
    return ComplexityClassifier(fitted.encoder, fitted.heads, fitted.latency, {}, calibration)


def first_artifact(folder: Path) -> ComplexityClassifier:
    """Write an artifact that knows colors and counts. Thinking is worth its seconds for counts."""
    _first_artifact().save(folder)
    return _first_artifact()


def add_answers(
    store: Store,
    artifact: ComplexityClassifier,
    count: int,
    *,
    explore: float = 0.5,
    key: str = "",
    seed: int = 0,
    model: ModelIdentity | None = None,
) -> None:
    """Answer `count` requests, half of them about ledgers, as a router with this artifact does; rate all truthfully."""
    rng = random.Random(seed)
    for _ in range(count):
        wording, p = rng.choice((COLORS, COUNTS, LEDGERS, LEDGERS))
        prompt = wording.format(rng.choice(THINGS))
        decision = Policy(price=PRICE).decide(artifact.predict(prompt), artifact.latency)
        explored = rng.random() < explore
        mode = other(decision.mode) if explored else decision.mode
        decision = replace(decision, mode=mode, explored=explored, propensity=explore if explored else 1 - explore)
        seconds = decision.seconds_instruct if mode == "instruct" else decision.seconds_thinking
        usage, timing = Usage(20, 0, 5, 0), Timing(0, 0, 0, 0, seconds, seconds)
        answer = Answer("x", "", decision, "stop", usage, timing)
        id = store.record(answer, parse(prompt, None, None, None), model=model)
        store.feedback(id, correct=rng.random() < p[MODES.index(mode)], key=key)
