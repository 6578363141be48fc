"""What decisions see of tools, and the rule that a loop of tool calls keeps its mode."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.scripted_endpoint import DONE, chunk, scripted_endpoint
from tests.serving import data_uri, served
from tests.stages import certain
from vlroute import Answer, Policy, Router
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.evidence import ANSWER_NUMBERS
from vlroute.decision.selector import ModeSelector
from vlroute.files import shipped
from vlroute.inputs.messages import parse
from vlroute.inputs.tools import checked_tools, mode_of_call, new_call_id
from vlroute.pocket.screens import TOOLS, App, draw_screen_task, opening
from vlroute.store import Store, export_feedback
from vlroute.types import MODES, Mode, ToolUse

pytestmark = pytest.mark.float32
GREEDY = {"temperature": 0}
TASK = draw_screen_task(random.Random(3), steps=3)


def called(id: str, **fields: Any) -> list[dict[str, Any]]:
    """A conversation whose last message is the result of a call."""
    call = {"id": id, "type": "function", "function": {"name": "read", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": id, "content": "Total: 7"}
    return [*opening(TASK), {"role": "assistant", "content": "", "tool_calls": [call], **fields}, result]


def test_ids_of_calls_contain_the_mode() -> None:
    for mode in MODES:
        assert mode_of_call(new_call_id(mode)) == mode
        assert new_call_id(mode) != new_call_id(mode)
    for other in ("", "call_x" + "0" * 24, "call_i" + "0" * 23, "chatcmpl-tool-1", "call_t" + "0" * 24 + "\n"):
        assert mode_of_call(other) is None


@pytest.mark.parametrize(
    ("messages", "use", "previous"),
    [
        (opening(TASK), "offered", None),
        (called(new_call_id("instruct")), "result", "instruct"),
        (called(new_call_id("thinking")), "result", "thinking"),
        (called("1"), "result", None),
        (called("1", reasoning_content="so"), "result", "thinking"),
        # Thinking gave no answer and Instruct wrote the call
        (called(new_call_id("instruct"), reasoning_content="so"), "result", "instruct"),
        ([*called(new_call_id("instruct")), {"role": "assistant", "content": "7"},
          {"role": "user", "content": "And now?"}], "offered", None),
    ],
)  # fmt: skip
def test_what_a_decision_sees(messages: list[dict[str, Any]], use: ToolUse, previous: Mode | None) -> None:
    conversation = parse(messages, tools=checked_tools(TOOLS))
    assert (conversation.tool_use, conversation.previous_mode) == (use, previous)


def test_calls_of_both_modes_do_not_tell_the_mode() -> None:
    calls = [
        {"id": new_call_id(mode), "type": "function", "function": {"name": "read", "arguments": "{}"}} for mode in MODES
    ]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "7"} for call in calls]
    messages = [*opening(TASK), {"role": "assistant", "content": "", "tool_calls": calls}, *results]
    assert parse(messages, tools=checked_tools(TOOLS)).previous_mode is None


@pytest.mark.parametrize("price", [0.0, 0.02, 0.1, 1.0, 1000.0])
@pytest.mark.parametrize("previous", MODES)
def test_the_mode_changes_only_if_the_bound_of_the_gain_is_beyond_the_price(
    router: Router, previous: Mode, price: float
) -> None:
    assert router.selector.classifier is not None
    for seed in range(20):
        task = draw_screen_task(random.Random(seed), steps=2)
        messages = [*opening(task), *called(new_call_id(previous))[len(opening(TASK)) :]]
        decision = router.decide(messages, tools=TOOLS, price=price, caption="a screen with buttons")
        low, high = router.selector.classifier.gain_interval(decision.gain)  # type: ignore[misc]
        threshold = decision.threshold
        natural = "thinking" if decision.gain > threshold else "instruct"
        beyond = low > threshold if natural == "thinking" else high < threshold
        assert decision.mode == (natural if natural == previous or beyond else previous)
        assert (decision.tools, decision.previous) == ("result", previous)
        assert ("is kept from" in decision.reason) == (decision.mode != natural)


@pytest.mark.parametrize("mode", MODES)
def test_a_loop_keeps_the_mode_of_its_first_step(router: Router, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step is forced; the following ones are decided, at prices that would change the mode."""
    monkeypatch.setattr(ComplexityClassifier, "gain_interval", lambda *_: (-math.inf, math.inf))
    price = 0.0 if mode == "instruct" else 1000.0
    app, messages, modes = App(TASK), opening(TASK), list[str]()
    answer: Answer = router.ask(messages, tools=TOOLS, mode=mode, **GREEDY)
    while answer.tool_calls:
        messages.append(answer.message)
        for call in answer.tool_calls:
            assert mode_of_call(call.id) == answer.decision.mode
            content = app.call(call.name, call.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
        answer = router.ask(messages, tools=TOOLS, price=price, **GREEDY)
        modes.append(answer.decision.mode)
        assert answer.decision.previous == mode
    assert len(modes) >= 2
    assert set(modes) == {mode}
    assert answer.text == TASK.answer


def test_clients_that_drop_the_reasoning_keep_the_mode() -> None:
    first = {"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": data_uri(part["image"])}} if part["type"] == "image" else part
        for part in opening(TASK)[0]["content"]
    ]}  # fmt: skip
    with served() as server, server.openai() as client:
        reply = client.chat.completions.create(model="thinking", messages=[first], tools=TOOLS, temperature=0)  # type: ignore[list-item,arg-type]
        (call,) = reply.choices[0].message.tool_calls or ()
        asked = {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}
        result = {"role": "tool", "tool_call_id": call.id, "content": App(TASK).call("read", {})}
        again = client.chat.completions.create(model="auto", messages=[first, asked, result], tools=TOOLS)  # type: ignore[list-item,arg-type]
    decision = again.model_extra["vlroute"]["decision"]  # type: ignore[index]
    assert (decision["previous"], decision["tools"]) == ("thinking", "result")


def test_endpoints() -> None:
    calls = [{"index": 0, "id": "theirs", "function": {"name": "read", "arguments": "{}"}}]
    with scripted_endpoint() as script:
        script.play([chunk(tool_calls=calls), chunk(end="tool_calls"), DONE])
        with script.router() as router:
            first = router.ask("Read it.", mode="thinking", tools=TOOLS)
            result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "7"}
            messages = [{"role": "user", "content": "Read it."}, first.message | {"reasoning_content": ""}, result]
            decision = router.decide(messages, tools=TOOLS)
    assert router.selector.classifier is None
    assert (decision.mode, decision.previous, decision.forced) == ("thinking", "thinking", False)
    assert decision.reason.startswith(
        "thinking is kept from the previous step of the loop of tool calls; no router artifact"
    )


def test_thinking_that_goes_on_is_not_interrupted_for_evidence_of_instruct(router: Router) -> None:
    width = router.pair.instruct.model.config.text_config.hidden_size
    staged = certain(ComplexityClassifier.load(shipped("pocket/router")), "", width, answer=(0.99, 0.01))
    policy = Policy(price=0.001, stages=("prompt", "answer"))
    selector = ModeSelector(staged, policy, available=("prefill", "answer"))
    later = {}
    for previous in (None, *MODES):
        conversation = parse(called(new_call_id(previous) if previous else "1"), tools=checked_tools(TOOLS))
        later[previous] = selector.begin(conversation, "a screen", None, None).decision.later_stages
    assert later == {None: ("answer",), "instruct": ("answer",), "thinking": ()}


def test_a_later_stage_keeps_the_mode_too(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    width = router.pair.instruct.model.config.text_config.hidden_size
    staged = certain(ComplexityClassifier.load(shipped("pocket/router")), "", width, answer=(0.01, 0.99))
    selector = ModeSelector(staged, Policy(price=0.001, stages=("prompt", "answer")), available=("prefill", "answer"))
    conversation = parse(called(new_call_id("instruct")), tools=checked_tools(TOOLS))
    modes = []
    for interval in ((0.9, 1.0), (-1.0, 1.0)):
        asked: list[tuple[Any, ...]] = []
        monkeypatch.setattr(
            ComplexityClassifier,
            "gain_interval",
            lambda self, *given, found=interval, into=asked: into.append(given[1:]) or found,
        )
        decision = selector.begin(conversation, "a screen", None, None)
        decision.judge("answer", np.zeros(len(ANSWER_NUMBERS), np.float32), 0.1)
        assert asked == [(), (("answer",),)]
        modes.append(decision.settle().mode)
    assert modes == ["thinking", "instruct"]


def test_feedback_becomes_records_with_tools(router: Router, tmp_path: Path) -> None:
    with Store(tmp_path / "answers.db") as store:
        for mode in MODES:
            for messages in (opening(TASK), called("1")):
                conversation = parse(messages, tools=checked_tools(TOOLS))
                answer = router.ask(messages, tools=TOOLS, mode=mode, max_new_tokens=2, **GREEDY)
                store.feedback(store.record(answer, conversation), correct=mode == "thinking")
        assert sorted(record.tools for record in export_feedback(store).records) == ["offered", "result"]
