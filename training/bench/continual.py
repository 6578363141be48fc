"""A simulated month of continual learning with drift: `python -m training.bench.continual`

A router decides on 5 000 requests. In the third week, new kinds of requests arrive, and Instruct gets worse at one old
kind. 5 % of the answers are rated, and 5 % of the requests are answered in the other mode. The learner of
`vlroute learn` runs once a day. Both the learning router and one that stays as it was are measured on requests of the
last days whose true probabilities are known, at equal expected seconds. Seeds that are not run keep their figures.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from training.page import argument_parser, figures, publish, step
from vlroute import ComplexityClassifier, Mode, Outcome, Record
from vlroute.decision.wilson import student_95
from vlroute.learning.calibration import calibration_set
from vlroute.learning.candidate import MIN_NEW, MIN_RATINGS, MOST_REQUESTS, RECENT, train_candidate
from vlroute.learning.comparison import Predictions, Rule
from vlroute.learning.fit import fit_classifier
from vlroute.learning.metrics import share_by_score
from vlroute.learning.ratings import AskedRequest, Rating
from vlroute.types import MODES, other

DAY = 86_400.0
DAYS, REQUESTS = 30, 5000
SEEDS = range(20, 40)  # not 0 to 3, on which settings were chosen
RATED = EXPLORED = 0.05
#: Records on which the first router is trained.
FIRST = 400
#: Requests on which both routers are measured, with their true probabilities.
MEASURED = 4000
#: Drift begins on this day, and is complete on the second one.
DRIFT = (14, 18)
PRICE = 0.04
SECONDS: dict[Mode, float] = {"instruct": 0.5, "thinking": 3.0}
EXTRA = SECONDS["thinking"] - SECONDS["instruct"]
RULE = Rule(PRICE)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request: how it is put, and the true probabilities of both modes before and after the drift.

    `share`: relative frequency before and after the drift.
    """

    name: str
    wordings: tuple[str, ...]
    before: tuple[float, float]
    after: tuple[float, float]
    share: tuple[float, float]


KINDS = (
    Kind("read", ("Read the {a} on the {b}.", "What does the {a} of the {b} say?"), (0.92, 0.9), (0.92, 0.9), (3, 2)),
    Kind("count", ("How many {a}s are next to the {b}?", "Count the {a}s on the {b}."), (0.6, 0.8), (0.6, 0.8), (3, 2)),
    Kind("color", ("Which color has the {a}?", "Is the {a} of the {b} red or blue?"), (0.9, 0.88), (0.9, 0.88), (3, 2)),
    Kind(
        "chart", ("Which year has the highest {a} in the {b}?", "By how much did the {a} grow in the {b}?"),
        (0.8, 0.85), (0.45, 0.85), (2, 2),
    ),
    Kind(
        "sum", ("Add the {a}s in the table of {b}s.", "What is the total of the {a} and the {b}?"), (0.35, 0.85),
        (0.35, 0.85), (2, 1),
    ),
    Kind(
        "ledger",
        ("Reconcile the ledger: does the {a} entry match the {b} invoice?", "Which invoice of the ledger lacks a {a}?"),
        (0.2, 0.85), (0.2, 0.85), (0, 5),
    ),
    Kind(
        "serial",
        ("Copy the serial number of the {a} from the badge.", "Transcribe the barcode digits under the {b}."),
        (0.93, 0.85), (0.93, 0.85), (0, 3),
    ),
)  # fmt: skip
THINGS = (
    "label", "price", "cup", "window", "lamp", "receipt", "engine", "garden", "bottle", "ticket", "folder", "bridge",
    "sensor", "valve", "poster", "basket", "column", "stamp", "mirror", "pump",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drawn:
    """A request with its true probabilities (Instruct, Thinking)."""

    kind: str
    prompt: str
    p: tuple[float, float]


def draw(rng: random.Random, drift: float) -> Drawn:
    """A request when this share of the drift, 0 to 1, has happened."""
    shares = [(1 - drift) * one.share[0] + drift * one.share[1] for one in KINDS]
    (kind,) = rng.choices(KINDS, shares)
    before, after = kind.before, kind.after
    p = tuple((1 - drift) * old + drift * new for old, new in zip(before, after, strict=True))
    return Drawn(kind.name, rng.choice(kind.wordings).format(a=rng.choice(THINGS), b=rng.choice(THINGS)), (p[0], p[1]))


def drift_on(day: float) -> float:
    """Share of the drift that has happened."""
    return min(max((day - DRIFT[0]) / (DRIFT[1] - DRIFT[0]), 0.0), 1.0)


def first_router(rng: random.Random) -> ComplexityClassifier:
    """A router trained on records of both modes from before the drift, with words only."""
    records = []
    for number in range(FIRST):
        drawn = draw(rng, 0.0)
        instruct, thinking = (
            Outcome(rng.random() < p, round(100 * SECONDS[mode]), SECONDS[mode], 0.1)
            for mode, p in zip(MODES, drawn.p, strict=True)
        )
        records.append(Record(f"r{number}", drawn.prompt, None, instruct, thinking))
    classifier = fit_classifier(records)
    predictions = [classifier.predict(one.prompt) for one in records]
    return ComplexityClassifier(
        classifier.encoder, classifier.heads, classifier.latency, {}, calibration_set(records, predictions)
    )


class Gains:
    """What a router predicts for drawn requests, and what it is worth.

    Args:
        classifier: The router.
        drawn: The requests.
    """

    def __init__(self, classifier: ComplexityClassifier, drawn: Sequence[Drawn]) -> None:
        found = [classifier.predict(one.prompt) for one in drawn]
        self.predicted = Predictions(
            np.asarray([one.gain for one in found]), np.asarray([one.coverage for one in found])
        )
        self.p = np.asarray([one.p for one in drawn])

    def share(self) -> float:
        """Share of Thinking at the price."""
        return float(RULE.thinks(self.predicted, np.full(len(self.p), EXTRA)).mean())

    def accuracy(self, share: float) -> float:
        """True accuracy if this share of the requests thinks: those that the router ranks highest."""
        known = self.predicted.coverage >= RULE.min_coverage
        thinks = share_by_score(np.where(known, self.predicted.gain, -1.0), share)
        return float((self.p[:, 0] + thinks * (self.p[:, 1] - self.p[:, 0])).mean())


@dataclass(frozen=True, slots=True)
class Swap:
    """A swap: day, estimated difference with its lower limit, and true difference at equal seconds, in points."""

    day: float
    estimate: float
    low: float
    true: float


@dataclass(frozen=True, slots=True)
class Month:
    """The result of one seed. Accuracies in percent, at the end of the month.

    Attributes:
        seed: The seed.
        ratings: Number of ratings.
        alternatives: How many of them are of explored requests.
        candidates: Number of trained candidates.
        swaps: Those that were swapped in.
        before_drift: Gain of the learning router before the drift, in points at equal seconds.
        frozen: Accuracy of the router that stayed as it was.
        learned: Accuracy of the learning router in as many seconds.
        frozen_more: Accuracy of the frozen router in as many seconds as the learning router takes at the same price.
        learned_more: Accuracy of the learning router at the same price.
        frozen_share: Share of Thinking of the frozen router.
        learned_share: The same for the learning router at the same price.
        oracle: Accuracy of the true gains in as many seconds as the frozen router.
    """

    seed: int
    ratings: int
    alternatives: int
    candidates: int
    swaps: list[Swap]
    before_drift: float
    frozen: float
    learned: float
    frozen_more: float
    learned_more: float
    frozen_share: float
    learned_share: float
    oracle: float


@dataclass(frozen=True, slots=True)
class Feedback:
    """How requests are explored and rated.

    Attributes:
        both: Whether an explored request is answered in both modes, and both answers are rated; otherwise in the other
            mode only.
        asked: Share of the explored requests that are rated, because clients are asked. Other requests are rated as
            often as it takes for `RATED` of all requests.
    """

    both: bool
    asked: float

    @property
    def unasked(self) -> float:
        """Share of the other requests that are rated."""
        return (RATED - EXPLORED * self.asked) / (1 - EXPLORED)


FEEDBACK = {"both": Feedback(True, 0.8), "other": Feedback(False, 0.5), "independent": Feedback(False, RATED)}


def simulate(seed: int, feedback: Feedback) -> Month:
    """One month."""
    rng = random.Random(f"vlroute continual {seed}")
    base = used = first_router(rng)
    held_out: dict[str, tuple[float, float]] = {}
    ratings: list[Rating] = []
    requests: list[AskedRequest] = []
    swaps: list[Swap] = []
    judged = candidates = 0
    before_drift = 0.0
    for number in range(REQUESTS):
        day = number / REQUESTS * DAYS
        if number % (REQUESTS // DAYS) == 0 and len(ratings) >= max(MIN_RATINGS, judged + MIN_NEW):
            judged, candidates = len(ratings), candidates + 1
            now = day * DAY
            recent = [one for one in requests if one.created >= now - RECENT][-MOST_REQUESTS:]
            found = train_candidate(base, used, held_out, ratings, recent, RULE, now - RECENT, now)
            if found.comparison.is_better:
                here = [draw(rng, drift_on(day)) for _ in range(MEASURED)]
                old, new = Gains(used, here), Gains(found.classifier, here)
                true = new.accuracy(old.share()) - old.accuracy(old.share())
                swaps.append(Swap(day, 100 * found.comparison.difference, 100 * found.comparison.low, 100 * true))
                used, held_out = found.classifier, found.held_out
        if day >= DRIFT[0] and not before_drift and number == round(DRIFT[0] / DAYS * REQUESTS):
            here = [draw(rng, 0.0) for _ in range(MEASURED)]
            old, new = Gains(base, here), Gains(used, here)
            before_drift = 100 * (new.accuracy(old.share()) - old.accuracy(old.share()))
        drawn = draw(rng, drift_on(day))
        asked = AskedRequest(f"{seed}/{number}", drawn.prompt, None, "", EXTRA, day * DAY)
        requests.append(asked)
        prediction = used.predict(drawn.prompt)
        one = Predictions(np.asarray([prediction.gain]), np.asarray([prediction.coverage]))
        mode: Mode = "thinking" if RULE.thinks(one, np.asarray([EXTRA]))[0] else "instruct"
        explored = rng.random() < EXPLORED
        rated = rng.random() < (feedback.asked if explored else feedback.unasked)
        observed: dict[Mode, float] = {mode: 1.0 if feedback.both else 1 - EXPLORED}
        if explored:
            observed = {**(observed if feedback.both else {}), other(mode): EXPLORED}
        for shown, propensity in observed.items() if rated else ():
            right = float(rng.random() < drawn.p[MODES.index(shown)])
            expected = getattr(prediction, f"p_{shown}")
            ratings.append(Rating(f"{asked.group}/{shown}", asked, shown, right, propensity, expected, shown == mode))
    here = [draw(rng, 1.0) for _ in range(MEASURED)]
    old, new = Gains(base, here), Gains(used, here)
    few, more = old.share(), new.share()
    gain = old.p[:, 1] - old.p[:, 0]
    oracle = old.p[:, 0] + share_by_score(gain, few) * gain
    return Month(
        seed, len(ratings), sum(not one.chosen for one in ratings), candidates, swaps, before_drift,
        100 * old.accuracy(few), 100 * new.accuracy(few), 100 * old.accuracy(more), 100 * new.accuracy(more), few, more,
        100 * float(oracle.mean()),
    )  # fmt: skip


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over the seeds with its 95 % interval (Student's t)."""
    found = np.asarray(values, dtype=float)
    half = student_95(len(found) - 1) * float(found.std(ddof=1)) / len(found) ** 0.5
    return float(found.mean()), float(found.mean()) - half, float(found.mean()) + half


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--feedback", nargs="+", choices=FEEDBACK, default=list(FEEDBACK))
    options = parser.parse_args()
    found: dict[str, Any] = figures("continual", options.out).get("months", {})
    for name in options.feedback:
        months = found.setdefault(name, {})
        for seed in options.seeds:
            months[str(seed)] = asdict(simulate(seed, FEEDBACK[name]))
            step(f"{name}, seed {seed}: {months[str(seed)]['learned'] - months[str(seed)]['frozen']:+.2f} points")
            if all(len(one) > 1 for one in found.values()):
                publish("continual", page(found), options.out)


def page(months: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures of the page."""
    settings = {
        "days": DAYS, "requests": REQUESTS, "rated": RATED, "explored": EXPLORED, "first": FIRST, "drift": DRIFT,
        "measured": MEASURED, "price": PRICE, "seconds": SECONDS,
        "feedback": {name: asdict(one) for name, one in FEEDBACK.items()},
    }  # fmt: skip
    results = {name: summary(list(months[name].values())) for name in FEEDBACK if name in months}
    kinds = [asdict(kind) for kind in KINDS]
    return {"settings": settings, "kinds": kinds, "results": results, "months": months}


def summary(months: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the seeds with their intervals, and the swaps."""
    swaps = [swap for month in months for swap in month["swaps"]]

    def mean(*names: str) -> tuple[float, float, float]:
        first, *second = names
        return mean_interval([one[first] - (one[second[0]] if second else 0) for one in months])

    return {
        "seeds": len(months),
        "ratings": mean("ratings"),
        "alternatives": mean("alternatives"),
        "frozen": mean("frozen"),
        "learned": mean("learned"),
        "oracle": mean("oracle"),
        "gain": mean("learned", "frozen"),
        "gain_more": mean("learned_more", "frozen_more"),
        "before_drift": mean("before_drift"),
        "frozen_share": mean("frozen_share"),
        "learned_share": mean("learned_share"),
        "swapped": sum(bool(one["swaps"]) for one in months),
        "swaps": len(swaps),
        "worst": min((swap["true"] for swap in swaps), default=None),
        "worse": sum(any(swap["true"] < -1 for swap in one["swaps"]) for one in months),
    }


if __name__ == "__main__":
    main()
