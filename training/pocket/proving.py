"""What is measured of each picture of the proof, and how it is kept so that a stopped run goes on."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlroute import Router
from vlroute.decision.selector import CAPTION_PROMPT
from vlroute.errors import InputError
from vlroute.inputs.media import DEFAULT_LIMITS
from vlroute.inputs.messages import parse
from vlroute.learning.trial import ask_task, draw_evenly, is_right, media
from vlroute.pocket.tasks import Task
from vlroute.types import MODES, Answer, Mode

#: Where the words about a picture may come from, in the order of the table.
SOURCES = ("prompt alone", "caption by Instruct", "vision probe", "caption given")
WARM_UP = 5  # pictures answered first and not counted: a process's first answers are slow


@dataclass(frozen=True, slots=True)
class Measured:
    """One answer: whether it was right, and all seconds from the request to its end."""

    right: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Judged:
    """A decision: by which caption, what it said, and the seconds that captioning (beside the tower) and it took."""

    mode: Mode
    p_instruct: float
    p_thinking: float
    caption: str | None
    seconds: float

    @property
    def gain(self) -> float:
        return self.p_thinking - self.p_instruct


@dataclass(frozen=True, slots=True)
class Proved:
    """One picture: both modes and the routed answer, each really generated, and the decision by each caption source."""

    family: str
    language: str
    prompt: str
    instruct: Measured
    thinking: Measured
    routed: Measured
    decision: Judged
    sources: dict[str, Judged]

    def single(self, mode: Mode) -> Measured:
        return self.instruct if mode == "instruct" else self.thinking


def prove(router: Router, task: Task, turn: int) -> Proved:
    """Answer `task` routed and in both modes, in an order that changes with `turn` so that no way is always first."""
    ways: list[Mode | None] = [None, *MODES]
    ways = ways[turn % 3 :] + ways[: turn % 3]
    answers = {way: ask_task(router, task, way) for way in ways}
    decision = answers[None].decision
    timing = answers[None].timing
    return Proved(
        family=task.family, language=task.language, prompt=task.prompt,
        instruct=_measured(task, answers["instruct"]), thinking=_measured(task, answers["thinking"]),
        routed=_measured(task, answers[None]),
        decision=Judged(decision.mode, decision.p_instruct, decision.p_thinking, decision.caption,
                        timing.caption + timing.decide),
        sources={source: _judged(router, task, source) for source in SOURCES},
    )  # fmt: skip


def _measured(task: Task, answer: Answer) -> Measured:
    return Measured(is_right(task, answer.text), round(answer.timing.total, 6))


def _judged(router: Router, task: Task, source: str) -> Judged:
    """The decision by one source alone. The tower has run before the clock starts: the answer needs it anyway."""
    sent = media(task)
    conversation = parse(task.prompt, sent.get("images"), sent.get("videos"), None, DEFAULT_LIMITS)
    seen = conversation.videos[0] if task.is_video else conversation.pictures[0]
    with router.request(conversation) as request:
        request.pooled(seen)
        began = time.perf_counter()
        caption = ""  # blank words count as none
        if source == "caption by Instruct":
            caption = request.caption(seen, CAPTION_PROMPT)
        elif source == "vision probe" and router.selector.probe is not None:
            caption = router.selector.probe.describe(request.pooled(seen))
        elif source == "caption given":
            caption = task.caption
        decision = router.decide(task.prompt, caption=caption)
        seconds = time.perf_counter() - began
    return Judged(decision.mode, decision.p_instruct, decision.p_thinking, caption or None, round(seconds, 6))


def run(router: Router, count: int, seed: str, partial: Path, head: dict[str, Any]) -> Iterator[Proved]:
    """All `count` pictures of `seed` in order; those in `partial` are read, the others answered and written there.

    `head` says what the figures depend on and is the file's first line. InputError if the file has another.
    """
    kept = _kept(partial, head)
    yield from kept
    router.load()
    for turn, task in enumerate(draw_evenly(WARM_UP, f"{seed} warm-up")):
        prove(router, task, turn)
    tasks = itertools.islice(draw_evenly(count, seed), len(kept), None)
    with partial.open("a", encoding="utf-8") as file:
        if file.tell() == 0:
            file.write(json.dumps(head) + "\n")
        for turn, task in enumerate(tasks, start=len(kept)):
            one = prove(router, task, turn)
            file.write(json.dumps(asdict(one), ensure_ascii=False) + "\n")
            file.flush()
            yield one


def _kept(partial: Path, head: dict[str, Any]) -> list[Proved]:
    if not partial.exists():
        return []
    whole, newline, _ = partial.read_text(encoding="utf-8").rpartition("\n")  # the last line may be torn
    partial.write_text(whole + newline, encoding="utf-8")
    rows = [json.loads(line) for line in whole.splitlines()]
    if rows and rows[0] != head:
        raise InputError(
            f"{partial} was begun with {rows[0]}, this run is {head}: delete it to start anew, or run as it was begun"
        )
    return [_proved(row) for row in rows[1:]]


def _proved(row: dict[str, Any]) -> Proved:
    measured = {name: Measured(**row.pop(name)) for name in ("instruct", "thinking", "routed")}
    sources = {name: Judged(**one) for name, one in row.pop("sources").items()}
    return Proved(**row | {"decision": Judged(**row["decision"]), "sources": sources, **measured})


def fingerprint(*folders: Path) -> str:
    """SHA-256 over the weights in `folders`, 64 hex characters: figures of other weights are not to be mixed."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*.safetensors")):
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
