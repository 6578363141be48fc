"""Labels of the pocket pair: records of two parts, a stopped run that continues, and the probe's redrawn pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from training.pocket.label import finished, label_part, requests
from training.pocket.probe import redraw

from vlroute import InputError, Router, read_records, write_records
from vlroute.files import shipped

SEED, COUNT = "labels test", 11


def part(number: int, partial: Path) -> list[str]:
    label_part(shipped("pocket"), COUNT, SEED, partial, number, 2)
    return [record.id for record in read_records(partial)]


def test_two_parts_hold_all_requests(router: Router, tmp_path: Path) -> None:
    ids = [f"{SEED}-{i:05d}" for i in range(COUNT)]
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    assert part(0, first) == ids[::2]
    assert part(1, second) == ids[1::2]
    records = sorted(read_records(first, second), key=lambda record: record.id)
    drawn = list(requests(COUNT, SEED))
    for record, request in zip(records, drawn, strict=True):
        assert record.prompt == request.conversation.prompt
        assert (record.topic, record.level) == (request.topic, request.level)
        assert bool(record.caption) == (request.topic != "text")
        assert record.fingerprint == router.identity.fingerprint
        assert (record.instruct.seconds or 0) > (record.instruct.prefill_seconds or 0) > 0
    pooled, captions = redraw(router, records, SEED)
    assert len(pooled) == len(captions) == sum(request.topic != "text" for request in drawn)
    with pytest.raises(InputError, match="label again"):
        redraw(router, records, "another")


def test_a_stopped_run_continues(tmp_path: Path) -> None:
    partial = tmp_path / "1.jsonl"
    ids = part(0, partial)
    kept = list(read_records(partial))[:2]
    write_records(partial, kept)
    assert part(0, partial) == ids
    assert list(read_records(partial))[:2] == kept
    write_records(partial, [replace(kept[0], fingerprint="0")])
    with pytest.raises(InputError, match="another pair"):
        part(0, partial)


def test_an_incomplete_last_line_is_dropped(tmp_path: Path) -> None:
    partial = tmp_path / "1.jsonl"
    ids = part(0, partial)
    complete = list(read_records(partial))
    lines = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join(lines[:3]) + lines[3][:40])
    assert [record.id for record in finished(partial)] == ids[:3]
    assert part(0, partial) == ids
    assert list(read_records(partial))[:3] == complete[:3]
    partial.write_bytes(lines[0][:40])
    assert finished(partial) == []


def test_records_of_other_requests_are_refused(tmp_path: Path) -> None:
    partial = tmp_path / "1.jsonl"
    part(0, partial)
    kept = list(read_records(partial))
    for others in (
        [replace(kept[0], prompt="another question")],
        [replace(kept[0], id="another seed-00000")],
        kept[1:],
        [*kept, replace(kept[-1], id=f"{SEED}-00012")],
    ):
        write_records(partial, others)
        with pytest.raises(InputError, match=r"other requests.*delete the file or give another --out"):
            part(0, partial)
        assert list(read_records(partial)) == others
