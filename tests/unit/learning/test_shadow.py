"""The report of a shadow, on stored decisions with known outcomes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.stored import answer, asked
from vlroute.errors import InputError
from vlroute.learning.report import shadow_report
from vlroute.learning.shadow import ALL, SAME, TO_INSTRUCT, TO_THINKING, evaluate_shadow
from vlroute.shadow import Choice, Label, ShadowedDecision
from vlroute.store import Store
from vlroute.types import Mode, ModelIdentity, Timing, other


def choice(mode: Mode, artifact: str = "old", p: tuple[float, float] = (0.4, 0.7)) -> Choice:
    return Choice(artifact, mode, *p, 0.2, 1.0, 0.08)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "answers.db", keep_text=True)


def keep(
    store: Store, number: int, used: Mode, shadow: Mode, artifact: str = "old", probability: float = 0.0,
    seconds: float = 0.5, model: ModelIdentity | None = None,
) -> str:  # fmt: skip
    """Store an answer with both decisions, whose id it returns."""
    given = replace(answer(used), timing=Timing(0, 0, 0, 0, seconds, seconds))
    id = store.record(given, asked(f"Question {number}?"), model=model)
    mine = choice(shadow, "new", (0.5, 0.6))
    store.record_shadowed(
        [ShadowedDecision(id, float(number), choice(used, artifact), mine, probability, probability > 0)]
    )
    return id


def test_changes_and_expectations(store: Store) -> None:
    for number, (used, shadow, count) in enumerate(
        [("instruct", "instruct", 5), ("instruct", "thinking", 3), ("thinking", "instruct", 2)]
    ):
        for one in range(count):
            keep(store, 10 * number + one, used, shadow)  # type: ignore[arg-type]
    found = evaluate_shadow(store)
    assert (found.used, found.shadow, found.requests, found.other_artifacts) == ("old", "new", 10, 0)
    assert {name: one.requests for name, one in found.changes.items()} == {
        ALL: 10, SAME: 5, TO_THINKING: 3, TO_INSTRUCT: 2
    }  # fmt: skip
    up, everything = found.changes[TO_THINKING], found.changes[ALL]
    assert up.share.value == pytest.approx(0.3)
    assert up.share.interval is not None
    assert up.share.interval[0] < 0.3 < up.share.interval[1]
    # by the artifact in force Instruct is right with 0.4 and Thinking with 0.7; by the shadow 0.5 and 0.6
    assert up.accuracy["used"].difference.value == pytest.approx(0.3)
    assert up.accuracy["shadow"].difference.value == pytest.approx(0.1)
    assert everything.accuracy["used"].used.value == pytest.approx(0.8 * 0.4 + 0.2 * 0.7)
    assert everything.accuracy["used"].shadow.value == pytest.approx(0.7 * 0.4 + 0.3 * 0.7)
    assert everything.seconds["used"].difference.value == pytest.approx(0.1 * 0.8)
    assert "instruct → thinking | 3 | 30.0%" in shadow_report(found)


def test_only_the_last_two_artifacts_count(store: Store) -> None:
    keep(store, 1, "instruct", "thinking", artifact="older")
    keep(store, 2, "instruct", "instruct")
    found = evaluate_shadow(store)
    assert (found.used, found.requests, found.other_artifacts) == ("old", 1, 1)
    assert found.changes[TO_THINKING].requests == 0


def test_only_the_last_model_counts(store: Store) -> None:
    for number, name in enumerate(("a", "b", "b")):
        store.feedback(keep(store, number, "instruct", "thinking", model=ModelIdentity(name)), correct=True)
    for name in ("a", "b"):
        again = store.record(answer("thinking", forced=True), asked("Question 2?"), model=ModelIdentity(name))
        store.feedback(again, correct=name == "a")
    found = evaluate_shadow(store)
    assert (found.requests, found.other_artifacts) == (2, 1)
    assert found.rated[TO_THINKING].contrast.shadow.value == 0.0  # the rating of a does not count
    assert "or which another model had answered" in shadow_report(found)


def test_ratings_of_both_modes_are_compared_by_direction(store: Store) -> None:
    rated = []
    for number in range(4):
        id = keep(store, number, "instruct", "thinking")
        store.feedback(id, correct=number == 0)
        # the user has asked again in the other mode
        again = store.record(answer("thinking", forced=True), asked(f"Question {number}?"))
        store.feedback(again, correct=number < 3)
        rated.append(id)
    for number in range(4, 10):
        store.feedback(keep(store, number, "instruct", "instruct"), correct=True)
    unknown = keep(store, 10, "instruct", "thinking")
    store.feedback(unknown, correct=False)
    found = evaluate_shadow(store)
    up = found.rated[TO_THINKING]
    assert (up.requests, up.both) == (5, 4)
    assert up.accuracy.value == pytest.approx(1 / 5)
    assert (up.contrast.used.value, up.contrast.shadow.value) == (0.25, 0.75)
    assert found.rated[SAME].contrast.difference.value == 0
    gain = found.rated[ALL].contrast.difference
    assert gain.value == pytest.approx(5 / 11 * 0.5)
    assert gain.interval is not None
    assert gain.interval[0] < 0.5 * 5 / 11 < gain.interval[1]


def test_labels_are_weighted_by_the_inverse_of_their_probability(store: Store) -> None:
    for number, (probability, seconds, same) in enumerate([(0.5, 2.0, True), (0.1, 6.0, False)] * 2):
        id = keep(store, number, "instruct", "thinking", probability=probability)
        store.record_label(Label(id, "thinking", probability, "blue", same, 9, seconds, 0.1, "stop"))
    keep(store, 9, "instruct", "instruct", probability=0.1)  # drawn, and skipped
    sample = evaluate_shadow(store).sample
    assert (sample.drawn, sample.labeled, sample.known) == (5, 4, 0)
    assert sample.seconds.used.value == pytest.approx(0.5)
    assert sample.seconds.shadow.value == pytest.approx((2 * 2.0 + 10 * 6.0) / 12)
    assert sample.agreement.value == pytest.approx(2 / 12)
    assert sample.accuracy.difference.value is None


@pytest.mark.parametrize("mode", ["instruct", "thinking"])
def test_correctness_of_a_label(store: Store, mode: Mode) -> None:
    """Known if it was graded, or if it equals a rated answer."""
    equal, graded, open_ = (keep(store, number, mode, other(mode), probability=1.0) for number in range(3))
    label = Label("", other(mode), 1.0, "red", True, 9, 1.0, 0.1, "stop")
    for id, same in ((equal, True), (graded, False), (open_, False)):
        one = replace(label, answer=id, same=same, id=f"label {id[:8]}")
        store.record_label(one)
        store.feedback(id, correct=True)
        if id == graded:
            store.feedback(one.id, correct=False)
    sample = evaluate_shadow(store).sample
    assert sample.known == 2
    assert (sample.accuracy.used.value, sample.accuracy.shadow.value) == (1.0, 0.5)


def test_a_store_without_decisions(store: Store) -> None:
    with pytest.raises(InputError, match="--shadow FOLDER"):
        evaluate_shadow(store)
