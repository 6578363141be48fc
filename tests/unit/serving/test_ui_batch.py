"""What a batch may be made of, and what a spreadsheet makes of its results."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from pathlib import Path

import pytest

from vlroute.errors import InputError, LimitError, UnreadableMediaError
from vlroute.serving.ui import batch as page_table
from vlroute.serving.ui.batch import BatchRow, Result, as_csv, read_job
from vlroute.serving.ui.components import TEXTS
from vlroute.serving.ui.tradeoff import PRICES, nearest

TABLE = "prompt,image\nWhat?,a.png\n"


def packed(path: Path, **members: str | bytes) -> str:
    """A zip; "__" in a name stands for a slash."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return str(path)


def test_a_table_and_a_zip_or_one_zip(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(TABLE)
    apart = read_job([str(table), packed(tmp_path / "1.zip", **{"a.png": b"A"})])
    together = read_job([packed(tmp_path / "2.zip", **{"t.csv": TABLE, "a.png": b"A"})])
    for job in (apart, together):
        assert job.rows == (BatchRow("What?", "a.png"),)
        assert job.picture("a.png", 9) == b"A"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", "\ufeffQuestion , Picture\n 问？,a.png\n".encode()),
        ("t.csv", "question,picture\n问？,a.png\n".encode("gb18030")),
        ("t.jsonl", b'{"prompt": "\\u95ee\xef\xbc\x9f", "image": "a.png"}\n\n'),
    ],
)
def test_tables_as_people_save_them(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert read_job([str(tmp_path / name)]).rows == (BatchRow("问？", "a.png"),)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.png": b""}, "exactly one table"),
        ({"t.csv": TABLE, "u.csv": TABLE}, "exactly one table"),
        ({"t.csv": "words,image\nWhat?,\n"}, "needs a column 'prompt'"),
        ({"t.csv": "prompt,image\n"}, "no rows"),
        ({"t.csv": b"prompt\n\xff\xff\xff"}, "not text"),
        ({"t.jsonl": "[1]"}, "expected an object"),
        ({"t.jsonl": "[" * 100_000}, "not JSON"),
        ({"t.csv": 'prompt\n"What" now?\n'}, "cannot be read as CSV"),
    ],
)
def test_what_is_no_batch(tmp_path: Path, members: dict[str, str | bytes], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_job([packed(tmp_path / "b.zip", **members)])


def test_no_zip_at_all(tmp_path: Path) -> None:
    (tmp_path / "b.zip").write_bytes(b"PK no")
    with pytest.raises(InputError, match="cannot be read as a zip"):
        read_job([str(tmp_path / "b.zip")])


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = packed(tmp_path / "b.zip", **{"t.csv": TABLE, "a.png": bytes(10_000_000)})
    assert len(read_job([bomb]).picture("a.png", 1000)) == 1001  # no more is unpacked
    rows = packed(tmp_path / "r.zip", **{"t.csv": "prompt\n" + "x\n" * (page_table.MAX_ROWS + 1)})
    with pytest.raises(LimitError, match="rows"):
        read_job([rows])
    for bound, least in (("MAX_MEMBERS", 1), ("MAX_UNPACKED_BYTES", 1000), ("MAX_TABLE_BYTES", 5)):
        with monkeypatch.context() as patched:
            patched.setattr(page_table, bound, least)
            with pytest.raises(LimitError):
                read_job([bomb])


def test_names_reach_only_what_was_uploaded(tmp_path: Path) -> None:
    outside = tmp_path / "secret.png"
    outside.write_bytes(b"secret")
    job = read_job(
        [packed(tmp_path / "b.zip", **{"t.csv": TABLE, "x__a.png": b"X", "y__a.png": b"Y", "__b.png": b"B"})]
    )
    assert job.picture("x/a.png", 9) == b"X"
    assert job.picture("y\\a.png", 9) == b"Y"
    assert job.picture("b.png", 9) == b"B"
    for name in (str(outside), "../secret.png", "secret.png", "data:image/png;base64,AAAA"):
        with pytest.raises(UnreadableMediaError, match="not uploaded"):
            job.picture(name, 9)
    with pytest.raises(UnreadableMediaError, match="more than once"):
        job.picture("a.png", 9)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["b.zip", "secret.png"]


def test_a_damaged_member_is_the_error_of_its_row(tmp_path: Path) -> None:
    path = Path(packed(tmp_path / "b.zip", **{"t.csv": TABLE, "a.png": bytes(range(256)) * 40}))
    data = bytearray(path.read_bytes())
    at = data.index(b"a.png") + 20
    data[at : at + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(UnreadableMediaError, match="cannot be unpacked"):
        read_job([str(path)]).picture("a.png", 10_000)


@pytest.mark.parametrize("text", ["=1+1", "+A1", "-A1", "@SUM(1)", "  =1", "\t=1", "\r=1"])
def test_formulas_are_text(text: str) -> None:
    [row] = csv.DictReader(io.StringIO(as_csv([Result(text, "", answer=text)]).decode("utf-8-sig"), newline=""))
    assert row["prompt"] == row["answer"] == f"'{text}"


def test_numbers_and_words_stay() -> None:
    results = [Result("多少？", "a.png", "instruct", "-5", -0.25, 1.5)]
    data = as_csv(results)
    assert data.startswith(b"\xef\xbb\xbf")
    [row] = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
    assert list(row.values()) == ["多少？", "a.png", "instruct", "-5", "-0.25", "1.5", ""]


def test_both_languages_say_all_and_the_same_numbers() -> None:
    def holes(value: object) -> list[str]:
        return sorted(re.findall(r"\{(\w*)", json.dumps(value, ensure_ascii=False)))

    both = vars(TEXTS["en"]), vars(TEXTS["zh"])
    assert both[0].keys() == both[1].keys()
    for name, english in both[0].items():
        chinese = both[1][name]
        assert type(english) is type(chinese)
        if isinstance(english, dict) and name != "errors":
            assert english.keys() == chinese.keys()
            for key in english:
                assert holes(english[key]) == holes(chinese[key]), key
        elif isinstance(english, str):
            assert english, name
            assert holes(english) == holes(chinese), name


def test_the_slider_has_every_price() -> None:
    assert PRICES[0] == 0
    assert list(PRICES) == sorted(set(PRICES))
    assert PRICES[nearest(0.1)] == 0.1
    assert nearest(0) == 0
    assert nearest(1000) == len(PRICES) - 1
