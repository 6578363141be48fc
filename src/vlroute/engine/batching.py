"""Requests that are answered at the same time share forward passes: continuous batching (Yu et al. 2022, Orca).

A request reads its prompt alone and then joins the rows of its mode between two tokens; it leaves with its last. So
nobody waits for another's answer to end, except for a free row.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import torch

from vlroute.engine.generate import Generated, generated
from vlroute.engine.loading import ROWS
from vlroute.engine.pair import Checkpoint
from vlroute.engine.rows import Row, Rows, Writing, begin
from vlroute.errors import RouterClosedError
from vlroute.modes import Mode


class Batching:
    """Writes at most `rows` answers of each mode at a time; `generate` may be called from any thread.

    In float32 the tokens are those that each request would get alone. Last bits of the scores depend on the number of
    rows, as in every batching server, so in bfloat16 a near tie may fall otherwise.
    """

    def __init__(self, rows: int = 8) -> None:
        """SettingsError for fewer than one row."""
        self.rows = ROWS.read("rows", rows)
        self._writers: dict[Mode, _Writer] = {}
        self._closed = False
        self._lock = threading.Lock()

    def generate(self, writing: Writing) -> Generated:
        """As `generate.generate`; waits for a free row first.

        RouterClosedError after `close`.
        """
        if writing.cancel is not None and writing.cancel.is_set():
            return Generated((), "cancelled", 0.0, 0.0)
        writer = self._writer(writing.checkpoint)
        if not writer.enter(writing.cancel):
            return Generated((), "cancelled", 0.0, 0.0)
        try:
            began = time.perf_counter()
            with torch.inference_mode():
                row = begin(writing)
            if not row.reason:
                writer.write(row)
            return generated(row, began)
        finally:
            writer.leave()

    def waiting(self) -> dict[Mode, int]:
        """Requests that wait for a free row."""
        with self._lock:
            return {mode: writer.waiting for mode, writer in self._writers.items()}

    def close(self) -> None:
        """Cancel what is being written and end the threads."""
        with self._lock:
            self._closed = True
            writers = [*self._writers.values()]
        for writer in writers:
            writer.close()

    def _writer(self, checkpoint: Checkpoint) -> _Writer:
        with self._lock:
            if self._closed:
                raise RouterClosedError
            if checkpoint.mode not in self._writers:
                self._writers[checkpoint.mode] = _Writer(checkpoint, self.rows)
            return self._writers[checkpoint.mode]


class _Writer:
    """The thread that writes one checkpoint's rows, and the door before it."""

    def __init__(self, checkpoint: Checkpoint, most: int) -> None:
        self.rows = Rows(checkpoint)
        self.free = most
        self._line: deque[object] = deque()  # first come, first served
        self._joining: deque[Row] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"vlroute-{checkpoint.mode}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._line)

    def enter(self, cancel: threading.Event | None) -> bool:
        """Wait for a free row and take it; false if cancelled before."""
        ticket = object()
        with self._changed:
            self._line.append(ticket)
            try:
                while self._line[0] is not ticket or not self.free:
                    if cancel is not None and cancel.is_set():  # first, because closing the router cancels
                        return False
                    if self._closed:
                        raise RouterClosedError
                    self._changed.wait(0.05 if cancel is not None else None)
                self.free -= 1
                return True
            finally:
                self._line.remove(ticket)
                self._changed.notify_all()

    def leave(self) -> None:
        with self._changed:
            self.free += 1
            self._changed.notify_all()

    def write(self, row: Row) -> None:
        """Until `row` is written to its end."""
        with self._changed:
            if self._closed:
                row.reason = "cancelled"
                return
            self._joining.append(row)
            self._changed.notify_all()
        row.done.wait()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():  # a callback may close the router
            self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._joining or self.rows.rows or self._closed):
                    self._changed.wait()
                joining = [self._joining.popleft() for _ in range(len(self._joining))]
                closed = self._closed
            if closed:
                for row in [*self.rows.drop(), *joining]:
                    row.reason = "cancelled"
                    row.done.set()
                return
            try:
                while joining:
                    self.rows.join(joining[0])
                    joining.pop(0)
                ended = self.rows.step()
            except Exception as error:  # out of memory, say: of everyone, for nobody's row alone is to blame
                ended = [*self.rows.drop(), *joining]
                for row in ended:
                    row.error = error
            for row in ended:
                row.done.set()
