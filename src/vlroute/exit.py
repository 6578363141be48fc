"""Threads that must end before the interpreter does.

The interpreter stops daemon threads when it ends. A thread that is inside torch then, even to free its last tensors,
aborts the process.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from weakref import WeakKeyDictionary

#: Maximum time that the end of the program waits for a thread.
EXIT_SECONDS = 10.0
# a thread is kept alive until it has freed what it works with, which may be long after its last statement
_threads: WeakKeyDictionary[threading.Thread, Callable[[], object]] = WeakKeyDictionary()


def end_at_exit(thread: threading.Thread, end: Callable[[], object]) -> None:
    """End a thread when the program ends, and wait up to `EXIT_SECONDS` for it.

    Args:
        thread: A thread that was not started.
        end: Makes the thread end, without waiting for it. It must not refer to the thread.
    """
    _threads[thread] = end


@atexit.register
def _end_threads() -> None:
    threads = [*_threads.items()]
    for _, end in threads:
        end()
    for thread, _ in threads:
        if thread.is_alive():
            thread.join(EXIT_SECONDS)
