"""What a batch may be made of, and what a spreadsheet makes of its results."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.stored import answer
from vlroute.errors import UnreadableMediaError
from vlroute.inputs.limits import Limits
from vlroute.inputs.media import FrameSampling
from vlroute.serving.ui import batch_table, components
from vlroute.serving.ui.batch import Result, as_csv, summarize
from vlroute.serving.ui.batch_table import NO_PICTURES, Mapping, Table, read_table
from vlroute.serving.ui.components import FEW, Pace, load_files
from vlroute.serving.ui.problems import PageError, error_text
from vlroute.serving.ui.texts import TEXTS
from vlroute.serving.ui.tradeoff import PRICES, nearest

TABLE = "prompt,image\nWhat?,a.png\n"


def packed(path: Path, **members: str | bytes) -> str:
    """A zip; "__" in a name stands for a slash."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return str(path)


def test_a_table_and_a_zip_or_one_zip(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(TABLE)
    apart = read_table([str(file), packed(tmp_path / "1.zip", **{"a.png": b"A"})])
    together = read_table([packed(tmp_path / "2.zip", **{"t.csv": TABLE, "a.png": b"A"})])
    for table in (apart, together):
        assert table.rows == (("What?", "a.png"),)
        assert table.propose() == Mapping(0, 1)
        assert table.picture("a.png", 9) == b"A"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", "\ufeffQuestion , Picture\n问？,a.png\n".encode()),
        ("t.csv", "question,picture\n问？,a.png\n".encode("gb18030")),
        ("t.jsonl", b'{"prompt": "\\u95ee\xef\xbc\x9f", "image": "a.png"}\n\n'),
    ],
)
def test_tables_as_people_save_them(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    table = read_table([str(tmp_path / name)])
    assert table.rows == (("问？", "a.png"),)
    assert table.propose() == Mapping(0, 1)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.png": b""}, "exactly one table"),
        ({"t.csv": TABLE, "u.csv": TABLE}, "exactly one table"),
        ({"t.csv": "prompt,image\n"}, "no rows"),
        ({"t.csv": ""}, "no column names"),
        ({"t.csv": "prompt,id,id\na,1,2\n"}, "several columns of the same name: id"),
        ({"t.csv": "prompt,id\na,1\nb,1,2\n"}, "line 3: 3 values, but the table has 2 columns"),
        ({"t.csv": b"prompt\n\xff\xff\xff"}, "not text"),
        ({"t.jsonl": "[1]"}, "expected a JSON object"),
        ({"t.jsonl": "[" * 100_000}, "not JSON"),
        ({"t.csv": 'prompt\n"What" now?\n'}, "cannot be read as CSV"),
    ],
)
def test_what_is_no_batch(tmp_path: Path, members: dict[str, str | bytes], said: str) -> None:
    with pytest.raises(PageError, match=said) as refused:
        read_table([packed(tmp_path / "b.zip", **members)])
    assert re.search("[\u4e00-\u9fff]", error_text(refused.value, TEXTS["zh"]))


def test_no_zip_at_all(tmp_path: Path) -> None:
    (tmp_path / "b.zip").write_bytes(b"PK no")
    with pytest.raises(PageError, match="cannot be read as a zip"):
        read_table([str(tmp_path / "b.zip")])


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = packed(tmp_path / "b.zip", **{"t.csv": TABLE, "a.png": bytes(10_000_000)})
    assert len(read_table([bomb]).picture("a.png", 1000)) == 1001  # no more is unpacked
    rows = packed(tmp_path / "r.zip", **{"t.csv": "prompt\n" + "x\n" * (batch_table.MAX_ROWS + 1)})
    with pytest.raises(PageError, match="rows"):
        read_table([rows])
    for bound, least in (("MAX_MEMBERS", 1), ("MAX_UNPACKED_BYTES", 1000), ("MAX_TABLE_BYTES", 5)):
        with monkeypatch.context() as patched:
            patched.setattr(batch_table, bound, least)
            with pytest.raises(PageError):
                read_table([bomb])


def test_names_reach_only_what_was_uploaded(tmp_path: Path) -> None:
    outside = tmp_path / "secret.png"
    outside.write_bytes(b"secret")
    job = read_table(
        [packed(tmp_path / "b.zip", **{"t.csv": TABLE, "x__a.png": b"X", "y__a.png": b"Y", "__b.png": b"B"})]
    )
    assert job.picture("x/a.png", 9) == b"X"
    assert job.picture("y\\a.png", 9) == b"Y"
    assert job.picture("b.png", 9) == b"B"
    for name in (str(outside), "../secret.png", "secret.png", "data:image/png;base64,AAAA"):
        with pytest.raises(PageError, match="not uploaded"):
            job.picture(name, 9)
    with pytest.raises(PageError, match="more than once"):
        job.picture("a.png", 9)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["b.zip", "secret.png"]


def test_a_damaged_member_is_the_error_of_its_row(tmp_path: Path) -> None:
    path = Path(packed(tmp_path / "b.zip", **{"t.csv": TABLE, "a.png": bytes(range(256)) * 40}))
    data = bytearray(path.read_bytes())
    at = data.index(b"a.png") + 20
    data[at : at + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(PageError, match="cannot be unpacked"):
        read_table([str(path)]).picture("a.png", 10_000)


def table(*columns: str, rows: list[tuple[str, ...]], pictures: tuple[str, ...] = ()) -> Table:
    return Table(columns, tuple(rows), dict.fromkeys(pictures, lambda most: b""))


@pytest.mark.parametrize(
    ("found", "mapping"),
    [
        (table("id", "Prompt", "image", rows=[("1", "a", "b.png")]), Mapping(1, 2)),
        (table("question", "shot", rows=[("a", "b.png")], pictures=("b.png",)), Mapping(0, 1)),  # by its values
        (table("prompt", "image", "file", rows=[("a", "", "b.png")], pictures=("b.png",)), Mapping(0, 2)),
        (table("prompt", "shot", rows=[("a", "b.png")], pictures=("c.png",)), Mapping(0, None)),
        (table("prompt", "shot", rows=[("a", "b")]), Mapping(0, NO_PICTURES)),
        (table("words", "image", rows=[("a", "b.png")]), Mapping(None, 1)),
    ],
)
def test_columns_are_found_or_left_to_the_visitor(found: Table, mapping: Mapping) -> None:
    assert found.propose() == mapping
    if None in (mapping.prompt, mapping.image):
        with pytest.raises(PageError, match="Columns: "):
            found.checked(Mapping(None, None))
        assert found.checked(Mapping(0, NO_PICTURES)) == Mapping(0, NO_PICTURES)
    else:
        assert found.checked(Mapping(None, None)) == mapping


def test_one_column_cannot_hold_both() -> None:
    with pytest.raises(PageError, match="cannot hold both"):
        table("prompt", "image", rows=[("a", "b")]).checked(Mapping(0, 0))


@pytest.mark.parametrize("language", TEXTS)
def test_the_summary_counts_pictures_and_names_other_columns(language: str) -> None:
    found = table("prompt", "image", "<b>", rows=[("a", "b.png", "1"), ("c", "", "2")], pictures=("x.png",))
    shown = summarize(found, Mapping(0, 1), TEXTS[language])
    assert TEXTS[language].rows_with_pictures.format(rows=2, pictures=1) in shown
    assert TEXTS[language].missing_pictures.format(count=1, examples="b.png") in shown
    assert TEXTS[language].passed_through.format(columns="&lt;b&gt;") in shown


@pytest.mark.parametrize(
    "text", ["=1+1", "+A1", "-A1", "@SUM(1)", "  =1", "\t=1", "\r=1", "\uff1d1+1", "\uff0b1", "\uff0dA1", "\uff20A"]
)
def test_formulas_are_text(text: str) -> None:
    said = replace(answer(), text=text)
    data = as_csv(table("prompt", rows=[(text,)]), [Result(text, "", said)], TEXTS["en"])
    [row] = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    assert row["prompt"] == row["answer"] == f"'{text}"


def test_all_columns_are_kept_with_the_results() -> None:
    found = table("label", "问题", "answer", rows=[("-5", "多少？", " gold "), ("7", "哪里？", ""), ("9", "谁？", "")])
    said, missing = (
        replace(answer(), text="-5"),
        UnreadableMediaError("bytes cannot be decoded: x; convert it to one of PNG"),
    )
    data = as_csv(found, [Result("多少？", "", said), Result("哪里？", "", error=missing)], TEXTS["zh"])
    assert data.startswith(b"\xef\xbb\xbf")
    first, second = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))  # the third row was not answered
    assert list(first) == ["label", "问题", "answer", "mode", "vlroute_answer", "gain", "seconds", "error"]
    assert list(first.values()) == ["-5", "多少？", " gold ", "instruct", "-5", "0.3", "1.2", ""]
    assert (second["label"], second["mode"], second["gain"]) == ("7", "", "")
    assert second["error"].startswith("图片无法解码")


def test_both_languages_say_all_and_the_same_numbers() -> None:
    def holes(value: object) -> list[str]:
        return sorted(re.findall(r"\{(\w*)", json.dumps(value, ensure_ascii=False)))

    both = vars(TEXTS["en"]), vars(TEXTS["zh"])
    assert both[0].keys() == both[1].keys()
    for name, english in both[0].items():
        chinese = both[1][name]
        assert type(english) is type(chinese)
        if isinstance(english, dict) and name not in ("errors", "translations"):
            assert english.keys() == chinese.keys()
            for key in english:
                assert holes(english[key]) == holes(chinese[key]), key
        elif isinstance(english, list):
            assert len(english) == len(chinese)
        elif isinstance(english, str):
            assert english, name
            assert holes(english) == holes(chinese), name


def test_the_slider_has_every_price() -> None:
    assert PRICES[0] == 0
    assert list(PRICES) == sorted(set(PRICES))
    assert PRICES[nearest(0.1)] == 0.1
    assert nearest(0) == 0
    assert nearest(1000) == len(PRICES) - 1


def test_files_that_are_no_longer_there(tmp_path: Path) -> None:
    """They are kept for a day, and a page may be open for longer."""
    table, gone = tmp_path / "t.csv", r"is no longer on the server.*Upload it again"
    table.write_text(TABLE)
    for name in ("gone.csv", "gone.zip"):
        with pytest.raises(PageError, match=rf"{name} {gone}"):
            read_table([str(tmp_path / name)])
    with pytest.raises(PageError, match=rf"a.png {gone}"):
        read_table([str(table), str(tmp_path / "a.png")]).picture("a.png", 1000)
    with pytest.raises(PageError, match=rf"a.png {gone}"):
        load_files([str(tmp_path / "a.png")], Limits(), FrameSampling())


def test_the_more_is_drawn_the_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(components.time, "monotonic", lambda: now)
    with ExitStack() as others, Pace(0.1) as pace:
        assert pace.is_due()
        assert not pace.is_due()
        now += 0.11
        assert pace.is_due()
        for _ in range(4 * FEW - 1):
            others.enter_context(Pace())
        now += 0.11
        assert not pace.is_due()
        now += 0.3
        assert pace.is_due()
        others.close()
        now += 0.11
        assert pace.is_due()
