"""FastAPI dependencies of the endpoints: the caller, who has a valid API key and is within its limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request

from vlroute.fair_share import Flow
from vlroute.serving.fetch import Fetcher
from vlroute.serving.service import Service
from vlroute.serving.wrong_keys import address_group


@dataclass(frozen=True, slots=True)
class _Caller:
    service: Service
    fetcher: Fetcher
    namespace: str
    flow: Flow


async def _caller(
    request: Request,
    authorization: Annotated[str | None, Header()] = None,
    x_api_key: Annotated[str | None, Header()] = None,
) -> AsyncIterator[_Caller]:
    state = request.app.state
    if authorization is None and x_api_key is not None:  # of Anthropic's clients
        authorization = f"Bearer {x_api_key}"
    service: Service = state.service
    address = request.client.host if request.client else ""
    key = service.key_of(authorization, address)
    if key is None:
        yield _Caller(service, state.fetcher, "", Flow(address_group(address)))
        return
    request.state.key = key.name  # for the log
    caller = _Caller(service, state.fetcher, key.namespace, key.flow)
    if request.method != "POST":  # which costs nearly nothing
        yield caller
        return
    limiter, used = service.limiter, None
    if key.limits.tokens_per_day is not None:
        used = await asyncio.to_thread(limiter.used_today, key)
    request.state.limit_headers = await limiter.enter_soon(key, used)
    try:
        yield caller
    finally:  # after the response, also that of a stream
        limiter.leave(key)


#: The sender of a request, with the namespace of its caches; status 401 without a valid key, if the server has keys,
#: and status 429 beyond a limit of the key.
Caller = Annotated[_Caller, Depends(_caller)]
