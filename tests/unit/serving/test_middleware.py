"""Middleware without a server: clients on other machines, hosts, content types, sizes and unexpected errors."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vlroute.serving.middleware import LocalClientsOnly, RequestGuard


def ask(app: ASGIApp, client: str = "127.0.0.1", method: str = "GET", **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.request(method, "/v1/route", **options)

    return asyncio.run(send())


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(body or b"empty")(scope, receive, send)


def guarded(app: ASGIApp, counted: list[tuple[int, str]]) -> RequestGuard:
    return RequestGuard(app, ("/v1/",), 100, (), lambda status, code: counted.append((status, code)))


@pytest.mark.parametrize(("client", "status"), [("127.0.0.1", 200), ("::1", 200), ("192.0.2.7", 403)])
def test_only_local_clients(client: str, status: int) -> None:
    assert ask(LocalClientsOnly(echo), client).status_code == status


@pytest.mark.parametrize(("options", "status", "code"), [
    ({"headers": {"Host": "evil.example"}}, 421, "wrong_host"),
    ({"method": "POST", "content": b"a=b"}, 415, "unsupported_media_type"),
    ({"method": "POST", "json": "x" * 200}, 413, "body_too_large"),
])  # fmt: skip
def test_refusals_have_the_shape_of_openai_and_are_counted(options: dict[str, Any], status: int, code: str) -> None:
    counted: list[tuple[int, str]] = []
    response = ask(guarded(echo, counted), **options)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert counted == [(status, code)]


def test_allowed_requests_pass() -> None:
    for host in ("localhost", "LOCALHOST:1", "127.3.2.1:80", "[::1]:7860"):
        assert ask(guarded(echo, []), method="POST", json="x", headers={"Host": host}).text == '"x"'


def test_an_unexpected_error_becomes_a_response() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a fault in this server")

    response = ask(guarded(broken, []))
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
