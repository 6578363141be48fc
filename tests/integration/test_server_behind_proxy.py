"""Host names, other origins, a path prefix and forwarded headers, as a reverse proxy and browsers send them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import Request
from fastapi.testclient import TestClient

from tests.serving import KEY
from vlroute import Router
from vlroute.serving.app import create_app, mount_page
from vlroute.serving.settings import ServerSettings

BEARER = {"Authorization": f"Bearer {KEY}"}
ORIGIN = "https://app.example"


@contextmanager
def client(url: str = "http://localhost", page: bool = False, **settings: Any) -> Iterator[TestClient]:
    """A client of the application; no model is loaded."""
    app = create_app(Router.from_pretrained(), ServerSettings(**settings))

    @app.get("/whoami")
    def whoami(request: Request) -> dict[str, Any]:
        return {"client": request.client and request.client.host, "scheme": request.url.scheme}

    yield TestClient(mount_page(app) if page else app, base_url=url, client=("127.0.0.1", 1))


@pytest.mark.parametrize(("trusted", "host", "status"), [
    ((), "vlroute.example", 421), ((), "localhost:1", 200),
    (("vlroute.example",), "vlroute.example", 200), (("vlroute.example",), "VLRoute.example:8443", 200),
    (("vlroute.example",), "localhost", 200), (("vlroute.example",), "evil.example", 421),
    (("vlroute.example",), "vlroute.example.evil", 421), (("vlroute.example",), "vlrouteXexample", 421),
    (("vlroute.example",), "a.vlroute.example", 421), (("*.example",), "a.b.example", 200),
    (("*.example",), "example", 421), (("*.example",), "evil/.example", 421), (("*.example",), "a.example\n", 421),
])  # fmt: skip
def test_trusted_hosts(trusted: tuple[str, ...], host: str, status: int) -> None:
    with client(trusted_hosts=trusted) as http:
        assert http.get("/v1/models", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(("trusted", "host", "status"), [
    ((), "any.example", 200), (("vlroute.example",), "any.example", 421), (("vlroute.example",), "localhost", 200),
])  # fmt: skip
def test_trusted_hosts_hold_on_other_addresses_too(trusted: tuple[str, ...], host: str, status: int) -> None:
    with client(host="0.0.0.0", api_keys=(KEY,), trusted_hosts=trusted) as http:
        assert http.get("/v1/models", headers={"Host": host, **BEARER}).status_code == status


def test_pages_of_a_listed_origin_may_use_the_api() -> None:
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang"}  # fmt: skip
    with client(cors_origins=(ORIGIN,), api_keys=(KEY,)) as http:
        preflight = http.options("/v1/chat/completions", headers=asked)  # without a key, as browsers send it
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
        for response in (
            http.get("/v1/models", headers={"Origin": ORIGIN, **BEARER}),
            http.get("/v1/models", headers={"Origin": ORIGIN}),  # 401
            http.get("/v1/nothing", headers={"Origin": ORIGIN}),  # 404
            http.post("/v1/route", headers={"Origin": ORIGIN}, content="a=b"),  # 415
            http.get("/v1/models", headers={"Origin": ORIGIN, "Host": "evil.example"}),  # 421
        ):
            assert response.headers["access-control-allow-origin"] == ORIGIN, response.status_code
            assert "access-control-allow-credentials" not in response.headers
            exposed = response.headers["access-control-expose-headers"].lower()
            assert {"x-vlroute-id", "x-request-id"} <= set(exposed.split(", "))


@pytest.mark.parametrize("page", [False, True])
@pytest.mark.parametrize("origins", [(), (ORIGIN,)])
def test_other_origins_get_no_permission(origins: tuple[str, ...], page: bool) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    with client(cors_origins=origins, trusted_hosts=("vlroute.example",), page=page) as http:
        for path in ("/v1/models", "/config", "/gradio_api/queue/join"):
            for method, headers in (("OPTIONS", asked), ("GET", {"Origin": "https://evil.example"})):
                found = http.request(method, path, headers={**headers, "Host": "vlroute.example"})
                assert "access-control-allow-origin" not in found.headers, (method, path)


def test_every_origin_needs_keys() -> None:
    with client(cors_origins=("*",), api_keys=(KEY,)) as http:
        assert http.get("/v1/models", headers={"Origin": ORIGIN}).headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("prefix", ["", "/in/front"])
def test_a_prefix_that_the_proxy_passes_on_or_removes(prefix: str) -> None:
    with client(root_path="/in/front", max_body=1000) as http:
        assert http.get(f"{prefix}/v1/models").status_code == 200
        assert http.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "/in/front"}]
        # the guard of bodies holds on both paths
        assert http.post(f"{prefix}/v1/route", content="a=b").status_code == 415
        assert http.post(f"{prefix}/v1/route", json={"model": "x" * 2000}).status_code == 413
        assert http.get("/in/frontier/v1/models").status_code == 404


def test_the_page_below_a_prefix_names_its_files_there() -> None:
    with client(root_path="/in/front", page=True) as http:
        for path in ("/", "/in/front/", "/zh"):
            page = http.get(path)
            assert page.status_code == 200
            assert '"root":"http://localhost/in/front"' in page.text.replace(" ", "").replace("\\/", "/")


@pytest.mark.parametrize(("allowed", "seen"), [
    (("127.0.0.1",), ("192.0.2.7", "https")), (("127.0.0.0/8",), ("192.0.2.7", "https")),
    (("10.0.0.1",), ("127.0.0.1", "http")), ((), ("127.0.0.1", "http")),
])  # fmt: skip
def test_forwarded_headers_of_allowed_proxies(allowed: tuple[str, ...], seen: tuple[str, str]) -> None:
    with client(forwarded_allow_ips=allowed, api_keys=("a-key-for-these-tests",)) as http:
        sent = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
        assert tuple(http.get("/whoami", headers=sent).json().values()) == seen


@pytest.mark.parametrize(("wrong", "match"), [
    ({"trusted_hosts": ("*",)}, "trusted_hosts"), ({"trusted_hosts": ("https://a.example",)}, "trusted_hosts"),
    ({"trusted_hosts": ("a.*.example",)}, "trusted_hosts"), ({"cors_origins": ("a.example",)}, "cors_origins"),
    ({"cors_origins": ("https://a.example/",)}, "cors_origins"), ({"cors_origins": ("*",)}, "needs API keys"),
    ({"root_path": "vlroute"}, "root_path"), ({"root_path": "/vlroute/"}, "root_path"),
    ({"root_path": "/"}, "root_path"),
    ({"forwarded_allow_ips": ("proxy",)}, "forwarded_allow_ips"),
    ({"forwarded_allow_ips": ("*",)}, "needs API keys"), ({"forwarded_allow_ips": ("10.0.0.0/8",)}, "needs API keys"),
])  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ServerSettings(**wrong)
