"""Seconds to the first token of a conversation's second turn: vlroute, plain transformers, `transformers serve`.

All three in one run on the same prompt: one picture, a question, the answer to it, a second question.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from training.bench.measure import device_name, draw_picture, in_own_process
from training.bench.served import transformers_serve
from vlroute import Answer, Chat, Router
from vlroute.media import Picture
from vlroute.modes import MODES, Mode

FIRST, SECOND = "How many circles?", "And squares?"
ONE_TOKEN: dict[str, Any] = {"do_sample": False, "max_new_tokens": 1}
LOOKUPS = 200
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SecondTurn:
    """One pair at one picture size; seconds are medians over `repeats` conversations, each on a picture of its own.

    `same`: Instruct answered the first turn and answers the second. `other`: Thinking answers the second. `plain` and
    `served`: the same prompt from pixels, by `generate` and by `transformers serve`. `encode`: picture processing and
    tower in the first turn. `lookup`: hashing the picture's pixels, its keys and a hit in the cache.
    `encoder_calls`: how often a tower ran for the `repeats` pictures of both modes.
    """

    device: str
    dtype: str
    side: int
    repeats: int
    vision_tokens: int
    prompt_tokens: int
    unread_same: int
    encoder_calls: int
    encode: float
    lookup: float
    same: float
    other: float
    plain: dict[Mode, float]
    served: float


@contextmanager
def tower_calls(router: Router) -> Iterator[list[int]]:
    """Counts by hooks on the towers themselves, whatever the cache says of itself."""
    calls: list[int] = []
    towers = {id(tower): tower for tower in (router.pair[mode].model.model.visual for mode in MODES)}
    hooks = [tower.register_forward_hook(lambda *_: calls.append(1)) for tower in towers.values()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    done = work()
    return time.perf_counter() - began, done


def _messages(picture: Image.Image, answer: str) -> list[dict[str, Any]]:
    asked = [{"type": "image", "image": picture}, {"type": "text", "text": FIRST}]
    turns = [("user", asked), ("assistant", [{"type": "text", "text": answer}])]
    turns.append(("user", [{"type": "text", "text": SECOND}]))
    return [{"role": role, "content": content} for role, content in turns]


def _openai_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pictures as data URIs, as clients of a server send them."""

    def part(content: dict[str, Any]) -> dict[str, Any]:
        if content["type"] != "image":
            return content
        buffer = io.BytesIO()
        content["image"].save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

    return [{"role": m["role"], "content": [part(content) for content in m["content"]]} for m in messages]


class _Plain:
    """What a program without vlroute does: one model, the whole conversation from pixels each time."""

    def __init__(self, folder: Path, dtype: str, device: str) -> None:
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device)
        self.model.eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    @torch.inference_mode()
    def first_token(self, messages: list[dict[str, Any]]) -> int:
        """Writes one token; returns the length of the prompt."""
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        self.model.generate(**inputs, **ONE_TOKEN)
        return int(inputs["input_ids"].shape[1])


def _lookup_seconds(router: Router, picture: Image.Image) -> float:
    """Median of what a second sight of `picture` costs beside reading its features."""

    def look() -> None:
        with router.cache.lease(router.pair.instruct, [Picture(picture)], []):
            pass

    return statistics.median(_timed(look)[0] for _ in range(LOOKUPS))


def measure_second_turn(
    folder: Path, side: int, dtype: str, repeats: int, report: Report = lambda step: None
) -> SecondTurn:
    """Three engines on the checkpoints of `folder`, one after the other, warmed up, nothing beside them."""
    report("loading")
    router = Router.from_pretrained(instruct=folder / "instruct", thinking=folder / "thinking", dtype=dtype).load()
    device = router.pair.instruct.device
    warm = draw_picture(64, 0)
    for mode in MODES:
        router.ask(FIRST, warm, mode=mode, **ONE_TOKEN)
    pictures = [draw_picture(side, 10 + i) for i in range(repeats)]
    first: list[Answer] = []
    same: list[tuple[float, Answer]] = []
    other: list[tuple[float, Answer]] = []
    with tower_calls(router) as calls:
        for i, picture in enumerate(pictures):
            report(f"vlroute {i + 1}/{repeats}")
            chat: Chat = router.chat()
            first.append(chat.send(FIRST, picture, mode="instruct", **ONE_TOKEN))
            for turns, mode in ((same, MODES[0]), (other, MODES[1])):
                fork = chat.fork()
                turns.append(_timed(lambda c=fork, m=mode: c.send(SECOND, mode=m, **ONE_TOKEN)))  # type: ignore[misc]
    lookup = _lookup_seconds(router, pictures[-1])
    conversations = [_messages(picture, a.text) for picture, a in zip(pictures, first, strict=True)]

    plain: dict[Mode, float] = {}
    for mode, turns in (("instruct", same), ("thinking", other)):
        program = _Plain(folder / mode, dtype, str(device))
        program.first_token(_messages(warm, "0"))
        seconds = []
        for i, messages in enumerate(conversations):
            report(f"plain {mode} {i + 1}/{repeats}")
            took, length = _timed(lambda p=program, m=messages: p.first_token(m))  # type: ignore[misc]
            if length != turns[i][1].usage.prompt_tokens:
                raise RuntimeError(f"prompts differ: {length} tokens against {turns[i][1].usage.prompt_tokens}")
            seconds.append(took)
        plain[mode] = statistics.median(seconds)
        del program

    served = []
    report("starting transformers serve")
    with transformers_serve(folder / "instruct", dtype, device.type) as server:
        server.answer_seconds(_openai_messages(_messages(warm, "0")))
        for i, messages in enumerate(map(_openai_messages, conversations)):
            report(f"transformers serve {i + 1}/{repeats}")
            server.answer_seconds(messages[:1])
            served.append(server.answer_seconds(messages))
    usage = same[-1][1].usage
    return SecondTurn(
        device=device_name(device),
        dtype=dtype,
        side=side,
        repeats=repeats,
        vision_tokens=usage.vision_tokens,
        prompt_tokens=usage.prompt_tokens or 0,
        unread_same=(usage.prompt_tokens or 0) - usage.cached_tokens,
        encoder_calls=len(calls),
        encode=statistics.median(answer.timing.vision for answer in first),
        lookup=lookup,
        same=statistics.median(seconds for seconds, _ in same),
        other=statistics.median(seconds for seconds, _ in other),
        plain=plain,
        served=statistics.median(served),
    )


def measure_apart(folder: Path, side: int, dtype: str, repeats: int, report: Report) -> SecondTurn:
    """`measure_second_turn` in a fresh process."""
    arguments = [str(folder), str(side), dtype, str(repeats)]
    return SecondTurn(**in_own_process("training.bench.second_turn", arguments, report))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds instruct/ and thinking/")
    parser.add_argument("side", type=int)
    parser.add_argument("dtype")
    parser.add_argument("repeats", type=int)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    found = measure_second_turn(
        options.folder, options.side, options.dtype, options.repeats, lambda step: print(step, flush=True)
    )
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
