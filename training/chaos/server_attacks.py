"""Attacks on servers of their own: what other clients notice meanwhile, and what is left when they end.

The server runs on one core and the clients on the other ones, in all measurements.
"""

from __future__ import annotations

import argparse
import atexit
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import httpx

from training.bench.servers import free_port, started
from training.chaos import attacks, costly_requests, fairness, media, page_attacks
from training.page import PAGES, figures, publish, step

KEY, OTHER = "key-of-the-attacker-for-tests", "key-of-somebody-else-for-tests"
HEALTH_SECONDS = 0.1  # the most that /health may take, 95th percentile
LATE_SECONDS = 2.0  # after a deadline
REFERENCES_MIB = 150  # the most that references to 330 MB of stored responses may cost, a first long prompt included


@dataclass(frozen=True, slots=True)
class Target:
    """A server under attack."""

    url: str
    pid: int


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack on a server.

    Attributes:
        name: What the clients do.
        bar: What must hold meanwhile.
        run: Attacks; returns the figure, and whether the bar holds.
        options: Further options of `vlroute serve`.
        keys: Whether the server has keys.
        alone: Whether it has a server of its own, because it ends it, has other options or measures its memory.
    """

    name: str
    bar: str
    run: Callable[[Target], tuple[str, bool]]
    options: tuple[str, ...] = ()
    keys: bool = True
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Result of an attack; the fields are those of the table."""

    attack: str
    bar: str
    figure: str
    holds: bool


def run(attack: Attack, times: int, seed: int, advance: Callable[[], object], checkout: Path | None = None) -> Row:
    """Attack a server.

    Args:
        attack: What to do.
        times: How often: 1.
        seed: Has no effect.
        advance: Called at the end.
        checkout: A checkout of vlroute whose server is attacked; by default the installed one.

    Returns:
        The figure and the verdict.
    """
    del times, seed
    with _server(attack, checkout) as target:
        try:
            figure, holds = attack.run(target)
        except httpx.HTTPError as error:  # an attack that makes the server unusable has a result too
            figure, holds = f"{type(error).__name__} in the attack's client", False
    if not holds:
        _shared.close()  # the attack may have left the server in a bad state
    advance()
    return Row(attack.name, attack.bar, figure, holds)


class _SharedServer:
    """The server of the attacks that need none of their own, until one that does begins."""

    def __init__(self) -> None:
        self._held, self._target = ExitStack(), cast("Target | None", None)

    def target(self, attack: Attack, checkout: Path | None) -> Target:
        if self._target is None:
            self._target = self._held.enter_context(_own_server(attack, checkout))
        return self._target

    def close(self) -> None:
        self._target = None
        self._held.close()


_shared = _SharedServer()
atexit.register(_shared.close)


@contextmanager
def _server(attack: Attack, checkout: Path | None) -> Iterator[Target]:
    if not attack.alone:
        yield _shared.target(attack, checkout)
        return
    _shared.close()
    with _own_server(attack, checkout) as target:
        yield target


@contextmanager
def _own_server(attack: Attack, checkout: Path | None) -> Iterator[Target]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    variables = dict(os.environ, OMP_NUM_THREADS="1")
    variables.pop("VLROUTE_API_KEYS", None)
    if attack.keys:
        variables["VLROUTE_API_KEYS"] = f"{KEY},{OTHER}"
    if checkout:
        variables["PYTHONPATH"] = str(checkout / "src")
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "answers.db")
        command = [sys.executable, "-m", "vlroute", "serve", "--port", str(port), "--store", store, *attack.options]
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:1])  # which a new process inherits
        try:
            with started(command, f"{url}/ready", "the server", variables) as process:
                os.sched_setaffinity(0, cores[1:] or cores)
                yield Target(url, process.pid)
                process.kill()  # it need not shut down
        finally:
            os.sched_setaffinity(0, cores)


def _health(found: attacks.Figures) -> tuple[str, bool]:
    requests = len(found.milliseconds) + found.failed
    failed = f", {found.failed} of {requests} not answered" if found.failed else ""
    return f"`/health` p95 {found.p95:.0f} ms, longest {found.longest:.0f} ms{failed}", (
        not found.failed and found.p95 <= HEALTH_SECONDS * 1000
    )


def _held(attack: Callable[..., attacks.Figures], **options: Any) -> Callable[[Target], tuple[str, bool]]:
    return lambda target: _health(attack(target.url, **options))


def _slow_readers(target: Target) -> tuple[str, bool]:
    found = attacks.slow_reader(target.url, KEY, seconds=60)
    health, holds = _health(found)
    return f"{found.still_open} of 5 still open after {found.seconds:.0f} s; {health}", holds and not found.still_open


def _large_body(kind: str, key: str) -> Callable[[Target], tuple[str, bool]]:
    def attack(target: Target) -> tuple[str, bool]:
        found = attacks.deep_json(target.url, key) if kind == "depth" else attacks.big_json(target.url, key, kind)
        health, holds = _health(found)
        status = ", ".join(str(one) if one else "no reply" for one in found.statuses)
        refused = all(400 <= one < 500 for one in found.statuses)
        return f"{status} after {found.seconds:.1f} s; {health}", holds and refused

    return attack


def _pictures(target: Target) -> tuple[str, bool]:
    return _bombs(media.picture_bombs(target.url, KEY, target.pid))


def _video(target: Target) -> tuple[str, bool]:
    found = media.video_bomb(target.url, KEY, target.pid, frames=20_000)
    text, holds = _bombs(found)
    return f"ends after {found['seconds']:.0f} s; {text}", holds and found["seconds"] <= 15 + LATE_SECONDS


def _bombs(found: dict[str, float]) -> tuple[str, bool]:
    text = (
        f"{found['answered']:.0f} answered, {found['refused']:.0f} refused, {found['late']:.0f} late; "
        f"`/health` p95 {found['health p95 s'] * 1000:.0f} ms; {found['peak MiB']:+.0f} MiB at the peak"
    )
    return text, found["health p95 s"] <= HEALTH_SECONDS


def _many_requests(count: int, tokens: int = 0) -> Callable[[Target], tuple[str, bool]]:
    def attack(target: Target) -> tuple[str, bool]:
        found = fairness.flood_of_one_key(target.url, KEY, OTHER, count, tokens=tokens, asked=_asked(tokens))
        return _other_key(found)

    return attack


def _everything(tokens: int = 0) -> Callable[[Target], tuple[str, bool]]:
    more = ("--bodies", "--silent", "200")

    def attack(target: Target) -> tuple[str, bool]:
        found = fairness.flood_of_one_key(target.url, KEY, OTHER, 40, tokens=tokens, more=more, asked=_asked(tokens))
        return _other_key_and_health(found)

    return attack


def _short_requests(kind: str) -> Callable[[Target], tuple[str, bool]]:
    def attack(target: Target) -> tuple[str, bool]:
        flood = ("training.chaos.short_requests", target.url, KEY, kind)
        return _other_key_and_health(fairness.beside(flood, target.url, OTHER, asked=150))

    return attack


def _asked(tokens: int) -> int:
    """How often the other key asks. The times of short answers vary more, so they are asked more often."""
    return 90 if tokens else 200


def _other_key_and_health(found: dict[str, float]) -> tuple[str, bool]:
    (text, holds), health = _other_key(found), found["health p95 s"]
    return f"{text}; `/health` p95 {health * 1000:.0f} ms", holds and health <= HEALTH_SECONDS


def _other_key(found: dict[str, float]) -> tuple[str, bool]:
    idle, busy = found["idle p95 s"] * 1000, found["flood p95 s"] * 1000
    text = f"Instruct p95 {idle:.0f} ms idle, {busy:.0f} ms during the attack ({found['ratio']:.1f}×); "
    text += f"{found['refused']:.0f} of {found['asked']:.0f} refused"
    return text, found["ratio"] <= 2 and not found["refused"]


def _formats(target: Target) -> tuple[str, bool]:
    found = costly_requests.slow_formats(target.url, KEY, OTHER)
    text = f"the other key: longest {found['longest s']:.1f} s, {found['refused']:.0f} refused; "
    text += f"`/health` p95 {found['health p95 s'] * 1000:.0f} ms"
    return text, found["longest s"] <= 2 and not found["refused"] and found["health p95 s"] <= HEALTH_SECONDS


def _words(target: Target) -> tuple[str, bool]:
    found = costly_requests.excluded_words(target.url, KEY, OTHER)
    plain, words = found["plain p95 s"], found["words p95 s"]
    text = f"Instruct p95 {plain * 1000:.0f} ms beside plain answers, {words * 1000:.0f} ms beside these "
    return f"{text}({words / plain:.1f}×)", words <= 2 * plain


def _references(target: Target) -> tuple[str, bool]:
    found = costly_requests.referred_answers(target.url, KEY, target.pid)
    text = f"status {found['status']:.0f}; {found['peak MiB']:+.0f} MiB at the peak; "
    text += f"`/health` p95 {found['health p95 s'] * 1000:.0f} ms"
    return text, found["peak MiB"] <= REFERENCES_MIB and found["health p95 s"] <= HEALTH_SECONDS


def _page_bodies(target: Target) -> tuple[str, bool]:
    found = page_attacks.bodies_for_gradio(target.url, target.pid)
    text = f"{found['refused']:.0f} of {found['sent']:.0f} refused; {_memory_and_health(found)}"
    return text, found["refused"] == found["sent"] and found["grown MiB"] <= 150 and _is_healthy(found)


def _page_sessions(target: Target) -> tuple[str, bool]:
    found = page_attacks.sessions_with_pictures(target.url, target.pid, KEY)
    text = f"{found['answered']:.0f} of 8 answered; {_memory_and_health(found)}"
    return text, found["answered"] == 8 and found["grown MiB"] <= 150 and _is_healthy(found)


def _memory_and_health(found: dict[str, float]) -> str:
    return f"{found['grown MiB']:+.0f} MiB after it; `/health` p95 {found['health p95 s'] * 1000:.0f} ms"


def _is_healthy(found: dict[str, float]) -> bool:
    return found["health p95 s"] <= HEALTH_SECONDS


def _page_batches(target: Target) -> tuple[str, bool]:
    found = page_attacks.batches_of_one_visitor(target.url, KEY, OTHER)
    text = f"{found['answered']:.0f} of 5 answered; longest {found['longest s']:.1f} s, {found['calm s']:.1f} s before"
    return text, found["answered"] == 5 and found["longest s"] <= 2


def _page_upload(target: Target) -> tuple[str, bool]:
    found = page_attacks.trickled_upload(target.url, KEY, OTHER)
    return f"{found['accepted']:.0f} of {found['sent']:.0f} accepted", found["accepted"] == found["sent"]


def _wrong_keys(target: Target) -> tuple[str, bool]:
    found = fairness.wrong_keys(target.url, KEY)
    text = f"{found['401']:.0f} checked, {found['429']:.0f} told to wait; the right key: {found['right key']:.0f}"
    return text, found["401"] <= 20


def _shutdown(target: Target) -> tuple[str, bool]:
    found = attacks.sigterm_during_streams(target.url, target.pid, KEY, tokens=8000)
    return f"{found.answered} answered, {found.failed} ended with an error event, {found.cut} cut", not found.cut


def _foreign_upload(target: Target) -> tuple[str, bool]:
    reply = httpx.post(
        f"{target.url}/gradio_api/upload", files={"files": ("a.bin", b"x" * 1000)},
        headers={"Origin": "https://elsewhere.example"}, timeout=30,
    )  # fmt: skip
    return f"status {reply.status_code}", reply.status_code in (401, 403)


def _schema(target: Target) -> tuple[str, bool]:
    status = httpx.get(f"{target.url}/openapi.json", timeout=30).status_code
    return f"status {status}", status == 401


_ANSWERED = "`/health` p95 ≤ 100 ms, none lost"
_NOT_READ = f"a 4xx status; {_ANSWERED}"
_OTHER = "another key: p95 ≤ 2× idle, none refused"
_EVERYTHING = "one key: 40 long Thinking requests, bodies of 60 MiB, large pictures, videos, 200 silent connections"
ATTACKS = (
    Attack("1,100 silent connections, 20 s", _ANSWERED, _held(attacks.idle_connections, count=1100, seconds=20)),
    Attack("1,100 headers, byte by byte, 20 s", _ANSWERED, _held(attacks.slow_header, count=1100, seconds=20)),
    Attack("50 bodies, byte by byte, 20 s", _ANSWERED, _held(attacks.slow_body, key=KEY, seconds=20)),
    Attack("5 clients that do not read", f"closed within 60 s; {_ANSWERED}", _slow_readers),
    *[Attack(f"60 MiB of JSON: {kind}", _NOT_READ, _large_body(kind, KEY)) for kind in attacks.BODIES],
    Attack("60 MiB of JSON: brackets, wrong key", _NOT_READ, _large_body("brackets", "a wrong key")),
    Attack("10 MiB of opening brackets", _NOT_READ, _large_body("depth", KEY)),
    *[
        Attack(f"{name}; the other key's answers have {words}", bar, run)
        for tokens, words in ((0, "one word"), (30, "30 tokens"))
        for name, bar, run in (
            ("16 long Thinking requests of one key", _OTHER, _many_requests(16, tokens)),
            ("100 long Thinking requests of one key", _OTHER, _many_requests(100, tokens)),
            (_EVERYTHING, f"{_OTHER}; `/health` p95 ≤ 100 ms", _everything(tokens)),
        )
    ],
    *[
        Attack(f"60 connections of one key, again and again: {what}", f"{_OTHER}; `/health` p95 ≤ 100 ms", run)
        for what, run in (
            ("wrong requests", _short_requests("wrong")), ("lists of models", _short_requests("models")),
            ("bodies with too many fields", _short_requests("fields")),
            ("answers of one word", _short_requests("answers")),
        )
    ],
    Attack("8 connections with 13,000 requests at once", _ANSWERED, _held(costly_requests.pipelined)),
    Attack("bodies in chunks of one byte", _ANSWERED, _held(costly_requests.tiny_chunks, key=KEY)),
    Attack("bodies in chunks of one byte, wrong key", _ANSWERED, _held(costly_requests.tiny_chunks, key="wrong")),
    Attack("arguments of tools with a million brackets", _ANSWERED, _held(costly_requests.nested_json, key=KEY)),
    Attack("decisions on 2.4 MB of reasoning", _ANSWERED, _held(costly_requests.long_reasoning, key=KEY)),
    Attack(
        "references to 300 stored responses of 1.1 MB in one request",
        f"at most {REFERENCES_MIB} MiB at the peak; `/health` p95 ≤ 100 ms", _references,
    ),
    Attack(
        "stored pictures of 45 MiB, read and continued 16 times", _ANSWERED,
        _held(costly_requests.stored_pictures, key=KEY),
    ),
    Attack(
        "8 answers of 900 tokens with 20 log-probabilities", _ANSWERED, _held(costly_requests.large_replies, key=KEY)
    ),
    Attack(
        "formats and tools that take hours to compile",
        "another key: a format within 2 s, none refused; `/health` p95 ≤ 100 ms", _formats,
    ),
    Attack("96 excluded words in 8 answers", "another key: p95 ≤ 2× beside plain answers", _words),
    Attack(
        "the page: bodies of 400 MiB without a log-in", "refused, at most +150 MiB; `/health` p95 ≤ 100 ms",
        _page_bodies,
    ),
    Attack("the page: 4 batches of 1,000 rows of one visitor", "another visitor: answered within 2 s", _page_batches),
    Attack(
        "the page: an upload of 2 GiB that hardly sends anything", "uploads of another visitor: accepted", _page_upload
    ),
    Attack("/openapi.json without a key", "status 401", _schema),
    Attack("200 wrong keys", "at most 20 checked", _wrong_keys),
    Attack(
        "the page: 16 × 12 megapixels of one small file in 8 sessions", "at most +150 MiB; `/health` p95 ≤ 100 ms",
        _page_sessions, alone=True,
    ),
    Attack("8 pictures of 64 megapixels at once", "`/health` p95 ≤ 100 ms", _pictures, alone=True),
    Attack(
        "a video of 20,000 frames of 2,048², deadline 15 s", "ends within 17 s; `/health` p95 ≤ 100 ms", _video,
        ("--deadline", "15"), alone=True,
    ),
    Attack("an upload from another site, no keys", "status 401 or 403", _foreign_upload, keys=False, alone=True),
    Attack("SIGTERM during 10 long streams", "none cut", _shutdown, alone=True),
)  # fmt: skip


def main() -> None:
    """Measure the column *before* of the page: `python -m training.chaos.server_attacks CHECKOUT`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("checkout", type=Path, help="a checkout of the version before")
    parser.add_argument("--containing", default="", metavar="TEXT", help="only attacks whose names contain it")
    parser.add_argument("--out", type=Path, default=PAGES, help="folder of the page")
    options = parser.parse_args()
    data = figures("chaos", options.out)
    for attack in (one for one in ATTACKS if options.containing in one.name):
        step(attack.name)
        data.setdefault("before", {})[attack.name] = asdict(run(attack, 1, 0, lambda: None, options.checkout))
        publish("chaos", data, options.out)


if __name__ == "__main__":
    main()
