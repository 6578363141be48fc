"""Folds: equal texts together, balanced, possible with few records."""

from __future__ import annotations

import dataclasses

import numpy as np

from tests.synthetic_records import draw_records
from vlroute.learning.folds import folds_of


def test_folds_keep_equal_texts_together_and_are_balanced() -> None:
    _, records = draw_records(300)
    fold = folds_of(records, 5, seed=0, together="text")
    of_text: dict[tuple[str, str | None], set[int]] = {}
    for record, number in zip(records, fold.tolist(), strict=True):
        of_text.setdefault((record.prompt, record.caption), set()).add(number)
    assert all(len(numbers) == 1 for numbers in of_text.values())
    assert set(fold.tolist()) == set(range(5))
    alone = folds_of(records, 5, seed=0, together="record")
    assert any(len({int(alone[i]) for i in range(300) if records[i].prompt == r.prompt}) > 1 for r in records[:5])
    distinct = [dataclasses.replace(record, prompt=f"{record.prompt} {record.id}") for record in records]
    assert np.ptp(np.bincount(folds_of(distinct, 5, seed=0, together="text"))) <= 3
    one, other = (folds_of(distinct, 5, seed=seed, together="text").tolist() for seed in (0, 1))
    assert one != other


def test_which_modes_are_right_is_spread_evenly() -> None:
    _, records = draw_records(300)
    records = [dataclasses.replace(record, prompt=f"{record.prompt} {record.id}") for record in records]
    gain = np.asarray([float(r.thinking.correct) - float(r.instruct.correct) for r in records])
    fold = folds_of(records, 5, seed=0, together="text")
    assert np.ptp([(gain[fold == number] > 0).sum() for number in range(5)]) <= 1


def test_fewer_texts_than_folds() -> None:
    _, records = draw_records(40)
    alike = [dataclasses.replace(record, prompt="Add.", caption=None) for record in records]
    assert not folds_of(alike, 5, seed=0, together="text").any()
    alike[::2] = [dataclasses.replace(record, prompt="Read.") for record in alike[::2]]
    fold = folds_of(alike, 5, seed=0, together="text")
    assert fold[0] != fold[1]
    assert sorted(np.bincount(fold)) == [20, 20]
    sets = [dataclasses.replace(record, set=record.id) for record in records]  # each kind of record occurs once
    assert np.bincount(folds_of(sets, 5, seed=0, together="record")).tolist() == [8] * 5
