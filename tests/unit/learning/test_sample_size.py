"""How many records an interval needs, and learning curves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.synthetic_records import draw_records
from vlroute.errors import InputError
from vlroute.learning.intervals import Sampling
from vlroute.learning.sample_size import Needed, learning_curve, records_for_area, records_for_width


def test_half_the_width_needs_four_times_the_records() -> None:
    assert records_for_width((1.0, 5.0), 200, 2.0) == Needed(200, 4.0, 600)
    assert records_for_width((1.0, 5.0), 200, 4.0).more == 0
    assert records_for_width((1.0, 5.0), 200, 9.0).more == 0
    for width in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="positive"):
            records_for_width((1.0, 5.0), 200, width)
    assert records_for_width((1.0, 5.0), 200, 0.04).more == 200 * (10_000 - 1)
    for width in (0.039, 1e-9, 5e-324):
        with pytest.raises(InputError, match="less than a hundredth of the present one, 4, and needs more than 10,000"):
            records_for_width((1.0, 5.0), 200, width)


def test_the_estimate_holds_for_the_intervals_of_means() -> None:
    """From 300 of 3000 records: so many more that the interval of all of them has the width that it really has."""
    values = np.random.default_rng(0).normal(size=3000)
    few, many = (Sampling(n).mean(values[:n]) for n in (300, 3000))
    assert few is not None
    assert many is not None
    needed = records_for_width(few, 300, many[1] - many[0])
    assert 300 + needed.more == pytest.approx(3000, rel=0.15)


def test_a_learning_curve_rises_where_there_is_something_to_learn() -> None:
    _, records = draw_records(600)
    calls = []
    small, large = learning_curve(records, [24, 300], folds=2, together="record", advance=lambda: calls.append(1))
    assert (small.records, large.records, len(calls)) == (24, 300, 4)
    assert large.area > small.area
    for point in (small, large):
        assert point.interval is not None
        assert point.interval[0] < point.area < point.interval[1]
    assert learning_curve(records, [24], folds=2, together="record")[0] == small


@pytest.mark.parametrize(
    ("count", "sizes"), [(31, [20]), (60, [40]), (120, [50, 80]), (400, [50, 100, 266]), (600, [50, 100, 200, 400])]
)
def test_the_default_sizes_follow_from_the_number_of_records(count: int, sizes: list[int]) -> None:
    _, records = draw_records(count)
    assert [point.records for point in learning_curve(records, folds=3, together="record")] == sizes


def test_too_few_records_for_any_size_are_named() -> None:
    _, records = draw_records(60)
    with pytest.raises(InputError, match="0 records are too few for a learning curve"):
        learning_curve([])
    with pytest.raises(InputError, match=r"29 records are too few .*: only 19 are outside"):
        learning_curve(records[:29], folds=3, together="record")
    same = [replace(record, prompt="What is shown?", caption=None) for record in records]
    with pytest.raises(InputError, match="60 records with 1 different texts are too few for a learning curve"):
        learning_curve(same)


def test_sizes_that_the_records_do_not_allow_are_refused() -> None:
    _, records = draw_records(90)
    for size in (10, 61):
        with pytest.raises(InputError, match=f"from 20 to 60 for 90 records, not {size}"):
            learning_curve(records, [30, size], folds=3, together="record")


def test_the_records_for_an_area() -> None:
    _, records = draw_records(60)
    now, needed = records_for_area(records, 1.0, together="record")
    assert now.interval is not None
    assert needed.width == now.interval[1] - now.interval[0]
    assert needed.more == math.ceil(60 * needed.width**2) - 60
    with pytest.raises(InputError, match="49 records are too few"):
        records_for_area(records[:49], 1.0)
