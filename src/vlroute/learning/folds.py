"""The training matrix, and which records are trained on together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from vlroute.decision.features import DENSE, RequestEncoder
from vlroute.records import Record

Values = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]
Dense = NDArray[np.float32]

#: What shares a fold: all records of the same "text" (prompt and caption), or only a "record" with itself.
Together = Literal["text", "record"]


def folds_of(records: Sequence[Record], folds: int, seed: int, *, together: Together) -> Indices:
    """The fold of each record, int64 `[n]`, 0 … folds - 1.

    With "text" each prediction is for a text that training has not seen: repeated texts cannot flatter the result.
    With "record" they may be seen: right where the same few texts really come again, with other pictures. Sets, and
    within them which mode is right, are spread evenly.
    """
    rng = np.random.default_rng(seed)
    groups: dict[Any, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(group_of(record) if together == "text" else index, []).append(index)
    strata: dict[tuple[str, bool, bool], list[list[int]]] = {}
    for members in groups.values():
        first = records[members[0]]
        stratum = (first.set, first.instruct.correct >= 0.5, first.thinking.correct >= 0.5)
        strata.setdefault(stratum, []).append(members)
    fold = np.zeros(len(records), dtype=np.int64)
    position = 0
    for stratum in sorted(strata):
        for chosen in rng.permutation(len(strata[stratum])):
            fold[strata[stratum][chosen]] = position % folds
            position += 1
    return fold


def group_of(record: Record) -> tuple[str, str | None]:
    """What records of the same text have in common: prompt and caption."""
    return record.prompt.strip(), record.caption


@dataclass
class Design:
    """The training matrix: a captioned record counts half with, half without its caption, any other once.

    So the heads learn both conditions. `matrix`: csr `[m, width]`; `uncrossed`: the same, crosses set to
    zero; `dense`: plain numbers and embedding, float32 `[m, d]`, and `embedding`, its last columns; `owner`: row ->
    record; `given`: record -> its row as it is; `captioned`: row -> whether its caption is there; `right` `[m, 2]`:
    how right both modes were, 0 to 1; `weight`: row -> 1/2 or 1.
    """

    encoder: RequestEncoder
    records: Sequence[Record]
    matrix: sparse.csr_matrix = field(init=False)
    uncrossed: sparse.csr_matrix = field(init=False)
    dense: Dense = field(init=False)
    owner: Indices = field(init=False)
    given: Indices = field(init=False)
    captioned: Mask = field(init=False)
    right: Values = field(init=False)
    weight: Values = field(init=False)

    def __post_init__(self) -> None:
        owner, features = [], []
        for index, record in enumerate(self.records):
            rows = self.encoder.encode_both(record.prompt, record.caption)
            owner += [index] * len(rows)
            features += rows
        starts = np.cumsum([0, *(len(f.columns) for f in features)])
        columns = np.concatenate([f.columns for f in features])
        values = np.concatenate([f.values for f in features]).astype(np.float64)
        self.matrix = sparse.csr_matrix((values, columns, starts), shape=(len(features), self.encoder.width))
        kept = np.ones(self.encoder.width)
        kept[self.encoder.crossed_columns] = 0
        self.uncrossed = (self.matrix @ sparse.diags_array(kept)).tocsr()
        self.uncrossed.eliminate_zeros()
        self.dense = np.stack([f.dense for f in features])
        self.owner = np.asarray(owner, dtype=np.int64)
        self.given = np.unique(self.owner, return_index=True)[1]
        self.captioned = np.asarray([f.captioned for f in features])
        right = [(float(record.instruct.correct), float(record.thinking.correct)) for record in self.records]
        self.right = np.asarray(right)[self.owner]
        self.weight = 1.0 / np.bincount(self.owner)[self.owner]

    @property
    def embedding(self) -> Dense:
        return self.dense[:, len(DENSE) :]
