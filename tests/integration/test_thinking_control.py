"""Thinking under control: an answer within the limit of tokens, loops that are closed, and automatic budgets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conftest import media, task
from tests.forcing import STRONG, biased, end_id, token_ids
from vlroute import Answer, Policy, Router
from vlroute.decision.budget import FLOOR, BudgetRule
from vlroute.engine.local.reasoning import CLOSING
from vlroute.errors import SettingsError
from vlroute.pocket import TASKS
from vlroute.types import AnswerDelta, Decided, Finished, ThinkingDelta

pytestmark = pytest.mark.float32
SOME = [task(kind, level) for kind in TASKS for level in ("easy", "hard")]


def ends(router: Router) -> list[int]:
    """Ids that end a thought."""
    return [*token_ids(router, "</think>"), end_id(router)]


def think(router: Router, one: Any = SOME[0], **settings: Any) -> Answer:
    return router.ask(one.prompt, **media(one), mode="thinking", do_sample=False, **settings)


# the limit of tokens


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 8, 12, 20, 40])
def test_thought_and_answer_stay_within_the_limit(router: Router, most: int) -> None:
    for one in SOME:
        answer = think(router, one, max_new_tokens=most)
        assert answer.text
        assert answer.usage.completion_tokens <= most
        assert answer.finish_reason in ("stop", "length")
        assert answer.decision.rescued == (most <= len(token_ids(router, CLOSING)))


@pytest.mark.parametrize("reserve", [1, 5, 16])
def test_the_reserve_is_kept_for_the_answer(router: Router, reserve: int) -> None:
    closing = len(token_ids(router, CLOSING))
    with biased(router, "thinking", dict.fromkeys(ends(router), -STRONG)):  # the model would never close its thought
        answer = think(router, max_new_tokens=30, answer_reserve=reserve)
    assert 30 - reserve - closing <= answer.usage.thinking_tokens <= 30 - reserve
    assert answer.text


def test_without_a_reserve_the_thought_may_take_all_tokens(router: Router) -> None:
    answer = think(router, task("math", "hard"), max_new_tokens=20, answer_reserve=0)
    assert (answer.text, answer.finish_reason, answer.decision.rescued) == ("", "length", False)
    assert answer.usage.thinking_tokens == 20
    assert str(answer) == "[no answer: length after 20 tokens of thinking]"


def test_a_thought_that_ends_in_time_is_not_changed(router: Router) -> None:
    for one in SOME:
        plain = think(router, one)
        limited = think(router, one, max_new_tokens=plain.usage.completion_tokens + 300)
        assert (limited.thinking, limited.text) == (plain.thinking, plain.text)
        assert not plain.decision.rescued


def test_a_reserve_that_leaves_no_thought_is_refused(router: Router) -> None:
    for settings in ({"max_new_tokens": 10, "answer_reserve": 10}, {"max_new_tokens": 10, "answer_reserve": -1}):
        with pytest.raises(SettingsError, match="answer_reserve"):
            think(router, **settings)


def test_a_budget_and_a_reserve_hold_together(router: Router) -> None:
    with biased(router, "thinking", dict.fromkeys(ends(router), -STRONG)):
        assert think(router, max_new_tokens=60, thinking_budget=10).usage.thinking_tokens <= 12
        assert think(router, max_new_tokens=20, thinking_budget=1000).usage.thinking_tokens <= 15


@pytest.mark.parametrize("text", ["\n", " ", "\n\n"])
def test_an_answer_does_not_consist_of_white_space(router: Router, text: str) -> None:
    with biased(router, "thinking", {token_ids(router, text)[0]: 100}):
        answer = think(router, max_new_tokens=60, thinking_budget=4)
    assert answer.text.strip()
    assert answer.usage.completion_tokens <= 60


# rescue


def test_a_rescued_answer_is_that_of_instruct(router: Router) -> None:
    """Two tokens are too few to close a thought."""
    rescued = think(router, max_new_tokens=2)
    instruct = router.ask(SOME[0].prompt, **media(SOME[0]), mode="instruct", do_sample=False, max_new_tokens=2)
    assert (rescued.text, rescued.finish_reason) == (instruct.text, instruct.finish_reason)
    assert (rescued.decision.mode, rescued.decision.rescued, rescued.decision.forced) == ("instruct", True, True)
    assert "Instruct answers" in rescued.decision.reason
    assert not instruct.decision.rescued


def test_a_stream_says_that_its_answer_is_rescued(router: Router) -> None:
    events = [*router.stream(SOME[0].prompt, **media(SOME[0]), mode="thinking", max_new_tokens=2, do_sample=False)]
    decided = [event.decision for event in events if isinstance(event, Decided)]
    assert [(one.mode, one.rescued) for one in decided] == [("thinking", False), ("instruct", True)]
    assert isinstance(events[-1], Finished)
    answer = events[-1].answer
    assert "".join(event.text for event in events if isinstance(event, AnswerDelta)) == answer.text != ""
    assert "".join(event.text for event in events if isinstance(event, ThinkingDelta)) == answer.thinking


# loops


@pytest.mark.parametrize("period", [1, 3, 10])
def test_a_loop_is_closed_and_an_answer_follows(router: Router, period: int) -> None:
    ids = [*dict.fromkeys(token_ids(router, "one two three red circle square letter so and + = 5 7 9"))][:period]
    bias = {(ids[0],): 50.0} | {(ids[i], ids[(i + 1) % period]): 500.0 for i in range(period)}
    answer = think(router, sequence_bias=bias, max_new_tokens=1000)
    assert answer.text
    assert answer.usage.thinking_tokens <= 2 * period + 64 + len(token_ids(router, CLOSING))
    looping = think(router, sequence_bias=bias, max_new_tokens=300, close_loops=False)
    assert looping.usage.thinking_tokens > 200


def test_ordinary_thoughts_are_not_closed(router: Router) -> None:
    for one in SOME:
        both = [think(router, one, close_loops=close) for close in (True, False)]
        assert both[0].thinking == both[1].thinking


# why a thought ended


def test_an_answer_says_why_its_thought_was_closed(router: Router, caplog: pytest.LogCaptureFixture) -> None:
    hard, close = task("math", "hard"), token_ids(router, "</think>")[0]
    assert think(router, hard).closed is None
    assert think(router, hard, thinking_budget=3).closed == "budget"
    assert think(router, hard, max_new_tokens=20).closed == "reserve"
    assert think(router, hard, max_new_tokens=20, thinking_budget=3).closed == "budget"
    assert think(router, hard, max_new_tokens=20, thinking_budget=1000).closed == "reserve"
    with biased(router, "thinking", {close: -STRONG, end_id(router): STRONG}):
        assert think(router, hard).closed == "end"
    with caplog.at_level("DEBUG", "vlroute"):
        first = token_ids(router, "one")[0]
        looping = think(router, hard, sequence_bias={(first,): 500.0}, max_new_tokens=400)
        assert looping.closed == "loop"
        assert f"repeated itself; ended after {looping.usage.thinking_tokens} tokens" in caplog.text
        assert "reasoning closed (loop)" in caplog.text
        think(router, hard, max_new_tokens=2)
        assert ", rescued, " in caplog.text
    instruct = router.ask(hard.prompt, **media(hard), mode="instruct", do_sample=False)
    assert instruct.closed is None


# automatic budgets


def test_a_budget_ends_where_waiting_is_not_worth_it() -> None:
    """Half of the thoughts have 100 tokens, the others 1000, which is ten times as much for each answer."""
    tokens = np.repeat([100.0, 1000.0], 500)
    rule = BudgetRule(np.full(1000, 100.0), tokens)
    assert rule.budget(0.5, 100.0, 1e-6) == 1000
    assert rule.budget(0.5, 100.0, 1e-3) == 100
    assert rule.budget(0.5, 200.0, 5e-4) == 200  # in proportion to what is expected
    assert rule.budget(0.5, 100.0, 1.0) == FLOOR  # worth nothing
    assert rule.budget(-0.2, 100.0, 1e-6) == FLOOR
    assert rule.budget(0.5, 1.0, 1e-3) == FLOOR


def test_a_higher_price_never_raises_a_budget() -> None:
    chance = np.random.default_rng(0)
    expected = chance.lognormal(4, 1, 400)
    rule = BudgetRule(expected, expected * chance.lognormal(0, 0.7, 400))
    for tokens in (20.0, 200.0):
        for gain in (0.05, 0.4):
            budgets = [rule.budget(gain, tokens, price) for price in (0.0, 1e-5, 1e-4, 1e-3, 1e-2)]
            assert budgets == sorted(budgets, reverse=True)


def test_an_automatic_budget_is_that_of_the_decision(router: Router) -> None:
    hard = task("math", "hard")
    prices: list[int] = []
    for price in (0.0, 3.0):
        answer = router.ask(hard.prompt, **media(hard), mode="thinking", thinking_budget="auto", price=price)
        budget = answer.decision.thinking_budget
        assert budget is not None
        assert answer.usage.thinking_tokens <= budget + 3
        same = router.ask(hard.prompt, **media(hard), mode="thinking", thinking_budget=budget, do_sample=False)
        auto = router.ask(
            hard.prompt, **media(hard), mode="thinking", thinking_budget="auto", price=price, do_sample=False
        )
        assert (auto.thinking, auto.text) == (same.thinking, same.text)
        prices.append(budget)
    assert prices[0] > prices[1] >= FLOOR


def test_an_automatic_budget_needs_an_artifact() -> None:
    with Router.from_pretrained() as bare:
        bare.selector.use(None, None)
        with pytest.raises(SettingsError, match='"auto" needs a router artifact'):
            bare.ask("How many?", mode="thinking", thinking_budget="auto")
    with pytest.raises(SettingsError, match="thinking_budget must be"):
        Router.from_pretrained(thinking_budget="a lot")


def test_a_decision_states_the_automatic_budget(router: Router) -> None:
    cheap = router.decide("How many circles?", caption="a few shapes", price=0.0)
    dear = router.decide("How many circles?", caption="a few shapes", price=100.0)
    assert cheap.thinking_budget is not None
    assert dear.thinking_budget == FLOOR <= cheap.thinking_budget
    assert Policy().price > 0
