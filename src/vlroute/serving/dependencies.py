"""FastAPI dependencies of the endpoints: the caller, who has a valid API key and is within its limits."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import Depends, Header, Request

from vlroute.fair_share import Flow
from vlroute.serving.connections import address_group
from vlroute.serving.fetch import Fetcher
from vlroute.serving.keys import APIKey, authorization_of
from vlroute.serving.service import Service


@dataclass(frozen=True, slots=True)
class _Caller:
    service: Service
    fetcher: Fetcher
    namespace: str
    flow: Flow


def check_key(request: Request) -> APIKey | None:
    """The API key of a request; None if the server needs none. It is checked once, also if its body is read later.

    Args:
        request: The request.

    Returns:
        The key.

    Raises:
        APIError: 401 for a missing or wrong key, 429 for too many wrong ones.
    """
    if not hasattr(request.state, "api_key"):
        service: Service = request.app.state.service
        request.state.api_key = service.key_of(authorization_of(request.headers), _address(request))
    key: APIKey | None = request.state.api_key
    if key is not None:
        request.state.key = key.name  # for the log
    return key


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


async def _caller(
    request: Request,
    authorization: Annotated[str | None, Header()] = None,  # for the OpenAPI schema; `check_key` reads both
    x_api_key: Annotated[str | None, Header()] = None,
) -> AsyncIterator[_Caller]:
    state = request.app.state
    service: Service = state.service
    address, key = _address(request), check_key(request)
    if key is None:
        yield _Caller(service, state.fetcher, "", Flow(address_group(address)))
        return
    caller = _Caller(service, state.fetcher, key.namespace, key.flow)
    if request.method not in ("POST", "DELETE"):  # which costs nearly nothing
        yield caller
        return
    limiter, used = service.limiter, None
    if key.limits.tokens_per_day is not None and request.method == "POST":  # deleting needs no tokens
        used = await service.use_store(partial(limiter.used_today, key), key.flow, time.perf_counter())
    request.state.limit_headers = await limiter.enter_soon(key, used)
    try:
        yield caller
    finally:  # after the response, also that of a stream
        limiter.leave(key)


#: The sender of a request, with the namespace of its caches; status 401 without a valid key, if the server has keys,
#: and status 429 beyond a limit of the key.
Caller = Annotated[_Caller, Depends(_caller)]
