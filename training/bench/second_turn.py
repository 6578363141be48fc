"""Seconds to the first token of a conversation's second turn: vlroute, plain transformers, `transformers serve`.

All three answer the same prompt in one run: a picture, a question, its answer, and a second question.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from openai import OpenAI
from PIL import Image
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from training.bench.real_size import device_name, draw_picture
from training.bench.servers import running, user_message
from training.page import step
from vlroute import Answer, Mode, Router
from vlroute.inputs.messages import parse
from vlroute.steps import run
from vlroute.types import MODES

FIRST, SECOND = "How many circles?", "And squares?"
ONE_TOKEN: dict[str, Any] = {"do_sample": False, "max_new_tokens": 1}
OURS: dict[str, Any] = {**ONE_TOKEN, "answer_reserve": 0}  # settings of a router
LOOKUPS = 200


@dataclass(frozen=True, slots=True)
class SecondTurn:
    """One pair at one picture size; seconds are medians over `repeats` conversations, each on a picture of its own.

    `same`: Instruct answers both turns. `other`: Thinking answers the second one. `plain`, `served`: the same prompt
    from pixels, by `generate` and by `transformers serve`. `encode`: picture processing and tower in the first turn.
    `lookup`: digest of the pixels, cache keys and a cache hit. `encoder_calls`: tower runs for all pictures and modes.
    """

    device: str
    dtype: str
    side: int
    repeats: int
    vision_tokens: int
    prompt_tokens: int
    uncached_same: int
    encoder_calls: int
    encode: float
    lookup: float
    same: float
    other: float
    plain: dict[Mode, float]
    served: float


def transformers_server(folder: Path, dtype: str, device: str) -> Any:
    """`transformers serve` with the checkpoint of `folder`."""
    options = ("--host", "127.0.0.1", "--dtype", dtype, "--device", device)
    return running("transformers.cli.transformers", "serve", str(folder), *options, health="/health")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def second_turn_messages(picture: Image.Image, answer: str, image_part: dict[str, Any]) -> list[dict[str, Any]]:
    """Question, answer, question; `image_part`: the part of the first message that holds the picture."""
    first = [image_part, {"type": "text", "text": FIRST}]
    turns = (("user", first), ("assistant", [{"type": "text", "text": answer}]))
    return [
        *({"role": role, "content": content} for role, content in turns),
        {"role": "user", "content": [{"type": "text", "text": SECOND}]},
    ]


def for_transformers(picture: Image.Image, answer: str) -> list[dict[str, Any]]:
    return second_turn_messages(picture, answer, {"type": "image", "image": picture})


def for_openai(picture: Image.Image, answer: str) -> list[dict[str, Any]]:
    return second_turn_messages(picture, answer, user_message((picture,), FIRST)["content"][0])


class PlainTransformers:
    """A program without vlroute: one model that reads the whole conversation from pixels each time."""

    def __init__(self, folder: Path, dtype: str, device: str) -> None:
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device)
        self.model.eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    @torch.inference_mode()
    def first_token(self, messages: list[dict[str, Any]]) -> int:
        """Generate one token; returns the length of the prompt."""
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        self.model.generate(**inputs, **ONE_TOKEN)
        return int(inputs["input_ids"].shape[1])


def lookup_seconds(router: Router, picture: Image.Image) -> float:
    """Median seconds of finding the features of `picture` in the cache."""

    conversation = parse("What is this?", picture)

    def look() -> None:
        with router.request(conversation) as request:
            run(request.features(router.pair.instruct, conversation.pictures))

    return statistics.median(timed(look)[0] for _ in range(LOOKUPS))


def measure_second_turn(folder: Path, side: int, dtype: str, repeats: int) -> SecondTurn:
    """Run the three engines on the checkpoints of `folder`, one after the other, each warmed up."""
    step(f"{side}²: loading")
    router = Router.from_pretrained(instruct=folder / "instruct", thinking=folder / "thinking", dtype=dtype).load()
    device = router.pair.instruct.device
    warm = draw_picture(64, 0)
    for mode in MODES:
        router.ask(FIRST, warm, mode=mode, **OURS)
    pictures = [draw_picture(side, 10 + i) for i in range(repeats)]
    first: list[Answer] = []
    second: dict[Mode, list[tuple[float, Answer]]] = {mode: [] for mode in MODES}
    scheduler = router.scheduler
    assert scheduler is not None
    before = scheduler.tower_calls
    for i, picture in enumerate(pictures):
        step(f"{side}²: vlroute {i + 1}/{repeats}")
        chat = router.chat()
        first.append(chat.send(FIRST, picture, mode="instruct", **OURS))
        for mode in MODES:
            fork = chat.fork()
            second[mode].append(timed(lambda c=fork, m=mode: c.send(SECOND, mode=m, **OURS)))  # type: ignore[misc]
    runs = scheduler.tower_calls - before
    lookup = lookup_seconds(router, pictures[-1])
    conversations = [(picture, answer.text) for picture, answer in zip(pictures, first, strict=True)]

    plain: dict[Mode, float] = {}
    for mode in MODES:
        step(f"{side}²: plain {mode}")
        program = PlainTransformers(folder / mode, dtype, str(device))
        program.first_token(for_transformers(warm, "0"))
        seconds = []
        for conversation, (_, answer) in zip(conversations, second[mode], strict=True):
            took, length = timed(lambda p=program, c=conversation: p.first_token(for_transformers(*c)))  # type: ignore[misc]
            if length != answer.usage.prompt_tokens:
                raise RuntimeError(f"prompts differ: {length} and {answer.usage.prompt_tokens} tokens")
            seconds.append(took)
        plain[mode] = statistics.median(seconds)
        del program

    step(f"{side}²: transformers serve")
    with transformers_server(folder / "instruct", dtype, device.type) as (url, _):
        client = OpenAI(base_url=f"{url}/v1", api_key="none", timeout=3600, max_retries=0)

        def ask(messages: list[Any]) -> float:
            model = str(folder / "instruct")
            return timed(
                lambda: client.chat.completions.create(model=model, messages=messages, max_tokens=1, temperature=0)
            )[0]

        ask(for_openai(warm, "0"))
        served = []
        for conversation in conversations:
            messages = for_openai(*conversation)
            ask(messages[:1])
            served.append(ask(messages))
    usage = second["instruct"][-1][1].usage
    same, other = (statistics.median(seconds for seconds, _ in second[mode]) for mode in MODES)
    return SecondTurn(
        device_name(device), dtype, side, repeats, usage.vision_tokens, usage.prompt_tokens or 0,
        uncached_same=(usage.prompt_tokens or 0) - usage.cached_tokens, encoder_calls=runs,
        encode=statistics.median(answer.timing.vision for answer in first), lookup=lookup, same=same, other=other,
        plain=plain, served=statistics.median(served),
    )  # fmt: skip
