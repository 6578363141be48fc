"""Every family of models gives what plain transformers gives: fresh, behind a cached prefix, alone and in a batch.

The checkpoints are tiny, with random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.conftest import DEVICE, SECONDS, forget, pixel_path, reply, task
from tests.recording import held, model_calls, recorded
from tests.serving import until
from tests.tiny import HYBRIDS, SHAPES, write_tiny
from vlroute import CheckpointError, InputError, Router, SettingsError
from vlroute.engine.cache.prefix import PrefixCache
from vlroute.engine.families import FAMILIES
from vlroute.engine.local import language_qwen3_5
from vlroute.engine.local.checkpoint import HybridModel
from vlroute.engine.local.forward import Decoder
from vlroute.engine.local.prompt import render
from vlroute.engine.local.sampling import resolve_settings
from vlroute.engine.local.scheduler import Scheduler
from vlroute.engine.local.slots import RecurrentSlots
from vlroute.inputs.messages import Conversation, parse
from vlroute.types import MODES, Mode, other

pytestmark = pytest.mark.float32
HOP, COUNT, VIDEO = task("hop"), task("count"), task("video")
MEDIA: dict[str, dict[str, Any]] = {
    "text": {},
    "picture": {"images": [HOP.frames[0]]},
    "two pictures": {"images": [HOP.frames[0], COUNT.frames[0].resize((60, 144))]},
    "video": {"videos": [(VIDEO.frames, SECONDS)]},
}
HISTORY = [
    {"role": "system", "content": "You read pictures."},
    {"role": "user", "content": [{"type": "image", "image": COUNT.frames[0]}, {"type": "text", "text": COUNT.prompt}]},
    {"role": "assistant", "content": "3"},
]
#: No token ends the answer, so that every answer has this many.
SIX = {"do_sample": False, "answer_reserve": 0, "max_new_tokens": 6, "eos_token_id": -1}
GREEDY = {"do_sample": False, "answer_reserve": 0, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def open_router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Router]]:
    routers: list[Router] = []

    @cache
    def opened(family: str) -> Router:
        folder = write_tiny(family, tmp_path_factory.mktemp(family))
        routers.append(Router.from_pretrained(folder, captioner="instruct", **GREEDY).load())
        return routers[-1]

    yield opened
    for router in routers:
        router.close()


@pytest.fixture(scope="module")
def plain_model() -> Callable[[Router, Mode], tuple[Any, Any]]:
    @cache
    def load(source: str) -> tuple[Any, Any]:
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32).to(DEVICE).eval()
        return model, AutoProcessor.from_pretrained(source)

    return lambda router, mode: load(str(router.pair[mode].source))


def expected_scores(
    plain: tuple[Any, Any], router: Router, conversation: Conversation, mode: Mode, ids: list[int]
) -> torch.Tensor:
    """Scores of plain transformers for each of the tokens `ids` of an answer, on the pixel path."""
    model, processor = plain
    inputs = pixel_path(processor, conversation, **router.pair[mode].template_options)
    prompt = inputs["input_ids"].shape[1]
    answer = torch.tensor([ids], device=DEVICE)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(ids)))
    with torch.inference_mode():
        scores: torch.Tensor = model(**inputs).logits[0, prompt - 1 : -1]
    return scores


def scores_of(router: Router, conversation: Conversation, mode: Mode) -> torch.Tensor:
    with recorded() as recorder:
        reply(router, conversation, mode, SIX)
        return torch.stack(recorder.scores())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("history", [False, True], ids=["fresh", "history"])
@pytest.mark.parametrize("media", MEDIA)
@pytest.mark.parametrize("family", SHAPES)
def test_scores_of_every_token_are_those_of_transformers(
    open_router: Callable[[str], Router],
    plain_model: Callable[[Router, Mode], Any],
    family: str,
    media: str,
    history: bool,
    mode: Mode,
) -> None:
    """Fresh; again, behind the prefix of the first time; and behind that of the other mode."""
    router = open_router(family)
    conversation = parse(HOP.prompt, **MEDIA[media], history=HISTORY if history else None)
    forget(router)
    fresh = scores_of(router, conversation, mode)
    expected = expected_scores(
        plain_model(router, mode), router, conversation, mode, [int(one.argmax()) for one in fresh]
    )
    # sums in float32 depend on the processor: with AVX-512 and bfloat16, a score of the long video differs by 1.03e-4
    close = 2e-4 if media == "video" else 1e-4
    torch.testing.assert_close(fresh, expected, atol=close, rtol=0)
    torch.testing.assert_close(scores_of(router, conversation, mode), expected, atol=close, rtol=0)
    forget(router)
    reply(router, conversation, other(mode), GREEDY)
    torch.testing.assert_close(scores_of(router, conversation, mode), expected, atol=close, rtol=0)


@pytest.mark.parametrize("family", HYBRIDS)
def test_both_modes_of_a_hybrid_read_the_shared_prompt_once(open_router: Callable[[str], Router], family: str) -> None:
    """Instruct, then Thinking, then the next turn: what each reads, in tokens."""
    router = open_router(family)
    forget(router)
    picture = {"role": "user", "content": [{"type": "image", "image": HOP.frames[0]}, {"type": "text", "text": "?"}]}
    messages = [{"role": "system", "content": "You read pictures."}, picture]
    conversation = parse(messages)
    with model_calls() as calls:
        first = reply(router, conversation, "instruct", GREEDY)
        read = [sum(chunk.length for chunk in chunks) for chunks in calls.prompts]
        assert sum(read) == first.prompt_tokens
        assert first.cached_tokens == 0
        marker = len(router.pair.instruct.marker_ids)
        assert read[-1] == marker
        calls.prompts.clear()
        second = reply(router, conversation, "thinking", GREEDY)
        assert [chunk.length for chunks in calls.prompts for chunk in chunks] == [len(router.pair.thinking.marker_ids)]
        assert second.cached_tokens == first.prompt_tokens - marker
        assert second.encoded == 0
        turn = [{"role": "assistant", "content": first.text or "x"}, {"role": "user", "content": "And now?"}]
        third = reply(router, parse([*messages, *turn]), "thinking", GREEDY)
        assert third.cached_tokens == second.cached_tokens


@pytest.mark.parametrize("family", HYBRIDS)
def test_a_caption_shares_the_picture_with_the_answer(open_router: Callable[[str], Router], family: str) -> None:
    router = open_router(family)
    forget(router)
    answer = router.ask("How many?", images=HOP.frames[0], mode=None)
    assert answer.usage.cached_tokens > answer.usage.vision_tokens  # the caption of the decision read them


@pytest.mark.parametrize("family", HYBRIDS)
def test_recurrent_states_are_those_of_transformers(
    open_router: Callable[[str], Router], plain_model: Callable[[Router, Mode], Any], family: str
) -> None:
    """The snapshot at the marker, which is stored in two or three chunks, against one pass of transformers."""
    router = open_router(family)
    forget(router)
    conversation = parse(HOP.prompt, images=[HOP.frames[0], COUNT.frames[0]])
    answered = reply(router, conversation, "instruct", GREEDY)
    model, processor = plain_model(router, "instruct")
    inputs = pixel_path(processor, conversation, enable_thinking=True)
    marker = (answered.prompt_tokens or 0) - len(router.pair.instruct.marker_ids)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        inputs[name] = inputs[name][:, :marker]
    with torch.inference_mode():
        cache = model(**inputs, use_cache=True).past_key_values
    snapshots = [block for block in router.prefixes._blocks.values() if block.state is not None]
    last, states = snapshots[-1].state or ()
    layers = [i for i, kind in enumerate(model.config.text_config.layer_types) if kind == "linear_attention"]
    for place, layer in enumerate(layers):
        expected = cache.get_recurrent_state(layer)[0].float()
        torch.testing.assert_close(states[place], expected, atol=1e-5, rtol=1e-4)
        inputs_of_kernel = cache.get_conv_state(layer)[0][:, -last.shape[1] :].T
        torch.testing.assert_close(last[place], inputs_of_kernel, atol=1e-5, rtol=1e-4)
    assert router.pair.instruct.family.recurrent


@pytest.mark.parametrize("family", SHAPES)
def test_a_batch_changes_no_answer(open_router: Callable[[str], Router], family: str) -> None:
    """Prompts of different lengths, both modes, with prefixes of each other."""
    router = open_router(family)
    asked = [
        (parse(prompt, **media), mode)
        for media in MEDIA.values()
        for prompt in ("How many?", "What is the sum of all numbers in this picture?")
        for mode in MODES
    ]
    alone = []
    for conversation, mode in asked:
        forget(router)
        alone.append(reply(router, conversation, mode, GREEDY))
    forget(router)
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda one: reply(router, *one, GREEDY), asked))
    assert [(one.thinking, one.text) for one in together] == [(one.thinking, one.text) for one in alone]


@pytest.mark.parametrize("family", HYBRIDS)
def test_a_preempted_answer_of_a_hybrid_is_computed_again_exactly(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router is not shared with other tests, because slots that have grown are not reduced."""
    router = Router.from_pretrained(write_tiny(family, tmp_path), **GREEDY).load()
    preempted, preempt = list[int](), Scheduler._preempt
    scheduler = router.scheduler
    assert scheduler is not None

    def counted(scheduler: Scheduler) -> None:
        preempted.append(1)
        preempt(scheduler)

    asked = [(parse(f"How many {i} are there?"), mode) for i in range(3) for mode in MODES]
    many = {"do_sample": False, "answer_reserve": 0, "max_new_tokens": 140, "eos_token_id": -1}
    alone = [reply(router, *one, many) for one in asked]
    slots = next(iter(scheduler._lanes.values())).slots
    monkeypatch.setattr(Scheduler, "_preempt", counted)
    monkeypatch.setattr(scheduler.memory, "kv", slots.bytes_of(4, 128) + slots.bytes_of(1, 128))
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda one: reply(router, *one, many), asked))
    router.close()
    assert preempted
    assert [(one.thinking, one.text) for one in together] == [(one.thinking, one.text) for one in alone]


@pytest.mark.parametrize("decodes", [False, True], ids=["reading", "decoding"])
def test_out_of_memory_between_two_layers_leaves_no_wrong_state(
    open_router: Callable[[str], Router], decodes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states of the layers before it have changed when the step fails; it is done again from the start."""
    router = open_router("qwen3_5")
    asked = [(parse(f"How many {i} are there in this picture?"), mode) for i in range(3) for mode in MODES]
    long = {"do_sample": False, "answer_reserve": 0, "max_new_tokens": 30, "eos_token_id": -1}
    alone = [reply(router, *one, long) for one in asked]
    forget(router)
    mix, raised = language_qwen3_5._Recurrent.__call__, []

    def failing(layer: Any, x: torch.Tensor, slots: Any) -> torch.Tensor:
        out = mix(layer, x, slots)
        if layer.place == 1 and len(x) > 2 and slots.decodes == decodes and len(raised) < 2:
            raised.append(layer)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return out

    monkeypatch.setattr(language_qwen3_5._Recurrent, "__call__", failing)
    with held(router._local) as release, ThreadPoolExecutor(len(asked)) as pool:
        futures = [pool.submit(reply, router, *one, long) for one in asked]
        until(lambda: router._local.scheduler._new.qsize() == len(asked))
        release.set()
        together = [future.result(60) for future in futures]
    assert len(raised) == 2
    assert [(one.thinking, one.text) for one in together] == [(one.thinking, one.text) for one in alone]


def test_the_decode_step_of_a_hybrid_is_one_graph_and_skips_idle_rows(open_router: Callable[[str], Router]) -> None:
    """`torch.compile` traces it without a break. A row that does not take part keeps its states."""
    model = open_router("qwen3_5").pair.instruct.model
    slots = RecurrentSlots(model.config.text_config, model.dtype, model.device, 4)
    slots.resize([], 4, 128)
    slots.kv.normal_()
    slots._states.normal_()
    slots._inputs.normal_()
    decoder = Decoder(model, language_qwen3_5.language_model(model), slots, "off")
    inputs = torch.tensor([[5, 6, 7, 8], [3, 0, 20, 127], [3, 0, 9, 127], [1, 0, 1, 0]], device=model.device)
    before = [one.clone() for one in (slots.kv, slots._states, slots._inputs)]
    with torch.no_grad():
        expected = decoder._forward(inputs, 128)
        written = [one.clone() for one in (slots.kv, slots._states, slots._inputs)]
        for one, old in zip((slots.kv, slots._states, slots._inputs), before, strict=True):
            one.copy_(old)
        torch.compiler.reset()
        traced = torch.compile(decoder._forward, backend="eager", fullgraph=True)(inputs, 128)
    torch.testing.assert_close(traced, expected, atol=1e-4, rtol=0)
    for one, found, old in zip((slots.kv, slots._states, slots._inputs), written, before, strict=True):
        torch.testing.assert_close(one, found, atol=1e-4, rtol=0)
        if one is not slots.kv:
            assert torch.equal(one[:, [1, 3]], old[:, [1, 3]])
            assert not torch.equal(one[:, [0, 2]], old[:, [0, 2]])


def test_a_hybrid_looks_like_a_pair(open_router: Callable[[str], Router]) -> None:
    router = open_router("qwen3_5")
    assert isinstance(router.pair, HybridModel)
    assert router.pair.instruct.model is router.pair.thinking.model
    assert router.pair.shared_tower
    assert router.pair.parameter_bytes() == sum(p.numel() * 4 for p in router.pair.instruct.model.parameters())
    assert router.identity.fingerprint == router.pair.fingerprint
    assert "one model for both modes" in str(router.pair)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("media", [False, True], ids=["text", "picture"])
def test_recommended_sampling_depends_on_mode_and_media(
    open_router: Callable[[str], Router], mode: Mode, media: bool
) -> None:
    """The generation config has one set for both modes; that of the tiny checkpoint says that it does not sample."""
    checkpoint = open_router("qwen3_5").pair[mode]
    assert resolve_settings(checkpoint, media=media)["do_sample"] is False
    recommended = (FAMILIES["qwen3_5"].sampling or {})[mode, media]
    checkpoint.generation["do_sample"] = True  # type: ignore[index]
    try:
        assert recommended.items() <= resolve_settings(checkpoint, media=media).items()
        assert resolve_settings(checkpoint, {"temperature": 0.3}, media=media)["temperature"] == 0.3
    finally:
        checkpoint.generation["do_sample"] = False  # type: ignore[index]


def test_a_prefix_without_its_snapshot_is_not_used(open_router: Callable[[str], Router]) -> None:
    router = open_router("qwen3_5")
    forget(router)
    conversation = parse("How many circles are there in this long question, and how many squares?")
    first = reply(router, conversation, "instruct", GREEDY)
    for digest, block in [*router.prefixes._blocks.items()]:
        if block.state is not None:
            router.prefixes._blocks.pop(digest)
            router.prefixes._snapshots.clear()
    again = reply(router, conversation, "instruct", GREEDY)
    assert again.cached_tokens == 0
    assert again.text == first.text


def test_snapshots_stay_within_the_budget(tmp_path: Path) -> None:
    folder = write_tiny("qwen3_5", tmp_path)
    with Router.from_pretrained(folder, prefix_cache=PrefixCache(60_000), **GREEDY) as router:
        for i in range(12):
            reply(router, parse(f"How many {i} are there?"), "instruct", GREEDY)
        stats = router.prefixes.stats()
        assert 0 < stats.bytes <= 60_000
        assert stats.evictions > 0
        held = {digest for digests in router.prefixes._snapshots.values() for digest in digests}
        assert held == {digest for digest, block in router.prefixes._blocks.items() if block.state is not None}


def test_wrong_checkpoints_are_refused(tmp_path: Path) -> None:
    hybrid, pair = write_tiny("qwen3_5", tmp_path / "hybrid"), write_tiny("qwen3_vl", tmp_path / "pair")
    with pytest.raises(CheckpointError, match=r"both modes; pass it as name"):
        Router.from_pretrained(instruct=hybrid, thinking=pair / "thinking")
    with pytest.raises(CheckpointError, match=r"contains one checkpoint"):
        Router.from_pretrained(pair / "instruct")
    config = hybrid / "config.json"
    config.write_text(config.read_text().replace('"model_type": "qwen3_5",', '"model_type": "llava",'))
    with pytest.raises(CheckpointError, match=r"(?s)'llava'.*'qwen3_5'"):
        Router.from_pretrained(instruct=hybrid, thinking=hybrid)


def test_another_attention_is_refused_for_a_hybrid(tmp_path: Path) -> None:
    folder = write_tiny("qwen3_5", tmp_path)
    with (
        Router.from_pretrained(folder, attn_implementation="eager") as router,
        pytest.raises(SettingsError, match="'eager'"),
    ):
        router.load()


def test_a_conversation_that_the_template_refuses_is_a_wrong_input(open_router: Callable[[str], Router]) -> None:
    router = open_router("qwen3_5")
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "system", "content": "You read."},
        {"role": "user", "content": "?"},
    ]
    with pytest.raises(InputError, match="System message must be at the beginning") as error:
        router.ask(messages)
    assert "/" not in error.value.public  # a server sends it to clients


def test_several_system_messages_at_the_beginning(open_router: Callable[[str], Router]) -> None:
    """Templates that accept one system message get all of them as one; other templates get them as they are."""
    question = {"role": "user", "content": "Which color?"}
    several = parse(
        [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Use English."}, question]
    )
    joined = parse([{"role": "system", "content": "Be brief.\n\nUse English."}, question])
    for mode in MODES:
        hybrid = open_router("qwen3_5").pair[mode]
        assert render(hybrid, several, (), ()) == render(hybrid, joined, (), ())
        pair = open_router("qwen3_vl").pair[mode]
        assert render(pair, several, (), ()) == pair.processor.apply_chat_template(
            several.template(), tokenize=False, add_generation_prompt=True
        )
