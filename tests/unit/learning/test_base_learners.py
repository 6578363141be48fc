"""Base learners: the training matrix, and logits of left-out rows."""

from __future__ import annotations

import dataclasses

import numpy as np

from tests.synthetic_records import draw_records
from vlroute.learning.base_learners import fit_right
from vlroute.learning.corpus import Corpus, Design
from vlroute.learning.folds import folds_of
from vlroute.records import Record


def design_of(records: list[Record]) -> Design:
    corpus, rows = Corpus(records), np.arange(len(records))
    return corpus.design(corpus.fit(rows), rows)


def test_a_captioned_record_is_trained_on_with_and_without_its_caption() -> None:
    _, records = draw_records(40)
    records[0] = dataclasses.replace(records[0], caption=None)
    design = design_of(records)
    assert design.owner[:3].tolist() == [0, 1, 1]
    assert design.captioned[:3].tolist() == [False, True, False]
    assert design.weight[:3].tolist() == [1, 0.5, 0.5]
    assert np.bincount(design.owner, weights=design.weight).tolist() == [1.0] * 40


def test_inner_folds_do_not_leak_labels() -> None:
    """Logits of left-out rows must not correlate with labels that were drawn at random."""
    _, records = draw_records(300)
    design = design_of(records)
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, (len(records), 2)).astype(float)[design.owner]
    fold = folds_of(records, 4, 0, together="record")[design.owner]
    unseen = fit_right(design.words, right, design.weight, fold, (0.3,)).unseen[design.given]
    assert abs(np.corrcoef(unseen[:, 0], right[design.given][:, 0])[0, 1]) < 0.2
