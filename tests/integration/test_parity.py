"""What the engine gives must be what plain transformers gives on the pixel path.

Prompts and positions are equal. The joined operations of the engine, and attention over padded rows and cached keys,
change the last bits of features and scores.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from tests.conftest import DEVICE, SECONDS, features_of, forget, pixel_path, reply, task
from tests.recording import recorded
from vlroute import Router
from vlroute.engine.local.prompt import build_prompt
from vlroute.inputs.messages import Conversation, parse
from vlroute.steps import run
from vlroute.types import MODES, Mode

pytestmark = pytest.mark.float32
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


def conversation_for(case: str, history: bool) -> Conversation:
    return parse(HOP.prompt, **CASES[case], history=HISTORY if history else None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("history", [False, True], ids=["fresh", "history"])
@pytest.mark.parametrize("case", CASES)
def test_prompts_and_scores_are_the_same(router: Router, plain: Any, case: str, history: bool, mode: Mode) -> None:
    conversation = conversation_for(case, history)
    checkpoint, items = router.pair[mode], [*conversation.pictures, *conversation.videos]
    forget(router)
    with router.request(conversation) as request:
        grids = [one.grid for one in run(request.features(checkpoint, items))]
    images, videos = grids[: len(conversation.pictures)], grids[len(conversation.pictures) :]
    prompt = build_prompt(checkpoint, conversation, images, videos)
    model, processor = plain[mode]
    expected = pixel_path(processor, conversation)
    kinds = expected["mm_token_type_ids"]
    assert prompt.tokens.ids.tolist() == expected["input_ids"][0].tolist()
    assert prompt.vision.tolist() == (kinds[0] > 0).tolist()
    positions, _ = model.model.get_rope_index(
        expected["input_ids"], mm_token_type_ids=kinds, image_grid_thw=expected.get("image_grid_thw"),
        video_grid_thw=expected.get("video_grid_thw"), attention_mask=expected["attention_mask"],
    )  # fmt: skip
    assert prompt.positions.tolist() == positions[-3:, 0].tolist()
    with recorded() as recorder:
        ours = reply(router, conversation, mode, {"max_new_tokens": 12, "answer_reserve": 0})
    assert ours.cached_tokens == 0
    with torch.inference_mode():
        reference = model(**expected).logits[0, -1]
    torch.testing.assert_close(recorder.first(), reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", ["picture", "wide picture", "video", "uneven video"])
def test_features_are_the_same(router: Router, plain: Any, case: str, mode: Mode) -> None:
    conversation = conversation_for(case, history=False)
    forget(router)
    with router.request(conversation) as request:
        (ours,) = run(request.features(router.pair[mode], [*conversation.pictures, *conversation.videos]))
    (expected,) = features_of(*plain[mode], conversation)
    torch.testing.assert_close((ours.merged, *ours.deepstack), expected, atol=5e-5, rtol=1e-5)
    forget(router)
    with router.request(conversation) as request:
        (again,) = run(request.features(router.pair[mode], [*conversation.pictures, *conversation.videos]))
    pairs = zip((ours.merged, *ours.deepstack), (again.merged, *again.deepstack), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("case", CASES)
def test_the_scores_of_every_token_are_the_same(router: Router, plain: Any, case: str) -> None:
    """Decode steps over KV slots and `generate` over its own cache."""
    conversation = conversation_for(case, history=True)
    model, processor = plain["instruct"]
    inputs = pixel_path(processor, conversation)
    with recorded() as recorder:
        ours = reply(router, conversation, "instruct", {"max_new_tokens": 30, "eos_token_id": -1})
    scores = recorder.scores()
    # the tokens of ours are given, so that the scores stay comparable where two are nearly equal
    ids = torch.tensor([[int(one.argmax()) for one in scores]], device=DEVICE)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, ids.shape[1]))
    with torch.inference_mode():
        reference = model(**inputs).logits[0, -ids.shape[1] - 1 : -1]
    assert ours.completion_tokens == 30
    torch.testing.assert_close(torch.stack(scores), reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", ["picture", "video", "two pictures"])
def test_greedy_text_is_the_same(router: Router, plain: Any, case: str, mode: Mode) -> None:
    conversation = conversation_for(case, history=True)
    model, processor = plain[mode]
    inputs = pixel_path(processor, conversation)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=60)[0, inputs["input_ids"].shape[1] :].tolist()
    ours = reply(router, conversation, mode, {"max_new_tokens": 60, "answer_reserve": 0})
    head, closed, tail = processor.tokenizer.decode(ids, skip_special_tokens=True).partition("</think>")
    expected = ("", head) if mode == "instruct" else (head, tail if closed else "")
    assert (ours.thinking, ours.text) == tuple(part.strip() for part in expected)


def test_positions_of_other_conversations_leave_no_trace(router: Router) -> None:
    """The model object remembers the positions of its last caller; with explicit ones that must not matter."""
    conversation = conversation_for("video", history=False)
    alone = reply(router, conversation, "thinking", {})
    router.pair.thinking.model.model.rope_deltas = torch.tensor([[-1000]], device=DEVICE)
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
