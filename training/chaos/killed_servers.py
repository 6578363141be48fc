"""Kill servers at random points while clients use them, and count what they had acknowledged and is lost.

`vlroute serve` is killed and started again on the same files. Of a cluster of two replicas, one is killed at a time,
while the clients go on.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx

from training.bench.servers import data_uri, draw_pictures, free_port, user_message
from training.chaos.programs import Program, Session, started, until
from vlroute.router import Router
from vlroute.types import MODES, Mode

CLIENTS = 3
#: Between two requests of a client of one server, and of a cluster, whose replicas need the cores to start.
PAUSE_SECONDS, CLUSTER_PAUSE_SECONDS = 0.02, 0.2
#: Deadline of a request, and how much later its client must have a reply.
DEADLINE_SECONDS, LATE_SECONDS = 30.0, 10.0
#: Statuses of errors that say that a server cannot answer now.
UNAVAILABLE = (429, 503, 504)
#: Longest time from the first acknowledgment after a start to a kill, in seconds; share of kills during the start.
SERVE_SECONDS, EARLY = 1.5, 0.2
#: Longest time from the moment when both replicas are ready to the next kill.
CLUSTER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Question:
    """A question about pictures.

    Attributes:
        prompt: The question.
        pictures: Data URIs of its pictures.
        message: The same as a message of OpenAI's chat API.
        answers: What each mode answers, without sampling.
    """

    prompt: str
    pictures: tuple[str, ...]
    message: dict[str, Any]
    answers: dict[Mode, str]


def questions(count: int = 8) -> list[Question]:
    """Draw questions, and let the pocket pair answer them in this process."""
    found = []
    with Router.from_pretrained() as router:
        for task in draw_pictures(count, "kills"):
            media = list(task.frames)
            answers = {mode: router.ask(task.prompt, media, mode=mode, do_sample=False).text for mode in MODES}
            pictures = tuple(data_uri(frame) for frame in task.frames)
            found.append(Question(task.prompt, pictures, user_message(task.frames, task.prompt), answers))
    return found


@dataclass(slots=True)
class Seen:
    """What clients got complete replies for, by all clients together.

    Attributes:
        answers: Ids of answers.
        votes: Ids of answers and the feedback on them.
        voters: The client that votes on an answer, by the id of the answer.
        responses: Responses by their ids.
        refused: Number of errors that said that the server cannot answer now.
        wrong: Replies that should not be.
    """

    answers: list[str] = field(default_factory=list)
    votes: list[tuple[str, float]] = field(default_factory=list)
    voters: dict[str, Client] = field(default_factory=dict)
    responses: dict[str, Any] = field(default_factory=dict)
    refused: int = 0
    wrong: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Number of acknowledged writes."""
        return len(self.answers) + len(self.votes) + len(self.responses)


class _RefusedError(Exception):
    """A public error that says that the server cannot answer now."""


class Client:
    """One client, which sends requests of all kinds in random order, one after the other.

    Args:
        url: The server.
        seen: Where its replies are counted.
        asked: The questions.
        seed: Determines the order.
        mortal: Whether the server is killed: a lost connection is no fault then, and ends the client.
    """

    def __init__(self, url: str, seen: Seen, asked: Sequence[Question], seed: str, *, mortal: bool) -> None:
        self._seen, self._asked, self._rng, self._mortal = seen, asked, random.Random(seed), mortal
        self._http = httpx.Client(base_url=url, timeout=DEADLINE_SECONDS + LATE_SECONDS)

    def work(self, stop: threading.Event) -> None:
        """Send requests until `stop` is set, or the killed server has gone."""
        kinds = [self._chat, self._stream, self._response, self._continue, self._vote] + [self._upload] * self._mortal
        with self._http:
            while not stop.wait(PAUSE_SECONDS if self._mortal else CLUSTER_PAUSE_SECONDS):
                kind, began = self._rng.choice(kinds), time.monotonic()
                try:
                    kind()
                except _RefusedError:
                    self._seen.refused += 1
                except httpx.TransportError as error:
                    if self._mortal:
                        return
                    self._seen.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}")
                except Exception as error:
                    self._seen.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}"[:300])
                if time.monotonic() - began > DEADLINE_SECONDS + LATE_SECONDS:
                    self._seen.wrong.append(f"{kind.__name__}: a reply after {time.monotonic() - began:.0f} s")

    def _post(self, path: str, body: Any) -> Any:
        reply = self._http.post(path, json=body)
        if reply.status_code != 200:
            raise _error(reply.status_code, reply.json()["error"])
        return reply.json()

    def _drawn(self) -> tuple[Question, Mode]:
        return self._rng.choice(self._asked), self._rng.choice(MODES)

    def _chat(self) -> None:
        question, mode = self._drawn()
        reply = self._post("/v1/chat/completions", _greedy(mode, messages=[question.message]))
        self._seen.answers.append(reply["vlroute"]["id"])
        self._compare(question, mode, reply["choices"][0]["message"]["content"])

    def _stream(self) -> None:
        question, mode = self._drawn()
        body = _greedy(mode, messages=[question.message], stream=True)
        text, id, ended = "", "", False
        with self._http.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                raise _error(reply.status_code, json.loads(reply.read())["error"])
            for line in reply.iter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line.startswith("data: "):
                    chunk = json.loads(line.removeprefix("data: "))
                    if "error" in chunk:
                        raise _error(503, chunk["error"])
                    id = id or chunk["id"]
                    text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        if not ended:
            raise httpx.RemoteProtocolError("the stream was cut")
        self._seen.answers.append(id.removeprefix("chatcmpl-"))
        self._compare(question, mode, text)

    def _response(self) -> None:
        question, mode = self._drawn()
        parts = [{"type": "input_image", "image_url": uri} for uri in question.pictures]
        content = [*parts, {"type": "input_text", "text": question.prompt}]
        reply = self._post("/v1/responses", _greedy(mode, input=[{"role": "user", "content": content}]))
        self._seen.responses[reply["id"]] = reply
        self._compare(question, mode, _text(reply))

    def _continue(self) -> None:
        before = self._any(self._seen.responses)
        if before is not None:
            body = _greedy("instruct", input="Read the text.", previous_response_id=before)
            reply = self._post("/v1/responses", body)
            self._seen.responses[reply["id"]] = reply

    def _vote(self) -> None:
        id, correct = self._any({*self._seen.answers} - self._seen.voters.keys()), round(self._rng.random(), 6)
        # a second vote on an answer would replace the first one
        if id is not None and self._seen.voters.setdefault(id, self) is self:
            self._post("/v1/feedback", {"id": id, "correct": correct})
            self._seen.votes.append((id, correct))

    def _upload(self) -> None:
        self._http.post("/gradio_api/upload", files={"files": ("a.png", b"x" * 10_000, "image/png")}).raise_for_status()

    def _any(self, ids: Any) -> str | None:
        known = list(ids)
        return self._rng.choice(known) if known else None

    def _compare(self, question: Question, mode: Mode, text: str) -> None:
        if text != question.answers[mode]:
            raise ValueError(f"{text!r} instead of {question.answers[mode]!r}")


def _greedy(mode: Mode, **body: Any) -> dict[str, Any]:
    return {"model": mode, "temperature": 0, **body}


def _text(response: Any) -> str:
    parts = [part for item in response["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts)


def _error(status: int, error: Any) -> Exception:
    if status in UNAVAILABLE and error["code"] and error["message"]:
        return _RefusedError(error["code"])
    return ValueError(f"status {status}: {error}")


@contextmanager
def _clients(url: str, seen: Seen, asked: Sequence[Question], seed: str, *, mortal: bool) -> Iterator[None]:
    """Let clients work in threads. A client that does not end is a fault."""
    stop = threading.Event()
    clients = [Client(url, seen, asked, f"{seed} {number}", mortal=mortal) for number in range(CLIENTS)]
    threads = [threading.Thread(target=client.work, args=(stop,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE_SECONDS + 2 * LATE_SECONDS)
            if thread.is_alive():
                seen.wrong.append("a request without an end")


def _verify(session: Session, http: httpx.Client, seen: Seen) -> None:
    """Count what was acknowledged and is not in the store, and wrong replies. Conversations go on."""
    with closing(sqlite3.connect(f"{(session.folder / 'answers.db').as_uri()}?mode=ro", uri=True)) as store:
        answers = {id for (id,) in store.execute("SELECT id FROM answers")}
        votes = {*store.execute("SELECT answer, correct FROM feedback")}
    session.lost(*(f"the answer {id} is not in the store" for id in seen.answers if id not in answers))
    session.lost(*(f"the vote {vote} is not in the store" for vote in seen.votes if vote not in votes))
    for id, response in seen.responses.items():
        if http.get(f"/v1/responses/{id}").json() != response:
            session.lost(f"the response {id} is not in the store")
    for id in session.rng.sample(sorted(seen.responses), min(3, len(seen.responses))):
        body = _greedy("instruct", input="Read the text again.", previous_response_id=id)
        if (reply := http.post("/v1/responses", json=body)).status_code != 200:
            session.lost(f"the response {id} cannot be continued: {reply.text}"[:300])
    session.lost(*seen.wrong)
    seen.wrong.clear()


def _serve(session: Session) -> None:
    """`vlroute serve` with a store and the web page. Some kills hit its start."""
    asked, seen, port, counted = questions(), Seen(), free_port(), 0
    url = f"http://127.0.0.1:{port}"
    arguments = ["serve", "--port", str(port), "--store", "answers.db"]
    with httpx.Client(base_url=url, timeout=60) as http:
        while True:
            with started(session.folder, arguments) as process:
                if session.left and session.rng.random() < EARLY:
                    process.join(session.rng.uniform(0, SERVE_SECONDS))
                    process.kill()
                    session.killed()
                    continue
                _wait_until_ready(http, process, session.folder)
                _verify(session, http, seen)
                for prefix in ("vlroute-page-", "vlroute-examples-"):
                    left = len([*session.folder.glob(f"{prefix}*")]) - 1
                    session.lost(*[f"a folder {prefix} of a killed process was left over"] * left)
                if not session.left:
                    return
                with _clients(url, seen, asked, str(session.left), mortal=True):
                    until(lambda before=counted: len(seen) > before, process)  # type: ignore[misc]
                    process.join(session.rng.uniform(0, SERVE_SECONDS))
                    process.kill()
            session.killed(len(seen) - counted)
            counted = len(seen)


def _wait_until_ready(http: httpx.Client, process: BaseProcess, folder: Path) -> None:
    def ready() -> bool:
        with suppress(httpx.TransportError):
            return http.get("/ready").status_code == 200
        time.sleep(PAUSE_SECONDS)
        return False

    if not until(ready, process):
        log = (folder / "output.log").read_text("utf-8", "replace")
        raise RuntimeError(f"the server did not start: {' '.join(log.split())[-250:]}")


def _cluster(session: Session) -> None:
    """A cluster of two replicas on this machine. One of them is killed at a time."""
    asked, seen, counted = questions(), Seen(), 0
    with (
        open(session.folder / "output.log", "w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log),
        _running_cluster(session.folder / "answers.db") as (url, replicas),
        httpx.Client(base_url=url, timeout=DEADLINE_SECONDS + LATE_SECONDS) as http,
    ):  # fmt: skip
        until(lambda: http.get("/ready").status_code == 200)
        ready = _two(replicas)
        with _clients(url, seen, asked, str(session.rng.random()), mortal=False):
            while session.left:
                time.sleep(session.rng.uniform(0, CLUSTER_SECONDS))
                victim = session.rng.choice(ready)
                os.kill(victim, signal.SIGKILL)
                ready = _two(replicas, victim)
                session.killed(len(seen) - counted)
                counted = len(seen)
        _verify(session, http, seen)
        session.result.acknowledged += len(seen) - counted


def _two(replicas: Callable[[], set[int]], killed: int | None = None) -> list[int]:
    """The process ids of both replicas, when both are ready. The `killed` one may still be listed for a while."""
    found = set[int]()

    def are_ready() -> bool:
        nonlocal found
        found = replicas()
        return len(found) == 2 and killed not in found

    until(are_ready)
    return sorted(found)


@contextmanager
def _running_cluster(store: Path) -> Iterator[tuple[str, Callable[[], set[int]]]]:
    """The address of a cluster, and the process ids of its replicas that are ready."""
    from vlroute.serving.cluster.start import deploy, start_here
    from vlroute.serving.settings import ClusterSettings, ServerSettings

    start_here(num_cpus=4, object_store_memory=100 * 2**20, log_to_driver=False, logging_level="ERROR")
    import ray
    from ray import serve
    from ray.serve.exceptions import DeploymentUnavailableError

    from vlroute.serving.cluster.app import NAME, build

    port = free_port()
    server = ServerSettings(deadline=DEADLINE_SECONDS)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
        deploy(build(ClusterSettings(replicas=2, max_num_seqs=4, cpus=0.5, store=str(store), server=server)), NAME)
        handle = serve.get_deployment_handle("Replica", NAME)

        def replicas() -> set[int]:
            time.sleep(0.2)
            try:
                found = handle.broadcast("stats").results(timeout_s=10, return_exceptions=True)
            except DeploymentUnavailableError:  # while no replica has started
                return set()
            return {one["pid"] for one in found if isinstance(one, dict)}

        yield f"http://127.0.0.1:{port}", replicas
        serve.shutdown()
    finally:
        ray.shutdown()


SERVE, CLUSTER = Program("vlroute serve", _serve), Program("replica of a cluster", _cluster)
