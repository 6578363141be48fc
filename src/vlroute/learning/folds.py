"""Folds: which records are predicted by the same model of a cross-validation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from vlroute.records import Record

#: What shares a fold: all records of the same "text" (prompt and caption), or only a "record" with itself.
Together = Literal["text", "record"]


def folds_of(records: Sequence[Record], folds: int, seed: int, *, together: Together) -> NDArray[np.int64]:
    """Assign each record to a fold; sets, and which modes are right, are distributed evenly.

    Args:
        records: The records.
        folds: Number of folds, at least 2. If there are fewer texts, there are fewer folds.
        seed: Seed of the assignment.
        together: With "text", equal texts share a fold: all predictions are for texts that training has not seen, and
            repeated texts do not improve the result. With "record" they do not: use this if the same few texts are
            repeated in use with other pictures.

    Returns:
        The fold of each record, `[n]`, from 0.
    """
    groups = _numbers([group_of(record) for record in records]) if together == "text" else None
    return stratified_folds(strata_of(records), folds, seed, groups)


def strata_of(records: Sequence[Record]) -> NDArray[np.int64]:
    """Number what is distributed evenly over the folds: the set, and which modes are right."""
    return _numbers([(one.set, one.instruct.correct >= 0.5, one.thinking.correct >= 0.5) for one in records])


def stratified_folds(
    strata: NDArray[np.int64], folds: int, seed: int, groups: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Assign each record to a fold.

    Args:
        strata: What is distributed evenly, `[n]`.
        folds: Number of folds, at least 2; fewer for fewer groups.
        seed: Seed of the assignment.
        groups: Records of one group share a fold; None: each is a group of its own.

    Returns:
        The fold of each record, `[n]`, from 0.
    """
    folds = min(folds, len(strata) if groups is None else int(groups.max()) + 1)
    if folds < 2:
        return np.zeros(len(strata), dtype=np.int64)
    if np.bincount(strata).max() < folds:  # too few of each kind for scikit-learn
        strata = np.zeros_like(strata)
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    fold = np.zeros(len(strata), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        splits = splitter(folds, shuffle=True, random_state=seed).split(strata, strata, groups)
        for number, (_, test) in enumerate(splits):
            fold[test] = number
    return fold


def group_of(record: Record) -> tuple[str, str | None]:
    """Return what records of the same text have in common: prompt and caption."""
    return record.prompt.strip(), record.caption


def _numbers(labels: Sequence[object]) -> NDArray[np.int64]:
    """Equal labels as equal numbers, from 0."""
    number = {label: position for position, label in enumerate(dict.fromkeys(labels))}
    return np.asarray([number[label] for label in labels], dtype=np.int64)
