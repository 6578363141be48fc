"""What the engine gives must be, bit for bit, what plain transformers gives on the pixel path."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from tests.conftest import SECONDS, pixel_path, reply, task
from vlroute import Router
from vlroute.engine.local.prompt import build_prompt
from vlroute.engine.local.vision import encoder_outputs
from vlroute.inputs.messages import Conversation, parse
from vlroute.types import MODES, Mode

HOP, COUNT, VIDEO = task("hop"), task("count"), task("video")
CASES: dict[str, dict[str, Any]] = {
    "picture": {"images": [HOP.frames[0]]},
    "two pictures": {"images": [HOP.frames[0], COUNT.frames[0]]},
    "wide picture": {"images": [HOP.frames[0].resize((240, 60))]},
    "video": {"videos": [(VIDEO.frames, SECONDS)]},
    "uneven video": {"videos": [(VIDEO.frames[:5], (0.0, 0.3, 1.25, 4.0, 4.5))]},
    "picture and video": {"images": [COUNT.frames[0]], "videos": [(VIDEO.frames, SECONDS)]},
    "text": {},
}
HISTORY = [
    {"role": "system", "content": "You read pictures."},
    {"role": "user", "content": [{"type": "image", "image": COUNT.frames[0]}, {"type": "text", "text": COUNT.prompt}]},
    {"role": "assistant", "content": "3", "reasoning_content": "must not be seen again"},
]


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path]) -> dict[str, Any]:
    return {
        mode: (Qwen3VLForConditionalGeneration.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder))
        for mode, folder in folders.items()
    }


def conversation_for(case: str, history: bool) -> Conversation:
    return parse(HOP.prompt, **CASES[case], history=HISTORY if history else None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("history", [False, True], ids=["fresh", "history"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_bit_identical(router: Router, plain: Any, case: str, history: bool, mode: Mode) -> None:
    conversation = conversation_for(case, history)
    checkpoint = router.pair[mode]
    with router.request(conversation) as request:
        images, videos = request.features(checkpoint, [*conversation.pictures], [*conversation.videos])
    prompt = build_prompt(checkpoint, conversation, [i.grid for i in images], [v.grid for v in videos])
    model, processor = plain[mode]
    expected = pixel_path(processor, conversation)
    assert prompt.input_ids.tolist() == expected["input_ids"].tolist()
    assert prompt.mm_token_type_ids.tolist() == expected["mm_token_type_ids"].tolist()
    with torch.inference_mode():
        ours = checkpoint.model(**prompt.inputs(), mm_encoder_outputs=encoder_outputs(images, videos)).logits
        reference = model(**expected).logits
    assert torch.equal(ours, reference)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", ["picture", "video", "two pictures"])
def test_greedy_text_is_the_same(router: Router, plain: Any, case: str, mode: Mode) -> None:
    conversation = conversation_for(case, history=True)
    model, processor = plain[mode]
    inputs = pixel_path(processor, conversation)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=60)[0, inputs["input_ids"].shape[1] :].tolist()
    ours = reply(router, conversation, mode, {"max_new_tokens": 60})
    head, closed, tail = processor.tokenizer.decode(ids, skip_special_tokens=True).partition("</think>")
    expected = ("", head) if mode == "instruct" else (head, tail if closed else "")
    assert (ours.thinking, ours.text) == tuple(part.strip() for part in expected)


def test_positions_of_other_conversations_leave_no_trace(router: Router) -> None:
    """The model object remembers the positions of its last caller; with explicit ones that must not matter."""
    conversation = conversation_for("video", history=False)
    alone = reply(router, conversation, "thinking", {})
    router.pair.thinking.model.model.rope_deltas = torch.tensor([[-1000]])
    assert reply(router, conversation, "thinking", {}).thinking == alone.thinking


def test_threads_give_what_one_gives_alone(router: Router) -> None:
    some = [task(kind, seed=seed) for kind in ("hop", "math", "ocr", "gui") for seed in range(2)]
    conversations = [parse(one.prompt, one.frames[0]) for one in some]
    alone = [reply(router, c, "thinking", {}) for c in conversations]
    together: dict[int, str] = {}

    def work(i: int) -> None:
        together[i] = reply(router, conversations[i], "thinking", {}).thinking

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(some))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(len(some))] == [one.thinking for one in alone]
