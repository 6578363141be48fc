"""The files in examples/deployment, each checked by its program, and `vlroute serve` behind a real nginx with TLS."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from training.bench.servers import free_port

from tests.commands import command
from tests.conftest import ROOT, lacking, task
from tests.e2e.browser import chromium, visit, visiting
from tests.serving import data_uri
from vlroute.cli.config import settings_of
from vlroute.serving.key_limits import utc_day
from vlroute.store import Store

FILES = ROOT / "examples" / "deployment"
BIN = Path(sys.executable).parent
API_KEY = "a-key-of-the-tests-of-deployment"
NAME = "vlroute.example.org"
TEXT = task("ocr", "easy")
#: What nginx writes, below the folder of the test; in the main context and in that of http.
HTTP = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    include {folder}/vlroute.conf;
}}
"""


def program(name: str) -> str:
    """Path of a program of Debian; the test is skipped without it."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        lacking(f"needs {name}: apt-get install {name}")
    return path


def passes(*arguments: str | Path) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate; its key is beside it, with the suffix .key."""
    file = tmp_path_factory.mktemp("certificate") / "vlroute.pem"
    passes(
        program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-days", "2", "-keyout", file.with_suffix(".key"), "-out", file, "-subj", f"/CN={NAME}",
        "-addext", f"subjectAltName=DNS:{NAME}",
    )  # fmt: skip
    return file


def write_nginx(folder: Path, certificate: Path, port: int, upstream: int) -> Path:
    """The example with the addresses and files of a test; the path of nginx' main configuration."""
    text = (FILES / "nginx.conf").read_text("utf-8")
    for old, new in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"), ("127.0.0.1:8000", f"127.0.0.1:{upstream}"),
        ("/etc/ssl/vlroute.pem", str(certificate)), ("/etc/ssl/vlroute.key", str(certificate.with_suffix(".key"))),
    ):  # fmt: skip
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "vlroute.conf").write_text(text, "utf-8")
    (folder / "nginx.conf").write_text(HTTP.format(folder=folder), "utf-8")
    return folder / "nginx.conf"


@dataclass(frozen=True, slots=True)
class Site:
    """A server behind nginx, and its store."""

    url: str
    port: int
    context: ssl.SSLContext
    store: Path

    def http(self, **options: Any) -> httpx.Client:
        """A client that resolves the name to this machine."""
        transport = _Resolved(verify=self.context)
        return httpx.Client(transport=transport, base_url=self.url, timeout=60, **options)

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}v1", api_key=API_KEY, max_retries=0, http_client=self.http())


class _Resolved(httpx.HTTPTransport):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["sni_hostname"] = NAME
        request.url = request.url.copy_with(host="127.0.0.1")  # the Host header is set already
        return super().handle_request(request)


@contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as stderr, subprocess.Popen(command, stdout=stderr, stderr=stderr, **options) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="module")
def site(certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """`vlroute serve` with the example of its settings, behind nginx with the example of its configuration."""
    folder, port, upstream = tmp_path_factory.mktemp("site"), free_port(), free_port()
    settings = (FILES / "vlroute.toml").read_text("utf-8").replace("port = 8000", f"port = {upstream}")
    settings = settings.replace("/etc/vlroute/keys.toml", "keys.toml")
    lines = [line for line in settings.splitlines() if not line.startswith("model")]
    (folder / "vlroute.toml").write_text("\n".join(lines), "utf-8")
    (folder / "keys.toml").touch(mode=0o600)
    (folder / "keys.toml").write_text(f'[team-a]\nkey = "{API_KEY}"\ntokens_per_day = 1_000_000\n', "utf-8")
    nginx = [program("nginx"), "-p", str(folder), "-c", str(write_nginx(folder, certificate, port, upstream))]
    if os.geteuid() == 0:  # its workers would become another user, who cannot write to the folder
        nginx += ["-g", "user root;"]
    serve = [sys.executable, "-m", "vlroute", "serve", "--config", "vlroute.toml"]
    context = ssl.create_default_context(cafile=certificate)
    one = Site(f"https://{NAME}:{port}/vlroute/", port, context, folder / "answers.db")
    with (
        running(serve, folder / "serve.log", cwd=folder) as server,
        running(nginx, folder / "nginx.log") as proxy,
        one.http() as http,
    ):
        end = time.monotonic() + 120
        while not _ready(http):
            assert server.poll() is None, (folder / "serve.log").read_text("utf-8")
            assert proxy.poll() is None, (folder / "nginx.log").read_text("utf-8")
            assert time.monotonic() < end
            time.sleep(0.2)
        yield one


def _ready(http: httpx.Client) -> bool:
    try:
        return http.get("ready").status_code == 200
    except httpx.TransportError:
        return False


def test_nginx_accepts_its_file(certificate: Path, tmp_path: Path) -> None:
    passes(program("nginx"), "-t", "-p", tmp_path, "-c", write_nginx(tmp_path, certificate, free_port(), 8000))


def test_caddy_accepts_its_file() -> None:
    passes(program("caddy"), "validate", "--adapter", "caddyfile", "--config", FILES / "Caddyfile")


def test_systemd_accepts_its_file(tmp_path: Path) -> None:
    text = (FILES / "vlroute.service").read_text("utf-8")
    assert text.count("/opt/vlroute/bin/vlroute") == 1
    unit = tmp_path / "vlroute.service"  # the program of the unit must exist
    unit.write_text(text.replace("/opt/vlroute/bin/vlroute", str(BIN / "vlroute")), "utf-8")
    passes(program("systemd-analyze"), "verify", "--man=no", unit)


def test_kubernetes_accepts_its_file() -> None:
    passes(BIN / "kubernetes-validate", "--strict", FILES / "kubernetes.yaml")


def test_compose_accepts_its_file() -> None:
    passes(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", FILES / "compose.yaml")


def test_vlroute_accepts_the_settings_of_each_file(tmp_path: Path) -> None:
    kubernetes = {one["kind"]: one for one in yaml.safe_load_all((FILES / "kubernetes.yaml").read_text("utf-8"))}
    texts = [(FILES / "vlroute.toml").read_text("utf-8"), kubernetes["ConfigMap"]["data"]["vlroute.toml"]]
    keys = [(FILES / "keys.toml").read_text("utf-8"), kubernetes["Secret"]["stringData"]["keys.toml"]]
    for settings, some in zip(texts, keys, strict=True):
        (tmp_path / "keys.toml").write_text(some, "utf-8")
        (tmp_path / "vlroute.toml").write_text(settings, "utf-8")
        done = command("config", "--config", "vlroute.toml", "--key-file", "keys.toml", cwd=tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", [ROOT / "compose.yaml", FILES / "compose.yaml"])
def test_the_variables_in_compose_files_are_settings(file: Path) -> None:
    variables = yaml.safe_load(file.read_text("utf-8"))["services"]["vlroute"]["environment"]
    assert variables
    assert {name.removeprefix("VLROUTE_").lower() for name in variables} <= settings_of("serve").keys()


def test_the_pod_is_not_given_the_address_of_its_service_as_a_setting() -> None:
    kubernetes = {one["kind"]: one for one in yaml.safe_load_all((FILES / "kubernetes.yaml").read_text("utf-8"))}
    assert kubernetes["Service"]["metadata"]["name"] == "vlroute"
    assert kubernetes["Deployment"]["spec"]["template"]["spec"]["enableServiceLinks"] is False
    assert "port" in settings_of("serve")


def test_plain_and_picture_calls(site: Site) -> None:
    with closing(site.openai()) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="auto", messages=[{"role": "user", "content": "Add 2 and 3."}]
        )
        assert raw.parse().choices[0].message.content == "5"
        assert int(raw.headers["x-ratelimit-remaining-tokens"]) == 1_000_000
        picture = {"type": "image_url", "image_url": {"url": data_uri(TEXT.frames[0])}}
        message: Any = {"role": "user", "content": [picture, {"type": "text", "text": TEXT.prompt}]}
        answer = client.chat.completions.create(model="instruct", messages=[message], temperature=0)
        assert answer.choices[0].message.content == TEXT.answer
        large: Any = {"role": "user", "content": [picture, {"type": "text", "text": "x" * 2_000_000}]}
        with pytest.raises(openai.BadRequestError):  # by vlroute, not by nginx, whose default limit is 1 MiB
            client.chat.completions.create(model="instruct", messages=[large])


def test_chunks_of_a_stream_arrive_one_by_one(site: Site) -> None:
    body = {"model": "thinking", "stream": True, "messages": [{"role": "user", "content": "Add 2, 3 and 4."}],
            "min_tokens": 150, "max_tokens": 150, "seed": 0}  # fmt: skip
    arrived: list[float] = []
    with (
        site.http(headers={"Authorization": f"Bearer {API_KEY}"}) as http,
        http.stream("POST", "v1/chat/completions", json=body) as response,
    ):
        assert response.status_code == 200
        assert response.headers["x-vlroute-mode"] == "thinking"
        for line in response.iter_lines():
            if line.startswith("data: "):
                arrived.append(time.monotonic())
    assert line == "" or line.startswith("data: [DONE]")
    assert len(arrived) > 50
    assert len({round(at, 3) for at in arrived}) > 20  # not in a few packets


def test_what_the_proxy_must_not_let_through(site: Site) -> None:
    with site.http() as http:
        assert http.get("v1/models").status_code == 401
        assert http.get("v1/models", headers={"Host": "evil.example"}).status_code == 421
        assert http.get(f"https://{NAME}:{site.port}/v1/models").status_code == 404  # outside of the prefix
        moved = http.get(f"https://{NAME}:{site.port}/vlroute")
        assert (moved.status_code, moved.headers["location"]) == (308, site.url)
        assert http.get("openapi.json").status_code == 401
        schema = http.get("openapi.json", headers={"Authorization": f"Bearer {API_KEY}"}).json()
        assert schema["servers"] == [{"url": "/vlroute"}]


def tokens(site: Site) -> int:
    """Number of tokens that are counted for the key."""
    with Store(site.store, create=False) as store:
        return store.tokens_of("team-a", utc_day())


def test_the_page_in_a_browser(site: Site, tmp_path: Path) -> None:
    before = tokens(site)
    TEXT.frames[0].save(tmp_path / "text.png")
    with (
        chromium(f"--host-resolver-rules=MAP {NAME} 127.0.0.1") as browser,
        visiting(browser, ignore_https_errors=True) as context,
    ):
        page = context.new_page()
        page.goto(site.url)
        page.locator("input[type=password]").wait_for()
        page.locator("input:not([type=password])").first.fill("ann")
        page.locator("input[type=password]").fill(API_KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("#ask textarea")
        page.close()
        with visit(context, site.url) as visitor:
            visitor.ask("ask", TEXT.prompt, tmp_path / "text.png")
            visitor.badges("talk")
            assert tokens(site) > before  # the log-in was with this key
            assert TEXT.answer in visitor.page.inner_text("#talk")
            assert visitor.page.locator("#talk img").first.evaluate("image => image.naturalWidth") > 0
            visitor.page.click("#language")
            visitor.page.wait_for_url(f"{site.url}zh*")
            visitor.page.wait_for_selector("#ask textarea")
            assert visitor.troubles == []
