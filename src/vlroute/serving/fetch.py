"""Pictures and videos by address, from hosts that the operator named and from no other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx

from vlroute.errors import LimitError, UnreadableMediaError

CHUNK = 2**16
_HEADERS = {"Accept": "image/*, video/*", "Accept-Encoding": "identity"}  # so that bytes counted are bytes kept


class Fetcher:
    """Fetches http(s) addresses of allowed hosts; follows no redirect, sends no credentials, uses no proxy.

    An address is parsed once, by the library that connects: two parsers that disagree on the host would be a way in.
    """

    def __init__(self, allowed: Sequence[str], seconds: float) -> None:
        self.allowed, self.seconds = frozenset(host.lower() for host in allowed), seconds
        self._client = httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=seconds)

    async def fetch(self, address: str, most: int) -> bytes:
        """At most `most` bytes. UnreadableMediaError or LimitError for all that is not plainly the file asked for."""
        url = self._checked(address)
        try:
            return await asyncio.wait_for(self._read(url, most), self.seconds)
        except (TimeoutError, httpx.HTTPError) as error:
            raise UnreadableMediaError(
                f"the picture or video at {url.host} could not be fetched ({type(error).__name__})"
            ) from error

    async def close(self) -> None:
        await self._client.aclose()

    def _checked(self, address: str) -> httpx.URL:
        try:
            url = httpx.URL(address)
        except (httpx.InvalidURL, UnicodeError) as error:  # UnicodeError: half of a surrogate pair
            raise UnreadableMediaError("the address of a picture or video is no URL") from error
        if url.scheme not in ("http", "https") or url.userinfo:
            raise UnreadableMediaError("an address must be http(s) without user and password, or a data URI")
        host = url.host.lower() if url.port is None else f"{url.host.lower()}:{url.port}"
        if host not in self.allowed:
            raise UnreadableMediaError(
                "this server fetches nothing from that host: send a data URI (data:image/png;base64,...), or ask its "
                "operator to allow the host"
            )
        return url

    async def _read(self, url: httpx.URL, most: int) -> bytes:
        async with self._client.stream("GET", url, headers=_HEADERS) as reply:
            if reply.status_code != 200:
                raise UnreadableMediaError(
                    f"{url.host} answered with status {reply.status_code} instead of a picture or video; redirects are "
                    "not followed"
                )
            data = bytearray()
            async for chunk in reply.aiter_raw(CHUNK):
                data += chunk
                if len(data) > most:
                    raise LimitError(f"the file at {url.host} is over the limit of {most} bytes")
            return bytes(data)
