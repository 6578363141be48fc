"""The web page: requests of other sites, the quota of uploads, cookies and headers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving import KEY, Served, served
from vlroute.serving.app import mount_page
from vlroute.serving.page_guard import YOUNG_SECONDS, shrink
from vlroute.serving.settings import ServerSettings

FILE = {"files": ("a.png", b"x" * 1000, "image/png")}
UPLOAD = "/gradio_api/upload"


@pytest.fixture(scope="module")
def page() -> Iterator[Served]:
    settings = ServerSettings(cors_origins=("https://friend.example",), max_uploads=100_000)
    with served(settings, mount_page) as server:
        yield server


@pytest.fixture
def http(page: Served) -> Iterator[httpx.Client]:
    with page.http() as client:
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://other.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},  # another port is another origin
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1"},
    ],
)
@pytest.mark.parametrize("path", [UPLOAD, "/gradio_api/queue/join", "/login", "/zh/gradio_api/upload"])
def test_other_sites_cannot_write(http: httpx.Client, headers: dict[str, str], path: str) -> None:
    refused = http.post(path, headers=headers, files=FILE)
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "wrong_origin"


@pytest.mark.parametrize("site", [{}, {"Sec-Fetch-Site": "same-origin"}, {"Origin": "https://friend.example"}])
def test_its_own_page_programs_and_listed_origins_can(http: httpx.Client, site: dict[str, str]) -> None:
    (path,) = http.post(UPLOAD, headers=site, files=FILE).raise_for_status().json()
    assert Path(path).read_bytes() == b"x" * 1000


def test_the_origin_is_compared_with_the_host(http: httpx.Client, page: Served) -> None:
    assert http.post(UPLOAD, headers={"Origin": page.url}, files=FILE).status_code == 200


def test_an_origin_that_is_no_address_is_refused(http: httpx.Client) -> None:
    refused = http.post(UPLOAD, headers={"Origin": "http://[::1"}, files=FILE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "wrong_origin")


def test_uploads_are_private(http: httpx.Client) -> None:
    (path,) = http.post(UPLOAD, files=FILE).json()
    folder = next(one for one in Path(path).parents if one.name.startswith("vlroute-page-"))
    assert folder.stat().st_mode & 0o077 == 0


def test_uploads_over_the_quota(http: httpx.Client) -> None:
    refused = http.post(UPLOAD, files={"files": ("b.png", b"y" * 100_000, "image/png")})
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "60"
    assert refused.json()["error"]["code"] == "uploads_full"
    assert http.post(UPLOAD, files=FILE).status_code == 200
    refused = http.post(UPLOAD, content=iter([b"x"]), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert refused.status_code == 411


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    now = time.time()
    for age, name in ((3, "old"), (2, "middle"), (1, "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * 100)
        os.utime(tmp_path / name / "file", (0, now - YOUNG_SECONDS * age - 10))
    (tmp_path / "young").write_bytes(b"x" * 100)
    assert shrink(tmp_path, 1000)
    assert shrink(tmp_path, 250)
    assert sorted(file.parent.name for file in tmp_path.glob("*/file")) == ["new"]
    assert not shrink(tmp_path, 50)
    assert (tmp_path / "young").exists()
    assert shrink(tmp_path / "missing", 0)


def test_headers_of_the_page(http: httpx.Client) -> None:
    reply = http.get("/")
    assert "frame-ancestors 'self'" in reply.headers["content-security-policy"]
    assert "object-src 'none'" in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_cookies_and_the_schema_with_a_key() -> None:
    with served(ServerSettings(api_keys=(KEY,)), mount_page) as server, server.http() as http:
        reply = http.post("/login", data={"username": "me", "password": KEY}).raise_for_status()
        cookies = reply.headers.get_list("set-cookie")
        assert len(cookies) >= 2
        assert all("samesite=lax" in cookie.lower() for cookie in cookies)
        assert http.get("/openapi.json").status_code == 401
        schema = http.get("/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).raise_for_status().json()
        assert "/v1/chat/completions" in schema["paths"]
        assert "/openapi.json" not in schema["paths"]
