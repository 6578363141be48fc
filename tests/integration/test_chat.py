"""Conversations: what is shared, what is kept apart, what is saved."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PICTURES, SECONDS, VIDEO, media, task
from tests.recording import model_calls
from vlroute import Chat, Router
from vlroute.decision.latency import LatencyModel
from vlroute.engine.cache.prefix import BLOCK
from vlroute.errors import ChatFileError, InputError
from vlroute.files import shipped
from vlroute.inputs.messages import Conversation, Message
from vlroute.pipeline import Pipeline
from vlroute.types import MODES, Finished

GREEDY = {"do_sample": False, "answer_reserve": 0, "max_new_tokens": 10}


def test_a_picture_is_encoded_once_whoever_asks_and_how_often(routers: dict[str, Router]) -> None:
    router = routers["roomy"]
    router.cache.clear()
    assert router.scheduler is not None
    before, calls = router.cache.stats(), router.scheduler.tower_calls
    chat = router.chat()
    pictures = [task("count", seed=90 + i).frames[0] for i in range(3)]
    for i, mode in enumerate(["instruct", "thinking", None, "thinking", "instruct"]):
        images = [*pictures, pictures[0]] if i < 2 else None
        answer = chat.send("How many circles?", images=images, mode=mode, **GREEDY)
        assert answer.usage.encoded == (0 if i else 3)
    after = router.cache.stats()
    assert after.encodes - before.encodes == 3
    assert router.scheduler.tower_calls - calls == 1


@pytest.mark.parametrize(("equal", "calls"), [(True, 2), (False, 4)])
def test_each_distinct_tower_sees_each_picture_once(
    folders: dict[str, Path], other_tower: Path, equal: bool, calls: int
) -> None:
    """Counted at the calls of the towers, over two pictures in turns of their own, forks and both modes."""
    router = Router.from_pretrained(
        instruct=folders["instruct"], thinking=folders["thinking"] if equal else other_tower
    ).load()
    with model_calls() as ran:
        chat = router.chat()
        for picture in PICTURES[:2]:
            for mode in (*MODES, *MODES):
                chat.send("Read the text.", images=picture, mode=mode, **GREEDY)
                chat = chat.fork()
    assert router.pair.shared_tower == equal
    assert ran.towers == [1] * calls


def test_a_mode_that_sat_out_catches_up(routers: dict[str, Router]) -> None:
    chat = routers["roomy"].chat()
    pictures = [task("math", "hard", 7 + i).frames[0] for i in range(3)]
    first = chat.send("What is the total?", images=pictures, mode="thinking", **GREEDY)
    chat.send("Read the text.", mode="instruct", **GREEDY)
    chat.send("Read the text.", mode="instruct", **GREEDY)
    back = chat.send("What is the total?", mode="thinking", **GREEDY)
    shared = first.usage.prompt_tokens - 3  # all but the opening of the old thought
    assert back.usage.cached_tokens == shared // BLOCK * BLOCK > 32
    assert back.usage.cached_tokens < back.usage.prompt_tokens


def test_a_fork_shares_and_goes_its_own_way(routers: dict[str, Router]) -> None:
    one = routers["roomy"].chat()
    pictures = [task("count", seed=5 + i).frames[0] for i in range(2)]
    first = one.send("How many circles?", images=pictures, mode="instruct", **GREEDY)
    other = one.fork()
    left = one.send("How many squares?", mode="instruct", **GREEDY)
    right = other.send("How many triangles?", mode="instruct", **GREEDY)
    shared = first.usage.prompt_tokens + first.usage.completion_tokens
    assert left.usage.cached_tokens >= shared // BLOCK * BLOCK > 32
    assert right.usage.cached_tokens >= left.usage.cached_tokens
    assert [len(chat.history) for chat in (one, other)] == [2, 2]
    assert one.history[0] is other.history[0]


def test_no_history_holds_reasoning(routers: dict[str, Router], monkeypatch: pytest.MonkeyPatch) -> None:
    histories: list[tuple[Message, ...]] = []

    def parse(pipeline: Pipeline, *arguments: Any) -> Conversation:
        conversation = original(pipeline, *arguments)
        histories.append(conversation.messages)
        return conversation

    original = Pipeline.parse
    monkeypatch.setattr(Pipeline, "parse", parse)
    chat = routers["roomy"].chat()
    some = task("math", "hard", 2)
    first = chat.send(some.prompt, **media(some), mode="thinking")
    assert first.thinking
    chat.send("Are you sure?", mode="instruct", **GREEDY)
    assert [message.role for message in histories[1]] == ["user", "assistant", "user"]
    assert all(first.thinking not in message.text + message.thinking for message in histories[1])
    assert not any(message.thinking for message in histories[1])


def test_switching_counts_in_the_decision(folders: dict[str, Path]) -> None:
    """At a hundredth of a second a token read, Thinking must first read what Instruct has read already."""
    router = Router.from_pretrained(**folders, router=shipped("pocket/router"))
    chat = router.chat()
    first = chat.send("Read the text.", images=PICTURES[0], mode="instruct", **GREEDY)
    router.selector.latency = LatencyModel()
    for mode in MODES:
        router.selector.latency.observe(mode, 0, prefill_seconds=1.0, decode_seconds=0.0, uncached_tokens=100)
    alone = router.decide("What is the total?", caption="three numbers")
    turn = chat.send("What is the total?", caption="three numbers", **GREEDY).decision
    dearer = (turn.seconds_thinking - turn.seconds_instruct) - (alone.seconds_thinking - alone.seconds_instruct)
    assert dearer == pytest.approx(0.01 * first.usage.prompt_tokens, abs=0.05)


def test_threads_give_what_each_gives_alone(routers: dict[str, Router]) -> None:
    def speak(seed: int, chat: Chat) -> list[str]:
        rng = random.Random(seed)
        said = []
        for _ in range(3):
            some = task(rng.choice(["math", "hop", "gui", "ocr"]), seed=rng.randint(0, 3))
            answer = chat.send(some.prompt, **media(some), mode=rng.choice(MODES), do_sample=False)
            said.append(answer.thinking + "|" + answer.text)
        return said

    alone = [speak(seed, routers["none"].chat()) for seed in range(6)]
    together: dict[int, list[str]] = {}
    for name in ("roomy", "tight"):
        chats = [routers[name].chat() for _ in range(6)]
        threads = [
            threading.Thread(target=lambda s=seed, c=chat: together.__setitem__(s, speak(s, c)))
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
    file = folder / "chat.json"
    file.write_text(file.read_text("utf-8"), "utf-8-sig")  # as editors on Windows save it
    again = router.resume(folder)
    assert again.history == chat.history
    assert again.system == chat.system
    one, two = (c.send("What is the total?", mode="instruct", **GREEDY) for c in (chat, again))
    assert (one.text, one.usage.prompt_tokens) == (two.text, two.usage.prompt_tokens)
    chat.save(folder)  # over the old one
    assert len(router.resume(folder).history) == 3


@pytest.mark.parametrize("damage", ["missing", "pipe", "json", "format", "picture", "swapped", "outside"])
def test_damaged_chats_are_refused(routers: dict[str, Router], tmp_path: Path, damage: str) -> None:
    chat = routers["roomy"].chat()
    chat.send("Read the text.", images=PICTURES[:2], mode="instruct", **GREEDY)
    folder = chat.save(tmp_path / "talk")
    file = folder / "chat.json"
    text = file.read_text(encoding="utf-8")
    pictures = sorted((folder / "media").iterdir())
    if damage == "missing":
        file.unlink()
    elif damage == "pipe":
        file.unlink()
        os.mkfifo(file)
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
