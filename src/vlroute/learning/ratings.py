"""Ratings of single answers, from the feedback and the labels in a store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from vlroute.store import RatedAnswer, Store, StoredAnswer, counts_for
from vlroute.types import MODES, Mode, ModelIdentity, ToolUse, other

#: Learning uses the latest ratings only.
MOST_RATINGS = 2000
#: A smaller propensity is a mistake, and its inverse would outweigh everything else.
LEAST_PROPENSITY = 1e-3


@dataclass(frozen=True, slots=True)
class AskedRequest:
    """A request that was answered.

    Attributes:
        group: Digest of the conversation; equal requests have equal digests.
        prompt: Its text.
        caption: The caption on which the decision was based.
        tools: See `Decision`.
        extra_seconds: How much longer Thinking was expected to take than Instruct.
        created: Seconds since 1970, UTC.
    """

    group: str
    prompt: str
    caption: str | None
    tools: ToolUse
    extra_seconds: float
    created: float


@dataclass(frozen=True, slots=True)
class Rating:
    """How right one mode was on one request.

    Attributes:
        id: Id of the answer or label.
        request: The request.
        mode: The mode that is rated.
        correct: How right it was, 0 to 1.
        propensity: Probability with which the answer of this mode was observed, above 0.
        expected: Probability of a right answer that the router expected of this mode.
        chosen: Whether the router chooses this mode without exploration.
    """

    id: str
    request: AskedRequest
    mode: Mode
    correct: float
    propensity: float
    expected: float
    chosen: bool


@dataclass(frozen=True, slots=True)
class Ratings:
    """The ratings that learning uses, the oldest first.

    Attributes:
        used: The ratings.
        given: Number of all ratings in the store, also those that are not used.
        over_limit: Number of ratings that were left out because their key gave more than it may.
        other_model: Number of ratings that were left out because another model had answered.
        incomplete: Number of labels that were left out because their correctness is known only if it equals that of
            the user's answer.
    """

    used: tuple[Rating, ...]
    given: int = 0
    over_limit: int = 0
    other_model: int = 0
    incomplete: int = 0

    @property
    def alternatives(self) -> dict[Mode, int]:
        """Number of ratings of each mode on requests for which the router had chosen the other one."""
        found = Counter(one.mode for one in self.used if not one.chosen)
        return {"instruct": found["instruct"], "thinking": found["thinking"]}


def read_ratings(store: Store, most_per_key: int, model: ModelIdentity | None = None) -> Ratings:
    """Read the ratings of a store.

    Args:
        store: The store.
        most_per_key: Of the ratings of each API key, only so many count, the latest ones. Ratings without a key, as
            from Python and the command line, are those of the operator and are not limited.
        model: Leaves out ratings of answers of other models. Answers that an earlier version of vlroute stored do not
            name their model and count. None: all count.

    Returns:
        The latest ratings.

    Raises:
        StoreError: The store cannot be read.
    """
    labels = {label.answer: label for label in store.labels()}
    rated = sorted(store.records(), key=lambda one: (one.created, one.id))
    count: Counter[str] = Counter()
    kept: list[RatedAnswer] = []
    over = others = 0
    for one in reversed(rated):
        if not counts_for(model, one.model):
            others += 1
            continue
        if one.key:
            count[one.key] += 1
            if count[one.key] > most_per_key:
                over += 1
                continue
        kept.append(one)
    kept.reverse()
    answers = {one.id: one for one in kept if one.label_of is None}
    graded = {one.label_of for one in kept if one.label_of is not None}
    # A label that equals a rated answer is as right as that answer. Labels that differ are known only if they were
    # rated themselves. These stand for all labels that differ; without them, equal ones would give a wrong picture.
    differing = [labels[id] for id in answers if id in labels and not labels[id].same]
    share = sum(label.answer in graded for label in differing) / len(differing) if differing else 1.0
    ratings: list[Rating] = []
    incomplete = 0
    for one in kept:
        label = labels.get(one.label_of or one.id)
        drawn = 0.0 if label is None else label.probability
        own, alternative = one.propensity, 1 - one.propensity
        if one.label_of is not None:
            known = 1.0 if label is None or label.same or not share else share
            ratings.append(_rating(one, one.mode, one.id, (alternative + own * drawn) * known))
            continue
        ratings.append(_rating(one, one.mode, one.id, own + alternative * drawn))
        if label is not None and label.same and label.answer not in graded:
            if share:
                ratings.append(_rating(one, label.mode, label.id, alternative + own * drawn))
            else:
                incomplete += 1
    return Ratings(tuple(ratings[-MOST_RATINGS:]), len(rated), over, others, incomplete)


def _rating(one: RatedAnswer, mode: Mode, id: str, propensity: float) -> Rating:
    decision, correct = one.decision, float(one.outcome.correct)
    answered = one.mode if one.label_of is None else other(one.mode)
    chosen = other(answered) if decision.get("explored") else answered
    if one.label_of is None and one.forced:
        chosen = "thinking" if decision.get("gain", 0.0) > decision.get("threshold", 0.0) else "instruct"
    return Rating(
        id, asked(one), mode, correct, min(max(propensity, LEAST_PROPENSITY), 1.0),
        float(decision.get(f"p_{mode}", 0.5)), mode == chosen,
    )  # fmt: skip


def asked(answer: RatedAnswer | StoredAnswer) -> AskedRequest:
    """The request of an answer."""
    seconds = [float(answer.decision.get(f"seconds_{mode}", 0.0)) for mode in MODES]
    return AskedRequest(
        answer.request, answer.prompt, answer.caption, answer.decision.get("tools", ""), seconds[1] - seconds[0],
        answer.created,
    )  # fmt: skip
