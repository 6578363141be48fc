"""Latency from records: with prefill times, by a fitted line, and assumed."""

from __future__ import annotations

import pytest

from vlroute.decision.latency import ASSUMED_PER_TOKEN
from vlroute.learning.assumptions import measure_latency
from vlroute.records import Outcome, Record


def timed(tokens: int, seconds: float, prefill: float | None) -> Outcome:
    return Outcome(True, tokens, seconds, prefill)


def test_pace_from_prefill_times() -> None:
    records = [
        Record(str(i), "p", None, timed(10, 1.5, 0.5), timed(i + 1, 0.2 + 0.03 * (i + 1), None)) for i in range(20)
    ]
    latency = measure_latency(records).to_dict()
    assert latency["per_token"]["instruct"] == pytest.approx(0.1)
    assert latency["prefill"]["instruct"] == pytest.approx(0.5)
    assert latency["per_token"]["thinking"] == pytest.approx(0.03)
    assert latency["prefill"]["thinking"] == pytest.approx(0.2)


def test_pace_is_assumed_where_nothing_was_timed() -> None:
    records = [Record("1", "p", None, Outcome(True, 5), Outcome(True, 300))]
    assert measure_latency(records).to_dict()["per_token"]["thinking"] == ASSUMED_PER_TOKEN


def test_pace_is_never_negative() -> None:
    records = [Record(str(i), "p", None, timed(i + 1, 5 - 0.1 * i, None), timed(5, 1, 2)) for i in range(9)]
    latency = measure_latency(records).to_dict()
    assert latency["per_token"] == {"instruct": 0, "thinking": 0}
