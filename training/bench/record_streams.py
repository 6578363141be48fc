"""Record streams of vLLM and llama.cpp for unit tests. `python -m training.bench.record_streams [NAME …]`

Starts each server with the pocket pair, asks it one question in several ways, and writes the raw responses to
`tests/unit/engine/streams`, with what the pair in this process answers. The tests replay them without a server. Takes
two minutes on two cores; vLLM is installed at the first run.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from training.bench.endpoint_servers import BUDGET_FIELDS, KEY, EndpointServer, running_servers
from training.bench.servers import draw_pictures
from training.page import ROOT, step, write_json
from vlroute import Mode, Router
from vlroute.inputs.messages import parse
from vlroute.learning.trial import media
from vlroute.pocket import Task

STREAMS = ROOT / "tests" / "unit" / "engine" / "streams"
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 200}


@dataclass(frozen=True, slots=True)
class Case:
    """One recorded request.

    Attributes:
        mode: Its mode.
        settings: Its settings, which are greedy by default.
        fields: Further fields of the request.
    """

    mode: Mode
    settings: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)


CASES = {
    "instruct": Case("instruct"),
    "thinking": Case("thinking"),
    "budget": Case("thinking", {"thinking_budget": 5}),
    "length": Case("thinking", {"max_new_tokens": 8, "answer_reserve": 0}),  # ends within the reasoning
    "refusal": Case("instruct", fields={"messages": [{"role": "user", "content": "word " * 5_000}]}),  # too long
}


def record(server: EndpointServer, case: Case, task: Task) -> bytes:
    """The status, the content type and the body of a response, as a line, an empty line and bytes."""
    endpoint = server.endpoint(budget_field=BUDGET_FIELDS[server.name])
    body = endpoint.body(parse(task.prompt, **media(task)), {**GREEDY, **case.settings}, case.mode)
    body |= {**body.pop("extra_body", {}), "stream": True, "stream_options": {"include_usage": True}, **case.fields}
    key = {"authorization": f"Bearer {KEY}"}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=key, timeout=120)
    return f"{reply.status_code} {reply.headers['content-type']}\n\n".encode() + reply.content


def expected(router: Router, case: Case, task: Task) -> dict[str, Any]:
    """What the pair in this process answers."""
    settings = {name: value for name, value in case.settings.items() if name != "thinking_budget"}
    answer = router.ask(task.prompt, **media(task), mode=case.mode, **{**GREEDY, **settings})
    usage = answer.usage
    return {
        "text": answer.text, "thinking": answer.thinking, "finish_reason": answer.finish_reason,
        "prompt_tokens": usage.prompt_tokens, "vision_tokens": usage.vision_tokens,
        "completion_tokens": usage.completion_tokens, "thinking_tokens": usage.thinking_tokens,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="*", default=[*BUDGET_FIELDS], metavar="NAME")
    parser.add_argument("--out", type=Path, default=STREAMS)
    options = parser.parse_args()
    if unknown := set(options.servers) - set(BUDGET_FIELDS):
        parser.error(f"unknown {', '.join(unknown)}; expected {', '.join(BUDGET_FIELDS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    task = draw_pictures(1, "recorded")[0]
    with Router.from_pretrained() as router:
        answers = {name: expected(router, case, task) for name, case in CASES.items() if not case.fields}
    write_json(options.out / "expected.json", answers)
    for name in options.servers:
        step(f"starting {name}")
        with tempfile.TemporaryDirectory() as folder, running_servers(name, Path(folder)) as servers:
            for case_name, case in CASES.items():
                file = options.out / f"{name.lower().replace('.', '_')}_{case_name}.txt"
                file.write_bytes(record(servers[case.mode], case, task))


if __name__ == "__main__":
    main()
