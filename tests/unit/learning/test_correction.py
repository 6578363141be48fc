"""Corrections of an artifact by ratings of single answers, and the comparison of two artifacts on them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.rated_store import COLORS, COUNTS, LEDGERS, THINGS, first_artifact
from tests.stored import answer, asked
from vlroute.decision.classifier import ComplexityClassifier, Start
from vlroute.learning.comparison import Predictions, Rule, compare_artifacts
from vlroute.learning.correction import MAX_WEIGHT, Correction, extended, propensity_weights
from vlroute.learning.drift import measure_drift
from vlroute.learning.learning_step import cannot_learn, usual_rule
from vlroute.learning.ratings import AskedRequest, Rating, Ratings, read_ratings
from vlroute.shadow import Label
from vlroute.store import Store
from vlroute.types import Mode


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> ComplexityClassifier:
    return first_artifact(tmp_path_factory.mktemp("first"))


def started(artifact: ComplexityClassifier) -> ComplexityClassifier:
    """An artifact that adds to the logits of another one."""
    start = Start(artifact, np.asarray([0.7, 1.2], np.float32), "first")
    return ComplexityClassifier(artifact.encoder, artifact.heads, artifact.latency, artifact.card, start=start)


KINDS: dict[str, Callable[[ComplexityClassifier], ComplexityClassifier]] = {
    "words": lambda artifact: artifact,
    "hashes": lambda artifact: artifact.with_hashed_vocabulary(),
    "started from another": started,
    "hashes, started from another": lambda artifact: started(artifact).with_hashed_vocabulary(),
}


def rating(
    prompt: str, mode: Mode, correct: float, propensity: float = 1.0, number: int = 0, extra: float = 1.0,
    chosen: bool = True,
) -> Rating:  # fmt: skip
    request = AskedRequest(f"{prompt} {number}", prompt, None, "", extra, 0.0)
    return Rating(f"{number}", request, mode, correct, propensity, 0.5, chosen)


def rated(count: int, wording: str, mode: Mode, p: float, seed: int = 0) -> list[Rating]:
    rng = random.Random(seed)
    return [
        rating(wording.format(rng.choice(THINGS)), mode, float(rng.random() < p), number=number)
        for number in range(count)
    ]


def test_a_correction_approaches_the_rated_accuracy_of_its_mode_only(artifact: ComplexityClassifier) -> None:
    prompt = LEDGERS[0].format("cup")
    correction = Correction.of(artifact, rated(200, LEDGERS[0], "instruct", 0.1), 0.0)
    corrected = correction.apply(correction.fit()[0])
    before, after = correction.base.predict(prompt), corrected.predict(prompt)
    assert before.p_instruct > 0.5
    assert after.p_instruct < 0.25
    assert after.p_thinking == before.p_thinking  # no rating concerns Thinking
    known = COLORS[0].format("cup")
    moved = corrected.predict(known).p_instruct - correction.base.predict(known).p_instruct
    assert abs(moved) < 0.35 * (before.p_instruct - after.p_instruct)


@pytest.mark.parametrize("kind", KINDS)
def test_the_artifact_predicts_what_the_fit_predicted(
    artifact: ComplexityClassifier, kind: str, tmp_path: Path
) -> None:
    ratings = rated(30, COUNTS[0], "thinking", 0.3) + rated(30, LEDGERS[0], "instruct", 0.2, 1)
    correction = Correction.of(KINDS[kind](artifact), ratings, 0.0)
    dual, p = correction.fit()
    correction.apply(dual).save(tmp_path)
    loaded = ComplexityClassifier.load(tmp_path)
    found = [loaded.predict(one.request.prompt) for one in ratings]
    assert np.allclose(p, [(one.p_instruct, one.p_thinking) for one in found], atol=1e-4)


def test_a_left_out_rating_has_no_effect(artifact: ComplexityClassifier) -> None:
    ratings = rated(20, COUNTS[0], "thinking", 0.5)
    at = np.arange(20) != 7
    one = Correction.of(artifact, ratings, 0.0).fit(at)[1]
    changed = [replace(each, correct=1 - each.correct) if k == 7 else each for k, each in enumerate(ratings)]
    assert np.array_equal(one, Correction.of(artifact, changed, 0.0).fit(at)[1])
    assert not np.array_equal(one, Correction.of(artifact, changed, 0.0).fit()[1])


@pytest.mark.parametrize("kind", KINDS)
def test_new_words_change_no_prediction_of_texts_without_them(artifact: ComplexityClassifier, kind: str) -> None:
    artifact = KINDS[kind](artifact)
    wider = extended(artifact, [one.request for one in rated(20, LEDGERS[0], "instruct", 0.5)])
    hashed = wider.encoder.salt is not None
    assert hashed == ("hashes" in kind)
    assert ("ledger" in wider.encoder.prompt.terms) != hashed
    assert wider.encoder.width > artifact.encoder.width
    known, new = COLORS[0].format("cup"), LEDGERS[0].format("cup")
    assert wider.predict(known).gain == pytest.approx(artifact.predict(known).gain, abs=0.02)
    assert wider.predict(new).coverage == 1.0 > artifact.predict(new).coverage


def test_propensity_weights_are_limited_and_as_heavy_as_they_are_informative() -> None:
    ratings = [rating("a", "instruct", 1.0, p) for p in (0.95, 0.95, 0.001)]
    weight = propensity_weights([*ratings, rating("a", "thinking", 1.0, 0.05)])
    assert weight[2] / weight[0] == pytest.approx(MAX_WEIGHT * 0.95)
    raw = np.asarray([1 / 0.95, 1 / 0.95, MAX_WEIGHT])
    assert weight[:3].sum() == pytest.approx(raw.sum() ** 2 / (raw**2).sum())
    assert weight[3] == pytest.approx(1.0)


def test_old_ratings_weigh_less(artifact: ComplexityClassifier) -> None:
    month = 30 * 86_400.0
    new, old = (Correction.of(artifact, rated(5, COUNTS[0], "thinking", 0.5), now).weight for now in (0.0, month))
    assert np.allclose(old, new / 2)


def predictions(gain: float, count: int) -> Predictions:
    return Predictions(np.full(count, gain), np.ones(count))


def both(count: int, instruct: float, thinking: float, explore: float, rng: random.Random) -> list[Rating]:
    """Ratings of requests that the router answers with Instruct, unless they are explored."""
    found = []
    for number in range(count):
        explored = rng.random() < explore
        mode: Mode = "thinking" if explored else "instruct"
        right = float(rng.random() < (thinking if explored else instruct))
        found.append(rating("x", mode, right, explore if explored else 1 - explore, number))
    return found


def test_the_interval_of_a_comparison_holds_its_level() -> None:
    rng = random.Random(0)
    held = 0
    for _ in range(200):
        ratings = both(60, 0.3, 0.8, 0.2, rng)
        # half of the requests go to Thinking; a price of 0 leaves the candidate all its seconds
        used, candidate = (Predictions(np.repeat(gain, 50), np.ones(100)) for gain in ([-1.0, 0.5], [0.5, -1.0]))
        found = compare_artifacts(
            Rule(0.0), np.ones(100), used, candidate, ratings, predictions(-1.0, 60), predictions(0.5, 60)
        )
        assert found.to_thinking.share == found.to_instruct.share == 0.5
        # there are no ratings where requests go back to Instruct: anything may happen there
        assert found.low <= found.difference - 0.5
        gained = found.to_thinking.gain
        held += gained is not None and abs(gained - 0.5) < 0.5
    assert held > 180


@pytest.mark.parametrize("explore", [0.1, 0.5])
def test_a_better_candidate_is_recognized_and_a_worse_one_never(explore: float) -> None:
    rng = random.Random(1)
    swaps = {True: 0, False: 0}
    for good in (True, False):
        for _ in range(50):
            instruct, thinking = (0.2, 0.9) if good else (0.9, 0.7)
            ratings = both(120, instruct, thinking, explore, rng)
            # the artifact in use spends as many seconds on others, on which the modes are known to be equal
            spare = [rating("y", mode, float(k % 2), 0.5, k) for k in range(60) for mode in ("instruct", "thinking")]
            used = Predictions(np.repeat([-1.0, 0.5], 50), np.ones(100))
            candidate = Predictions(np.repeat([0.9, -1.0], 50), np.ones(100))
            on_rated = [
                Predictions(np.asarray([gain] * 120 + [other] * 120), np.ones(240))
                for gain, other in ((-1.0, 0.5), (0.9, -1.0))
            ]
            found = compare_artifacts(Rule(0.1), np.ones(100), used, candidate, [*ratings, *spare], *on_rated)
            swaps[good] += found.is_better
    assert swaps[True] >= (50 if explore == 0.5 else 40)
    assert swaps[False] == 0


def test_equal_seconds_are_at_most_those_in_use() -> None:
    gain = np.linspace(-0.5, 1, 40)
    extra = np.linspace(0.5, 3, 40)
    predicted = Predictions(gain, np.where(np.arange(40) % 10, 1.0, 0.1))
    for seconds in (0.0, 5.0, 20.0, 1000.0):
        rule = Rule(0.1, fallback_mode="thinking").at_equal_seconds(seconds, predicted, extra)
        thinks = rule.thinks(predicted, extra)
        assert thinks[::10].all()  # low coverage: the fallback mode, whatever it costs
        spent, fallback = float(extra[thinks].sum()), float(extra[::10].sum())
        assert spent <= max(seconds, fallback) + 1e-9


def test_labels_that_equal_the_answer_count_only_if_different_ones_are_rated(tmp_path: Path) -> None:
    with Store(tmp_path / "answers.db") as store:
        ids = [store.record(answer("instruct"), asked(f"Question {number}?")) for number in range(4)]
        for number, id in enumerate(ids):
            store.feedback(id, correct=number % 2 == 0)
        labels = [Label(id, "thinking", 0.1, None, number < 2, 5, 1.0, 0.1, "stop") for number, id in enumerate(ids)]
        for label in labels:
            store.record_label(label)
        found = read_ratings(store, 50)
        assert (len(found.used), found.incomplete, found.alternatives) == (4, 2, {"instruct": 0, "thinking": 0})
        assert "2 labels equal a rated answer" in "".join(cannot_learn(found))
        store.feedback(labels[2].id, correct=True)
        found = read_ratings(store, 50)
    by_id = {one.id: one for one in found.used}
    assert (len(found.used), found.incomplete, found.alternatives["thinking"]) == (7, 0, 3)
    assert by_id[labels[0].id].correct == 1.0  # as the answer
    assert by_id[labels[1].id].correct == 0.0
    assert by_id[labels[0].id].propensity == pytest.approx(0.1)
    assert by_id[labels[2].id].propensity == pytest.approx(0.05)  # it stands for both that differ
    assert all(one.propensity == 1.0 for id, one in by_id.items() if id in ids)


def test_what_the_router_chose_is_known_of_explored_and_forced_answers(tmp_path: Path) -> None:
    explored, forced = answer("instruct"), answer("instruct", forced=True)
    explored = replace(explored, decision=replace(explored.decision, explored=True, propensity=0.05))
    with Store(tmp_path / "answers.db") as store:
        for number, one in enumerate((explored, forced, answer("instruct"))):
            store.feedback(store.record(one, asked(f"Question {number}?")), correct=True)
        found = {one.request.prompt: one for one in read_ratings(store, 50).used}
        decided = store.recent(0.0, 10)
    # the expected gain of 0.3 is over the threshold of 0.08: Thinking would have been chosen
    chosen = [found[f"Question {number}?"].chosen for number in range(3)]
    assert chosen == [False, False, True]
    assert found["Question 0?"].propensity == pytest.approx(0.05)
    assert [one.prompt for one in decided] == ["Question 0?", "Question 2?"]
    assert usual_rule(decided).price == pytest.approx(0.08 / 0.8)


def test_a_key_counts_with_its_latest_ratings_only(tmp_path: Path) -> None:
    with Store(tmp_path / "answers.db") as store:
        for number in range(6):
            id = store.record(answer("instruct"), asked(f"Question {number}?"))
            store.feedback(id, correct=False, key="alice")
            store.feedback(id, correct=True, key="mallory" if number < 4 else "")
        found = read_ratings(store, 3)
    assert found.over_limit == 1
    assert [one.request.prompt for one in found.used] == [f"Question {number}?" for number in range(1, 6)]


def test_drift(artifact: ComplexityClassifier, tmp_path: Path) -> None:
    with Store(tmp_path / "answers.db") as store:
        store.record(answer("thinking"), asked("Unheard of things"))
        answers = store.recent(0.0, 10)
    ratings = [replace(rating("x", "instruct", float(k % 2)), expected=0.9) for k in range(10)]
    found = measure_drift(artifact, answers, ratings)
    assert found.coverage is not None
    assert found.coverage_in_training is not None
    assert found.coverage < found.coverage_in_training
    assert found.calibration == pytest.approx(0.4)
    assert found.calibration_interval is not None
    assert found.calibration_interval[0] < 0.4 < found.calibration_interval[1]
    assert found.latency == pytest.approx(0.6 / 1.0)
    empty = measure_drift(artifact, [], [])
    assert (empty.coverage, empty.calibration, empty.calibration_interval, empty.latency) == (None,) * 4
    assert not math.isnan(found.latency or math.nan)
    assert cannot_learn(Ratings(tuple(ratings)))[0].startswith("No answer of Instruct")
