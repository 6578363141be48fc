"""The evaluation of the pocket pair: its requests, batched answers, stopped runs, figures and the model card."""

from __future__ import annotations

import json
import math
import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from training.page import POCKET, POCKET_HYBRID
from training.pocket.card import card, compared, hybrid_card
from training.pocket.checkpoint import build_model, build_tokenizer, save_checkpoint
from training.pocket.evaluate import (
    BEFORE,
    BETWEEN,
    CURVES,
    FIGURES,
    FIRST,
    FORMS,
    HYBRID_FIGURES,
    POINTS,
    STEPS,
    TOGETHER,
    Cell,
    Writer,
    cells,
    draw,
    falls_below,
    measure,
    read_rows,
    scene_of,
    shapes_of_curves,
    summarize,
)
from training.pocket.proof import fingerprint
from transformers import GenerationConfig

from vlroute import InputError
from vlroute.pocket.tasks import LANGUAGES, TASKS, UNKNOWN
from vlroute.types import MODES

SOME = [
    Cell("old", "ocr", "easy", 3),
    Cell("forms", "gui", "two pictures", 2),
    Cell("text", "sum", "", 2),
    Cell("unknown", "picture", "known question", 3),
    Cell("tools", STEPS, "2", 1),
]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair with random weights that writes up to six tokens."""
    pair = tmp_path_factory.mktemp("pair")
    for seed, mode in enumerate(MODES):
        torch.manual_seed(seed)
        save_checkpoint(build_model(build_tokenizer()), mode, pair / mode)
        settings = GenerationConfig.from_pretrained(pair / mode)
        settings.max_new_tokens = 6
        settings.save_pretrained(pair / mode)
    return pair


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A folder of made-up answers to all kinds of requests, and the same answers as a list."""
    work, rng, answers = tmp_path_factory.mktemp("work"), random.Random(7), []
    for mode in MODES:
        (work / mode).mkdir()
        for cell in cells(0.02):
            rows = []
            for number in range(cell.count):
                right, thought = rng.random() < 0.8, rng.randint(1, 90) if rng.random() < 0.9 else None
                text = "right" if right else UNKNOWN["en"] if rng.random() < 0.3 else ""
                thought = thought if mode == "thinking" and cell.section != "tools" else None
                rows.append(["right", text, rng.randint(1, 99), thought])
                answers.append({
                    "mode": mode, "section": cell.section, "task": cell.task, "part": cell.part, "number": number,
                    "right": right, "honest": text == UNKNOWN["en"], "tokens": rows[-1][2], "thought": thought,
                })  # fmt: skip
            cell.file(work, mode).write_text(json.dumps(rows))
    return work, answers


def test_the_requests_are_as_many_as_the_card_needs() -> None:
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for cell in cells():
        counts[cell.section, cell.task] += cell.count
        if cell.section == "forms":
            counts["form", cell.part] += cell.count
        if cell.section in ("severity", "curve", "text"):
            assert cell.count >= 300
    assert min(counts["old", task] for task in TASKS) >= 1500
    assert min(counts["form", FIRST], counts["form", "text first"]) >= 3000
    assert min(counts["form", form] for form in TOGETHER if form != BETWEEN) >= 1000
    assert counts["form", BETWEEN] >= 500
    assert counts["tools", STEPS] >= 100


@pytest.mark.parametrize("section", ["old", "severity", "curve", "forms", "text", "unknown", "fonts"])
def test_requests_are_drawn_again_alike_and_show_their_pictures(section: str) -> None:
    for cell in [cell for cell in cells() if cell.section == section]:
        for number in range(2):
            request, again = draw(cell, number, "test"), draw(cell, number, "test")
            assert request.messages == again.messages
            assert [media.frames[0].tobytes() for media in request.media] == [
                media.frames[0].tobytes() for media in again.media
            ]
            parts = [part for message in request.messages for part in message["content"] if isinstance(part, dict)]
            kinds = [part["type"] for part in parts if part["type"] != "text"]
            assert kinds == [media.part["type"] for media in request.media]
            if section == "unknown":
                assert request.target == UNKNOWN[LANGUAGES[number]]


@pytest.mark.parametrize("task", TASKS)
def test_forms_ask_the_same_about_the_same_picture(task: str) -> None:
    for number in range(4):
        first = draw(Cell("forms", task, FIRST, 1), number, "test")
        question = first.messages[-1]["content"][-1]["text"]
        for form in FORMS:
            if form in TOGETHER and task == "video":
                continue
            other = draw(Cell("forms", task, form, 1), number, "test")
            texts = [part["text"] for part in other.messages[-1]["content"] if part["type"] == "text"]
            assert other.target == first.target
            assert any(media.frames == first.media[0].frames for media in other.media)
            assert question.rstrip(".?。？").rstrip().lower() in texts[0].lower()


def test_pictures_of_a_curve_differ_in_their_severity_only() -> None:
    for cell in cells():
        if cell.section == "curve":
            for number in range(2):
                scene = scene_of(random.Random(number), cell, number)
                assert (scene.level, scene.caption) == CURVES[cell.task]
                assert scene.severity == float(cell.part)


@pytest.mark.parametrize("mode", MODES)
def test_batches_answer_as_single_requests_do(untrained: Path, mode: str) -> None:
    writer = Writer(untrained, mode)
    for cell in (
        Cell("old", "math", "medium", 4),
        Cell("forms", "hop", "second turn", 4),
        Cell("text", "count", "", 4),
    ):
        examples = [draw(cell, number, "test") for number in range(cell.count)]
        together = list(writer.answers(examples))
        assert together == [answer for example in examples for answer in writer.answers([example])]
        if cell.section != "text":
            assert together == list(writer.answers(examples, any_size=True))  # by the real processor


def test_answers_are_what_follows_the_thought(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writers = {mode: Writer(untrained, mode) for mode in MODES}
    example = draw(Cell("text", "thanks", "", 1), 0, "test")

    def write(mode: str, text: str) -> tuple[str, int, int | None]:
        writer = writers[mode]
        ids = torch.tensor(writer.sequences.encode([text]))
        monkeypatch.setattr(writer.model, "generate", lambda input_ids, **_: torch.cat([input_ids, ids], dim=1))
        return next(writer.answers([example]))

    assert write("instruct", "BF<|im_end|><|endoftext|>") == ("BF", 3, None)
    assert write("thinking", "BF<|im_end|><|endoftext|>") == ("", 3, None)
    assert write("thinking", "B>F\n</think>\n\nF<|im_end|><|endoftext|>") == ("F", 7, 3)


def test_a_stopped_run_continues(untrained: Path, tmp_path: Path) -> None:
    measure(untrained, "test", tmp_path, "thinking", SOME)
    files = {cell: cell.file(tmp_path, "thinking") for cell in SOME}
    before = {cell: file.read_bytes() for cell, file in files.items()}
    for cell, file in files.items():
        assert len(json.loads(file.read_text())) == cell.count
    files[SOME[1]].unlink()
    files[SOME[0]].write_text("[]")  # is not measured again
    measure(untrained, "test", tmp_path, "thinking", SOME)
    assert {cell: file.read_bytes() for cell, file in files.items()} == {**before, SOME[0]: b"[]"}


def test_files_with_missing_answers_are_refused(tmp_path: Path) -> None:
    cell = SOME[0]
    for mode in MODES:
        (tmp_path / mode).mkdir()
        cell.file(tmp_path, mode).write_text(json.dumps([["a", "a", 1, None]] * cell.count))
    assert [row["language"] for row in read_rows(tmp_path, [cell])] == [None] * 2 * cell.count
    cell.file(tmp_path, MODES[1]).write_text("[]")
    with pytest.raises(InputError, match=r"has 0 answers instead of 3: delete the folder"):
        read_rows(tmp_path, [cell])


def test_the_shape_of_made_up_curves() -> None:
    assert falls_below([1, 0.9, 0.8, 0.6, 0.5, 0.9]) == pytest.approx(0.5)
    assert falls_below([0.6, 1, 1, 1, 1, 1]) == 0
    assert falls_below([1, 1, 1, 1, 1, 0.7]) == math.inf
    falling, steep, late = [1, 0.9, 0.8, 0.6, 0.5, 0.4], [1, 0.95, 0.97, 0.47, 0.57, 0.3], [1, 1, 1, 1, 0.8, 0.4]
    curves = {(task, mode): falling for task in CURVES for mode in MODES}
    curves |= {("gui", "thinking"): late, ("hop", "thinking"): [1.0] * len(POINTS), ("ocr", "instruct"): steep}
    table = [
        {"mode": mode, "task": task, "part": part, "share": share}
        for (task, mode), shares in curves.items() for part, share in zip(POINTS, shares, strict=True)
    ]  # fmt: skip

    def rows() -> dict[str, tuple[float, bool]]:
        return {one["name"]: (one["measured"], one["met"]) for one in shapes_of_curves(table)}

    name = "{}, “{}”, instruct, largest {} between neighboring severities, points".format
    found = rows()
    assert len(found) == 14
    assert found[name("gui", "three screens", "rise")] == (0, True)
    assert found[name("gui", "three screens", "drop")] == (20, True)
    assert found[name("ocr", "four characters", "rise")] == (10, False)
    assert found[name("ocr", "four characters", "drop")] == (50, False)
    side = "tasks where Thinking falls below 70 % at a {} severity than Instruct".format
    # ocr: Instruct falls below at 0.508, Thinking at 0.5
    assert (found[side("higher")], found[side("lower")]) == ((2, True), (1, True))
    for one in table:
        one["share"] = 1.0
    found = rows()
    assert (found[side("higher")], found[side("lower")]) == ((0, False), (0, False))


def wilson(right: int, n: int) -> tuple[float, float, float]:
    """Wilson's interval, solved from its definition: |share - p| = z sqrt(p (1 - p) / n)."""
    share, z = right / n, 1.959964
    a, b, c = 1 + z * z / n, -(2 * share + z * z / n), share * share
    root = math.sqrt(b * b - 4 * a * c)
    return share, (-b - root) / (2 * a), (-b + root) / (2 * a)


def test_figures_follow_from_the_raw_answers(raw: tuple[Path, list[dict[str, Any]]]) -> None:
    work, answers = raw
    tables = summarize(read_rows(work, cells(0.02)))

    def some(**keys: str) -> list[dict[str, Any]]:
        return [one for one in answers if keys.items() <= one.items()]

    for section in ("old", "severity", "curve", "forms", "text", "unknown", "fonts", "tools"):
        for one in tables[section]:
            keys = {name: one[name] for name in ("mode", "task", "part") if one[name] != "all"}
            group = some(section=section, **keys)
            if "language" in one:
                group = [answer for answer in group if LANGUAGES[answer["number"] % 2] == one["language"]]
            right = sum(answer["right"] for answer in group)
            assert (one["n"], one["right"]) == (len(group), right)
            assert (one["share"], one["low"], one["high"]) == pytest.approx(wilson(right, len(group)), abs=1e-4)
    for one in tables["differences"]:
        key = ("task", "number")
        first = {tuple(a[k] for k in key): a["right"] for a in some(section="forms", mode=one["mode"], part=FIRST)}
        group = some(section="forms", mode=one["mode"], part=one["part"])
        gains = [answer["right"] - first[tuple(answer[k] for k in key)] for answer in group]
        assert one["points"] == pytest.approx(100 * sum(gains) / len(gains), abs=0.01)
        assert one["low"] < one["points"] < one["high"]
    for one in tables["thinking_gain"]:
        two, direct = (some(section="severity", task=one["task"], mode=mode) for mode in ("thinking", "instruct"))
        gains = [a["right"] - b["right"] for a, b in zip(two, direct, strict=True)]
        assert one["points"] == pytest.approx(100 * sum(gains) / len(gains), abs=0.01)
        wrong = sum(not a["right"] and not b["right"] for a, b in zip(two, direct, strict=True))
        assert next(row for row in tables["both_wrong"] if row["task"] == one["task"])["right"] == wrong
    for one in tables["fonts_honest"]:
        assert one["right"] == sum(answer["honest"] for answer in some(section="fonts", mode=one["mode"]))
    everything = tables["thoughts"][-1]
    thoughts = [one["thought"] for one in some(mode="thinking") if one["section"] != "tools"]
    assert everything["right"] == sum(thought is not None for thought in thoughts)
    assert everything["quantiles"][3] == max(thought or 0 for thought in thoughts)


def check_requirements(tables: dict[str, Any], text: str) -> None:
    """Every verdict of the card follows from its numbers."""
    rows = re.findall(r"^\| (.+) \| ([≥≤]) (-?[\d.]+) \| (-?[\d.]+) \| (yes|\*\*no\*\*) \|$", text, re.MULTILINE)
    assert {name for name, *_ in rows} >= {one["name"] for one in tables["requirements"]}
    assert len(rows) == 60
    for name, sign, bound, measured, met in rows:
        difference = float(measured) - float(bound)
        if abs(difference) > 0.005:  # rounded
            assert ((difference > 0) == (sign == "≥")) == (met == "yes"), name
    for (task, old), (place, mode) in ((pair, place) for pair in BEFORE.items() for place in enumerate(MODES)):
        assert [row for row in rows if task in row[0] and mode in row[0] and float(row[2]) == round(old[place] - 3, 1)]
    missed = [name for name, *_, met in rows if met != "yes"]
    assert ("All requirements are met." in text) == (not missed)
    assert all(name in text.split("Not met", 1)[-1] for name in missed)


def test_the_card_shows_every_figure(raw: tuple[Path, list[dict[str, Any]]], untrained: Path) -> None:
    tables = summarize(read_rows(raw[0], cells(0.02)))
    pair = fingerprint(*(untrained / mode for mode in MODES))[:16]
    figures = {"requests": 1, "environment": "Two cores.", "pair": pair, **tables}
    with pytest.raises(InputError, match=r"training\.pocket\.evaluate first"):
        card({**figures, "pair": "0" * 16}, untrained)
    text = card(figures, untrained)
    check_requirements(tables, text)
    assert text.startswith("---\nlicense: apache-2.0\n")
    assert UNKNOWN["zh"] in text
    for section in ("old", "severity", "curve", "text", "unknown", "fonts", "tools"):
        for one in tables[section]:
            if one["part"] == "all" and section in ("unknown", "severity"):
                continue
            assert f"{100 * one['share']:.1f} ({100 * one['low']:.0f}–{100 * one['high']:.0f})" in text
    tables_of_text = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(tables_of_text) == 12
    for lines in tables_of_text:
        assert len({line.count("|") for line in lines.splitlines()}) == 1  # every line has all columns


def test_the_shipped_card_is_of_the_shipped_pair() -> None:
    figures = json.loads(FIGURES.read_text("utf-8"))
    assert figures["pair"] == fingerprint(*(POCKET / mode for mode in MODES))[:16]
    assert figures["share"] == 1
    check_requirements(figures, (POCKET / "README.md").read_text("utf-8"))


def test_the_shipped_card_of_the_hybrid_compares_it_with_the_shipped_pair() -> None:
    figures, pair = (json.loads(file.read_text("utf-8")) for file in (HYBRID_FIGURES, FIGURES))
    text = (POCKET_HYBRID / "README.md").read_text("utf-8")
    assert text == hybrid_card(figures, pair, POCKET_HYBRID)
    rows = compared(figures, pair)
    assert {row["name"] for row in rows} >= {*TASKS, *FORMS, "sum", "picture", STEPS}
    for row in rows:
        for mode in MODES:
            ours, theirs = row[mode]["hybrid"], row[mode]["pair"]
            assert theirs["n"] >= ours["n"] > 10
            assert row[mode]["points"] == pytest.approx(
                100 * (ours["right"] / ours["n"] - theirs["right"] / theirs["n"]), abs=0.01
            )
            assert row[mode]["within"] == (row[mode]["points"] >= -3)
    with pytest.raises(InputError, match=r"training\.pocket\.evaluate first"):
        hybrid_card({**figures, "pair": "0" * 16}, pair, POCKET_HYBRID)
