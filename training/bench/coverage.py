"""How often the intervals of reports contain the true value, by simulation: `python -m training.bench.coverage`

Draws samples from populations whose true values are known, evaluates each as `vlroute eval` and `vlroute train` do, and
counts. Existing figures are not computed again: a stopped run continues, and `--fresh` starts anew. `--real N` also
trains routers on N files of noise, and N of a signal, as `vlroute train` does (about ten seconds a file). Everything is
seeded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.progress import track
from scipy.special import expit

from training.page import argument_parser, figures, publish
from vlroute import LatencyModel, Outcome, Policy, Record
from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.learning import area_over_random
from vlroute.learning.embeddings import embed_texts
from vlroute.learning.evaluate import compare, evaluate, interval_at
from vlroute.learning.folds import folds_of
from vlroute.learning.intervals import Sampling, Values
from vlroute.learning.metrics import share_by_score
from vlroute.learning.out_of_fold import out_of_fold

SIZES = (100, 300, 1000)
SIMULATIONS = 500
#: Of the gain, over which a record is sent to Thinking.
THRESHOLD = 0.01
FOLDED_SIZES = (100, 150, 300, 1000)
FOLDED_FILES = 400
POPULATION = 300_000
WORDS = """
how many what is the color of largest number in this picture chart count red blue objects angle triangle area find value
solve equation left right year sales city name read sign text bottle dog cat person table plot percent difference sum
ratio total highest lowest median label axis line bar circle square shape behind above under next
"""
KINDS = ("noise", "signal")
HARD = {"solve", "equation", "angle"}

Generator = np.random.Generator
#: Lower and upper limit by the name of the quantity; None where no interval is given.
Bounds = dict[str, tuple[float, float] | None]


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests of a population: predicted probabilities and outcomes `[2, n]`, Instruct and Thinking.

    `text`: a number for each text. `other`: scores of another router.
    """

    p: Values
    right: Values
    text: Values
    other: Values


@dataclass(frozen=True, slots=True)
class Scenario:
    """A population. `draw` returns a sample of n records; `repeated`: records of one text depend on each other."""

    about: str
    draw: Callable[[Generator, int], Sample]
    repeated: bool = False


def _modes(
    instruct: tuple[float, float], thinking: tuple[float, float], *, kinds: bool = False, tries: int = 1,
    together: float = 0.0, repeats: int = 1,
) -> Callable[[Generator, int], Sample]:  # fmt: skip
    """Draws requests with a hidden difficulty x. The logit of a mode's accuracy is linear in x: (intercept, slope).

    `kinds`: the router sees only four levels of x. `tries`: answers averaged per record. `together`: how often both
    modes have the same luck. `repeats`: records per text, which share x and a part of their luck.
    """

    def logits(x: Values) -> Values:
        return np.stack([start + slope * x for start, slope in (instruct, thinking)])

    def draw(rng: Generator, n: int) -> Sample:
        text = np.arange(n) // repeats
        x = rng.normal(size=n)[text]
        own = rng.normal(size=(2, n))[:, text] * (repeats > 1)
        true = expit(logits(x) + own)
        luck = rng.random((tries, 2, n))
        luck[:, 1] = np.where(rng.random((tries, n)) < together, luck[:, 0], luck[:, 1])
        p = expit(logits(np.clip(np.floor(1.2 * x), -2, 1) if kinds else x))
        other = (x + rng.normal(size=n))[text * repeats]
        return Sample(p, (luck < true).mean(axis=0), text.astype(float), other)

    return draw


def _strong(noise: float) -> Callable[[Generator, int], Sample]:
    """Draws requests of two kinds: 30 % that only Thinking answers, and others that Thinking fails on in 10 %.

    The router sees the kind, 0 or 1, plus normal `noise`, and predicts the true probabilities.
    """

    def draw(rng: Generator, n: int) -> Sample:
        hard = rng.random(n) < 0.3
        right = np.stack([~hard, hard | (rng.random(n) < 0.9)]).astype(float)
        easy = expit((0.5 - hard - noise * rng.normal(size=n)) / noise**2 + np.log(0.7 / 0.3))
        p = np.stack([easy, 1 - 0.1 * easy])
        return Sample(p, right, np.arange(n, dtype=float), hard + rng.normal(size=n))

    return draw


def _noise(rng: Generator, n: int) -> Sample:
    x = rng.normal(size=n)
    p = expit(np.stack([0.5 - 0.5 * x, 0.8 + 0 * x]))
    return Sample(p, (rng.random((2, n)) < [[0.6], [0.7]]).astype(float), np.arange(n, dtype=float), rng.normal(size=n))


SCENARIOS = {
    "noise": Scenario("the predictions carry no information", _noise),
    "weak signal": Scenario("Thinking helps a little more on hard requests", _modes((0.5, -0.4), (0.8, 0))),
    "strong signal": Scenario("Instruct fails on hard requests", _modes((0.5, -2.5), (1.2, -0.3))),
    "thinking worse": Scenario("Thinking is 16 points less accurate", _modes((1.2, -1), (0.2, -0.2))),
    "equal modes": Scenario("both modes are equally accurate", _modes((0.5, -1), (0.4, 0))),
    "ties": Scenario("the router distinguishes four kinds of requests", _modes((0.5, -1), (0.8, 0), kinds=True)),
    "rare disagreement": Scenario(
        "the modes differ on one record of twenty", _modes((2.5, -0.7), (3, -0.5), together=0.75)
    ),
    "four tries": Scenario("`correct` is a share of four tries", _modes((0.5, -1), (0.8, 0), tries=4)),
    "equal texts": Scenario(
        "each text occurs five times, and its records depend on each other",
        _modes((0.5, -1), (0.8, 0), repeats=5),
        repeated=True,
    ),
    "strong router": Scenario("the gain AUC is 0.96", _strong(0.4)),
    "very strong router": Scenario("the gain AUC is 0.99", _strong(0.3)),
}


def bounds_of(sample: Sample, repeated: bool, *, values: bool = False) -> tuple[Bounds, dict[str, float]]:
    """All intervals of one sample, or with `values` its figures, by the name of the quantity.

    They are computed as by `vlroute eval`; further ones are those of the curves and other tables.
    """
    n = sample.right.shape[1]
    groups = sample.text.tolist() if repeated else None
    sampling, unknown = Sampling(n, groups), np.full((2, n), np.nan)
    routed = (sample.p[1] - sample.p[0] > THRESHOLD).astype(float)
    length = 10.0 + sample.text * 7919 % 97
    found = compare(sample.right, {"": sample.p.T[None]}, {"": routed}, length, (unknown, unknown), sampling)
    gains, gain = sample.p[1] - sample.p[0], sample.right[1] - sample.right[0]
    bounds: Bounds = {f"accuracy, {row.name}": row.interval for row in found.rows}
    figures = {f"accuracy, {row.name}": row.accuracy for row in found.rows}
    for name, figure in found.figures.items():
        if not name.startswith(("ECE", "chance level")):
            bounds[name] = figure.interval
            if figure.value is not None:
                figures[name] = figure.value
    for share in (0.1, 0.3, 0.5):
        name = f"accuracy at {share:.0%} to Thinking"
        bounds[name] = interval_at(gains, gain, sample.right[0], share, sampling, True)
        figures[name] = float((sample.right[0] + share_by_score(gains, share) * gain).mean())
    bounds["share of the oracle's area"] = sampling.share_of_oracle_area(gains, gain)
    bounds["area above another ranking"] = sampling.area_difference(gains, sample.other, gain)
    if values:
        area, oracle = area_over_random(gains, *sample.right), area_over_random(gain, *sample.right)
        figures["share of the oracle's area"] = area / oracle
        figures["area above another ranking"] = area - area_over_random(sample.other, *sample.right)
    return bounds, figures


@functools.cache
def true_values(scenario: str) -> dict[str, float]:
    """Of a very large sample, by the name of the quantity."""
    rng = np.random.default_rng([1, list(SCENARIOS).index(scenario)])
    return bounds_of(SCENARIOS[scenario].draw(rng, POPULATION), SCENARIOS[scenario].repeated, values=True)[1]


def simulate(scenario: str, n: int, simulations: int, seed: int = 0) -> dict[str, list[int]]:
    """[intervals that contain the true value, intervals, samples] by the name of the quantity."""
    this, truth = SCENARIOS[scenario], true_values(scenario)
    number = list(SCENARIOS).index(scenario)
    rng = np.random.default_rng([seed, number, n])
    held = {name: [0, 0, 0] for name in truth}
    for _ in track(range(simulations), f"{scenario}, {n} records"):
        bounds, _ = bounds_of(this.draw(rng, n), this.repeated)
        for name, value in truth.items():
            interval = bounds[name]
            held[name][2] += 1
            if interval is not None:
                held[name][1] += 1
                held[name][0] += bool(interval[0] <= value <= interval[1])
    return held


def simulate_seconds(n: int, simulations: int, seed: int = 0) -> dict[str, list[int]]:
    """The same for the mean of log-normal seconds whose logarithm has a standard deviation of 0.7."""
    rng = np.random.default_rng([seed, n])
    bounds = (Sampling(n).positive_mean(np.exp(0.7 * rng.normal(size=n))) for _ in range(simulations))
    held = sum(low <= np.exp(0.7**2 / 2) <= high for low, high in filter(None, bounds))
    return {"mean seconds": [int(held), simulations, simulations]}


def simulate_folds(kind: str, n: int, files: int, seed: int = 0) -> dict[str, Any]:
    """Out-of-fold areas of a small model, ridge regression of the gain on 300 features, on `files` drawn files.

    One feature carries information for the kind "signal", none for "noise". As in `vlroute train`: five folds, split in
    two ways.
    """
    signal = kind == "signal"
    rng = np.random.default_rng([seed, n, signal])
    found = [_folded(rng, n, signal) for _ in track(range(files), f"out of fold, {n} records")]
    mean = float(np.mean([area for area, _ in found]))
    result: dict[str, Any] = {"files": files, "mean area": mean}
    for i, name in enumerate(("corrected", "uncorrected")):
        low, high = np.asarray([bounds[i] for _, bounds in found]).T
        held = {"above zero": low > 0, "below zero": high < 0, "holds the mean area": (low <= mean) & (mean <= high)}
        result[name] = {key: int(np.sum(which)) for key, which in held.items()}
    return result


def _folded(rng: Generator, n: int, signal: bool) -> tuple[float, list[tuple[float, float]]]:
    width, folds = 300, 5
    features = rng.normal(size=(n, width)) / np.sqrt(width)
    logit = 0.5 * np.ones(n)
    if signal:
        features[:, 0] = rng.normal(size=n)
        logit -= 1.2 * features[:, 0]
    right = np.stack([rng.random(n) < expit(logit), rng.random(n) < 0.68]).astype(float)
    gain = right[1] - right[0]
    outcomes = ([Outcome(float(value)) for value in mode] for mode in right)
    records = [Record(str(i), str(i), None, a, b) for i, (a, b) in enumerate(zip(*outcomes, strict=True))]
    scores = np.empty((2, n))
    for cut in (0, 1):
        fold = folds_of(records, folds, int(rng.integers(1 << 30)), together="record")
        for number in range(folds):
            out = fold == number
            seen, mean = features[~out], gain[~out].mean()
            penalized = seen.T @ seen + 0.01 * len(seen) * np.eye(width)
            scores[cut, out] = mean + features[out] @ np.linalg.solve(penalized, seen.T @ (gain[~out] - mean))
    area = float(np.mean([area_over_random(one, *right) for one in scores]))
    bounds = [Sampling(n, folds=given).area(scores, gain) for given in (folds, None)]
    return area, [one for one in bounds if one is not None]


def train_once(kind: str, n: int, number: int) -> dict[str, Any]:
    """Area and interval, as `vlroute train` reports them, on one drawn file of n records: "noise" or "signal"."""
    rng = np.random.default_rng([7, n, number])
    records = []
    for index in range(n):
        words = [str(word) for word in rng.choice(WORDS.split(), size=rng.integers(5, 16))]
        right = (0.6, 0.7)
        if kind == "signal":
            right = (0.35, 0.75) if HARD & set(words) else (0.75, 0.68)
        outcome = [Outcome(bool(rng.random() < p)) for p in right]
        records.append(Record(f"r{index}", f"{' '.join(words)} {index}?", None, outcome[0], outcome[1]))
    text = embed_texts(records, load_text_encoder(STATIC))
    _, unseen = out_of_fold(records, folds=5, seeds=2, text=text, jobs=1)
    figure = evaluate(records, unseen, Policy(), LatencyModel()).figures["area over random"]
    return {"area": figure.value, "interval": figure.interval}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--simulations", type=int, default=SIMULATIONS)
    parser.add_argument("--files", type=int, default=FOLDED_FILES, help="drawn files of the out-of-fold areas")
    parser.add_argument("--real", type=int, default=0, help="files of noise and of a signal to train a router on")
    parser.add_argument("--real-size", type=int, default=150, help="records of each")
    parser.add_argument("--fresh", action="store_true", help="compute everything anew")
    options = parser.parse_args()
    about = {name: scenario.about for name, scenario in SCENARIOS.items()}
    about["seconds"] = "log-normal, with a standard deviation of 0.7 of the logarithm"
    found: dict[str, Any] = {"fixed": {}, "folds": {}, "real": {}}
    found |= ({} if options.fresh else figures("intervals", options.out)) | {"about": about}

    def put(part: str, name: str, compute: Callable[..., Any], *arguments: Any) -> None:
        if name not in found[part]:
            found[part][name] = compute(*arguments)
            publish("intervals", found, options.out)

    for n in SIZES:
        put("fixed", f"seconds, {n}", simulate_seconds, n, options.simulations)
        for scenario in SCENARIOS:
            put("fixed", f"{scenario}, {n}", simulate, scenario, n, options.simulations)
    for n in FOLDED_SIZES:
        for kind in KINDS:
            put("folds", f"{kind}, {n}", simulate_folds, kind, n, options.files)
    for number in range(options.real):
        for kind in KINDS:
            put("real", f"{kind}, {options.real_size}, {number}", train_once, kind, options.real_size, number)
    publish("intervals", found, options.out)


if __name__ == "__main__":
    main()
