"""A server that cannot start ends with the reason; a pair that cannot be loaded is reported as failed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from training.bench.servers import free_port

from tests.commands import Ended, command
from tests.conftest import lacking
from tests.integration.test_doctor import BLOCKED
from tests.serving import create_app
from vlroute import Router
from vlroute.errors import ModeUnavailableError, VLRouteError
from vlroute.files import shipped

LIMIT = 180  # seconds; a start takes a few, more on a busy machine
LOCAL = "http://localhost"


@pytest.fixture
def swapped(tmp_path: Path) -> Iterator[Path]:
    """A pair whose fault shows only when it is loaded."""
    for mode, other in (("instruct", "thinking"), ("thinking", "instruct")):
        shutil.copytree(shipped(f"pocket/{other}"), tmp_path / "swapped" / mode)
    yield tmp_path / "swapped"
    shutil.rmtree(tmp_path / "swapped")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "vlroute", *arguments], capture_output=True, text=True, timeout=LIMIT)


def refused(done: subprocess.CompletedProcess[str] | Ended, says: str) -> None:
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert says in line


@pytest.mark.parametrize("program", [("serve", "--no-page"), ("ui",), ("cluster",)])
def test_a_pair_that_is_not_there_ends_the_start(program: tuple[str, ...]) -> None:
    refused(command(*program, "--port", str(free_port()), "--model", "/nope"), "/nope")


def test_a_pair_that_cannot_be_loaded_ends_the_process(swapped: Path) -> None:
    refused(run("serve", "--no-page", "--port", "0", "--model", str(swapped)), "wap the two")


def test_a_pair_that_cannot_be_loaded_ends_the_page(swapped: Path) -> None:
    refused(command("ui", "--port", "0", "--model", str(swapped)), "wap the two")


def test_any_error_of_loading_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(router: Router) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Router, "load", load)
    with pytest.raises(RuntimeError, match="out of luck"):
        command("serve", "--no-page", "--port", "0")


def test_an_error_while_the_application_starts_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(application: FastAPI) -> None:
        raise RuntimeError("no middleware today")

    monkeypatch.setattr(FastAPI, "build_middleware_stack", build)
    done = command("serve", "--no-page", "--port", "0")
    assert done.returncode != 0
    assert "no middleware today" in done.stderr


@pytest.mark.parametrize("program", [("serve", "--no-page"), ("ui",)])
def test_a_port_in_use(program: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(command(*program, "--port", port), port)


def test_without_the_extra_ui_the_api_is_served() -> None:
    port = free_port()
    blocked = f"{BLOCKED.format(names=('gradio',))}\nsys.argv = ['vlroute', 'serve', '--port', '{port}']\n"
    code = blocked + "from vlroute.cli.app import run; run()"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + LIMIT
        while (ready := get(port, "/ready")) is None or ready[0] != 200:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.1)
        page = get(port, "/")
        assert page is not None
        assert page[0] == 404
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=LIMIT)
    (line,) = [line for line in said.splitlines() if "vlroute[ui]" in line]
    assert "without" in line


def get(port: int, path: str) -> tuple[int, bytes] | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return None


@pytest.mark.parametrize("others_run", [True, False])
def test_replicas_that_cannot_start_are_one_error(others_run: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error contains the reason, which Ray's own error lacks; an application that does not run is deleted."""
    if importlib.util.find_spec("ray") is None:
        lacking("Ray is not installed: pip install 'vlroute[cluster]'")
    from vlroute.serving.cluster.start import SAFE, deploy

    os.environ.update(SAFE)  # to be set before Ray is imported
    from ray import serve

    def run(*_: Any, **__: Any) -> None:
        raise RuntimeError("Deploying application failed")

    trace = "ray said: Traceback\n  File x\nvlroute.errors.CheckpointError: Swap the two\n\nsome more"
    pair = SimpleNamespace(message=trace, replica_states={"RUNNING": 1} if others_run else {"STOPPING": 1})
    ingress = SimpleNamespace(message="", replica_states={"RUNNING": 1})
    deployed = {"it": SimpleNamespace(deployments={"Ingress": ingress, "Pair": pair})}
    deleted: list[str] = []
    monkeypatch.setattr(serve, "run", run)
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=deployed))
    monkeypatch.setattr(serve, "delete", deleted.append)
    with pytest.raises(VLRouteError, match=r"CheckpointError: Swap the two$"):
        deploy(object(), "it")
    assert deleted == ([] if others_run else ["it"])


def test_what_may_come_back_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas of a cluster: another deployment may bring them."""
    router, real = Router.from_pretrained(max_num_seqs=8), Router.load
    there: list[bool] = []

    def load() -> Router:
        if not there:
            raise ModeUnavailableError("no replica is there")
        return real(router)

    monkeypatch.setattr(router, "load", load)
    with TestClient(create_app(router), base_url=LOCAL) as client:
        until(client, "failed")
        there.append(True)
        end = time.monotonic() + LIMIT
        while client.get("/ready").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert client.get("/health").status_code == 200


def until(client: TestClient, state: str) -> Any:
    end = time.monotonic() + LIMIT
    while (said := client.get("/ready")).json()["status"] != state:
        assert said.json()["status"] == "loading"
        assert time.monotonic() < end
        time.sleep(0.05)
    return said


@pytest.mark.parametrize("error", [None, RuntimeError("/secret/path is broken"), MemoryError(), OSError(5, "/secret")])
def test_under_another_server_the_state_is_failed(
    swapped: Path, error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = Router.from_pretrained(swapped)

    def load() -> Router:
        assert error is not None
        raise error

    if error is not None:
        monkeypatch.setattr(router, "load", load)
    with TestClient(create_app(router), base_url=LOCAL) as client:
        said = [until(client, "failed"), client.get("/health")]
        said += [client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Add 2 and 3."}]})]
        assert said[2].json()["error"]["code"] == "failed"
        assert "retry-after" not in said[2].headers
        for one in said:
            assert one.status_code == 503
            assert "could not be loaded" in one.text
            assert "/secret" not in one.text
            assert str(swapped) not in one.text


def test_an_application_inside_another_loads_all_the_same() -> None:
    """The outer application does not run the start-up of a mounted one."""
    outer = FastAPI()
    outer.mount("/llm", create_app(Router.from_pretrained(max_num_seqs=8)))
    with TestClient(outer, base_url=f"{LOCAL}/llm") as client:
        until(client, "ready")
        asked = {"messages": [{"role": "user", "content": "Add 2 and 3."}], "model": "instruct", "max_tokens": 3}
        assert client.post("/v1/chat/completions", json=asked).status_code == 200
