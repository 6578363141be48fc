"""The proxy with faults delays and cuts off replies, and never leaves out bytes within one."""

import asyncio

import pytest
from training.chaos.stalling_peer import HEAD, StallingPeer

PARTS = [bytes([65 + number]) * 400 for number in range(5)]  # longer than HEAD together


async def _received(fault: str, seconds: float) -> bytes:
    """What arrives from a server that sends the parts, with a fault after the first of them for some seconds."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        for part in PARTS:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.05)
        writer.close()

    upstream = await asyncio.start_server(answer, "127.0.0.1", 0)
    peer = StallingPeer(upstream.sockets[0].getsockname()[1])
    proxy = await peer.serve()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.sockets[0].getsockname()[1])
    writer.write(b"a request\n")
    found = await reader.readexactly(len(PARTS[0]))
    peer.fault = fault
    await asyncio.sleep(seconds)
    held = asyncio.create_task(reader.read(-1))
    if fault != "closes":
        await asyncio.sleep(0.2)
        assert not held.done(), "the fault does not hold anything back"
        peer.fault = "none"
    found += await asyncio.wait_for(held, 10)
    writer.close()
    for server in (proxy, upstream):
        server.close()
    return found


@pytest.mark.parametrize("fault", ["silent", "stops", "slow"])
def test_a_fault_that_ends_leaves_out_no_bytes(fault: str) -> None:
    assert asyncio.run(_received(fault, 0.5)) == b"".join(PARTS)


def test_a_closed_reply_is_a_beginning() -> None:
    assert asyncio.run(_received("closes", 0.5)) == b"".join(PARTS)[:HEAD]
