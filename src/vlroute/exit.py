"""Threads that must end before the interpreter does.

The interpreter stops daemon threads when it ends. If such a thread is executing code of torch at that moment, even only
to free its last tensors, the process is aborted.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from weakref import WeakKeyDictionary

#: Maximum time to wait for each thread at the end of the program.
EXIT_SECONDS = 10.0
# weak keys instead of removal by the thread: it may still free tensors after its last statement
_threads: WeakKeyDictionary[threading.Thread, Callable[[], object]] = WeakKeyDictionary()


def end_at_exit(thread: threading.Thread, end: Callable[[], object]) -> None:
    """End a thread when the program ends, and wait up to `EXIT_SECONDS` for it.

    Args:
        thread: A thread that is not started yet.
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
