"""Measure structured output: `python -m training.bench.structured`

Answers of the pocket pair to random JSON schemas, and tokens per second with and without a schema. Takes a few minutes
on two cores.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator

from training.page import argument_parser, environment, publish, step
from vlroute import Answer, Router
from vlroute.learning import draw_evenly
from vlroute.pocket import Task
from vlroute.types import MODES, Mode

SEQUENCES = 8
#: The longest answer, and for the speed the length of each.
MOST, LENGTH = 1000, 250
PATTERNS = ("^[a-z]{2,8}$", "^[A-Z][a-z]+(-[0-9]{1,3})?$", "^(red|green) (circle|square)$", r"^\d{4}-\d{2}$")
WORDS = ("circle", "square", "red", "left", "on", "7", "", "three words here", 'ja "nein"', "圆形")
Schema = dict[str, Any]
#: A table that is long enough for any limit of tokens.
LONG: Schema = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "color": {"enum": ["red", "green", "blue"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 99},
            "size": {"type": ["number", "null"], "minimum": 0, "maximum": 10},
        },
        "required": ["name", "color", "count", "size"],
        "additionalProperties": False,
    },
}


def draw_schema(chance: random.Random, depth: int = 3) -> Schema:
    """A random object or array, nested up to `depth` levels."""
    return _draw_object(chance, depth) if chance.random() < 0.7 else _draw_array(chance, depth)


def _draw(chance: random.Random, depth: int) -> Schema:
    simple = ("enum", "const", "string", "pattern", "integer", "number", "boolean", "null")
    nested = ("object", "array", "anyOf", "nullable") if depth > 0 else ()
    kind = chance.choice((*simple, *nested))
    if kind == "object":
        return _draw_object(chance, depth)
    if kind == "array":
        return _draw_array(chance, depth)
    if kind == "anyOf":
        return {"anyOf": [_draw(chance, depth - 1) for _ in range(chance.randint(2, 3))]}
    if kind == "nullable":
        return {"type": [chance.choice(("boolean", "integer")), "null"], "maximum": 1000, "minimum": -1000}
    if kind == "enum":
        return {"enum": chance.sample([*WORDS, 3, 2.5, True, None, ["a", 1]], chance.randint(1, 4))}
    if kind == "const":
        return {"const": chance.choice([*WORDS, 12, -1.5, False, None, {"a": [1, "b"]}])}
    if kind == "string":
        least = chance.randint(0, 4)
        return {"type": "string", "minLength": least, "maxLength": least + chance.randint(0, 12)}
    if kind == "pattern":
        return {"type": "string", "pattern": chance.choice(PATTERNS), "maxLength": 20}
    if kind in ("integer", "number"):
        low = chance.randint(-1000, 1000)
        low_name, high_name = chance.choice((("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")))
        return {"type": kind, low_name: low, high_name: low + chance.randint(2, 10_000)}
    return {"type": kind}


def _draw_object(chance: random.Random, depth: int) -> Schema:
    names = chance.sample(["a", "name", "size of it", "größe", "x_1", "Kind", "数", '"q"'], chance.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: _draw(chance, depth - 1) for name in names},
        "required": [name for name in names if chance.random() < 0.6],
        "additionalProperties": False,
    }


def _draw_array(chance: random.Random, depth: int) -> Schema:
    least = chance.randint(0, 2)
    return {"type": "array", "items": _draw(chance, depth - 1), "minItems": least,
            "maxItems": least + chance.randint(0, 3)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Structured:
    """The answer of a mode to a random schema. `problem`: why a complete answer does not fit it; empty if it does."""

    schema: Schema
    mode: Mode
    answer: Answer
    problem: str

    @property
    def cut(self) -> bool:
        return self.answer.finish_reason == "length"


def answer_schemas(router: Router, tasks: Sequence[Task], **settings: Any) -> list[Structured]:
    """Answer each task with a random schema, in the modes by turns, in batches."""
    schemas = [draw_schema(random.Random(f"schema {i}")) for i in range(len(tasks))]
    modes = [MODES[i % len(MODES)] for i in range(len(tasks))]
    answers = router.ask_many([
        {"prompt": task.prompt, "images": task.frames[0], "mode": mode, "seed": i, "max_new_tokens": MOST,
         "response_format": {"json": schema}, **settings}
        for i, (task, schema, mode) in enumerate(zip(tasks, schemas, modes, strict=True))
    ])  # fmt: skip
    return [
        Structured(schema, mode, answer, "" if answer.finish_reason == "length" else _problem(schema, answer))
        for schema, mode, answer in zip(schemas, modes, answers, strict=True)
    ]


def _problem(schema: Schema, answer: Answer) -> str:
    try:
        value = json.loads(answer.text)
    except ValueError as error:
        return f"not JSON: {error}"
    return "; ".join(one.message for one in Draft202012Validator(schema).iter_errors(value))


def measure_speed(router: Router, task: Task, mode: Mode, rounds: int) -> dict[str, Any]:
    """Tokens per second of `SEQUENCES` answers in one batch, with and without a schema by turns."""
    settings: tuple[dict[str, Any], ...] = ({}, {"response_format": {"json": LONG}})
    speeds: list[list[float]] = [[], []]
    for i in range(rounds + 1):
        for turn in (0, 1) if i % 2 else (1, 0):
            requests = [
                {"prompt": task.prompt, "images": task.frames[0], "mode": mode, "seed": seed, "eos_token_id": -1,
                 "max_new_tokens": LENGTH, "thinking_budget": 0, **settings[turn]}
                for seed in range(SEQUENCES)
            ]  # fmt: skip
            began = time.perf_counter()
            answers = router.ask_many(requests)
            seconds = time.perf_counter() - began
            if i:  # the first round compiles the grammar
                speeds[turn].append(sum(answer.usage.completion_tokens for answer in answers) / seconds)
    plain, constrained = (np.array(one) for one in speeds)
    return {
        "mode": mode,
        "plain": float(np.median(plain)),
        "constrained": float(np.median(constrained)),
        "ratio": float(np.median(constrained / plain)),
        "low": float((constrained / plain).min()),
        "high": float((constrained / plain).max()),
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    where = environment("llguidance")
    tasks = [one for one in draw_evenly(3 * options.schemas, "structured output") if not one.is_video]
    tasks = tasks[: options.schemas]
    with Router.from_pretrained(max_num_seqs=SEQUENCES) as router:
        router.load()
        step(f"{len(tasks)} random schemas")
        found = answer_schemas(router, tasks)
        step("the same requests without a schema")
        plain = router.ask_many([
            {"prompt": task.prompt, "images": task.frames[0], "mode": one.mode, "seed": i, "max_new_tokens": MOST}
            for i, (task, one) in enumerate(zip(tasks, found, strict=True))
        ])  # fmt: skip
        step("speed")
        speeds = [measure_speed(router, tasks[0], mode, options.rounds) for mode in MODES]
    complete = [one for one in found if not one.cut]
    thought = [(ours.answer, theirs) for ours, theirs in zip(found, plain, strict=True) if ours.mode == "thinking"]
    figures = {
        "schemas": len(found),
        "most": MOST,
        "length": LENGTH,
        "sequences": SEQUENCES,
        "rounds": options.rounds,
        "cut": len(found) - len(complete),
        "cut_numbers": sum(one.cut and one.answer.text[-20:].isdigit() for one in found),
        "complete": len(complete),
        "valid": sum(not one.problem for one in complete),
        "thoughts": len(thought),
        "same_thoughts": sum(ours.thinking == theirs.thinking for ours, theirs in thought),
        "tokens": float(np.median([one.answer.usage.completion_tokens for one in found])),
        "speeds": speeds,
        "where": where,
    }
    publish("structured", figures, options.out)


if __name__ == "__main__":
    main()
