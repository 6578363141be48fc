"""Data sets as users have them: every format gives the same examples, and what cannot be used is named."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlroute.errors import InputError
from vlroute.inputs.messages import parse
from vlroute.learning.dataset import Example, Source, SourceRow, parse_columns, to_example

datasets = pytest.importorskip("datasets")
parquet = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")


def png(color: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(data, "PNG")
    return data.getvalue()


RED, BLUE = png("red"), png("blue")
URI = "data:image/png;base64," + base64.b64encode(BLUE).decode()
PLAIN = [
    {"id": "a", "prompt": "Which colour?", "image": "red.png", "answer": "red", "topic": "colour"},
    {"id": "b", "prompt": "Und hier?", "image": URI, "answer": "3", "language": "de"},
    {"id": "c", "prompt": "How many legs has a spider?", "image": None, "answer": None},
]


def read(source: Source, columns: dict[str, list[str]] | None = None) -> list[Example]:
    examples = []
    for row in source.rows():
        if isinstance(row, InputError):
            raise row
        examples.append(to_example(row, columns))
    return examples


def example(**values: Any) -> Example:
    return to_example(SourceRow("f:1", {"prompt": "?", **values}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "red.png").write_bytes(RED)
    lines = "".join(json.dumps(row) + "\n" for row in PLAIN)
    (tmp_path / "d.jsonl").write_text(lines + "\n  \n")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "windows.jsonl").write_text(lines, encoding="utf-8-sig", newline="\r\n")
    names = sorted({name for row in PLAIN for name in row})
    with (tmp_path / "d.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(PLAIN)
    parquet.write_table(
        pa.Table.from_pylist(PLAIN, pa.schema([(n, pa.string()) for n in names])), tmp_path / "d.parquet"
    )
    return tmp_path


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "windows.jsonl", "d.csv", "d.parquet"])
def test_every_format_gives_the_same_examples(folder: Path, name: str) -> None:
    source = Source(str(folder / name))
    assert source.count() == 3
    one, two, three = read(source)
    assert (one.id, one.prompt, one.answers, one.topic) == ("a", "Which colour?", ("red",), "colour")
    assert one.images == (str(folder / "red.png"),)
    assert parse(one.prompt, list(one.images)).pictures[0].image.getpixel((0, 0)) == (255, 0, 0)
    assert two.images == (URI,)
    assert (two.answers, two.language) == (("3",), "de")
    assert (three.images, three.answers, three.caption) == ((), (), None)
    assert one.place.startswith(str(folder / name))


def hub_set() -> Any:
    kinds = datasets.Features(
        {
            "question": datasets.Value("string"),
            "image": datasets.Image(),
            "more": datasets.List(datasets.Image()),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    picture = {"bytes": RED, "path": None}
    columns = {
        "question": ["one?", "two?", "broken?"],
        "image": [picture, None, {"bytes": b"no picture", "path": None}],
        "more": [[], [picture, {"bytes": BLUE, "path": None}], []],
        "label": [1, 0, 1],
    }
    return datasets.Dataset.from_dict(columns, features=kinds)


@pytest.mark.parametrize("form", ["saved", "saved splits", "parquet folder"])
def test_hugging_face_data_sets(tmp_path: Path, form: str) -> None:
    found, split = hub_set(), None
    if form == "saved":
        found.save_to_disk(tmp_path / "d")
    else:
        split = "test"
        if form == "saved splits":
            datasets.DatasetDict({"train": found, "test": found}).save_to_disk(tmp_path / "d")
        else:
            (tmp_path / "d").mkdir()
            found.to_parquet(tmp_path / "d" / "test.parquet")
        with pytest.raises(InputError, match="splits"):
            list(Source(str(tmp_path / "d")).rows())
    source = Source(str(tmp_path / "d"), split)
    assert source.count() in (3, None)
    columns = parse_columns("prompt=question,answer=label,images=image,images=more")
    one, two, broken = read(source, columns)
    assert (one.prompt, one.answers) == ("one?", ("dog",))
    assert one.images == (RED,)
    assert two.images == (RED, BLUE)
    with pytest.raises(InputError, match="bytes"):  # alone: the rows around it are fine
        parse(broken.prompt, list(broken.images))


def test_a_row_keeps_its_id_where_it_moves() -> None:
    one = to_example(SourceRow("f:1", {"prompt": "p", "image": RED, "answer": "x"}))
    moved = to_example(SourceRow("f:9", {"prompt": "p", "image": RED, "answer": "x", "topic": "new"}))
    assert one.id == moved.id
    assert len(one.id) == 32
    others = [example(prompt="p", image=BLUE, answer="x"), example(prompt="p", image=RED, answer="y")]
    assert len({one.id, *(other.id for other in others)}) == 3
    assert example(id=7).id == "7"


def test_former_names_of_columns_are_read() -> None:
    old = example(prompt="p", answer="x", family="count", grade="easy")
    assert (old.topic, old.level) == ("count", "easy")
    both = example(prompt="p", answer="x", family="old", topic="new")
    assert both.topic == "new"
    mapped = to_example(
        SourceRow("f:1", {"prompt": "p", "answer": "x", "family": "old", "kind": "k"}), {"topic": ["kind"]}
    )
    assert mapped.topic == "k"


def test_options_become_lettered_lines_once() -> None:
    asked = example(prompt="Which?", options=["A. red", "blue"], answer="B")
    assert asked.options == ("red", "blue")
    assert asked.prompt == "Which?\nA. red\nB. blue"
    listed = example(prompt="Which?\n(A) red\n(B) blue", options=["red", "blue"])
    assert listed.prompt == "Which?\n(A) red\n(B) blue"
    assert example(options='["red", "blue"]').options == ("red", "blue")
    with pytest.raises(InputError, match="more than 26"):
        example(options=[f"o{i}" for i in range(27)])


def test_answers() -> None:
    assert example(answer=["red", "crimson"]).answers == ("red", "crimson")
    assert example(answer=3.0).answers == ("3",)
    assert example(answer=float("nan")).answers == ()
    assert example(answer=1, options=["red", "blue"]).answers == ("B",)  # a class label
    assert example(answer=3, options=[2, 3]).answers == ("3",)  # an option's own words
    with pytest.raises(InputError, match="no index of the 2"):
        example(answer=2, options=["red", "blue"])


def test_videos(folder: Path) -> None:
    row = SourceRow("f:1", {"prompt": "?", "video": ["red.png", {"bytes": BLUE, "path": None}]}, folder)
    frames = to_example(row).video
    assert frames == [str(folder / "red.png"), BLUE]
    assert len(parse("?", videos=[frames]).videos[0].frames) == 2
    assert to_example(SourceRow("f:1", {"prompt": "?", "video": "clip.mp4"}, folder)).video == str(folder / "clip.mp4")


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"prompt": None}, "'prompt' must be a string"),
        ({"prompt": "  "}, "not blank"),
        ({"image": 5}, "a picture must be"),
        ({"image": {"bytes": None, "path": None}}, "neither bytes nor path"),
        ({"answer": {"text": "x"}}, "'answer' must be a string or a number"),
        ({"caption": ["x"]}, "'caption' must be"),
    ],
)
def test_what_cannot_be_used_is_named(values: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=rf"^f:1: .*{why}"):
        example(**values)


def test_bad_lines_do_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b'{"prompt": "1"}\n{"prompt"\n[1]\n\xff\n{"prompt": "2"}\n')
    rows = list(Source(str(tmp_path / "d.jsonl")).rows())
    assert [isinstance(row, InputError) for row in rows] == [False, True, True, True, False]
    assert str(rows[1]).startswith(f"{tmp_path / 'd.jsonl'}:2: ")
    (tmp_path / "d.csv").write_text('prompt,answer\n1,2\n1,2,3\n"two\nlines",4\n')
    first, second, third = Source(str(tmp_path / "d.csv")).rows()
    assert isinstance(first, SourceRow)
    assert isinstance(second, InputError)
    assert str(second).startswith(f"{tmp_path / 'd.csv'}:3: ")
    assert isinstance(third, SourceRow)
    assert third.values["prompt"] == "two\nlines"


def test_sources_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "1"}\n' * 99)[:-10])
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    (tmp_path / "d.xml").write_text("<x/>")
    (tmp_path / "bad.csv").write_text('prompt\n"never closed')
    for name, why in (
        ("cut.jsonl.gz", "cannot be read"),
        ("bad.parquet", "cannot be read"),
        ("none.jsonl", "not found"),
        ("d.xml", "unknown kind"),
        ("bad.csv", "expected CSV"),
    ):
        with pytest.raises(InputError, match=why) as caught:
            list(Source(str(tmp_path / name)).rows())
        assert name in str(caught.value)


def test_columns() -> None:
    assert parse_columns("prompt=question, answer=label") == {"prompt": ["question"], "answer": ["label"]}
    for wrong in ("prompt", "promt=question", "prompt=", "answer=a,answer=b"):
        with pytest.raises(InputError):
            parse_columns(wrong)
    with pytest.raises(InputError, match="no column 'question'; found: prompt"):
        to_example(SourceRow("f:1", {"prompt": "?"}), {"prompt": ["question"]})
