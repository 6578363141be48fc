"""The figures of the proof: ways of choosing, metrics, caption sources, families, and what must be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from training.pocket.proving import SOURCES, Judged, Proved
from vlroute.decision.wilson import share_interval
from vlroute.learning.intervals import Interval, Sampling
from vlroute.learning.metrics import Values, area_over_random, ece, ece_if_calibrated, headroom_captured, share_by_score
from vlroute.types import MODES

WAYS = (*MODES, "routed")


@dataclass(frozen=True, slots=True)
class Way:
    """One way of choosing the mode. `accuracy` and `share` (of thinking) 0 to 1, `seconds` a mean answer."""

    name: str
    accuracy: float
    interval: Interval | None
    seconds: float
    of_thinking: float
    share: float


@dataclass(frozen=True, slots=True)
class Source:
    """What a caption source is worth. `area` over random in points, `captioning` and `seconds` means a request.

    `seconds`: captioning, decision and the single modes' answers as it would have chosen. `same`: share of captions
    equal to those given, None without captions.
    """

    name: str
    area: float
    interval: Interval | None
    accuracy: float
    share: float
    captioning: float
    seconds: float
    same: float | None


@dataclass(frozen=True, slots=True)
class Family:
    """One family of pictures: accuracies and `share` (of thinking) 0 to 1, `seconds` of a routed answer."""

    name: str
    pictures: int
    instruct: float
    thinking: float
    routed: float
    share: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Requirement:
    """`measured` against `bound`; `least`: whether it is a floor, else a ceiling."""

    name: str
    measured: float
    bound: float
    least: bool

    @property
    def met(self) -> bool:
        return self.measured >= self.bound if self.least else self.measured <= self.bound


@dataclass(frozen=True, slots=True)
class Proof:
    """Everything the page tells. `figures`: (value, 95 % interval) by name."""

    pictures: int
    ways: list[Way]
    figures: dict[str, tuple[float | None, Interval | None]]
    sources: list[Source]
    families: list[Family]
    requirements: list[Requirement]

    def way(self, name: str) -> Way:
        return next(way for way in self.ways if way.name == name)


def summarise(rows: Sequence[Proved]) -> Proof:
    """All tables of the pictures measured. ValueError for none."""
    if not rows:
        raise ValueError("a proof needs at least one picture")
    right = np.asarray([[row.single(mode).right for mode in MODES] for row in rows], dtype=float).T
    seconds = np.asarray([[row.single(mode).seconds for mode in MODES] for row in rows]).T
    routed = _thinks([row.decision for row in rows])
    share = float(routed.mean())
    length = np.asarray([float(len(row.prompt)) for row in rows])
    ways = [
        _way(name, sent, _mix(right, sent), _mix(seconds, sent), seconds)
        for name, sent in {
            "always instruct": np.zeros(len(rows)),
            "always thinking": np.ones(len(rows)),
            "random, same share": np.full(len(rows), share),
            "longest prompts, same share": share_by_score(length, share),
        }.items()
    ]
    got = np.asarray([float(row.routed.right) for row in rows])
    ways.append(_way("routed", routed, got, np.asarray([row.routed.seconds for row in rows]), seconds))
    best = (right[1] > right[0]).astype(float)
    ways.append(_way("oracle", best, _mix(right, best), _mix(seconds, best), seconds))
    gains = np.asarray([row.decision.gain for row in rows])
    p = {mode: np.asarray([getattr(row.decision, f"p_{mode}") for row in rows]) for mode in MODES}
    gain, area, whole = (
        right[1] - right[0],
        area_over_random(gains, *right),
        area_over_random(right[1] - right[0], *right),
    )
    prompt_alone, sampling = _gains(rows, SOURCES[0]), Sampling(len(rows))
    figures: dict[str, tuple[float | None, Interval | None]] = {
        "area over random": (area, sampling.area(gains[None], gain)),
        "area of the oracle": (whole, sampling.oracle_area(gain)),
        "share of the oracle's area": (
            area / whole if whole else None, sampling.share_of_oracle_area(gains, gain) if whole else None
        ),
        "area of the longest prompts": (area_over_random(length, *right), sampling.area(length[None], gain)),
        "headroom captured": (
            headroom_captured(*(float(one.mean()) for one in (got, *right, np.maximum(*right)))),
            sampling.headroom(got, *right),
        ),
        **{
            f"area by {name} above the prompt alone": (
                area_over_random(_gains(rows, name), *right) - area_over_random(prompt_alone, *right),
                sampling.area_difference(_gains(rows, name), prompt_alone, gain),
            )
            for name in SOURCES[1:]
        },
        **{f"ECE {mode}": (ece(p[mode], correct), None) for mode, correct in zip(MODES, right, strict=True)},
        **{f"chance level of ECE {mode}": (ece_if_calibrated(p[mode]), None) for mode in MODES},
    }  # fmt: skip
    figures["seconds of caption and decision, with the tower"] = (
        float(np.mean([row.decision.seconds for row in rows])), None,
    )  # fmt: skip
    sources = [_source(name, rows, right, seconds) for name in SOURCES]
    proof = Proof(len(rows), ways, figures, sources, _families(rows), [])
    return replace(proof, requirements=_requirements(proof))


def _thinks(decisions: Sequence[Judged]) -> Values:
    return np.asarray([float(decision.mode == "thinking") for decision in decisions])


def _mix(both: Values, sent: Values) -> Values:
    """Of `[2, n]` values the chosen mode's, `[n]`; expected where `sent` is a probability."""
    return np.asarray(both[0] + sent * (both[1] - both[0]))


def _way(name: str, sent: Values, right: Values, took: Values, seconds: Values) -> Way:
    mean = float(took.mean())
    return Way(
        name, float(right.mean()), share_interval(right), mean, mean / float(seconds[1].mean()), float(sent.mean())
    )


def _gains(rows: Sequence[Proved], source: str) -> Values:
    return np.asarray([row.sources[source].gain for row in rows])


def _source(name: str, rows: Sequence[Proved], right: Values, seconds: Values) -> Source:
    judged = [row.sources[name] for row in rows]
    sent, gains = _thinks(judged), _gains(rows, name)
    given = [row.sources["caption given"].caption for row in rows]
    same = [one.caption == caption for one, caption in zip(judged, given, strict=True)]
    spent = np.asarray([one.seconds for one in judged])
    return Source(
        name, area_over_random(gains, *right), Sampling(len(rows)).area(gains[None], right[1] - right[0]),
        float(_mix(right, sent).mean()), float(sent.mean()), float(spent.mean()),
        float((_mix(seconds, sent) + spent).mean()),
        float(np.mean(same)) if any(one.caption for one in judged) else None,
    )  # fmt: skip


def _families(rows: Sequence[Proved]) -> list[Family]:
    out = []
    for name in sorted({row.family for row in rows}):
        some = [row for row in rows if row.family == name]
        instruct, thinking, routed = (float(np.mean([getattr(r, way).right for r in some])) for way in WAYS)
        share = float(_thinks([row.decision for row in some]).mean())
        seconds = float(np.mean([row.routed.seconds for row in some]))
        out.append(Family(name, len(some), instruct, thinking, routed, share, seconds))
    return out


def _requirements(proof: Proof) -> list[Requirement]:
    better = max(proof.way(f"always {mode}").accuracy for mode in MODES)
    routed = proof.way("routed")
    nan = float("nan")  # an undefined figure meets nothing
    value = {name: nan if one is None else one for name, (one, _) in proof.figures.items()}
    low = {name: nan if interval is None else interval[0] for name, (_, interval) in proof.figures.items()}
    above = "area by {} above the prompt alone".format
    return [
        Requirement(
            "routed accuracy above the better single mode, points", 100 * (routed.accuracy - better), -0.5, True
        ),
        Requirement("routed seconds, % of always thinking, all router costs in", 100 * routed.of_thinking, 55, False),
        Requirement("area over random, % of the oracle's", 100 * value["share of the oracle's area"], 60, True),
        Requirement("ECE instruct", value["ECE instruct"], 0.03, False),
        Requirement("ECE thinking", value["ECE thinking"], 0.03, False),
        *(
            Requirement(f"{above(name)}, points, low end of the 95 % interval", low[above(name)], 0, True)
            for name in ("vision probe", "caption by Instruct")
        ),
    ]
