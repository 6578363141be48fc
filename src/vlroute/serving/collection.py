"""Garbage collection that does not hold up a server."""

from __future__ import annotations

import gc


def spare_what_is_loaded() -> None:
    """Have Python's garbage collector leave alone all that is in memory now: modules, models and their libraries.

    It would look through half a million objects anew every few hundred requests, and nobody is answered meanwhile. For
    processes that do nothing but serve.
    """
    gc.collect()  # what is garbage now would stay for good
    gc.freeze()
