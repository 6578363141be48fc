"""`vlroute serve` beside other servers of the same checkpoints. `python -m training.bench.peers`

The servers are `transformers serve`, vLLM and llama.cpp, and `vlroute serve` of an old commit. Each is installed at a
pinned version in an environment of its own under --cache at the first run (needs a network, the extra bench, the
history of the repository, and 10 GB of disk). All have both cores; in each round every server answers the same requests
in turn while the others are stopped. Takes about an hour on two cores.
"""

from __future__ import annotations

import json
import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil
from PIL import Image
from tokenizers import Tokenizer

from training.bench.peer_servers import CACHE, LAUNCHES, OLD, OURS, SEQUENCES, VERSIONS, PeerServer, peer_server
from training.bench.server import ANSWERS, CHAT, WARM_UP, Connection, measure_overhead
from training.bench.servers import draw_pictures, user_message
from training.page import POCKET, argument_parser, environment, publish, step
from vlroute.pocket import LEVELS, Task, draw_task
from vlroute.types import MODES, Mode

ROUNDS, REQUESTS, EQUAL_TASKS, CLIENTS = 8, 240, 60, 16
FEW = 4  # requests that are not measured after a server was resumed
FULL_SECONDS = 0.5  # after which all Thinking clients are being answered
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 200}
SECOND = "Read the text."  # the second question of a conversation
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer of any of the servers.

    Attributes:
        thinking: The reasoning, without tags.
        text: The answer.
        finish_reason: Why it ended.
        seconds: Seconds from the request to the end of the reply.
    """

    thinking: str
    text: str
    finish_reason: str
    seconds: float

    @property
    def compared(self) -> tuple[str, str, str]:
        """What is the same if two servers give equal answers."""
        return self.thinking, self.text, self.finish_reason


def read_reply(body: bytes, mode: Mode, seconds: float) -> Reply:
    """Read a chat completion. Servers send reasoning in a field of its own or as text before `</think>`.

    In Thinking, text without that tag is reasoning that was cut off, if there is no field with reasoning.
    """
    choice = json.loads(body)["choices"][0]
    message = choice["message"]
    thinking, text = message.get("reasoning_content") or message.get("reasoning") or "", message["content"] or ""
    if not thinking and (mode == "thinking" or "</think>" in text):
        thinking, _, text = text.partition("</think>")
    return Reply(thinking.removeprefix("<think>").strip(), text.strip(), choice["finish_reason"], seconds)


class Client:
    """One client of a server, with an open connection."""

    def __init__(self, server: PeerServer, mode: Mode) -> None:
        self.connection, self.model, self.mode = Connection(server.urls[mode]), server.models[mode], mode

    def body(self, messages: Sequence[Message]) -> bytes:
        return json.dumps({"model": self.model, "messages": messages, **GREEDY}).encode()

    def send(self, body: bytes) -> Reply:
        reply = self.connection.post(CHAT, body)
        if reply.status != 200:
            raise RuntimeError(f"status {reply.status} from {self.model}: {reply.body[:500].decode(errors='replace')}")
        return read_reply(reply.body, self.mode, reply.seconds)

    def ask(self, messages: Sequence[Message]) -> Reply:
        return self.send(self.body(messages))


def question(task: Task) -> list[Message]:
    return [user_message(task.frames, task.prompt)]


def ask_in_turn(server: PeerServer, mode: Mode, conversations: Sequence[Sequence[Message]]) -> list[Reply]:
    """Replies to one client, which sends one request after the other."""
    client = Client(server, mode)
    bodies = [client.body(messages) for messages in conversations]
    return [client.send(body) for body in bodies]


def ask_at_once(
    server: PeerServer, mode: Mode, conversations: Sequence[Sequence[Message]], clients: int
) -> tuple[list[Reply], float]:
    """Replies to `clients` clients, each with a part of the conversations, and the seconds until the last one."""
    parts = [conversations[i::clients] for i in range(clients)]
    senders = [Client(server, mode) for _ in parts]
    bodies = [[sender.body(messages) for messages in part] for sender, part in zip(senders, parts, strict=True)]
    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        replies = list(pool.map(lambda sender, part: [sender.send(body) for body in part], senders, bodies))
        seconds = time.perf_counter() - began
    return [reply for part in replies for reply in part], seconds


TOKENIZER = POCKET / "thinking" / "tokenizer.json"


def count_tokens(replies: Sequence[Reply]) -> int:
    """Tokens of answers and reasoning. Servers count differently, so they are counted here, in the same way for all."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    return sum(len(tokenizer.encode(text).ids) for reply in replies for text in (reply.thinking, reply.text))


def median_seconds(replies: Sequence[Reply]) -> float:
    return statistics.median(reply.seconds for reply in replies)


def latency(server: PeerServer, seed: str, requests: int) -> float:
    """Median seconds of an answer to one client, each about a fresh picture."""
    return median_seconds(ask_in_turn(server, "instruct", [question(task) for task in draw_pictures(requests, seed)]))


def second_turn(server: PeerServer, seed: str, requests: int) -> float:
    """Median seconds of the second answer in a conversation. The first turn, immediately before, is not measured."""
    client, replies = Client(server, "instruct"), []
    for task in draw_pictures(requests, seed):
        answer = client.ask(question(task))
        turn = [{"role": "assistant", "content": answer.text}, {"role": "user", "content": SECOND}]
        replies.append(client.ask([*question(task), *turn]))
    return median_seconds(replies)


def fresh_pictures(server: PeerServer, seed: str, requests: int) -> float:
    """Answers per second to 16 clients, each about a fresh picture."""
    conversations = [question(task) for task in draw_pictures(requests, seed)]
    return requests / ask_at_once(server, "instruct", conversations, CLIENTS)[1]


def fresh_questions(picture: Image.Image, count: int, rng: random.Random) -> list[list[Message]]:
    """Different questions about one picture."""
    prompts: dict[str, None] = {}  # in order, without repeated ones
    while len(prompts) < count:
        prompts[draw_task(rng, "hop", rng.choice(LEVELS), rng.choice(("en", "zh"))).prompt] = None
    return [[user_message((picture,), prompt)] for prompt in prompts]


def same_picture(server: PeerServer, seed: str, requests: int) -> float:
    """Answers per second to 16 clients with different questions about one picture, which the server has seen before."""
    picture = draw_pictures(1, seed)[0].frames[0]
    first, *conversations = fresh_questions(picture, requests + 1, random.Random(seed))
    ask_in_turn(server, "instruct", [first])
    return requests / ask_at_once(server, "instruct", conversations, CLIENTS)[1]


def thinking(server: PeerServer, seed: str, requests: int) -> float:
    """Tokens per second, reasoning included, that 16 clients get from Thinking. Each picture is asked about once."""
    conversations = [question(task) for task in draw_pictures(requests, seed)]
    replies, seconds = ask_at_once(server, "thinking", conversations, CLIENTS)
    return count_tokens(replies) / seconds


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of load.

    Attributes:
        title: Its name on the page.
        unit: Unit of the value: "ms", "answers/s" or "tokens/s". A latency is measured in seconds.
        share: Share of the requests of a measurement that it sends.
        measure: Sends drawn requests to a server and returns the value. Arguments: server, seed, number of requests.
    """

    title: str
    unit: str
    share: float
    measure: Callable[[PeerServer, str, int], float]

    def ratio(self, ours: float, theirs: float) -> float:
        """How many times as fast as a peer `vlroute serve` is."""
        return theirs / ours if self.unit == "ms" else ours / theirs


WORKLOADS = {
    "latency": Workload("1 client, fresh pictures", "ms", 0.25, latency),
    "second_turn": Workload("1 client, turn 2 of a conversation", "ms", 0.25, second_turn),
    "fresh_pictures": Workload("16 clients, fresh pictures", "answers/s", 1.0, fresh_pictures),
    "same_picture": Workload("16 clients, the same picture, fresh questions", "answers/s", 1.0, same_picture),
    "thinking": Workload("16 Thinking clients, fresh pictures", "tokens/s", 1.0, thinking),
}
OLD_WORKLOADS = ("latency", "thinking")  # the others are not compared with the old commit
Measured = dict[str, dict[str, list[float]]]


def instruct_beside_thinking(server: PeerServer, seed: str, requests: int) -> tuple[float, float]:
    """Median seconds of an answer to one Instruct client: alone, and while 15 Thinking clients send requests."""
    alone = latency(server, f"{seed} alone", requests)
    others = [Client(server, "thinking") for _ in range(CLIENTS - 1)]
    bodies = [others[0].body(question(task)) for task in draw_pictures(20 * len(others), seed)]
    done = threading.Event()

    def think(index: int) -> None:
        for body in cycle(bodies[index :: len(others)]):
            if done.is_set():
                return
            others[index].send(body)

    with ThreadPoolExecutor(len(others)) as pool:
        thinking_clients = [pool.submit(think, index) for index in range(len(others))]
        try:
            time.sleep(FULL_SECONDS)
            beside = latency(server, f"{seed} beside", requests)
        finally:
            done.set()
    for client in thinking_clients:
        client.result()
    return alone, beside


def spread(values: Sequence[float]) -> list[float]:
    """Median, lowest and highest value."""
    return [statistics.median(values), min(values), max(values)]


def ratios(measured: Measured) -> dict[str, dict[str, list[float]]]:
    """For each workload and peer, median and range over the rounds of how many times as fast `vlroute serve` is."""
    return {
        name: {
            peer: spread([WORKLOADS[name].ratio(*pair) for pair in zip(values[OURS], theirs, strict=True)])
            for peer, theirs in values.items() if peer != OURS
        }
        for name, values in measured.items()
    }  # fmt: skip


def equality(servers: Mapping[str, PeerServer], tasks: Sequence[Task]) -> dict[str, Any]:
    """For each peer, how many greedy answers equal those of `vlroute serve`, and those that do not."""
    answers: dict[str, list[Reply]] = {}
    for name, server in servers.items():
        step(f"answers of {name}")
        with server.resumed():
            answers[name] = [reply for mode in MODES for reply in ask_in_turn(server, mode, [*map(question, tasks)])]
    asked = [(mode, task.prompt) for mode in MODES for task in tasks]
    found = {}
    for name in servers.keys() - {OURS}:
        rows = zip(asked, answers[OURS], answers[name], strict=True)
        different = [
            {"mode": mode, "prompt": prompt, "ours": ours.compared, "theirs": theirs.compared}
            for (mode, prompt), ours, theirs in rows if ours.compared != theirs.compared
        ]  # fmt: skip
        found[name] = {"equal": len(asked) - len(different), "asked": len(asked), "different": different}
    return {name: found[name] for name in servers if name != OURS}


def measure_round(servers: Mapping[str, PeerServer], index: int, requests: int, measured: Measured) -> None:
    """Run each workload on each server in turn, and append the values to `measured`.

    The order of the servers changes with each round.
    """
    order = list(servers)[index % len(servers) :] + list(servers)[: index % len(servers)]
    for name, workload in WORKLOADS.items():
        for peer in order:
            if peer == OLD and name not in OLD_WORKLOADS:
                continue
            server, seed = servers[peer], f"{name} {index}"
            with server.resumed():
                workload.measure(server, f"{seed} warm-up", FEW)  # it was stopped
                value = workload.measure(server, seed, max(1, round(workload.share * requests)))
            measured[name].setdefault(peer, []).append(value)


def measure(peers: Sequence[str], rounds: int, requests: int, cache: Path) -> dict[str, Any]:
    """The figures of the page.

    Args:
        peers: Names of the servers that are compared with `vlroute serve`.
        rounds: Number of rounds.
        requests: Requests of a measurement with 16 clients.
        cache: Folder of the environments.

    Returns:
        The figures.
    """
    where, few = environment(), max(1, requests // 4)
    measured: Measured = {name: {} for name in WORKLOADS}
    busy, mixed = [], []
    with ExitStack() as stack:
        servers = {name: stack.enter_context(peer_server(name, cache)) for name in (OURS, *peers)}
        ours = servers[OURS]
        equal = equality(servers, draw_pictures(EQUAL_TASKS, "equality"))
        step("overhead of HTTP")
        with ours.resumed():
            ask, overhead = measure_overhead(ours.urls["instruct"], draw_pictures(ANSWERS + WARM_UP, "overhead"), True)
        step("warming up")
        measure_round(servers, 0, CLIENTS, {name: {} for name in WORKLOADS})
        for index in range(1, rounds + 1):
            step(f"round {index} of {rounds}")
            busy.append(psutil.cpu_percent(interval=1.0))  # all servers are stopped: this is the load of other programs
            measure_round(servers, index, requests, measured)
            with ours.resumed():
                mixed.append(instruct_beside_thinking(ours, f"mixed {index}", few))
    return {
        "where": where, "rounds": rounds, "requests": requests, "few": few, "sequences": SEQUENCES,
        "busy": spread(busy), "peers": {name: VERSIONS[name] for name in peers}, "equal": equal,
        "titles": {name: [workload.title, workload.unit] for name, workload in WORKLOADS.items()},
        "measured": measured, "ratios": ratios(measured),
        "values": {name: {peer: spread(all_) for peer, all_ in values.items()} for name, values in measured.items()},
        "alone": spread([alone for alone, _ in mixed]),
        "beside": spread([beside for _, beside in mixed]),
        "slower": spread([beside / alone for alone, beside in mixed]),
        "ask": ask, "overhead": overhead,
    }  # fmt: skip


def main() -> None:
    parser = argument_parser(__doc__)
    peers = [name for name in LAUNCHES if name != OURS]
    parser.add_argument("--peers", nargs="+", choices=peers, default=peers, help="only these")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of a measurement with 16 clients")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of the environments")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)  # an error after an hour would be late
    found = measure(options.peers, options.rounds, options.requests, options.cache.resolve())
    publish("peers", found, options.out)


if __name__ == "__main__":
    main()
