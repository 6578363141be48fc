"""Measure a pocket model on new requests with greedy generation: `python -m training.pocket.evaluate`.

Writes the figures of the model card. Every answer is kept under `--work`, in a folder named after the weights, the seed
and the size, one file for each mode and kind of request; a stopped run continues with the missing files. After a
change of the drawings, delete this folder. Takes about fifteen minutes on two cores; `--share 0.1` sends a tenth of the
requests.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import runpy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from training.page import POCKET, ROOT, environment, share_of, side_by_side, step, write_json
from training.pocket import text as texts
from training.pocket.data import Example, Media, Sequences, any_question, content, question_example, seen, with_system
from training.pocket.proof import fingerprint, folders
from training.pocket.styles import TEST_FONTS, TEST_PALETTE, draw_style
from training.pocket.unknown import TEST_PICTURES, draw_size, draw_unknown
from vlroute import InputError, Mode
from vlroute.engine.local.checkpoint_files import is_hybrid
from vlroute.files import replace_file
from vlroute.learning.intervals import Sampling
from vlroute.pocket.screens import draw_screen_task
from vlroute.pocket.tasks import LANGUAGES, LEVELS, ORDINALS, TASKS, UNKNOWN, WHICH, Scene, draw_scene
from vlroute.types import MODES

FIGURES = Path(__file__).with_name("evaluation.json")
HYBRID_FIGURES = Path(__file__).with_name("hybrid_evaluation.json")
BATCH = 32
#: Accuracies of the previous pair in its card, on clean pictures, in % (Instruct, Thinking).
BEFORE = {
    "ocr": (100.0, 100.0), "count": (98.6, 62.9), "math": (35.2, 98.6),
    "gui": (69.5, 99.5), "hop": (59.5, 100.0), "video": (82.9, 99.5),
}  # fmt: skip
#: Level and caption of the pictures among which only the severity differs.
CURVES = {
    "ocr": ("medium", "four characters"), "count": ("hard", "six shapes"), "math": ("medium", "two numbers"),
    "gui": ("medium", "three screens"), "hop": ("medium", "five arrows"), "video": ("medium", "a lamp"),
}  # fmt: skip
POINTS = ("0", "0.2", "0.4", "0.6", "0.8", "1")
RANGES = ("0", *map("-".join, itertools.pairwise(POINTS)))
FIRST, AGAIN, NEW, TWO = "picture first", "second turn", "second turn, new picture", "two pictures"
BETWEEN = "text between two pictures"
#: Number of requests of each task, by form; the forms of `TOGETHER` never have videos.
FORMS = {
    FIRST: 500, "text first": 500, "system prompt": 200, "lower case": 200, "upper case": 200,
    "no final punctuation": 200, TWO: 200, BETWEEN: 100, AGAIN: 200, NEW: 200,
}  # fmt: skip
TOGETHER = (TWO, BETWEEN, AGAIN, NEW)
FAMILIES = tuple(TEST_PICTURES)
STILL = [task for task in TASKS if task != "video"]
KNOWN, UNSEEN, STEPS, TAPS = "known question", "unseen question", "two to four steps", "three taps"
#: For each section, the attributes by which its rows are grouped; one table for each set of attributes.
TABLES = {
    "old": ("task part", "task"), "severity": ("task part", "task"), "curve": ("task part",),
    "forms": ("part", "language"), "text": ("task",), "unknown": ("task part", "task"), "fonts": ("task", ""),
    "tools": ("task",),
}  # fmt: skip
#: The sections whose requests alternate between the languages; the language of the others is random.
ALTERNATING = ("forms", "text", "unknown", "tools")
Table = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Cell:
    """Requests of one kind. `part`: level, severity or its range, form of the request, or kind of question."""

    section: str
    task: str
    part: str
    count: int

    def file(self, work: Path, mode: str) -> Path:
        return work / mode / f"{self.section} {self.task} {self.part}.json".replace(" ", "_")


def cells(share: float = 1.0) -> list[Cell]:
    """All cells, or `share` of the requests of each."""
    kinds: list[tuple[str, Iterable[str], Iterable[str], int]] = [
        ("old", TASKS, LEVELS, 500),
        ("severity", TASKS, RANGES, 300),
        ("curve", TASKS, POINTS, 300),
        *(("forms", STILL if form in TOGETHER else TASKS, [form], count) for form, count in FORMS.items()),
        ("text", ["sum", "count", *texts.REPLIES], [""], 300),
        ("unknown", ["picture"], [KNOWN, UNSEEN], 200),  # 100 pictures, each in both languages
        ("unknown", ["no picture"], [KNOWN, UNSEEN], 300),
        ("unknown", ["drawing"], [UNSEEN], 300),
        ("fonts", TASKS, [""], 100),
        ("tools", [STEPS], "234", 34),
        ("tools", [TAPS], "3", 50),
    ]
    return [
        Cell(section, task, part, max(1, round(share * count)))
        for section, tasks, parts, count in kinds for task, part in itertools.product(tasks, parts)
    ]  # fmt: skip


def draw(cell: Cell, number: int, seed: str) -> Example:
    """One request; its target is the answer. The forms of a request with the same number share picture and question."""
    language = LANGUAGES[number % 2]
    rng = random.Random(f"{seed} {cell.section} {cell.task} {number}" + cell.part * (cell.section != "forms"))
    if cell.section == "forms":
        return _form(rng, cell, number, language)
    if cell.section == "text":
        request = texts.draw_text(rng, language, cell.task)
        return _request(rng, [], request.prompt, request.answer, language)
    if cell.section == "unknown":
        known, unseen = any_question(rng, language), texts.draw_unknown_question(rng, language, texts.TEST_QUESTIONS)
        media = [seen(draw_scene(rng, rng.choice(STILL)))] if cell.task == "drawing" else []
        if cell.task == "picture":
            shared, name = random.Random(f"{seed} {cell.part} {number // 2}"), FAMILIES[number // 2 % len(FAMILIES)]
            media = [Media((draw_unknown(shared, {name: TEST_PICTURES[name]}, draw_size(shared, 2000)),))]
        return _request(rng, media, known if cell.part == KNOWN else unseen, UNKNOWN[language], language)
    return question_example(rng, scene_of(rng, cell, number), "instruct")


def _request(rng: random.Random, media: list[Media], text: str, answer: str, language: str) -> Example:
    message = {"role": "user", "content": content(rng, media, text, language)}
    return Example("request", with_system(rng, [message]), media, answer)


def scene_of(rng: random.Random, cell: Cell, number: int) -> Scene:
    if cell.section == "fonts":
        return draw_scene(rng, cell.task, style=draw_style(rng, TEST_FONTS, TEST_PALETTE))
    if cell.section == "old":
        return draw_scene(rng, cell.task, cell.part)
    low, _, high = cell.part.partition("-")
    severity = rng.uniform(float(low), float(high or low))
    level, caption = CURVES[cell.task] if cell.section == "curve" else (LEVELS[number % 3], None)
    scene = draw_scene(rng, cell.task, level, severity)
    while caption and scene.caption != caption:
        scene = draw_scene(rng, cell.task, level, severity)
    return scene


def _form(rng: random.Random, cell: Cell, number: int, language: str) -> Example:
    """Half of the pictures are clean, the others of random severity; the question has its original wording."""
    severity, form = rng.random() if number // 2 % 2 else None, cell.part
    scene, other = draw_scene(rng, cell.task, None, severity), draw_scene(rng, rng.choice(STILL), None, severity)
    question, messages = scene.question(rng), list[dict[str, Any]]()
    text, media = question.ask(rng, language), [seen(scene)]
    shown = media  # in the last turn
    if form == "system prompt":
        messages = [{"role": "system", "content": rng.choice(texts.UNSEEN_SYSTEM_PROMPTS)}]
    elif form in (TWO, BETWEEN):
        place = rng.randrange(2)
        media.insert(1 - place, seen(other))
        text = rng.choice(WHICH[language]).format(n=ORDINALS[language][place], q=text)
        text = text[0].upper() + text[1:]
    elif form in TOGETHER:
        before = scene if form == AGAIN else other
        earlier = before.question(rng)
        asked = [seen(before).part, {"type": "text", "text": earlier.ask(rng, language)}]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": earlier.answer}]
        media, shown = (media, []) if form == AGAIN else ([seen(other), *media], media)
    typed = {"lower case": text.lower(), "upper case": text.upper(), "no final punctuation": text.rstrip(" .?。？")}
    parts = [*(one.part for one in shown), {"type": "text", "text": typed.get(form, text)}]
    if form == "text first":
        parts.reverse()
    elif form == BETWEEN:
        parts[1:] = parts[:0:-1]
    messages.append({"role": "user", "content": parts})
    return Example(form, messages, media, question.answer)


class Writer:
    """One mode of a pair or of a hybrid, which writes answers."""

    def __init__(self, model: Path, mode: Mode) -> None:
        folder = folders(model)[mode]
        hybrid = folder == model
        #: Arguments of the chat template.
        self.options = {"enable_thinking": mode == "thinking"} if hybrid else {}
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.mode = mode
        self.processor = AutoProcessor.from_pretrained(folder)
        self.tokenizer = self.processor.tokenizer
        self.sequences = Sequences(self.tokenizer, mode, hybrid)
        names = runpy.run_path(str(ROOT / "examples" / "gui_tools.py"))
        self.solve, self.act = names["solve"], names["load"](folder, **self.options)

    def processed(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Inputs by the real processor, which takes pictures of any size."""
        render = self.processor.apply_chat_template
        prompts = [render(list(one.messages), add_generation_prompt=True, **self.options) for one in examples]
        pictures = [frame for example in examples for media in example.media for frame in media.frames]
        return dict(self.processor(pictures, prompts, padding=True, padding_side="left", return_tensors="pt"))

    def answers(self, examples: Sequence[Example], any_size: bool = False) -> Iterator[tuple[str, int, int | None]]:
        """Answer without its thought, number of tokens, and number of tokens of the thought, for each example."""
        inputs = self.processed(examples) if any_size else self.sequences.prompt_batch(examples)
        with torch.inference_mode():
            written = self.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        end = self.tokenizer.convert_tokens_to_ids("</think>")
        for row in written.tolist():
            tokens = [token for token in row if token != self.tokenizer.pad_token_id]
            thought = tokens.index(end) if end in tokens else None
            answer = tokens * (self.mode == "instruct") if thought is None else tokens[thought + 1 :]
            yield self.tokenizer.decode(answer, skip_special_tokens=True).strip(), len(tokens), thought

    def rows(self, cell: Cell, seed: str) -> Iterator[tuple[str, str, int, int | None]]:
        """Expected answer, answer, tokens and thought of each request."""
        if cell.section == "tools":
            for number in range(cell.count):
                rng = random.Random(f"{seed} {cell.task} {cell.part} {number}")
                task = draw_screen_task(rng, int(cell.part), LANGUAGES[number % 2], deep=cell.task == TAPS)
                yield task.answer, self.solve(task, self.act), 0, None
            return
        for start in range(0, cell.count, BATCH):
            examples = [draw(cell, number, seed) for number in range(start, min(start + BATCH, cell.count))]
            for example, answer in zip(examples, self.answers(examples, cell.task == "picture"), strict=True):
                yield example.target, *answer


def measure(model: Path, seed: str, work: Path, mode: Mode, some: Sequence[Cell]) -> None:
    """Answer the requests of those cells that have no file yet, in one mode and one thread."""
    torch.set_num_threads(1)
    (work / mode).mkdir(parents=True, exist_ok=True)
    writer = Writer(model, mode)
    for cell in some:
        if not (file := cell.file(work, mode)).exists():
            replace_file(file, json.dumps([*writer.rows(cell, seed)], ensure_ascii=False).encode())


def read_rows(work: Path, some: Sequence[Cell]) -> Table:
    """The answers in the files, with what they are grouped by. InputError if a file has another number of answers.

    `language`: None in the sections where it is random. `thought`: tokens before `</think>`, None without it.
    """

    def answers(cell: Cell, mode: str) -> list[tuple[str, str, int, int | None]]:
        found: list[tuple[str, str, int, int | None]] = json.loads(cell.file(work, mode).read_text("utf-8"))
        if len(found) != cell.count:
            file = cell.file(work, mode)
            raise InputError(f"{file} has {len(found)} answers instead of {cell.count}: delete the folder {work}")
        return found

    return [
        {
            "mode": mode, "section": cell.section, "task": cell.task, "part": cell.part, "number": number,
            "language": LANGUAGES[number % 2] if cell.section in ALTERNATING else None,
            "right": text == expected, "honest": text in UNKNOWN.values(),
            "tokens": tokens, "thought": thought, "closed": thought is not None,
        }
        for mode, cell in itertools.product(MODES, some)
        for number, (expected, text, tokens, thought) in enumerate(answers(cell, mode))
    ]  # fmt: skip


def grouped(rows: Table, by: str) -> list[tuple[dict[str, Any], Table]]:
    """Groups of rows with equal values of the columns that `by` names, each with these values."""
    groups: dict[tuple[str, ...], Table] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by.split()), []).append(row)
    everything = {"task": "all", "part": "all"}
    return [({**everything, **dict(zip(by.split(), key, strict=True))}, some) for key, some in groups.items()]


def table(rows: Table, by: str, what: str = "right") -> Table:
    """Share of rows that are `what` with its 95 % Wilson interval, and mean tokens, of each group."""
    out = []
    for head, some in grouped(rows, by):
        right, tokens = sum(row[what] for row in some), float(np.mean([row["tokens"] for row in some]))
        share, low, high = (round(value, 5) for value in share_of(right, len(some)))
        numbers = {"n": len(some), "right": right, "share": share, "low": low, "high": high}
        out.append({**head, **numbers, "tokens": round(tokens, 1)})
    return out


def differences(rows: Table, others: Table, by: str, *same: str) -> Table:
    """Accuracy of each group minus that of `others` on the same requests, in points, with its 95 % interval."""
    key, out = itemgetter(*same), []
    base = {key(row): row["right"] for row in others}
    for head, some in grouped(rows, by):
        values = np.asarray([float(row["right"]) - base[key(row)] for row in some])
        ends = values.mean(), *(Sampling(len(some)).difference(values) or (-1.0, 1.0))
        points, low, high = (round(100 * float(value), 2) for value in ends)
        out.append({**head, "n": len(some), "points": points, "low": low, "high": high})
    return out


def thoughts(rows: Table, by: str) -> Table:
    """Share of thoughts that were closed, and quantiles of their lengths in tokens, of each group."""
    lengths = [[row["thought"] for row in some if row["closed"]] or [0] for _, some in grouped(rows, by)]
    quantiles = [np.quantile(some, (0.05, 0.5, 0.95, 1)).tolist() for some in lengths]
    return [{**one, "quantiles": some} for one, some in zip(table(rows, by, "closed"), quantiles, strict=True)]


def summarize(rows: Table) -> dict[str, Any]:
    """All tables of the card, ready for JSON: shares from 0 to 1, differences in points."""
    of = {name: [row for row in rows if row["section"] == name] for name in TABLES}
    tables = {name: [one for by in ways for one in table(of[name], f"mode {by}")] for name, ways in TABLES.items()}
    tables["fonts_honest"] = table(of["fonts"], "mode", "honest")
    direct, slow = ([row for row in of["severity"] if row["mode"] == mode] for mode in MODES)
    tables["thinking_gain"] = differences(slow, direct, "task", "task", "part", "number")
    pairs = zip(direct, slow, strict=True)
    both = [{**one, "both_wrong": not one["right"] and not two["right"]} for one, two in pairs]
    tables["both_wrong"] = table(both, "task", "both_wrong") + table(both, "", "both_wrong")
    first, others = ([row for row in of["forms"] if (row["part"] == FIRST) == is_first] for is_first in (True, False))
    tables["differences"] = differences(others, first, "mode part", "mode", "task", "number")
    thinking = [row for row in rows if row["mode"] == "thinking" and row["section"] != "tools"]
    drawn = [row for row in thinking if row["section"] in ("old", "severity")]
    tables["thoughts"] = thoughts(drawn, "task") + thoughts(thinking, "")
    return {**tables, "requirements": list(_requirements(tables))}


def required(name: str, measured: float, bound: float, least: bool = True) -> dict[str, Any]:
    """A row of the table of requirements. `least`: whether the bound is a lower one."""
    met = measured >= bound if least else measured <= bound
    return {"name": name, "measured": round(measured, 2), "bound": bound, "least": least, "met": met}


def falls_below(shares: Sequence[float], bound: float = 0.7) -> float:
    """The lowest severity where the curve through `shares` at `POINTS` is below `bound`; infinity if there is none."""
    if shares[0] < bound:
        return 0.0
    for (start, high), (end, low) in itertools.pairwise(zip(map(float, POINTS), shares, strict=True)):
        if low < bound:
            return start + (end - start) * (high - bound) / (high - low)
    return math.inf


def shapes_of_curves(curve: Table) -> Iterator[dict[str, Any]]:
    """Whether Instruct's curves fall smoothly, and whether each mode is the one that falls first in some task."""
    share = {(one["mode"], one["task"], one["part"]): float(one["share"]) for one in curve}
    higher = lower = 0
    for task, (_, caption) in CURVES.items():
        instruct, thinking = ([share[mode, task, part] for part in POINTS] for mode in MODES)
        steps = [round(100 * (after - before), 3) for before, after in itertools.pairwise(instruct)]
        name = f"{task}, “{caption}”, instruct, largest {{}} between neighboring severities, points".format
        yield required(name("rise"), max(0.0, *steps), 5.0, least=False)
        yield required(name("drop"), max(0.0, *(-step for step in steps)), 45.0, least=False)
        higher += falls_below(thinking) > falls_below(instruct)
        lower += falls_below(thinking) < falls_below(instruct)
    name = "tasks where Thinking falls below 70 % at a {} severity than Instruct".format
    yield required(name("higher"), higher, 1.0)
    yield required(name("lower"), lower, 1.0)


def _requirements(tables: dict[str, Table]) -> Iterator[dict[str, Any]]:
    def shares(name: str, section: str, bound: float, least: bool = True, **keys: str) -> Iterator[dict[str, Any]]:
        for one in tables[section]:
            if keys.items() <= one.items():
                yield required(f"{name}, {one['mode']}, %", 100 * one["share"], bound, least)

    for (task, before), (place, mode) in itertools.product(BEFORE.items(), enumerate(MODES)):
        bound = round(before[place] - 3, 1)
        yield from shares(f"clean pictures, {task}", "old", bound, task=task, part="all", mode=mode)
    for (task, (_, caption)), (part, bound) in itertools.product(CURVES.items(), (("0", 95.0), ("1", 40.0))):
        name = f"{task}, “{caption}”, severity {part}"
        yield from shares(name, "curve", bound, part == "0", task=task, part=part, mode="instruct")
    yield from shapes_of_curves(tables["curve"])
    worst = min(tables["thinking_gain"], key=lambda one: float(one["points"]))
    yield required(f"thinking below instruct in at least one task, {worst['task']}, points", -worst["points"], 10.0)
    yield required("any severity, both modes wrong, %", 100 * tables["both_wrong"][-1]["share"], 1.0)
    bounds = {"text first": -2.0} | dict.fromkeys(TOGETHER, -4.0)
    for one in tables["differences"]:
        if one["part"] in bounds:
            name = f"{one['part']} against {FIRST}, {one['mode']}, points"
            yield required(name, one["points"], bounds[one["part"]])
    yield from shares("unknown pictures, fixed sentence", "unknown", 95.0, task="picture", part="all")
    yield from shares("unseen fonts and colors, fixed sentence", "fonts_honest", 5.0, False)
    yield from shares(f"tools, {STEPS}, solved", "tools", 95.0, task=STEPS)
    yield required("thoughts closed, %", 100 * tables["thoughts"][-1]["share"], 99.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file of figures; by default that of the model's card")
    parser.add_argument("--model", type=Path, default=POCKET, help="folder of the pair, or of a hybrid")
    parser.add_argument("--seed", default="evaluation")
    parser.add_argument("--share", type=float, default=1.0, help="share of the requests that are asked")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "evaluation", help="where answers are kept")
    options = parser.parse_args()
    pair, some = fingerprint(*folders(options.model).values())[:16], cells(options.share)
    head = {"seed": options.seed, "share": options.share, "pair": pair, "environment": environment()}
    work = options.work / f"{pair}-{options.seed}-{options.share:g}"
    total = len(MODES) * sum(cell.count for cell in some)

    def done() -> int:
        return sum(cell.count for mode in MODES for cell in some if cell.file(work, mode).exists())

    side_by_side(
        measure, [(options.model, options.seed, work, mode, some) for mode in MODES], done, total, "evaluating"
    )
    out: Path = options.out or (HYBRID_FIGURES if is_hybrid(options.model) else FIGURES)
    write_json(out, {**head, "requests": total // len(MODES), **summarize(read_rows(work, some))})
    step(f"{total} answers: {out}")


if __name__ == "__main__":
    main()
