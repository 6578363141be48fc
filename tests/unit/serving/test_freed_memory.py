"""Memory that large requests have freed is returned to the system, and that of small ones is kept."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import threading

import pytest
from training.chaos.media import resident

from vlroute.serving import freed_memory
from vlroute.serving.freed_memory import LARGE, FreedMemory

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc"
)
BLOCKS, BLOCK = 1000, 100_000
FREED = BLOCKS * BLOCK / 2**20


def memory_of_a_thread() -> list[bytes]:
    """Fill and free the arena of a thread, except for some blocks, so that the arena does not shrink by itself."""
    kept: list[bytes] = []

    def work() -> None:
        blocks = [b"x" * BLOCK for _ in range(BLOCKS)]
        kept.extend(blocks[::100])
        kept.append(blocks[-1])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return kept


def pause(memory: FreedMemory) -> None:
    async def work() -> None:
        task = asyncio.create_task(memory.return_to_system())
        await asyncio.sleep(0.5)
        task.cancel()

    asyncio.run(work())


def test_only_large_requests_return_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory, "PAUSE_SECONDS", 0.01)
    memory = FreedMemory()
    kept = memory_of_a_thread()
    full = resident(os.getpid())
    memory.add(LARGE - 1)
    pause(memory)
    assert resident(os.getpid()) > full - 0.2 * FREED
    memory.add(LARGE)
    pause(memory)
    assert resident(os.getpid()) < full - 0.6 * FREED
    assert all(len(block) == BLOCK for block in kept)
