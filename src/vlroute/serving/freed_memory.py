"""Returns freed memory to the system after large requests."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import sys
import threading
from collections.abc import Callable

from vlroute.serving.settings import MiB

log = logging.getLogger("vlroute")
#: A request that needed less reuses memory that is free already.
LARGE = 16 * MiB
#: Of a decoded picture or frame in Pillow, which stores RGB in four bytes.
BYTES_PER_PIXEL = 4
PAUSE_SECONDS = 5.0
#: A pass may come before the last references to the memory of a request are gone.
_PASSES = 2


class FreedMemory:
    """Returns the memory that large requests have freed to the system, a few seconds after their end. Thread-safe.

    glibc keeps freed memory for later allocations, in up to eight arenas per core: each thread that decodes a large
    picture leaves one that is as large as its pictures were. `malloc_trim` returns the free pages of all arenas. It is
    called only after large requests, because the next allocation of a returned page takes longer.

    Attributes:
        trim: `malloc_trim`; None with other allocators (macOS, Windows, musl), where nothing is done.
    """

    def __init__(self) -> None:
        self.trim: Callable[[int], int] | None = None
        if sys.platform == "linux":
            self.trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # it runs without the GIL
        self._passes = 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        """Note that a request has ended.

        Args:
            size: Bytes of its body and of its decoded pictures and videos.
        """
        if size >= LARGE:
            with self._lock:
                self._passes = _PASSES

    async def return_to_system(self) -> None:
        """Return freed memory at intervals, until cancelled."""
        while self.trim is not None:
            await asyncio.sleep(PAUSE_SECONDS)
            with self._lock:
                due, self._passes = self._passes > 0, max(self._passes - 1, 0)
            if due:
                await asyncio.to_thread(self.trim, 0)
                log.debug("memory of large requests was returned to the system")
