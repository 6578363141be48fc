"""Paths of the server: unknown ones get an error in OpenAI's shape, with and without the page."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.serving import served
from vlroute.serving.app import mount_page


@pytest.fixture(scope="module", params=["page", "no page"])
def http(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    wrap = mount_page if request.param == "page" else lambda app: app
    with served(wrap=wrap) as server, server.http() as client:
        yield client


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_probes_answer_head(http: httpx.Client, path: str) -> None:
    sent = http.head(path)
    assert (sent.status_code, sent.content) == (200, b"")
    assert http.get(path).status_code == 200


@pytest.mark.parametrize(("method", "path"), [
    ("POST", "/chat/completions"), ("GET", "/models"), ("POST", "/v1/v1/chat/completions"), ("GET", "/v1/other"),
    ("PATCH", "/v1/other"), ("DELETE", "/other"), ("POST", "/v1/embeddings"),
])  # fmt: skip
def test_unknown_paths_get_an_error_in_openais_shape(http: httpx.Client, method: str, path: str) -> None:
    sent = http.request(method, path, json={"messages": []})
    assert sent.status_code == 404
    error = sent.json()["error"]
    assert error["code"] == "not_found"
    assert "/v1" in error["message"]


def test_the_page_is_still_there() -> None:
    with served(wrap=mount_page) as server, server.http() as http:
        for path in ("/", "/zh", "/theme.css"):
            assert http.get(path).status_code == 200
