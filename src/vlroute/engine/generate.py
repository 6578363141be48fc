"""One answer, generated token by token in the calling thread."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

import torch

from vlroute.engine.protocol import FinishReason
from vlroute.engine.rows import Row, Rows, Writing, begin


@dataclass(frozen=True, slots=True)
class Generated:
    """Token ids written (the end token left out), why writing ended, and seconds to the first token and after it."""

    ids: tuple[int, ...]
    finish_reason: FinishReason
    prefill_seconds: float
    decode_seconds: float


@torch.inference_mode()
def generate(writing: Writing) -> Generated:
    """Generate one answer in this thread, with the same steps as answers that share forward passes."""
    began = time.perf_counter()
    row = begin(writing)
    rows = Rows(writing.checkpoint)
    if not row.reason:
        rows.join(row)
    while not row.reason:
        rows.step()
    return generated(row, began)


def generated(row: Row, began: float) -> Generated:
    """What came of a row whose answer was begun at `began` (`time.perf_counter`). Raises what ended it, if it did."""
    if row.error is not None:
        raise row.error
    ended = time.perf_counter()
    first = row.first_at or ended
    return Generated(tuple(row.written), cast(FinishReason, row.reason), first - began, ended - first)
