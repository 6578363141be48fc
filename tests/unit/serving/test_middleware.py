"""Middleware without a server: clients on other machines, hosts, content types, sizes and unexpected errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vlroute.serving.errors import APIError, error_response
from vlroute.serving.keys import APIKeys
from vlroute.serving.loop_shares import LoopShares
from vlroute.serving.middleware import LocalClientsOnly, RequestGuard
from vlroute.serving.settings import ServerSettings


def ask(app: ASGIApp, client: str = "127.0.0.1", method: str = "GET", **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.request(method, "/v1/route", **options)

    return asyncio.run(send())


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(body or b"empty")(scope, receive, send)


def guarded(app: ASGIApp, counted: list[tuple[int, str]]) -> LoopShares:
    settings = ServerSettings(max_body=100)
    guard = RequestGuard(app, ("/v1/",), settings, (), lambda status, code: counted.append((status, code)))
    return LoopShares(guard, APIKeys(()))


@pytest.mark.parametrize(("client", "status"), [("127.0.0.1", 200), ("::1", 200), ("192.0.2.7", 403)])
def test_only_local_clients(client: str, status: int) -> None:
    counted: list[tuple[int, str]] = []
    app = LocalClientsOnly(echo, lambda *error: counted.append(error))
    assert ask(app, client).status_code == status
    assert counted == ([(403, "not_local")] if status == 403 else [])


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


def test_refusals_have_the_shape_of_anthropic_below_its_path() -> None:
    for path, root, shaped in (
        ("/v1/messages", "", True), ("/v1/messages/count_tokens", "", True), ("/v1/messagesx", "", False),
        ("/v1/route", "", False), ("/proxied/v1/messages", "/proxied", True),
    ):  # fmt: skip
        scope = {"type": "http", "path": path, "root_path": root}
        response = error_response(APIError(422, "n: too large", "invalid_value", "n"), scope)
        body = json.loads(bytes(response.body))
        if not shaped:
            assert (response.status_code, set(body)) == (422, {"error"})
            continue
        assert response.status_code == 400
        assert body == {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "n: too large",
                "details": {"error_code": "invalid_value", "param": "n"},
            },
            "request_id": response.headers["request-id"],
        }


@pytest.mark.parametrize(("status", "code", "kind"), [
    (401, "invalid_api_key", "authentication_error"), (403, "not_local", "permission_error"),
    (413, "body_too_large", "request_too_large"), (415, "x", "invalid_request_error"),
    (429, "too_many_requests", "rate_limit_error"), (500, "internal_error", "api_error"),
    (502, "endpoint_refused", "api_error"), (503, "loading", "overloaded_error"), (503, "failed", "api_error"),
    (503, "store_failed", "api_error"), (504, "deadline_exceeded", "timeout_error"),
])  # fmt: skip
def test_types_of_errors_in_the_shape_of_anthropic(status: int, code: str, kind: str) -> None:
    headers = {"Retry-After": "5"}
    response = error_response(APIError(status, "x", code, headers=headers), {"type": "http", "path": "/v1/messages"})
    assert (response.status_code, response.headers["retry-after"]) == (status, "5")
    assert json.loads(bytes(response.body))["error"]["type"] == kind
