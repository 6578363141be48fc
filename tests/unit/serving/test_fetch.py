"""Which addresses of pictures the server fetches."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vlroute.errors import UnreadableMediaError
from vlroute.fair_share import DEFAULT_FLOW
from vlroute.serving.fetch import Fetcher
from vlroute.serving.settings import ServerSettings

ALLOWED = ("Files.example.org", "plain.example:80", "tls.example:443", "[::1]:8000", "[::2]", "xn--bcher-kva.example")


@pytest.mark.parametrize(("address", "allowed"), [
    ("http://files.example.org/a.png", True), ("https://FILES.example.org:443/a.png", True),
    ("http://files.example.org:80/a.png", True), ("http://files.example.org:8000/a.png", False),
    ("http://files.example.org:443/a.png", False), ("http://plain.example/a.png", True),
    ("https://plain.example/a.png", False), ("https://tls.example/a.png", True), ("http://tls.example:443/a.png", True),
    ("http://tls.example/a.png", False), ("http://[::1]:8000/a.png", True), ("http://[::1]/a.png", False),
    ("http://[::2]/a.png", True), ("https://bücher.example/a.png", True),
    ("https://xn--bcher-kva.example/a.png", True), ("http://evil.example/a.png", False),
])  # fmt: skip
def test_hosts_and_ports(address: str, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(_self: Any, _url: Any, _most: int) -> bytes:
        return b"picture"

    async def fetch() -> bytes:
        fetcher = Fetcher(ServerSettings(allowed_hosts=ALLOWED, fetch_seconds=1.0))
        try:
            return await fetcher.fetch(address, 100, DEFAULT_FLOW)
        finally:
            await fetcher.close()

    monkeypatch.setattr(Fetcher, "_read", read)
    if allowed:
        assert asyncio.run(fetch()) == b"picture"
    else:
        with pytest.raises(UnreadableMediaError, match="does not fetch from that host"):
            asyncio.run(fetch())
