"""A proxy in front of a server that behaves badly on request: a fault of the network, or a server that hangs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

Fault = Literal["none", "silent", "stops", "slow", "closes"]
#: Bytes of a response before the proxy stops, so that a stream has begun.
HEAD = 900
#: Seconds between two bytes of a slow response.
SLOW_SECONDS = 0.02
#: Seconds after which the proxy looks again whether the fault has ended.
HELD_SECONDS = 0.1


class StallingPeer:
    """The proxy.

    Args:
        port: Port of the real server on the loopback address.

    Attributes:
        fault: What happens to new and open connections: "silent" accepts and never answers, "stops" sends the beginning
            of a response, "slow" sends byte after byte, and "closes" ends a response after its beginning.
        url: Address of the proxy.
    """

    def __init__(self, port: int) -> None:
        self.fault: Fault = "none"
        self.url = ""
        self._port = port

    async def serve(self) -> asyncio.Server:
        """Start to listen on a free port."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream, sending = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        copying = [asyncio.create_task(_copy(reader, sending)), asyncio.create_task(self._answer(upstream, writer))]
        try:
            await asyncio.wait(copying, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in copying:
                task.cancel()
            for end in (sending, writer):
                end.close()

    async def _answer(self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = 0
        with suppress(OSError):
            while data := await upstream.read(2**12):
                # What a fault holds back is sent when the fault ends: a network delays bytes, but leaves none out.
                while data:
                    if self.fault == "closes" and sent >= HEAD:
                        return
                    passing = data[: self._allowed(len(data), sent)]
                    writer.write(passing)
                    await writer.drain()
                    sent, data = sent + len(passing), data[len(passing) :]
                    if data:
                        await asyncio.sleep(SLOW_SECONDS if self.fault == "slow" else HELD_SECONDS)

    def _allowed(self, length: int, sent: int) -> int:
        """How many of so many bytes may pass now, after those that were sent."""
        match self.fault:
            case "none":
                return length
            case "silent":
                return 0
            case "slow":
                return 1
            case "stops" | "closes":
                return max(HEAD - sent, 0)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()


@contextmanager
def stalling_peer(port: int) -> Iterator[StallingPeer]:
    """Run a proxy in a thread of its own, until the end of the context.

    Args:
        port: See `StallingPeer`.

    Yields:
        The proxy.
    """
    peer, started, end = StallingPeer(port), threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        server = await peer.serve()
        loops.append(asyncio.get_running_loop())
        started.set()
        await end.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    started.wait()
    try:
        yield peer
    finally:
        loops[0].call_soon_threadsafe(end.set)
        thread.join(10)
