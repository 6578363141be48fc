"""Who comes in: the server's parts, for a caller whose key is valid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request

from vlroute.serving.fetch import Fetcher
from vlroute.serving.keys import Keys
from vlroute.serving.service import Service
from vlroute.serving.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class Door:
    """What every endpoint needs; kept on `app.state.door`."""

    settings: ServerSettings
    service: Service
    fetcher: Fetcher
    keys: Keys


@dataclass(frozen=True, slots=True)
class Entry:
    """One caller inside. `namespace` keeps the caches of different keys apart."""

    door: Door
    namespace: str


async def _enter(request: Request, authorization: Annotated[str | None, Header()] = None) -> Entry:
    door: Door = request.app.state.door
    return Entry(door, door.keys.namespace(authorization))


#: APIError 401 without a valid key, where one is needed.
Entered = Annotated[Entry, Depends(_enter)]
