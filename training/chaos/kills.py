"""Kill processes at random points while they write, and count what was acknowledged and is lost.

Light components run in a child process that is forked after all imports, so that many kills take little time.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlroute.chat import Turn, read_chat, write_chat
from vlroute.conversations import Conversations
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.engine.cache.disk import DiskTier
from vlroute.engine.cache.features import VisionFeatures
from vlroute.files import shipped
from vlroute.inputs.messages import Conversation, parse
from vlroute.records import Outcome, Record, read_records, write_records
from vlroute.store import Store, export_feedback
from vlroute.types import Answer, Decision, Mode, Timing, Usage, new_id

#: Longest time from the start of the work to a kill, in seconds.
LONGEST = 0.25
#: Kills in one folder, whose content grows.
IN_ONE_FOLDER = 20
Acknowledge = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Component:
    """Something that writes files.

    Attributes:
        name: Its name in the table.
        work: Writes to a folder without end, and acknowledges each finished write by a word.
        lost: Number of the acknowledged words whose content is missing or wrong. Raises an error if the files cannot be
            read.
    """

    name: str
    work: Callable[[Path, Acknowledge], None]
    lost: Callable[[Path, list[str]], int]


@dataclass(slots=True)
class Killed:
    """Result of the kills of one component.

    Attributes:
        component: Its name.
        kills: Number of kills.
        acknowledged: Number of acknowledged writes.
        lost: Number of them that are lost.
        unreadable: Number of kills after which the files could not be read.
        errors: The errors of these, the first ones.
    """

    component: str
    kills: int = 0
    acknowledged: int = 0
    lost: int = 0
    unreadable: int = 0
    errors: tuple[str, ...] = ()

    def check(self, component: Component, folder: Path, acknowledged: list[str]) -> bool:
        """Read the files as the next process would do. Returns whether all that was acknowledged is there."""
        try:
            lost = component.lost(folder, acknowledged)
        except Exception as error:
            self.unreadable += 1
            self.errors = (*self.errors, f"{type(error).__name__}: {error}"[:200])[:3]
            return False
        self.lost += lost
        return not lost


def run(component: Component, kills: int, seed: int = 0, advance: Callable[[], object] = lambda: None) -> Killed:
    """Kill the process of `component` `kills` times."""
    result, rng = Killed(component.name), random.Random(f"{component.name} {seed}")
    while result.kills < kills:
        folder = Path(tempfile.mkdtemp(prefix="vlroute-kill-"))
        try:
            acknowledged: list[str] = []
            for _ in range(min(IN_ONE_FOLDER, kills - result.kills)):
                acknowledged += killed(component.work, folder, rng.uniform(0, LONGEST))
                result.kills += 1
                advance()
                if not result.check(component, folder, acknowledged):
                    break
            result.acknowledged += len(acknowledged)
        finally:
            shutil.rmtree(folder)
    return result


def killed(work: Callable[[Path, Acknowledge], None], folder: Path, seconds: float) -> list[str]:
    """The words that the work acknowledged before it was killed."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.close(reading)
            work(folder, partial(_write_word, writing))
        finally:
            os._exit(1)
    os.close(writing)
    received = bytearray()
    begun = None
    try:
        # the time counts from the first word: otherwise most kills would hit the start of the process
        while begun is None or time.monotonic() < begun + seconds:
            if select.select([reading], [], [], 0.002)[0]:
                if not (data := os.read(reading, 1 << 16)):
                    raise RuntimeError("the work has ended by itself")
                received += data
                begun = begun or time.monotonic()
        os.kill(child, signal.SIGKILL)
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while data := os.read(reading, 1 << 16):
            received += data
        os.close(reading)
    return received.decode().split()


def _write_word(descriptor: int, word: str) -> None:
    os.write(descriptor, f"{word}\n".encode())


def _artifact(folder: Path, acknowledge: Acknowledge) -> None:
    classifier = ComplexityClassifier.load(shipped("pocket/router"))
    if not (folder / "router.json").exists():
        classifier.save(folder)
    for number in itertools.count():
        heads = replace(classifier.heads, bias=np.full(4, number % 7, np.float32))
        ComplexityClassifier(classifier.encoder, heads, classifier.latency, classifier.card).save(folder)
        acknowledge(str(number % 7))


def _lost_artifacts(folder: Path, acknowledged: list[str]) -> int:
    bias = float(ComplexityClassifier.load(folder).heads.bias[0])
    last = float(acknowledged[-1])
    return int(bias not in (last, (last + 1) % 7, 0.0))  # the last one, or the next, also of a new process


def _records(folder: Path, acknowledge: Acknowledge) -> None:
    while True:
        record = Record(new_id(), "Add the numbers. 把数字加起来。" * 20, "four numbers", Outcome(True), Outcome(False))
        write_records(folder / "records.jsonl", [record], append=True)
        acknowledge(record.id)


def _lost_records(folder: Path, acknowledged: list[str]) -> int:
    write_records(folder / "records.jsonl", [], append=True)  # as a continued run does
    return len(set(acknowledged) - {record.id for record in read_records(folder / "records.jsonl")})


def an_answer(text: str = "red", mode: Mode = "instruct") -> Answer:
    decision = Decision(mode, "prompt", 0.4, 0.7, 0.3, 0.2, 1.0, 0.08, "gain", "a red square")
    return Answer(text, "", decision, "stop", Usage(20, 4, 5, 0), Timing(0.5, 0.1, 0.1, 0.2, 0.3, 1.2))


def a_question(number: int) -> Conversation:
    return parse(f"Which color? {number}", Image.new("RGB", (16, 16), (number % 256, 0, 0)))


def _store(folder: Path, acknowledge: Acknowledge) -> None:
    with Store(folder / "answers.db") as store:
        conversation = a_question(1)
        while True:
            store.feedback(id := store.record(an_answer(), conversation), correct=True)
            acknowledge(id)


def _lost_answers(folder: Path, acknowledged: list[str]) -> int:
    with Store(folder / "answers.db", create=False) as store:
        export_feedback(store)
        return len(set(acknowledged) - {one.id for one in store.records()})


def _responses(folder: Path, acknowledge: Acknowledge) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBOR" * 200}}
    with Store(folder / "answers.db") as store:
        kept = Conversations(store, timedelta(days=1))
        for number in itertools.count():
            id = new_id()
            parts = [picture, {"type": "text", "text": f"{number} {id}"}]
            messages: list[dict[str, Any]] = [
                {"role": "user", "content": parts}, {"role": "assistant", "content": "so"}
            ]  # fmt: skip
            kept.add("owner", id, messages, 0, json.dumps({"id": id}))
            acknowledge(id)


def _lost_responses(folder: Path, acknowledged: list[str]) -> int:
    with Store(folder / "answers.db", create=False) as store:
        kept = Conversations(store, timedelta(days=1))
        return sum(kept.messages("owner", id) is None or kept.body("owner", id) is None for id in acknowledged)


def _chat(folder: Path, acknowledge: Acknowledge) -> None:
    saved = folder / "chat"
    turns = read_chat(saved)[1] if (saved / "chat.json").exists() else ()
    for number in itertools.count(len(turns)):
        turns = (*turns, Turn(a_question(number).messages[0], an_answer(str(number))))[-40:]
        write_chat(saved, None, turns)
        acknowledge(str(number))


def _lost_turns(folder: Path, acknowledged: list[str]) -> int:
    texts = [turn.answer.text for turn in read_chat(folder / "chat")[1]]
    return int(int(texts[-1]) not in (int(acknowledged[-1]), int(acknowledged[-1]) + 1))


def _features(number: int) -> VisionFeatures:
    return VisionFeatures((1, 4, 4), torch.full((4, 64), float(number)), ())


def _disk_tier(folder: Path, acknowledge: Acknowledge) -> None:
    tier = DiskTier(folder / "features", budget=2**20)
    for number in itertools.count():
        tier.put(f"{number:064x}", _features(number))
        acknowledge(str(number))


def _wrong_features(folder: Path, acknowledged: list[str]) -> int:
    """A cache may lose features, but what it returns is right, and its files stay within the budget."""
    tier, wrong = DiskTier(folder / "features", budget=2**20), 0
    for word in acknowledged:
        found = tier.get(f"{int(word):064x}")
        wrong += found is not None and not torch.equal(found.merged, _features(int(word)).merged)
    return wrong + (tier.nbytes() > 2**20 + 2**15)


COMPONENTS = (
    Component("router artifact", _artifact, _lost_artifacts),
    Component("records", _records, _lost_records),
    Component("answers and feedback", _store, _lost_answers),
    Component("responses", _responses, _lost_responses),
    Component("chat", _chat, _lost_turns),
    Component("disk tier of the vision cache", _disk_tier, _wrong_features),
)


@contextmanager
def one_thread() -> Iterator[None]:
    """A child that is forked from several threads may wait forever for a lock of one that it does not have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
