"""Let a pocket model use tools, with plain transformers: `python examples/gui_tools.py`.

The model operates the screens of an app. `--mode thinking` uses the Thinking model, `--count 20` draws fewer tasks.
Qwen3-VL, and so the pocket pair, writes calls as JSON; Qwen3.5 writes them in tags.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor

from vlroute.pocket.screens import TOOLS, App, ScreenTask, draw_screen_task, opening

PAIR = Path(__file__).parents[1] / "models" / "pocket"
MOST_CALLS = 8
Model = Callable[[list[dict[str, Any]]], str]


def load(folder: Path, **template: bool) -> Model:
    """Load a model; returns a function from messages to the text that the model writes next.

    `template`: arguments of the chat template, such as `enable_thinking`.
    """
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)

    def write(messages: list[dict[str, Any]]) -> str:
        inputs = processor.apply_chat_template(
            messages, tools=TOOLS, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            **template,
        )  # fmt: skip
        written = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
        return str(processor.decode(written, skip_special_tokens=True))

    return write


def read_call(text: str) -> dict[str, Any]:
    """Name and arguments of a call, written as JSON or in tags. ValueError if it is neither."""
    if found := re.fullmatch(r"<function=(\w+)>\s*(.*?)\s*</function>", text, re.DOTALL):
        arguments = re.findall(r"<parameter=(\w+)>\n(.*?)\n</parameter>", found[2], re.DOTALL)
        return {"name": found[1], "arguments": dict(arguments)}
    call = json.loads(text)
    if not isinstance(call, dict) or not isinstance(call.get("arguments"), dict):
        raise ValueError("a call has a name and arguments")
    return call


def solve(task: ScreenTask, write: Model) -> str:
    """Return the answer of the model; empty after a malformed call, or after `MOST_CALLS` calls without an answer."""
    app, messages = App(task), opening(task)
    for _ in range(MOST_CALLS):
        thought, _, text = write(messages).rpartition("</think>")
        found = re.search(r"<tool_call>\s*(.*?)\s*</tool_call>", text, re.DOTALL)
        if not found:
            return text.strip()
        try:
            call = read_call(found[1])
            result = app.call(call["name"], call["arguments"])
        except (ValueError, LookupError, TypeError):
            return ""
        answer = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
        if thought:
            answer["reasoning_content"] = thought.strip()
        messages += [answer, {"role": "tool", "content": result}]
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=("instruct", "thinking"), default="thinking")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write, rng = load(PAIR / options.mode), random.Random(options.seed)
    tasks = [draw_screen_task(rng, steps=2 + i % 3) for i in range(options.count)]
    solved = sum(solve(task, write) == task.answer for task in tasks)
    print(f"{options.mode}: {solved} of {len(tasks)} tasks of two to four steps solved ({solved / len(tasks):.0%})")


if __name__ == "__main__":
    main()
