"""Conversations: whatever is cached, every turn gives what plain transformers gives afresh."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor, LogitsProcessor, Qwen3VLForConditionalGeneration

import vlroute.engine.generate as engine
from tests.conftest import SECONDS, media, pixel_path, task
from vlroute import Chat, Limits, Router
from vlroute.answer import Finished
from vlroute.engine.prefix_cache import PrefixCache
from vlroute.engine.vision_cache import VisionCache
from vlroute.errors import ChatFileError, InputError
from vlroute.messages import Conversation, Message, parse
from vlroute.modes import MODES, Mode

#: `make soak` asks for more.
CONVERSATIONS = int(os.environ.get("VLROUTE_CONVERSATIONS", "40"))
TOKENS = 10
GREEDY = {"do_sample": False, "max_new_tokens": TOKENS}
PICTURES = [task(family, level, seed).frames[0] for seed, (family, level) in enumerate(
    [("ocr", "easy"), ("count", "hard"), ("math", "hard"), ("gui", "hard"), ("hop", "medium")])]  # fmt: skip
PICTURES.append(PICTURES[0].resize((140, 70)))
VIDEO = task("video", "hard").frames
MANY = Limits(max_images=18, max_videos=6)  # six turns of three pictures and a video
#: Bytes for vision features and for prefixes: roomy, room for about one picture, room for nothing.
BUDGETS = {"roomy": (2**26, 2**26), "tight": (40_000, 300_000), "none": (0, 0)}

turns = st.fixed_dictionaries(
    {
        "mode": st.sampled_from([*MODES, None]),
        "pictures": st.lists(st.sampled_from(range(len(PICTURES))), max_size=3),
        "video": st.integers(0, 9).map(lambda n: n == 0),
        "prompt": st.sampled_from(["Read the text.", "把数字加起来。", "How many circles?", "What is the total?"]),
        "fork": st.integers(0, 5).map(lambda n: n == 0),
    }
)


class FirstScores(LogitsProcessor):
    """Keeps the scores of the first token of each answer."""

    def __init__(self) -> None:
        self.seen: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.seen is None:
            self.seen = scores[0].clone()
        return scores


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path]) -> dict[str, Any]:
    return {
        mode: (Qwen3VLForConditionalGeneration.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder))
        for mode, folder in folders.items()
    }


@pytest.fixture(scope="module")
def routers(router: Router) -> dict[str, Router]:
    """One pair under three budgets of caches."""
    made = {}
    for name, (vision, prefix) in BUDGETS.items():
        made[name] = Router.from_pretrained(
            limits=MANY, vision_cache=VisionCache(vision), prefix_cache=PrefixCache(prefix)
        ).load()
    return made


@torch.inference_mode()
def fresh(plain: dict[str, Any], conversation: Conversation, mode: Mode) -> tuple[torch.Tensor, str]:
    """First scores and text of a run that remembers nothing, on the pixel path."""
    model, processor = plain[mode]
    inputs = pixel_path(processor, conversation)
    out = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
    ids = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return out.logits[0][0], processor.tokenizer.decode(ids, skip_special_tokens=True)


def bare(text: str) -> str:
    """Without white space and without the mark that ends a thought: the engine splits there, plain text keeps it."""
    return "".join(text.replace("</think>", "").split())


@settings(
    max_examples=CONVERSATIONS, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(st.lists(turns, min_size=1, max_size=6), st.sampled_from([*BUDGETS]))
def test_every_turn_equals_a_fresh_run(
    routers: dict[str, Router], plain: dict[str, Any], plan: list[dict[str, Any]], budget: str
) -> None:
    router = routers[budget]
    chat = router.chat(system="You read pictures.")
    with pytest.MonkeyPatch.context() as patch:
        original = engine._processors
        for turn in plan:
            if turn["fork"]:
                chat = chat.fork()
            sent = {
                "images": [PICTURES[i] for i in turn["pictures"]] or None,
                "videos": (VIDEO, SECONDS) if turn["video"] else None,
            }
            before = chat.history
            first = FirstScores()
            patch.setattr(engine, "_processors", lambda *args, f=first: [*original(*args), f])
            caption = None if turn["mode"] else "three numbers"  # decided, but without another model call to record
            answer = chat.send(turn["prompt"], **sent, mode=turn["mode"], caption=caption, **GREEDY)
            history: list[Any] = [Message("system", ("You read pictures.",))]
            for past in before:
                history += [past.message, Message("assistant", (past.answer.text,))]
            conversation = parse(turn["prompt"], **sent, history=history, limits=MANY)
            expected, text = fresh(plain, conversation, answer.decision.mode)
            assert first.seen is not None
            if answer.usage.cached_tokens:
                torch.testing.assert_close(first.seen, expected, atol=1e-4, rtol=0)
            else:  # features alone; those of pictures encoded in other company may differ in the last bit
                torch.testing.assert_close(first.seen, expected, atol=2e-5, rtol=0)
            assert bare(answer.thinking + answer.text) == bare(text)
            assert len(chat.history) == len(before) + 1
    assert router.cache.stats().bytes <= BUDGETS[budget][0]
    assert router.prefixes.stats().bytes <= BUDGETS[budget][1]


def test_features_alone_are_bit_identical(router: Router, plain: dict[str, Any], monkeypatch: Any) -> None:
    """One picture, encoded for an earlier request and found again: not one bit of the logits differs."""
    some = task("math", "hard", 3)
    original = engine._processors
    for mode in MODES:
        router.ask("What is the total?", **media(some), mode="instruct")
        hits = router.cache.stats().hits
        first = FirstScores()
        monkeypatch.setattr(engine, "_processors", lambda *args, f=first: [*original(*args), f])
        router.ask(some.prompt, **media(some), mode=mode, **GREEDY)
        assert router.cache.stats().hits > hits
        expected, _ = fresh(plain, parse(some.prompt, some.frames[0]), mode)
        assert first.seen is not None
        assert torch.equal(first.seen, expected)


def test_a_picture_is_encoded_once_whoever_asks_and_how_often(routers: dict[str, Router]) -> None:
    router = routers["roomy"]
    router.cache.clear()
    before = router.cache.stats()
    chat = router.chat()
    pictures = [task("count", seed=90 + i).frames[0] for i in range(3)]
    for i, mode in enumerate(["instruct", "thinking", None, "thinking", "instruct"]):
        chat.send("How many circles?", images=[*pictures, pictures[0]] if i < 2 else None, mode=mode, **GREEDY)
    after = router.cache.stats()
    assert after.encodes - before.encodes == 3
    assert after.tower_calls - before.tower_calls == 1


def test_a_mode_that_sat_out_catches_up(routers: dict[str, Router]) -> None:
    chat = routers["roomy"].chat()
    picture = task("math", "hard", 7).frames[0]
    first = chat.send("What is the total?", images=picture, mode="thinking", **GREEDY)
    chat.send("Read the text.", mode="instruct", **GREEDY)
    chat.send("Read the text.", mode="instruct", **GREEDY)
    back = chat.send("What is the total?", mode="thinking", **GREEDY)
    assert back.usage.cached_tokens >= first.usage.prompt_tokens - 3  # all but the opening of the old thought
    assert back.usage.cached_tokens < back.usage.prompt_tokens


def test_a_fork_shares_and_goes_its_own_way(routers: dict[str, Router]) -> None:
    one = routers["roomy"].chat()
    one.send("How many circles?", images=task("count", seed=5).frames[0], mode="instruct", **GREEDY)
    other = one.fork()
    left = one.send("How many squares?", mode="instruct", **GREEDY)
    right = other.send("How many triangles?", mode="instruct", **GREEDY)
    assert left.usage.cached_tokens > 20
    assert right.usage.cached_tokens > 20
    assert [len(chat.history) for chat in (one, other)] == [2, 2]
    assert one.history[0] is other.history[0]


def test_no_history_holds_reasoning(routers: dict[str, Router]) -> None:
    chat = routers["roomy"].chat()
    some = task("math", "hard", 2)
    first = chat.send(some.prompt, **media(some), mode="thinking")
    assert first.thinking
    assert all(first.thinking not in message.text for message in chat._messages())


def test_switching_counts_in_the_decision(routers: dict[str, Router]) -> None:
    chat = routers["roomy"].chat()
    big = task("gui", "hard", 11).frames[0].resize((960, 960))
    chat.send("What is the total?", images=big, mode="instruct", **GREEDY)
    chat.send("What is the total?", images=big, mode="thinking", **GREEDY)  # both have read it: both paces are known
    other = chat.router.chat()
    other.send("Read the text.", images=big, mode="instruct", **GREEDY)
    other.router.prefixes.clear()
    other.send("Read the text.", mode="instruct", **GREEDY)
    with_cost = other.send("What is the total?", caption="three numbers", **GREEDY).decision
    alone = chat.router.decide("What is the total?", caption="three numbers")
    extra = with_cost.seconds_thinking - with_cost.seconds_instruct
    assert extra > alone.seconds_thinking - alone.seconds_instruct


def test_threads_give_what_each_gives_alone(routers: dict[str, Router]) -> None:
    def talk(seed: int, chat: Chat) -> list[str]:
        rng = random.Random(seed)
        said = []
        for _ in range(3):
            some = task(rng.choice(["math", "hop", "gui", "ocr"]), seed=rng.randint(0, 3))
            answer = chat.send(some.prompt, **media(some), mode=rng.choice(MODES), do_sample=False)
            said.append(answer.thinking + "|" + answer.text)
        return said

    alone = [talk(seed, routers["none"].chat()) for seed in range(6)]
    together: dict[int, list[str]] = {}
    for name in ("roomy", "tight"):
        chats = [routers[name].chat() for _ in range(6)]
        threads = [
            threading.Thread(target=lambda s=seed, c=chat: together.__setitem__(s, talk(s, c)))
            for seed, chat in enumerate(chats)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [together[seed] for seed in range(6)] == alone


def test_streaming_ends_in_the_history(routers: dict[str, Router]) -> None:
    chat = routers["roomy"].chat()
    some = task("hop", "medium")
    *_, last = chat.stream(some.prompt, **media(some), mode="thinking")
    assert isinstance(last, Finished)
    assert chat.history[0].answer == last.answer
    events = chat.stream(some.prompt, mode="thinking")
    next(events)
    events.close()
    assert len(chat.history) == 1
    cancelled = threading.Event()
    cancelled.set()
    assert chat.send(some.prompt, cancel=cancelled, mode="thinking").finish_reason == "cancelled"
    with pytest.raises(InputError):
        chat.send("")
    assert len(chat.history) == 1


def test_saved_and_resumed_it_goes_on_the_same(routers: dict[str, Router], tmp_path: Path) -> None:
    router = routers["roomy"]
    chat = router.chat(system="You read pictures.")
    some = task("math", "hard", 4)
    chat.send(some.prompt, **media(some), mode="thinking")
    chat.send("How often did the lamp light?", videos=(VIDEO, SECONDS), mode="instruct")
    folder = chat.save(tmp_path / "talk")
    again = router.resume(folder)
    assert again.history == chat.history
    assert again.system == chat.system
    one, two = (c.send("What is the total?", mode="instruct", **GREEDY) for c in (chat, again))
    assert (one.text, one.usage.prompt_tokens) == (two.text, two.usage.prompt_tokens)
    chat.save(folder)  # over the old one
    assert len(router.resume(folder).history) == 3


@pytest.mark.parametrize("damage", ["missing", "json", "format", "picture", "swapped", "outside"])
def test_damaged_chats_are_refused(routers: dict[str, Router], tmp_path: Path, damage: str) -> None:
    chat = routers["roomy"].chat()
    chat.send("Read the text.", images=PICTURES[:2], mode="instruct", **GREEDY)
    folder = chat.save(tmp_path / "talk")
    file = folder / "chat.json"
    text = file.read_text(encoding="utf-8")
    pictures = sorted((folder / "media").iterdir())
    if damage == "missing":
        file.unlink()
    elif damage == "json":
        file.write_text(text[:-20], encoding="utf-8")
    elif damage == "format":
        file.write_text(text.replace('"format": 1', '"format": 99'), encoding="utf-8")
    elif damage == "picture":
        pictures[0].unlink()
    elif damage == "swapped":
        pictures[0].write_bytes(pictures[1].read_bytes())
    else:
        file.write_text(text.replace(pictures[0].name, "../secret.png"), encoding="utf-8")
    with pytest.raises(ChatFileError, match="talk"):
        routers["roomy"].resume(folder)
