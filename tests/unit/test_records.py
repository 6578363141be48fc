"""Records on disk: both forms, whole writes, safe appends, errors that name the line."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest

from vlroute.errors import InputError
from vlroute.records import Outcome, Record, read_records, write_records

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

ONE = Record("a", "图？", "ein Bild", Outcome(True, 3, 0.5, 0.1), Outcome(0.25), "s", "f", "hard", "zh")
TWO = Record("b", "Read it.", None, Outcome(False, 0, 0.0), Outcome(True, 70, 2.5), tools="result")


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    assert write_records(tmp_path / name, [ONE, TWO]) == 2
    assert list(read_records(tmp_path / name)) == [ONE, TWO]
    first = (tmp_path / name).read_bytes()
    write_records(tmp_path / name, [ONE, TWO])
    assert (tmp_path / name).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_records(tmp_path / "r.jsonl", [ONE])
    with pytest.raises(ZeroDivisionError):
        write_records(tmp_path / "r.jsonl", (1 / 0 for _ in "x"))  # type: ignore[misc]
    assert list(read_records(tmp_path / "r.jsonl")) == [ONE]


def test_routing_records_are_read(tmp_path: Path) -> None:
    row = {
        "id": "x", "set": "s", "topic": "f", "prompt": "p", "caption": " ",
        "cheap": {"correct": True, "chars": 9}, "strong": {"correct": False, "chars": None},
    }  # fmt: skip
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n\n")
    (record,) = read_records(tmp_path / "r.jsonl")
    assert record == Record("x", "p", None, Outcome(True, 3), Outcome(False), "s", "f")


def test_former_names_of_fields_are_read(tmp_path: Path) -> None:
    row = {**GOOD, "family": "f", "grade": "hard", "pair": "p", "fingerprint": "1"}
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    (record,) = read_records(tmp_path / "r.jsonl")
    assert (record.topic, record.level, record.model, record.fingerprint) == ("f", "hard", "p", "1")
    write_records(tmp_path / "new.jsonl", [record])
    assert not {"family", "grade", "pair"} & json.loads((tmp_path / "new.jsonl").read_text()).keys()
    assert list(read_records(tmp_path / "new.jsonl")) == [record]


def test_several_files_are_one_stream(tmp_path: Path) -> None:
    write_records(tmp_path / "1.jsonl", [ONE])
    write_records(tmp_path / "2.jsonl.gz", [TWO])
    assert list(read_records(tmp_path / "1.jsonl", tmp_path / "2.jsonl.gz")) == [ONE, TWO]


def test_appending(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write_records(path, [ONE], append=True)
    write_records(path, [TWO], append=True)
    assert list(read_records(path)) == [ONE, TWO]


@pytest.mark.parametrize("cut", [1, 30])
def test_appending_after_a_torn_line(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "r.jsonl"
    write_records(path, [ONE, TWO])
    path.write_bytes(path.read_bytes()[:-cut])
    three = Record("c", "p", None, Outcome(True), Outcome(True))
    write_records(path, [three], append=True)
    kept = [ONE, TWO] if cut == 1 else [ONE]  # only the line's end is lost: the record is whole
    assert list(read_records(path)) == [*kept, three]


def test_no_appending_to_gzip(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot append"):
        write_records(tmp_path / "r.jsonl.gz", [ONE], append=True)


GOOD = {"id": "x", "prompt": "p", "instruct": {"correct": True}, "thinking": {"correct": True}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Expecting"),
        ("[1]", "expected a JSON object, found list"),
        (b"\xff\xff", "utf-8"),
        ({**GOOD, "thinking": None}, "expected the objects 'instruct' and 'thinking'"),
        ({key: GOOD[key] for key in ("prompt", "instruct", "thinking")}, "'id' is missing"),
        ({key: GOOD[key] for key in ("id", "instruct", "thinking")}, "'prompt' is missing"),
        ({**GOOD, "id": 7}, "'id' must be a string, not 7"),
        ({**GOOD, "id": ""}, "'id' must not be empty"),
        ({**GOOD, "prompt": None}, "'prompt' must be a string"),
        ({**GOOD, "caption": 1}, "'caption' must be a string or null"),
        ({**GOOD, "tools": "yes"}, "'tools' must be 'offered', 'result' or an empty string, not 'yes'"),
        ({**GOOD, "tools": ["offered"]}, "'tools' must be a string"),
        ({**GOOD, "instruct": {}}, "'correct' is missing in 'instruct'"),
        ({**GOOD, "instruct": {"correct": "yes"}}, "'instruct': 'correct' must be true, false or a number 0 to 1"),
        ({**GOOD, "thinking": {"correct": 1.5}}, "'thinking': 'correct' must be"),
        ({**GOOD, "thinking": {"correct": float("nan")}}, "'thinking': 'correct' must be"),
        ({**GOOD, "instruct": {"correct": 1, "tokens": -1}}, "'tokens' must be a whole number from 0"),
        ({**GOOD, "instruct": {"correct": 1, "tokens": 1.5}}, "'tokens' must be a whole number from 0"),
        ({**GOOD, "instruct": {"correct": 1, "seconds": "1"}}, "'seconds' must be a number from 0"),
        ({**GOOD, "instruct": {"correct": 1, "chars": "many"}}, "'chars' must be a number"),
        ({**GOOD, "id": "first"}, "id 'first' was already used in"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    path = tmp_path / "r.jsonl"
    text = line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
    path.write_bytes(json.dumps({**GOOD, "id": "first"}).encode() + b"\n" + text + b"\n")
    with pytest.raises(InputError, match=r"r\.jsonl:2: ") as raised:
        list(read_records(path))
    assert message in str(raised.value)


def test_an_id_may_not_come_twice_in_different_files(tmp_path: Path) -> None:
    for name in ("1.jsonl", "2.jsonl"):
        write_records(tmp_path / name, [ONE])
    with pytest.raises(InputError, match=r"2.jsonl:1: id 'a' was already used in .*1.jsonl:1"):
        list(read_records(tmp_path / "1.jsonl", tmp_path / "2.jsonl"))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not found"):
        list(read_records(tmp_path / "nowhere.jsonl"))
    whole = gzip.compress(json.dumps(GOOD).encode() * 100)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-10])
    with pytest.raises(InputError, match="cannot be read"):
        list(read_records(tmp_path / "cut.jsonl.gz"))
    (tmp_path / "plain.jsonl.gz").write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        list(read_records(tmp_path / "plain.jsonl.gz"))


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared routing records lie outside the repository")
@pytest.mark.parametrize(
    ("name", "count", "instruct", "thinking"),
    [("gsm8k", 1319, 0.638, 0.857), ("mmmu_pro", 1730, 0.417, 0.550), ("mathvista", 1000, 0.198, 0.348)],
)
def test_shared_records_are_read_as_they_are(name: str, count: int, instruct: float, thinking: float) -> None:
    records = list(read_records(DATA / f"{name}.jsonl.gz"))
    assert len(records) == count
    assert sum(record.instruct.correct for record in records) / count == pytest.approx(instruct, abs=5e-4)
    assert sum(record.thinking.correct for record in records) / count == pytest.approx(thinking, abs=5e-4)


def test_reading_streams(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(GOOD) + "\nbroken\n")
    assert [record.id for record in itertools.islice(read_records(path), 1)] == ["x"]
