"""Conversations: whatever is cached, every turn gives what plain transformers gives afresh."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor

from tests.conftest import BUDGETS, MANY, PICTURES, SECONDS, VIDEO, features_of, forget, pixel_path, task
from tests.recording import Recorder, recorded
from vlroute import Answer, Chat, Router
from vlroute.chat import Turn
from vlroute.inputs.messages import Conversation, Message, parse
from vlroute.steps import run
from vlroute.types import MODES, Mode

#: `make soak` asks for more.
CONVERSATIONS = int(os.environ.get("VLROUTE_CONVERSATIONS", "40"))
PLAIN = {"do_sample": False, "max_new_tokens": 10}
GREEDY = {**PLAIN, "answer_reserve": 0}
SYSTEM = "You read pictures."
MOST_AT_ONCE = 3
turns = st.fixed_dictionaries(
    {
        "mode": st.sampled_from([*MODES, None]),
        "pictures": st.lists(st.sampled_from(range(len(PICTURES))), max_size=3),
        "video": st.integers(0, 9).map(lambda n: n == 0),
        "prompt": st.sampled_from(["Read the text.", "把数字加起来。", "How many circles?", "What is the total?"]),
        "fork": st.integers(0, 5).map(lambda n: n == 0),
    }
)


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    with recorded() as recorder:
        yield recorder


class Complete(LogitsProcessor):
    """What vlroute adds to greedy `generate`: a thought is closed before the end token and only once, and an answer has
    visible text. In a hybrid, the prompt of Instruct contains a closed thought."""

    def __init__(self, tokenizer: Any, thinking: bool, prompt_length: int, hybrid: bool) -> None:
        self.tokenizer, self.thinking, self.prompt_length, self.hybrid = tokenizer, thinking, prompt_length, hybrid
        self.tags = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
        self.due: list[int] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = scores.clone()  # the caller keeps them
        ids, eos = input_ids[0, self.prompt_length :].tolist(), self.tokenizer.eos_token_id
        if self.thinking and self.tags[1] not in ids:
            if not self.due and int(scores.argmax()) == eos:
                line_break = "" if self.tokenizer.decode(ids[-1:]).endswith("\n") else "\n"
                self.due = self.tokenizer(f"{line_break}</think>\n\n", add_special_tokens=False)["input_ids"]
        elif not self.due:
            answer = ids
            if self.thinking:
                answer = ids[ids.index(self.tags[1]) + 1 :]
            if self.thinking or self.hybrid:
                scores[:, self.tags] = -torch.inf
            if not self.tokenizer.decode(answer, skip_special_tokens=True).strip():
                scores[:, eos] = -torch.inf
        if self.due:
            scores[:, self.due.pop(0)] = torch.inf
        return scores


@torch.inference_mode()
def fresh(plain: dict[str, Any], conversation: Conversation, mode: Mode, **options: bool) -> tuple[torch.Tensor, str]:
    """First scores and text of a run that remembers nothing, on the pixel path. `options`: of the chat template."""
    model, processor = plain[mode]
    inputs = pixel_path(processor, conversation, **options)
    complete = Complete(processor.tokenizer, mode == "thinking", inputs["input_ids"].shape[1], bool(options))
    out = model.generate(
        **inputs, **PLAIN, logits_processor=[complete], output_logits=True, return_dict_in_generate=True
    )
    ids = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return out.logits[0][0], processor.tokenizer.decode(ids, skip_special_tokens=True)


def bare(text: str) -> str:
    """`text` without white space and `<think>` tags, which the engine removes and plain text keeps."""
    return "".join(re.sub("</?think>", "", text).split())


@dataclass
class Said:
    """One turn as it went."""

    before: tuple[Turn, ...]
    sent: dict[str, Any]
    prompt: str
    answer: Answer
    scores: torch.Tensor


def talk(chat: Chat, plan: list[dict[str, Any]], recorder: Recorder) -> list[Said]:
    said = []
    for turn in plan:
        if turn["fork"]:
            chat = chat.fork()
        sent = {
            "images": [PICTURES[i] for i in turn["pictures"]] or None,
            "videos": (VIDEO, SECONDS) if turn["video"] else None,
        }
        before = chat.history
        caption = None if turn["mode"] else "three numbers"  # decided, but without another model call to record
        answer = chat.send(turn["prompt"], **sent, mode=turn["mode"], caption=caption, **GREEDY)
        said.append(Said(before, sent, turn["prompt"], answer, recorder.first()))
        assert len(chat.history) == len(before) + 1
    return said


def check(said: Said, plain: dict[str, Any], router: Router) -> None:
    history: list[Any] = [Message("system", (SYSTEM,))]
    for past in said.before:
        history += [past.message, Message("assistant", (past.answer.text,))]
    conversation = parse(said.prompt, **said.sent, history=history, limits=MANY)
    mode = said.answer.decision.mode
    expected, text = fresh(plain, conversation, mode, **router.pair[mode].template_options)
    # the last bits depend on what was encoded and read together
    torch.testing.assert_close(said.scores, expected, atol=1e-4, rtol=0)
    assert bare(said.answer.thinking + said.answer.text) == bare(text)


plans_at_once = st.lists(st.lists(turns, min_size=1, max_size=6), min_size=1, max_size=MOST_AT_ONCE)


def check_plans(plans: list[Any], budget: str, router: Router, plain: dict[str, Any], recorder: Recorder) -> None:
    """Conversations at the same time, each in a thread of its own, on one model with one set of caches."""
    with ThreadPoolExecutor(len(plans)) as pool:
        talks = [pool.submit(talk, router.chat(system=SYSTEM), plan, recorder) for plan in plans]
    for said in itertools.chain.from_iterable(talk.result() for talk in talks):
        check(said, plain, router)
    assert router.cache.stats().bytes <= BUDGETS[budget][0]
    assert router.prefixes.stats().bytes <= BUDGETS[budget][1]


@settings(max_examples=CONVERSATIONS, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans_at_once, st.sampled_from([*BUDGETS]))
def test_every_turn_equals_a_fresh_run(
    routers: dict[str, Router], plain: dict[str, Any], recorder: Recorder, plans: list[Any], budget: str
) -> None:
    check_plans(plans, budget, routers[budget], plain, recorder)


@settings(max_examples=CONVERSATIONS // 4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans_at_once, st.sampled_from([*BUDGETS]))
def test_every_turn_of_the_hybrid_equals_a_fresh_run(
    hybrids: dict[str, Router], plain_hybrid: dict[str, Any], recorder: Recorder, plans: list[Any], budget: str
) -> None:
    check_plans(plans, budget, hybrids[budget], plain_hybrid, recorder)


@pytest.mark.parametrize("media", [[0], [1], [3], [5], [2, 4], [0, 3, 1], "video"], ids=str)
def test_features_of_an_earlier_request_are_the_same(
    routers: dict[str, Router], plain: dict[str, Any], recorder: Recorder, media: Any
) -> None:
    """Encoded for an earlier request, and found again for another mode and question."""
    router = routers["roomy"]
    forget(router)
    sent = {"videos": (VIDEO, SECONDS)} if media == "video" else {"images": [PICTURES[i] for i in media]}
    router.ask("Read the text.", **sent, mode="instruct", **GREEDY)
    for mode in MODES:
        before = router.cache.stats()
        router.ask("What is the total?", **sent, mode=mode, **GREEDY)
        assert router.cache.stats().hits > before.hits
        assert router.cache.stats().encodes == before.encodes
        conversation = parse("What is the total?", **sent)
        expected, _ = fresh(plain, conversation, mode)
        torch.testing.assert_close(recorder.first(), expected, atol=1e-4, rtol=0)
        items = [*conversation.pictures, *conversation.videos]
        with router.request(conversation) as request:
            found = run(request.features(router.pair[mode], items))
        for one, reference in zip(found, features_of(*plain[mode], conversation), strict=True):
            torch.testing.assert_close((one.merged, *one.deepstack), reference, atol=5e-5, rtol=1e-5)


def test_instruct_of_a_hybrid_writes_no_tag(hybrids: dict[str, Router]) -> None:
    """Not even after an answer of Thinking, or if nothing else may end the answer."""
    for seed in (21, 37, 39):
        hop = task("hop", "easy", seed)
        chat = hybrids["roomy"].chat()
        chat.send(hop.prompt, images=hop.frames[0], mode="thinking", do_sample=False)
        said = chat.send("What is written here?", mode="instruct", do_sample=False, min_new_tokens=20)
        assert "think>" not in said.text
