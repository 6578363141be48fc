"""ASGI middleware: refuses requests before they are read."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from vlroute.serving.bodies import BodyPool, JSONBody, PooledBody, max_text
from vlroute.serving.connections import Proxies, address_group
from vlroute.serving.errors import APIError, Count, error_response, route_path
from vlroute.serving.keys import APIKey
from vlroute.serving.service import shutting_down
from vlroute.serving.settings import ServerSettings, is_loopback
from vlroute.serving.wrong_keys import client_address

#: Response headers that web pages of other origins may read.
EXPOSED_HEADERS = (
    "X-Request-Id", "Request-Id", "X-VLRoute-Id", "X-VLRoute-Mode", "X-VLRoute-Gain", "X-VLRoute-Forced", "Retry-After",
    *(f"X-RateLimit-{what}-{kind}" for kind in ("Requests", "Tokens") for what in ("Limit", "Remaining", "Reset")),
)  # fmt: skip
#: Each so many bytes of a body extend the time limit of the body by a second.
BODY_RATE = 8 * 2**10
_CHARSET, _CHARSETS = re.compile(r';\s*charset\s*=\s*"?([^";]*)', re.IGNORECASE), ("utf-8", "utf8", "us-ascii")
_LOCAL_HOST = r"localhost|127\.\d+\.\d+\.\d+|\[::1\]"


class RequestGuard:
    """Checks host, content type and body, refuses requests during the shutdown, and answers unexpected errors.

    A POST to a guarded path must declare its body as JSON. A page of another site can make a browser post a form or
    plain text to this machine, but not JSON. For the same reason, a server on the loopback address accepts only local
    and trusted host names: another name that resolves to it is DNS rebinding. `TrustedHostMiddleware` and
    `RequestBodyLimitMiddleware` of Starlette do not fit: they refuse in plain text and do not know address ranges.

    A body has to arrive in time, there must be room for it in a `BodyPool`, and JSON for the web page has the bounds of
    `JSONBody`; the endpoints of the API check theirs themselves. `LoopShares`, which must wrap this class, cuts bodies
    into pieces.

    An unexpected error becomes a response with status 500 here, so that the connection stays open and the error is
    logged once.

    Args:
        app: The wrapped application.
        guarded: Prefixes of the guarded paths.
        settings: Settings of the server.
        trusted: Host names that are accepted besides local ones, see `ServerSettings.trusted_hosts`; None: all names.
        count: Called with status and code of each refusal.
        draining: Whether the server shuts down.
        freed: Called with the size of a body at the end of its request.
    """

    def __init__(
        self,
        app: ASGIApp,
        guarded: Sequence[str],
        settings: ServerSettings,
        trusted: Sequence[str] | None,
        count: Count,
        draining: Callable[[], bool] = lambda: False,
        freed: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.app, self.guarded, self.count, self.draining, self.freed = app, tuple(guarded), count, draining, freed
        self.bodies = BodyPool(settings.body_pool)
        self.max_body, self.body_seconds, self.max_text = settings.max_body, settings.body_seconds, max_text(settings)
        self.hosts = None if trusted is None else _hosts(trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the refusal, or pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if (refusal := self._refusal(scope)) is not None:
            await error_response(refusal, scope, self.count)(scope, receive, send)
            return
        client_address.set((scope.get("client") or ("",))[0])
        started = False
        state = scope.setdefault("state", {})

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start" and "limit_headers" in state:
                MutableHeaders(scope=message).update(state["limit_headers"])
            await send(message)

        body = state["pooled_body"] = PooledBody(self.bodies)
        try:
            await self.app(scope, self._bounded(scope, receive, body), watched_send)
        except Exception as error:  # Starlette's own handler would raise it again, and uvicorn close the connection
            if started:
                raise
            await error_response(error, scope, self.count)(scope, receive, watched_send)
        finally:  # after the response, also that of a stream: until then, the messages may be needed
            self.freed(body.release())

    def _bounded(self, scope: Scope, receive: Receive, body: PooledBody) -> Receive:
        """`receive`, with limits of the body."""
        guarded = route_path(scope).startswith(self.guarded)
        kind = Headers(scope=scope).get("content-type", "").partition("/")[0].strip().lower()
        in_memory = kind != "multipart"  # which is written to files
        bounds = None if guarded or not in_memory or scope["method"] == "GET" else JSONBody(self.max_text)
        size, complete, waited = 0, False, 0.0
        turn = scope["state"]["body_turn"]

        async def bounded_receive() -> Message:
            nonlocal size, complete, waited
            if complete:
                return await receive()
            await turn()  # not within the time limit
            began = time.monotonic()
            try:
                async with asyncio.timeout(self.body_seconds + size / BODY_RATE - waited):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the body did not arrive in time", {"Connection": "close"}) from None
            waited += time.monotonic() - began  # the client does not have to answer for what the application needs
            piece = message.get("body", b"")
            size, complete = size + len(piece), not message.get("more_body", False)
            if guarded and size > self.max_body:
                raise HTTPException(413, self._too_large().message)
            try:
                if in_memory and piece:
                    body.take(_flow(scope), len(piece))
                if bounds is not None:
                    bounds.feed(piece)  # which `LoopShares` has cut
            except APIError as error:
                if guarded:
                    raise
                raise HTTPException(error.status, error.message, error.headers) from error  # Gradio does not know it
            return message

        return bounded_receive

    def _refusal(self, scope: Scope) -> APIError | None:
        headers = Headers(scope=scope)
        if self.hosts is not None and self.hosts.fullmatch(headers.get("host", "localhost")) is None:
            message = "the Host header names another host than this server accepts (its setting trusted_hosts)"
            return APIError(421, message, "wrong_host")
        if any(one.strip().lower() != "identity" for one in headers.getlist("content-encoding")):
            message = "compressed bodies are not supported; send the body without Content-Encoding"
            return APIError(415, message, "unsupported_content_encoding")
        if scope["method"] != "POST" or not route_path(scope).startswith(self.guarded):
            return None
        if self.draining():
            return shutting_down()
        kind = headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "application/json":
            return APIError(415, "send the body as JSON, with Content-Type: application/json", "unsupported_media_type")
        if any(one.strip().lower() not in _CHARSETS for one in _CHARSET.findall(kind)):
            return APIError(415, "send the body in UTF-8, the encoding of JSON", "unsupported_charset")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_body:
            return self._too_large()
        return None

    def _too_large(self) -> APIError:
        return APIError(413, f"the body is over the limit of {self.max_body} bytes", "body_too_large")


class AddressLimit:
    """Limits the concurrent requests of one address. Connections are limited by `Connections`, except those of proxies.

    Args:
        app: The wrapped application.
        settings: Settings of the server.
        count: Called with status and code of each refusal.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, count: Count) -> None:
        self.app, self.most, self.count = app, settings.max_per_address, count
        self._proxies, self._running = Proxies(settings.forwarded_allow_ips), Counter[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with status 429, or pass the request on."""
        host = (scope.get("client") or ("",))[0]
        if scope["type"] != "http" or not host or self._proxies.trust(host, named=True):
            await self.app(scope, receive, send)
            return
        group = address_group(host)
        if self._running[group] >= self.most:
            error = APIError(
                429, f"{self.most} requests of this address are already being answered; try again later",
                "too_many_requests_of_address", headers={"Retry-After": "1"},
            )  # fmt: skip
            await error_response(error, scope, self.count)(scope, receive, send)
            return
        self._running[group] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._running[group] -= 1
            if not self._running[group]:
                del self._running[group]


class PathPrefix:
    """Declares the path prefix under which a reverse proxy serves the application, for addresses in its answers.

    Uvicorn's own option does not fit: it expects that the proxy removes the prefix, while this class accepts both.

    Args:
        app: The wrapped application.
        prefix: See `ServerSettings.root_path`.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app, self.prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with the prefix."""
        scope["root_path"] = self.prefix  # in place: others look at this scope after the response
        await self.app(scope, receive, send)


class ForwardedHeaders(ProxyHeadersMiddleware):
    """Uses the X-Forwarded headers of trusted proxies, and removes untrusted headers from which Gradio makes addresses.

    Args:
        app: The wrapped application.
        trusted_hosts: Addresses and networks of the proxies, or "*".
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on."""
        if scope["type"] == "http":
            trusted = (scope.get("client") or (None,))[0] in self.trusted_hosts
            removed = (
                {b"x-gradio-server"} if trusted else {b"x-gradio-server", b"x-forwarded-host", b"x-forwarded-proto"}
            )
            scope["headers"] = [one for one in scope["headers"] if one[0] not in removed]
        await super().__call__(scope, receive, send)


def _flow(scope: Scope) -> str:
    """What a body counts for: the API key, if it was checked, else the address of the client."""
    key: APIKey | None = scope["state"].get("api_key")
    return address_group((scope.get("client") or ("",))[0]) if key is None else key.flow.name


def _hosts(trusted: Sequence[str]) -> re.Pattern[str]:
    """What a Host header may be: a local or trusted name, with any port."""
    names = [re.escape(name).replace(r"\*", r"[\w.-]+", 1) for name in trusted]
    return re.compile(rf"({'|'.join([_LOCAL_HOST, *names])})(:\d+)?", re.IGNORECASE | re.ASCII)


def add_cross_origin(app: FastAPI, origins: Sequence[str]) -> None:
    """Let web pages of these origins use the API; without origins, no page of another origin may use it.

    Gradio would otherwise add headers of its own, which let every origin use the web page with the cookies of its user.

    Args:
        app: The application.
        origins: See `ServerSettings.cors_origins`.
    """
    app.add_middleware(
        CORSMiddleware, allow_origins=origins, allow_methods=["GET", "HEAD", "POST", "DELETE"], allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )  # fmt: skip


class LocalClientsOnly:
    """Refuses clients on other machines.

    A cluster without API keys uses it: the address that Ray's proxy listens on is not part of the settings.
    """

    def __init__(self, app: ASGIApp, count: Count) -> None:
        self.app, self.count = app, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with status 403, or pass the request on."""
        if scope["type"] == "http" and not is_loopback((scope.get("client") or ("",))[0]):
            message = "without API keys a cluster serves its own machine only; set VLROUTE_API_KEYS or a key file"
            await error_response(APIError(403, message, "not_local"), scope, self.count)(scope, receive, send)
            return
        await self.app(scope, receive, send)
