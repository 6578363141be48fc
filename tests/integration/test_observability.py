"""What operators see of a server: the log of requests, request ids, metrics, traces, dashboard and alert rules."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.conftest import ROOT, lacking, media, task
from tests.serving import KEY, Served, served, until, user
from vlroute.inputs.messages import parse
from vlroute.pipeline import RequestOptions
from vlroute.serving.app import mount_page
from vlroute.serving.log_format import JSONFormatter, TextFormatter
from vlroute.serving.settings import ServerSettings
from vlroute.serving.telemetry import telemetry_from_environment

SOME = task("ocr")
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
KEY_NAME = f"key-{hashlib.sha256(KEY.encode()).hexdigest()[:8]}"
CHAT = "/v1/chat/completions"
#: Reasoning that ends only when it is cancelled.
ENDLESS: dict[str, Any] = {"model": "thinking", "ignore_eos": True, "vlroute": {"answer_reserve": 0}}
FRESH = re.compile(r"[0-9a-f]{32}")
MONITORING = ROOT / "examples" / "monitoring"


class Lines(logging.Handler):
    """Keeps the log as both formats would write it, and the fields of each request."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[int, dict[str, Any]]] = []
        self.texts: list[str] = []
        self.formatters = TextFormatter(), JSONFormatter()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts += [one.format(record) for one in self.formatters]
        if record.name == "vlroute.access":
            self.records.append((record.levelno, record.fields))  # type: ignore[attr-defined]

    def of(self, id: str) -> dict[str, Any]:
        """The line of one request; it may be written after the client has got the response."""
        until(lambda: any(fields["request_id"] == id for _, fields in [*self.records]))
        (found,) = (fields for _, fields in self.records if fields["request_id"] == id)
        return found


@pytest.fixture
def lines() -> Iterator[Lines]:
    log, handler = logging.getLogger("vlroute"), Lines()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield handler
    log.removeHandler(handler)
    log.setLevel(level)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = ServerSettings(api_keys=(KEY,), max_num_seqs=1, max_waiting=0, deadline=30, max_body=2**20)
    with served(settings, store=tmp_path_factory.mktemp("store") / "answers.db") as one:
        yield one


def describe(_: Any) -> str:
    """A captioner that writes to the log."""
    logging.getLogger("vlroute").warning("a line of a captioner")  # in a thread of the pool
    return "three numbers"


@pytest.fixture(scope="module")
def hasty() -> Iterator[Served]:
    """A server with the page and without keys, that has little time."""
    with served(ServerSettings(deadline=1.0), wrap=mount_page, captioner=describe) as one:
        yield one


@pytest.fixture
def http(server: Served) -> Iterator[httpx.Client]:
    with server.http(headers=AUTHORIZED) as client:
        yield client


def ask(http: httpx.Client, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return http.post(CHAT, json={"messages": [user(SOME)], **fields}, headers=headers)


def stream(http: httpx.Client, **fields: Any) -> Any:
    return http.stream("POST", CHAT, json={"messages": [user(SOME)], "stream": True, **fields})


def metrics(http: httpx.Client) -> dict[str, float]:
    """Values by name and labels."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in parse_text(http.get("/metrics").text)
        for sample in family.samples
    }


def test_each_answer_has_one_line_with_its_tokens_and_seconds(http: httpx.Client, lines: Lines) -> None:
    whole = ask(http, model="Qwen/Qwen3-VL-2B-Thinking")
    with stream(http) as streamed:
        chunks = [json.loads(line[6:]) for line in streamed.iter_lines() if line.startswith("data: {")]
    for response, vlroute in (
        (whole, whole.json()["vlroute"]),
        (streamed, chunks[0]["vlroute"] | chunks[-1]["vlroute"]),
    ):
        id = response.headers["x-request-id"]
        assert id == response.headers["x-vlroute-id"] == vlroute["id"]
        line, decision, timing = lines.of(id), vlroute["decision"], vlroute["timing"]
        assert (line["method"], line["path"], line["status"]) == ("POST", CHAT, 200)
        assert (line["mode"], line["stage"], line["forced"]) == (decision["mode"], "prompt", decision["forced"])
        assert line["finish_reason"] == "stop"
        for step in ("caption", "decide", "vision", "queue", "prefill", "decode"):
            assert line[f"{step}_seconds"] == pytest.approx(timing[step], abs=1e-6)
        assert 0 < line["first_token_seconds"] < line["first_token_seconds"] + line["decode_seconds"] <= line["seconds"]
        assert line["key"] == KEY_NAME
        assert not {"error", "disconnected", "answer_id"} & set(line)
    used = whole.json()["usage"]
    line = lines.of(whole.headers["x-request-id"])
    assert line["model"] == "Qwen/Qwen3-VL-2B-Thinking"
    assert (line["prompt_tokens"], line["completion_tokens"]) == (used["prompt_tokens"], used["completion_tokens"])
    assert line["thinking_tokens"] == used["completion_tokens_details"]["reasoning_tokens"] > 0
    assert "model" not in lines.of(streamed.headers["x-request-id"])  # none was asked for
    decided = http.post("/v1/route", json={"messages": [user(SOME)]})
    assert lines.of(decided.headers["x-request-id"])["mode"] == decided.json()["model"]


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"headers": {"Authorization": "Bearer wrong"}}, 401, "invalid_api_key"),
    ({"url": "/v1/nothing"}, 404, "not_found"),
    ({"method": "GET"}, 405, "method_not_allowed"),
    ({"json": {"messages": [user(SOME)], "model": "gpt"}}, 404, "model_not_found"),
    ({"json": {"messages": [user(SOME)], "temperature": 9}}, 422, "invalid_value"),
    ({"json": {"messages": [{"role": "user", "content": " "}]}}, 400, "bad_message"),
    ({"json": None, "content": "x"}, 415, "unsupported_media_type"),
    ({"json": None, "content": "{", "headers": {"Content-Type": "application/json"}}, 400, "invalid_json"),
    ({"json": {"messages": "x" * 2**20}}, 413, "body_too_large"),
    ({"url": "/metrics", "method": "GET", "headers": {"Authorization": "Bearer wrong"}}, 401, "invalid_api_key"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "status", "code"), REFUSED)
def test_each_refusal_has_one_line(
    http: httpx.Client, lines: Lines, request_: dict[str, Any], status: int, code: str
) -> None:
    sent = {"method": "POST", "url": CHAT, "json": {"messages": [user(SOME)]}, **request_}
    response = http.request(**sent)
    assert response.status_code == status
    line = lines.of(response.headers["x-request-id"])
    assert (line["status"], line["error"], line["method"]) == (status, code, sent["method"])
    assert logging.INFO in {level for level, fields in lines.records if fields is line}


def test_a_request_id_is_taken_over_if_it_is_sane(http: httpx.Client, lines: Lines) -> None:
    said = ask(http, {"x-request-id": "trace-1:a/b"})
    assert said.headers["x-request-id"] == "trace-1:a/b" != said.headers["x-vlroute-id"]
    assert lines.of("trace-1:a/b")["answer_id"] == said.headers["x-vlroute-id"]
    assert FRESH.fullmatch(said.headers["x-vlroute-id"])  # an id that a client chose would be guessed
    for path in ("/metrics", "/health", "/ready", "/v1/models", "/v1/nothing"):
        for method in ("GET", "HEAD"):
            response = http.request(method, path, headers={"x-request-id": "~" * 128})
            assert response.headers.get_list("x-request-id") == ["~" * 128], path
    for bad in (b"", b"a b", b"x" * 129, b"\xc3\xbc", b"a\tb"):
        assert FRESH.fullmatch(http.get("/v1/models", headers={b"x-request-id": bad}).headers["x-request-id"])  # type: ignore[dict-item]
    twice = http.get("/v1/models", headers=[("x-request-id", "one"), ("x-request-id", "two"), *AUTHORIZED.items()])
    assert FRESH.fullmatch(twice.headers["x-request-id"])


def test_too_many_requests_and_disconnects(server: Served, http: httpx.Client, lines: Lines) -> None:
    before = metrics(http)
    with stream(http, **ENDLESS) as first, stream(http, **ENDLESS) as second:
        begun = first.iter_lines()
        assert [next(begun) for _ in range(8)]
        refused = ask(http)
        assert refused.status_code == 429
        assert lines.of(refused.headers["x-request-id"])["error"] == "too_many_requests"
    for left in (first, second):  # the streams were closed before their ends
        line = lines.of(left.headers["x-request-id"])
        assert (line["status"], line["error"], line["disconnected"]) == (200, "client_left", True)
    line = lines.of(first.headers["x-request-id"])
    assert line["finish_reason"] == "cancelled"
    assert line["completion_tokens"] > 0
    with pytest.raises(httpx.ReadTimeout):
        http.post(CHAT, json={"messages": [user(SOME)], **ENDLESS}, headers={"x-request-id": "left"}, timeout=0.25)
    line = lines.of("left")
    assert (line["status"], line["error"], line["disconnected"]) == (499, "client_left", True)
    assert (line["finish_reason"], line["forced"]) == ("cancelled", True)
    counted = "vlroute_errors_total[('code', 'client_left'), ('status', '499')]"
    assert metrics(http)[counted] - before.get(counted, 0.0) == 3
    until(lambda: metrics(http)["vlroute_requests_running[]"] == 0)


def test_time_in_the_queue(http: httpx.Client, lines: Lines) -> None:
    long = {"model": "thinking", "ignore_eos": True, "max_tokens": 150, "vlroute": {"answer_reserve": 0}}
    with ThreadPoolExecutor() as pool:
        said = [*pool.map(lambda _: ask(http, **long), range(2))]
    first, second = sorted(
        (lines.of(one.headers["x-request-id"]) for one in said), key=lambda line: line["queue_seconds"]
    )
    assert first["queue_seconds"] < 0.5 * first["decode_seconds"]
    assert second["queue_seconds"] > 0.5 * first["decode_seconds"]  # there is one sequence
    assert second["queue_seconds"] + second["decode_seconds"] <= second["seconds"]
    waited = [value for name, value in metrics(http).items() if name.startswith("vlroute_queue_seconds_sum")]
    assert sum(waited) >= second["queue_seconds"]


def test_an_error_within_a_stream(lines: Lines) -> None:
    with served(ServerSettings(deadline=0.25)) as hurried, hurried.http() as http:
        with stream(http, **ENDLESS) as response:
            assert '"code":"deadline_exceeded"' in response.read().decode()
        line = lines.of(response.headers["x-request-id"])
        assert (line["status"], line["error"], line["finish_reason"]) == (200, "deadline_exceeded", "cancelled")
        assert line["seconds"] >= 0.25
        foreign = http.get("/v1/models", headers={"Host": "evil.example", "x-request-id": "rebind"})
        assert (foreign.status_code, foreign.headers["x-request-id"]) == (421, "rebind")
        assert lines.of("rebind")["error"] == "wrong_host"


def test_a_client_cannot_add_lines_or_fields(http: httpx.Client, lines: Lines) -> None:
    evil = 'x" status=500 key=root\r\n2026-01-01T00:00:00.000Z INFO vlroute.access: fake=1\x1b[31m\x7f\u2028'
    found = http.get("/v1/models/" + "".join(f"%{byte:02x}" for byte in evil.encode()))
    named = ask(http, {"x-request-id": 'a"=b'}, model=evil)
    assert (found.status_code, named.status_code) == (404, 404)
    assert lines.of(found.headers["x-request-id"])["path"] == f"/v1/models/{evil}"
    assert lines.of('a"=b')["model"] == evil
    http.get("/" + "a" * 5000)
    assert all(len(fields["path"]) <= 200 for _, fields in lines.records)
    for text in lines.texts:
        assert text.isascii(), text
        assert text.isprintable(), text
        if text.startswith("{"):
            assert json.loads(text).get("key") in (None, KEY_NAME)
        elif "access" in text:  # the quoted values removed, no field of the client is left
            bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
            assert "fake" not in bare
            assert "key=" not in bare.replace(f"key={KEY_NAME} ", "")


def test_no_text_of_prompt_or_answer_and_no_key_is_logged(http: httpx.Client, lines: Lines) -> None:
    marked = [{"role": "user", "content": "please read my secret, a pomegranate"}]
    answers = [ask(http, messages=marked, model=mode).json() for mode in ("instruct", "thinking", "auto")]
    with stream(http, messages=marked) as response:
        response.read()
    ask(http, messages=marked, temperature="pomegranate")
    http.get("/v1/models?key=pomegranate")
    log = "\n".join(lines.texts)
    assert log.count("vlroute.access") >= 6
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    for secret in ("pomegranate", KEY, *(text for text in texts if len(text) > 5)):
        assert secret not in log


def test_polled_endpoints_are_logged_only_for_debugging(http: httpx.Client, lines: Lines) -> None:
    polled = ("/health", "/ready", "/metrics")
    for path in polled:
        response = http.get(path)
        assert lines.of(response.headers["x-request-id"])["path"] == path
    # an answer of another test may end meanwhile
    assert {level for level, fields in lines.records if fields["path"] in polled} == {logging.DEBUG}


def test_log_lines_of_an_answer_contain_its_request_id(
    hasty: Served, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(words: str) -> dict[str, Any]:
        (found,) = (json.loads(text) for text in lines.texts if text.startswith("{") and words in text)
        return found

    monkeypatch.setattr(hasty.service, "feedback", lambda *_, **__: 1 // 0)
    with hasty.http() as http:
        assert ask(http, {"x-request-id": "captioned"}).status_code == 200
        body = {"id": "0" * 32, "correct": True}
        failed = http.post("/v1/feedback", json=body, headers={"x-request-id": "failing"})
    assert told("captioner")["request_id"] == "captioned"
    assert (failed.status_code, failed.headers["x-request-id"]) == (500, "failing")
    line = told("a request failed")
    assert (line["request_id"], line["level"]) == ("failing", "error")
    assert "ZeroDivisionError" in line["exception"]
    (text,) = (text for text in lines.texts if not text.startswith("{") and "a request failed" in text)
    first, *trace = text.splitlines()
    assert first.endswith("vlroute: a request failed request_id=failing")
    assert trace
    assert all(line.startswith("    ") for line in trace)  # unlike a line of the log
    assert lines.of("failing")["error"] == "internal_error"


def test_a_request_whose_format_is_checked_in_another_thread_is_logged_with_its_model(
    http: httpx.Client, lines: Lines
) -> None:
    done = ask(http, {}, model="instruct", response_format={"type": "json_object"}, max_tokens=30)
    assert done.status_code == 200
    assert lines.of(done.headers["x-request-id"])["model"] == "instruct"


def test_answers_of_the_page_have_lines(server: Served, lines: Lines) -> None:
    conversation = parse(SOME.prompt, **media(SOME))
    answer = [*server.service.stream_turn(lambda: conversation, RequestOptions(mode="instruct"))][-1].answer
    (line,) = (fields for _, fields in lines.records if fields["path"] == "page")
    assert (line["request_id"], line["mode"], line["finish_reason"]) == (answer.id, "instruct", "stop")
    events = server.service.stream_turn(lambda: conversation, RequestOptions(mode="thinking"))
    next(events)
    events.close()
    assert lines.records[-1][1]["disconnected"]


def test_requests_of_the_page_for_its_parts_are_logged_only_for_debugging(hasty: Served, lines: Lines) -> None:
    with hasty.http() as http:
        before = metrics(http)
        page = http.get("/")
        asset = http.get(re.search(r"/?(assets/[\w.-]+\.js)", page.text)[1])  # type: ignore[index]
        missing = http.get("/nothing")
        assert http.head("/").status_code == 200
        found = [lines.of(one.headers["x-request-id"]) for one in (page, asset, missing)]
        assert [one["status"] for one in found] == [200, 200, 404]
        levels = {fields["request_id"]: level for level, fields in lines.records}
        assert [levels[one["request_id"]] for one in found] == [logging.DEBUG, logging.DEBUG, logging.INFO]
        assert found[2]["error"] == "not_found"
        gains = {name: value - before.get(name, 0.0) for name, value in metrics(http).items()}
    requests = {name: gain for name, gain in gains.items() if name.startswith("vlroute_requests_total") and gain}
    assert requests == {"vlroute_requests_total[('mode', 'none'), ('route', 'none'), ('status', '404')]": 1.0}


def test_the_command_writes_json(tmp_path: Path) -> None:
    written = (tmp_path / "log").read_text
    command = [sys.executable, "-m", "vlroute", "serve", "--port", "0", "--no-page", "--log-format", "json"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
    try:
        until(lambda: "http://127.0.0.1:" in written() and "keys and values" in written(), 90)
        (url,) = re.findall(r"http://127.0.0.1:\d+", written())
        with httpx.Client(base_url=url, timeout=60) as http:
            until(lambda: http.get("/ready").status_code == 200, 30)
            said = http.post(CHAT, json={"messages": [{"role": "user", "content": "Hello?"}]})
    finally:
        process.terminate()
        process.wait(30)
    lines = [json.loads(line) for line in written().splitlines()]
    assert {"uvicorn.error", "vlroute", "vlroute.access"} <= {line["logger"] for line in lines}
    (line,) = (line for line in lines if line["logger"] == "vlroute.access")
    assert (line["request_id"], line["status"]) == (said.headers["x-request-id"], 200)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)


def test_metrics_in_both_formats(http: httpx.Client) -> None:
    ask(http, model="instruct")
    text = http.get("/metrics")
    odd = http.get("/metrics", headers={"Accept": "text/plain; version=a.b"})
    assert odd.status_code == 200
    opened = http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert text.headers["content-type"].startswith("text/plain")
    assert opened.headers["content-type"].startswith("application/openmetrics-text")
    families = [*parse_openmetrics(opened.text)]
    names = {family.name for family in families}
    assert names ^ {family.name for family in parse_text(text.text)} == {"vlroute_build", "vlroute_build_info"}
    assert {"process_resident_memory_bytes", "python_gc_collections", "vlroute_queue_seconds"} <= names
    assert "_created" not in text.text + opened.text
    (build,) = next(family.samples for family in families if family.name == "vlroute_build")
    assert build.labels["version"] == http.get("/health").json()["version"]
    assert metrics(http)["vlroute_state[('state', 'ready')]"] == 1
    for family in families:
        assert family.type != "histogram" or family.name.endswith("_seconds"), family.name
    with http.stream("GET", "/metrics", headers={"Accept-Encoding": "gzip"}) as packed:
        assert packed.headers["content-encoding"] == "gzip"
        assert b"vlroute_build_info" in gzip.decompress(b"".join(packed.iter_raw()))
    assert "content-encoding" not in http.get("/metrics", headers={"Accept-Encoding": "identity"}).headers


def test_head_requests(http: httpx.Client) -> None:
    for path in ("/metrics", "/health", "/ready", "/v1/models", "/v1/models/auto"):
        assert (http.head(path).status_code, http.head(path).content) == (200, b""), path
    assert http.head("/v1/models/gpt").status_code == 404


def test_containers_are_checked_by_ready() -> None:
    for name in ("Dockerfile", "compose.yaml"):
        assert re.findall(r"127\.0\.0\.1:8000/(\w+)", (ROOT / name).read_text()) == ["ready"]


def metric_names(query: str) -> set[str]:
    """Names of the metrics in a PromQL expression."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(?:by|on|without|ignoring)\s*\([^)]*\)|\$\w+', " ", query)
    return set(re.findall(r"\b(?:vlroute|process|python)_\w+", bare)) | ({"up"} & set(re.findall(r"\w+", bare)))


def labels_of(query: str) -> dict[str, set[str]]:
    """Labels by which a PromQL expression selects, by metric."""
    return {
        name: set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside))
        for name, inside in re.findall(r"\b(vlroute_\w+)\{([^}]*)\}", query)
    }


def dashboard_queries() -> list[str]:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    return [target["expr"] for panel in panels if panel["type"] != "row" for target in panel["targets"]]


def test_the_dashboard_and_the_rules_name_only_what_exists(http: httpx.Client) -> None:
    ask(http, model="thinking")
    with stream(http, model="instruct") as response:
        response.read()
    ask(http, messages=[])
    known = {"up": {"job", "instance"}}
    for family in parse_text(http.get("/metrics").text):
        for sample in family.samples:
            known.setdefault(sample.name, {"job", "instance"}).update(sample.labels)
    queries = dashboard_queries()
    rules = [
        rule
        for group in yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
        for rule in group["rules"]
    ]  # fmt: skip
    queries += [rule["expr"] for rule in rules]
    assert len(queries) > 20
    for query in queries:
        assert metric_names(query), query
        assert metric_names(query) <= set(known), query
        for name, labels in labels_of(query).items():
            assert labels <= known[name], query
    scrape = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    assert scrape["scrape_configs"][0]["job_name"] == "vlroute"
    assert scrape["rule_files"] == ["rules.yaml"]
    documented = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    for name in known:
        base = re.sub(r"_(bucket|sum|count)$", "", name) if name.endswith(("_bucket", "_sum", "_count")) else name
        assert not name.startswith("vlroute_") or f"`{base}`" in documented, name


def test_promtool_accepts_metrics_rules_and_queries(http: httpx.Client, tmp_path: Path) -> None:
    if (promtool := shutil.which("promtool")) is None:
        lacking("promtool is not installed")
    text = http.get("/metrics").text
    queries = [query.replace("$__rate_interval", "5m").replace("$instance", ".*") for query in dashboard_queries()]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "dashboard.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    for arguments, input in (
        (["check", "metrics"], text),
        (["check", "rules", MONITORING / "rules.yaml"], None),
        (["check", "rules", tmp_path / "dashboard.yaml"], None),
        (["check", "config", "--syntax-only", MONITORING / "prometheus.yaml"], None),
        (["test", "rules", MONITORING / "rules_test.yaml"], None),
    ):
        done = subprocess.run([promtool, *arguments], input=input, text=True, capture_output=True)  # type: ignore[list-item]
        assert (done.returncode, done.stderr.replace("SUCCESS", "")) == (0, ""), (arguments, done.stdout, done.stderr)


class Collector(BaseHTTPRequestHandler):
    """Receives OTLP over HTTP."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body
        kind = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}[self.path]
        self.server.received.append(MessageToDict(kind.FromString(body)))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def collector() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A receiver of OTLP: its address, and what it has received."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    server.received = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.received  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def otel(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment without variables of OpenTelemetry."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    return monkeypatch


def values(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    """Attributes of OTLP by name."""
    found = {}
    for one in attributes:
        ((kind, value),) = one["value"].items()
        if kind == "arrayValue":
            value = [next(iter(item.values())) for item in value["values"]]
        found[one["key"]] = int(value) if kind == "intValue" else value
    return found


def test_traces_and_metrics_over_otlp(otel: pytest.MonkeyPatch, lines: Lines) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with collector() as (address, received):
        otel.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        otel.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        otel.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
        with served() as server, server.http() as http:
            said = ask(http, {"traceparent": f"00-{trace}-{parent}-01"}, model="thinking")
            with stream(http) as streamed:
                streamed.read()
            missing = http.get("/v1/models/gpt")
            unsampled = ask(http, {"traceparent": f"00-{'1' * 32}-{parent}-00"}, model="instruct")
            assert http.get("/health").status_code == 200
            assert lines.of(said.headers["x-request-id"])["trace_id"] == trace
    resources = [one for export in received for one in export.get("resourceSpans", ())]
    assert {(values(one["resource"]["attributes"])["service.name"]) for one in resources} == {"vlroute"}
    assert values(resources[0]["resource"]["attributes"])["deployment.environment.name"] == "test"
    spans = [span for one in resources for scope in one["scopeSpans"] for span in scope["spans"]]
    requests = {
        values(one["attributes"])["vlroute.request_id"]: one for one in spans if one["kind"] == "SPAN_KIND_SERVER"
    }
    assert set(requests) == {one.headers["x-request-id"] for one in (said, streamed, missing)}
    assert unsampled.headers["x-request-id"] not in requests
    span = requests[said.headers["x-request-id"]]
    assert (span["name"], base16(span["traceId"]), base16(span["parentSpanId"])) == (f"POST {CHAT}", trace, parent)
    told, body = values(span["attributes"]), said.json()
    assert told | {
        "http.request.method": "POST", "http.route": CHAT, "http.response.status_code": 200, "url.path": CHAT,
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "thinking", "gen_ai.response.model": "thinking",
        "gen_ai.response.id": body["vlroute"]["id"], "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": body["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": body["usage"]["completion_tokens"],
    } == told  # fmt: skip
    assert not any("prompt" in name or "messages" in name for name in told)
    steps = [one for one in spans if one.get("parentSpanId") == span["spanId"]]
    assert [one["name"] for one in steps] == ["caption", "decide", "vision", "queue", "prefill", "decode"]
    for step in steps:
        begin, end = int(step["startTimeUnixNano"]), int(step["endTimeUnixNano"])
        assert int(span["startTimeUnixNano"]) <= begin <= end <= int(span["endTimeUnixNano"])
        assert (end - begin) / 1e9 == pytest.approx(body["vlroute"]["timing"][step["name"]], abs=1e-6)
    failed = values(requests[missing.headers["x-request-id"]]["attributes"])
    assert (failed["error.type"], failed["http.route"]) == ("model_not_found", "/v1/models/{name}")
    exported = [metric for export in received for one in export.get("resourceMetrics", ())
                for scope in one["scopeMetrics"] for metric in scope["metrics"]]  # fmt: skip
    found = {metric["name"]: metric for metric in exported}
    assert set(found) == {
        "gen_ai.server.request.duration", "gen_ai.server.time_to_first_token", "gen_ai.server.time_per_output_token",
        "gen_ai.client.token.usage",
    }  # fmt: skip
    assert {metric["unit"] for metric in exported} == {"s", "{token}"}
    points = found["gen_ai.client.token.usage"]["histogram"]["dataPoints"]
    sums = {(told["gen_ai.request.model"], told["gen_ai.token.type"]): one["sum"]
            for one in points for told in [values(one["attributes"])]}  # fmt: skip
    assert sums["thinking", "output"] == body["usage"]["completion_tokens"]
    durations = found["gen_ai.server.request.duration"]["histogram"]["dataPoints"]
    assert sum(int(one["count"]) for one in durations) == 3  # the unsampled one is measured too


def base16(encoded: str) -> str:
    return base64.b64decode(encoded).hex()


def test_names_follow_the_semantic_conventions() -> None:
    conventions = pytest.importorskip("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")
    measured = pytest.importorskip("opentelemetry.semconv._incubating.metrics.gen_ai_metrics")
    known = {value for module in (conventions, measured) for value in vars(module).values() if isinstance(value, str)}
    used = re.findall(r'"(gen_ai\.[\w.]+)"', (ROOT / "src/vlroute/serving/telemetry.py").read_text())
    assert len(used) > 10
    assert set(used) <= known


def test_a_collector_that_is_down_harms_no_request(otel: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and never answers
        otel.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces")
        otel.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://127.0.0.1:9/v1/metrics")
        otel.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        with served() as server, server.http() as http:
            began = time.monotonic()
            for _ in range(5):
                assert ask(http, model="instruct").status_code == 200
            assert time.monotonic() - began < 5
            began = time.monotonic()
    assert time.monotonic() - began < 15  # export is given up


@pytest.mark.parametrize(("variables", "why"), [
    ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER must be otlp, console, none .* not 'zipkin'"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
    ({"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"}, "METRICS_PROTOCOL"),
])  # fmt: skip
def test_variables_that_are_not_supported_are_refused(variables: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        telemetry_from_environment(variables)


def test_nothing_is_loaded_without_the_variables() -> None:
    for variables in (
        {}, {"OTEL_SERVICE_NAME": "x"}, {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
    ):  # fmt: skip
        assert telemetry_from_environment(variables) is None
    program = (
        "import sys; from vlroute import Router; from vlroute.serving import create_app; "
        "create_app(Router.from_pretrained()); print('opentelemetry.sdk' in sys.modules)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=clean, check=True)
    assert done.stdout == "False\n"
