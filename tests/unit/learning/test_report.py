"""The page of curves, the report of collect, and the predictions that `vlroute curves` reads."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from vlroute.decision.classifier import Prediction
from vlroute.decision.tradeoff import CalibrationSet
from vlroute.errors import InputError
from vlroute.learning import curves, plots
from vlroute.learning.assumptions import measure_latency
from vlroute.learning.curves import write_curves
from vlroute.learning.evaluate import trade_off
from vlroute.learning.out_of_fold import OutOfFold
from vlroute.learning.prediction_file import read_oof
from vlroute.learning.report import collection_report, collection_table
from vlroute.learning.seen import training_digest
from vlroute.learning.stages import stage_curves
from vlroute.records import Outcome, Record


def labelled(n: int, *, seconds: bool = True) -> tuple[list[Record], np.ndarray]:
    """Records of two topics, one of which has a name that breaks unescaped pages, and predictions for them."""
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, (2, n))
    times = np.array([rng.gamma(8, 0.1, n), rng.gamma(3, 0.7, n)])
    records = [
        Record(
            f"r{i}",
            "x" * (1 + i % 30),
            None,
            *(Outcome(bool(right[mode, i]), 10, float(times[mode, i]) if seconds else None) for mode in (0, 1)),
            topic=("<script>alert(1)</script>", "a & b")[i % 2],
        )
        for i in range(n)
    ]
    return records, rng.random((2, n))


class Page(HTMLParser):
    """Tags and texts of a page; fails if tags are not nested."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.texts.add(data.strip())


def read(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small figures, which are drawn faster."""
    monkeypatch.setattr(curves, "DPI", 20)


@pytest.mark.usefixtures("coarse")
def test_every_word_of_figures_and_page_has_a_translation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "chinese_font", lambda: "DejaVu Sans")
    monkeypatch.setattr(plots, "CHINESE", dict.fromkeys(plots.CHINESE, "ZH"))
    records, p = labelled(60)
    right, seconds = np.zeros((2, 60)), np.ones((2, 60))
    for against in ("share", "mean_seconds", "p95_seconds"):
        one = plots.trade_off_figure(trade_off(p[0], right, seconds, p[1]), against, language="zh", measured=False)
        words = {text.get_text() for text in one.findobj(Text)}
        assert {word for word in words if any(c.isalpha() for c in word)} <= {"ZH", "ZHZH"}
    page = write_curves(records, p, tmp_path, language="zh")[-1].read_text("utf-8")
    kept = {"Instruct", "Thinking", "APGR", "CPT 50 %", "CPT 80 %", "AIQ", "nAUC", "QNC", "ECE", "Brier", "vlroute: ZH"}
    words = {text for text in read(page).texts if any(c.isalpha() for c in text)} - kept - {"ZH", "ZH\nZH"}
    assert words == {"<script>alert(1)</script>", "a & b"}


@pytest.mark.usefixtures("coarse")
def test_the_page_shows_the_curve_of_each_set_of_stages(tmp_path: Path) -> None:
    records, p = labelled(60)
    both = np.stack([p.T, 1 - p.T]).astype(np.float32)
    tokens = np.full((60, 2), (4.0, 50.0), np.float32)
    right = np.asarray([[float(one.instruct.correct), float(one.thinking.correct)] for one in records], np.float32)
    calibration = CalibrationSet(both[0], tokens, right, tokens, np.ones(60, np.float32), {("answer",): both[1]})
    curves = stage_curves(calibration, measure_latency(records))
    written = write_curves(records, p, tmp_path, stages=curves)
    assert tmp_path / "stages.png" in written
    page = read(written[-1].read_text("utf-8"))
    assert {"prompt", "prompt, answer", "fast", "balanced", "accurate", "knee"} <= page.texts
    lines = plots.stages_figure(curves, measured=False).axes[0]
    assert [line.get_label() for line in lines.get_lines()] == [
        "prompt", "prompt, answer", "always Instruct", "always Thinking"
    ]  # fmt: skip
    assert "assumed" in lines.get_xlabel()


def test_the_page_stands_alone(tmp_path: Path) -> None:
    records, p = labelled(80)
    *figures, path = write_curves(records, p, tmp_path / "new" / "folder")
    assert [figure.name for figure in figures] == [
        *(f"accuracy-{name}.png" for name in ("share", "mean-seconds", "p95-seconds")),
        *(f"topics-{name}.png" for name in ("share", "mean-seconds", "p95-seconds")),
        "reliability.png",
    ]
    assert path.name == "curves.html"
    html = path.read_text("utf-8")
    page = read(html)
    assert "://" not in html
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert {"<script>alert(1)</script>", "a & b", "area over random"} <= page.texts
    assert "Seconds are measured." in html
    images = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    for file, source in zip(figures, images, strict=True):
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == file.read_bytes()
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            image.load()
            assert image.format == "PNG"
            assert 600 <= image.width <= 2000
            assert 400 <= image.height <= 2000
            assert len(image.convert("RGB").getcolors(1 << 22) or []) > 20  # something is drawn
    assert sum(tag == "caption" for tag, _ in page.tags) == sum(tag == "table" for tag, _ in page.tags) == 7
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


@pytest.mark.usefixtures("coarse")
def test_assumed_seconds_are_called_so(tmp_path: Path) -> None:
    records, p = labelled(60, seconds=False)
    page = write_curves(records, p, tmp_path)[-1].read_text("utf-8")
    assert "Seconds are assumed" in page


@pytest.mark.usefixtures("coarse")
def test_predictions_of_several_seeds_are_averaged_and_equal_input_makes_equal_files(tmp_path: Path) -> None:
    records, p = labelled(60)
    records = [replace(record, topic="") for record in records]
    p = (p * 64).round() / 128 + 0.25  # so that the means are exact
    seeds = [[Prediction(*(one + shift), 1, 1, 1) for one in p.T] for shift in (-0.25, 0.25)]
    by_seed = write_curves(records, OutOfFold(seeds, seeds, 5, "text"), tmp_path / "seeds")
    by_mean = write_curves(records, p, tmp_path / "mean", tokens=np.ones((2, 60)))
    assert [path.read_bytes() for path in by_seed] == [path.read_bytes() for path in by_mean]
    assert not any(path.name.startswith("topics") for path in by_seed)


def test_curves_need_records_and_as_many_predictions(tmp_path: Path) -> None:
    records, p = labelled(30)
    with pytest.raises(InputError, match="30 and"):
        write_curves(records, p[:, :20], tmp_path)
    with pytest.raises(InputError, match="0 and"):
        write_curves([], np.zeros((2, 0)), tmp_path)


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def test_predictions_are_read_in_the_order_of_the_records(tmp_path: Path) -> None:
    records, p = labelled(30)
    rows = [
        {"id": record.id, "p_instruct": one[0], "p_thinking": one[1]} for record, one in zip(records, p.T, strict=True)
    ]
    path = lines(tmp_path / "oof.jsonl", {"id": "another", "p_instruct": 0, "p_thinking": 1}, *rows[::-1])
    read = read_oof(path, records)
    np.testing.assert_array_equal(read.p, p)
    assert (read.folds, read.together) == (None, None)  # written by an earlier version
    assert read_oof(path, []).p.shape == (2, 0)
    lines(path, *(row | {"folds": 7, "together": "record"} for row in rows))
    read = read_oof(path, records)
    assert (read.folds, read.together) == (7, "record")
    assert read.tokens is None
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as editors on Windows save it
    np.testing.assert_array_equal(read_oof(path, records).p, p)


TOKENS = {"tokens_instruct": 5, "tokens_thinking": 3}


def test_expected_tokens_are_read_and_records_are_compared(tmp_path: Path) -> None:
    records, p = labelled(30)
    path = lines(
        tmp_path / "oof.jsonl",
        *(
            {"id": one.id, "p_instruct": x, "p_thinking": y, **TOKENS, "record": training_digest(one)}
            for one, (x, y) in zip(records, p.T, strict=True)
        ),
    )
    np.testing.assert_array_equal(read_oof(path, records).tokens, [[5] * 30, [3] * 30])
    read_oof(path, [replace(records[0], set="other", topic="other")])  # nothing that training reads
    for changed in (
        replace(records[3], prompt="another"),
        replace(records[3], caption="another"),
        replace(records[3], thinking=replace(records[3].thinking, correct=0.5)),
        replace(records[3], thinking=replace(records[3].thinking, tokens=7)),
    ):
        with pytest.raises(InputError, match=rf"1 of 4 records have another request .* {changed.id!r}; give the rec"):
            read_oof(path, [*records[:3], changed])


@pytest.mark.parametrize(("language", "words"), [("en", "the same expected seconds"), ("zh", "预计耗时相同")])
def test_the_page_says_if_expected_tokens_are_unknown(
    tmp_path: Path, language: Literal["en", "zh"], words: str
) -> None:
    records, p = labelled(60)
    write_curves(records, p, tmp_path, language=language)
    assert words in (tmp_path / "curves.html").read_text("utf-8")
    write_curves(records, p, tmp_path, language=language, tokens=np.array([[5.0] * 60, range(60)]))
    assert words not in (tmp_path / "curves.html").read_text("utf-8")


GOOD = {"id": "r0", "p_instruct": 0.5, "p_thinking": 0.5}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[1]], ":1: expected a JSON object with a string 'id'"),
        ([GOOD | {"id": 7}], ":1: expected"),
        ([GOOD | {"p_thinking": 1.5}], ":1: 'p_thinking' must be a number 0 to 1, not 1.5"),
        ([GOOD | {"p_instruct": float("nan")}], "not nan"),
        ([GOOD | {"p_instruct": True}], "not True"),
        ([{"id": "r0"}], "'p_instruct' must be a number 0 to 1, not None"),
        ([GOOD, GOOD], ":2: id 'r0' was already used"),
        ([GOOD | {"folds": True}], ":1: 'folds' must be a whole number, at least 2, not True"),
        ([GOOD | {"together": "all"}], ":1: 'together' must be 'text' or 'record', not 'all'"),
        (
            [GOOD, *({"folds": 5, "together": "text"} | GOOD | {"id": name} for name in ("r1", "r2"))],
            "different trainings",
        ),
        ([GOOD | {"tokens_instruct": 5}], ":1: 'tokens_instruct' and 'tokens_thinking' must both be numbers"),
        ([GOOD | {"tokens_instruct": -1, "tokens_thinking": 3}], "not -1 and 3"),
        ([GOOD | {"tokens_instruct": 1, "tokens_thinking": float("nan")}], "not 1 and nan"),
        ([GOOD | {"record": 5}], ":1: 'record' must be a string, not 5"),
        (
            [GOOD | TOKENS, *(GOOD | {"id": name} for name in ("r1", "r2"))],
            "trainings (folds: unknown, together: unknown, expected tokens: no; folds: unknown, ",
        ),
        ([GOOD], "no prediction for 2 of 3 records, the first 'r1'"),
        ([], "no out-of-fold predictions"),
    ],
)
def test_unusable_predictions_are_named(tmp_path: Path, rows: list[object], words: str) -> None:
    path = lines(tmp_path / "oof.jsonl", *rows)
    with pytest.raises(InputError, match=r"oof\.jsonl") as error:
        read_oof(path, labelled(3)[0])
    assert words in str(error.value)


def test_unreadable_predictions_are_named(tmp_path: Path) -> None:
    path = tmp_path / "oof.jsonl"
    with pytest.raises(InputError, match="not found"):
        read_oof(path, [])
    for content in (b'{"id": ', b"\xff\xfe\n", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"oof\.jsonl:1: "):
            read_oof(path, [])


def test_the_report_of_collect_shows_intervals_and_unknown_values() -> None:
    records = [
        Record(str(i), "p", None, Outcome(i % 2 == 0, 3, 0.5), Outcome(True, 9), topic="a|b") for i in range(40)
    ] + [Record("x", "p", None, Outcome(False), Outcome(0.5), set="lonely")]
    result = {"recorded": 41, "without_gold": 0, "rescued": 2, "skipped": 0, "failed": 1, "reasons": ["f:1: a | b"]}
    page = collection_report(records, {"agreement": None}, result)
    assert "| a\\|b | 40 | 50.0% (35% – 65%) | 100.0% (91% – 100%) | 0.50 (0.50 – 0.50) | – |" in page
    assert "| lonely | 1 | 0.0% (0% – 79%) | 50.0% (5% – 95%) | – | – |" in page
    assert "| all | 41 | " in page
    assert "* f:1: a \\| b" in page
    assert "In 2 of them Thinking left no answer" in page
    assert "left no answer" not in collection_report(records, {"agreement": None}, result | {"rescued": 0})
    assert collection_table(records).row_count == 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", r"\<script\>alert(1)\</script\>"),
        ("[a](javascript:b)", r"\[a\](javascript:b)"),
        ("![](http://c/d.png)", r"!\[\](http://c/d.png)"),
        ("`code` \\[e]", r"\`code\` \\\[e\]"),
        ("two\nlines", "two lines"),
    ],
)
def test_topics_and_reasons_have_no_effect_as_markdown(text: str, shown: str) -> None:
    records = [Record(str(i), "p", None, Outcome(True), Outcome(True), topic=text) for i in range(40)]
    result = {"recorded": 40, "without_gold": 0, "rescued": 0, "skipped": 0, "failed": 1, "reasons": [text]}
    page = collection_report(records, {"agreement": None}, result)
    assert f"\n| {shown} | 40 |" in page
    assert f"\n* {shown}\n" in page


def test_collecting_needs_no_package_for_training() -> None:
    code = (
        "import sys, vlroute.learning.collect\n"
        "print({'scipy', 'sklearn', 'matplotlib', 'datasets', 'math_verify'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
