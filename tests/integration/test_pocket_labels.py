"""Labels of the pocket pair: records of two parts, a stopped run that continues, and the probe's redrawn pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from training.pocket.label import label_part, requests
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
