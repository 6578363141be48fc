"""Sizes of pictures and videos for the model, on a random pair whose processor has the limits of Qwen3-VL."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.conftest import DEVICE
from vlroute import LimitError, MessageError, PixelBudget, Router, load_picture

pytestmark = pytest.mark.float32
TOKENS = 6
LIMITS = {"image_processor": (65536, 16777216), "video_processor": (4096, 25165824)}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 1000, 3), dtype=np.uint8))
SMALL = PICTURE.crop((0, 0, 300, 200))
CLIP = [SMALL.rotate(10 * turn) for turn in range(5)]


@pytest.fixture(scope="module")
def folder(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of 16 as in Qwen3-VL; a wide spread of weights, so that what is seen shows in the tokens."""
    pair = tmp_path_factory.mktemp("random")
    config = json.loads((folders["instruct"] / "config.json").read_text())
    config["vision_config"]["patch_size"] = 16
    config["text_config"] |= {"initializer_range": 0.3, "num_hidden_layers": 2}
    config["vision_config"]["initializer_range"] = 0.3
    settings = json.loads((folders["instruct"] / "processor_config.json").read_text())
    for name, (least, most) in LIMITS.items():
        settings[name] |= {"patch_size": 16, "size": {"shortest_edge": least, "longest_edge": most}}
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders["instruct"])
    texts = [tokenizer.decode([token]) for token in range(640)]
    odd = [token for token, text in enumerate(texts) if not (text.isascii() and text.isprintable() and "<" not in text)]
    model.model.language_model.embed_tokens.weight.data[odd] = 0  # never written: half a character has no text
    for mode, source in folders.items():
        shutil.copytree(source, pair / mode, ignore=shutil.ignore_patterns("*.safetensors"))
        model.save_pretrained(pair / mode)
        model.model.language_model.norm.weight.data *= 1.01  # a pair of equal checkpoints would be refused
        (pair / mode / "processor_config.json").write_text(json.dumps(settings))
        (pair / mode / "generation_config.json").write_text(json.dumps({"do_sample": False, "eos_token_id": 639}))
    return pair


@pytest.fixture(scope="module")
def random_router(folder: Path) -> Router:
    return Router.from_pretrained(folder).load()


def plain(folder: Path, media: Any, kind: str, **how: Any) -> tuple[int, str]:
    """Tokens of the picture or video, and what plain transformers answers, given the same arguments for its size."""
    processor = AutoProcessor.from_pretrained(folder / "instruct")
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder / "instruct", dtype=torch.float32)
    model = model.to(DEVICE)
    asked = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": "What is it?"}]}]
    text = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    if kind == "video":
        metadata = {"fps": 2.0, "total_num_frames": len(media), "frames_indices": [*range(len(media))]}
        how |= {"do_sample_frames": False, "video_metadata": [metadata]}
    inputs = processor(text=[text], **{f"{kind}s": [media]}, **{f"{kind}s_kwargs": how}, return_tensors="pt")
    inputs = inputs.to(DEVICE)
    written = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    grid = inputs[f"{kind}_grid_thw"][0]
    return int(grid.prod()) // 4, processor.tokenizer.decode(written, skip_special_tokens=True).strip()


def ours(router: Router, part: dict[str, Any]) -> tuple[int, str]:
    answer = router.ask([_user(part)], mode="instruct", max_new_tokens=TOKENS, do_sample=False)
    return answer.usage.vision_tokens, answer.text.strip()


def _user(part: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}


def size(least: int, most: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": least, "longest_edge": most}}


OWN = LIMITS["image_processor"]


@pytest.mark.parametrize(
    ("picture", "options", "how"),
    [
        (PICTURE, {}, {}),
        (PICTURE, {"detail": "auto"}, {}),
        (PICTURE, {"detail": "high"}, {}),
        (PICTURE, {"detail": "low"}, size(OWN[0], 512 * 512)),
        (PICTURE, {"max_pixels": 100_000}, size(OWN[0], 100_000)),
        (PICTURE, {"max_pixels": 10_000}, size(10_000, 10_000)),
        (PICTURE, {"min_pixels": 900_000}, size(900_000, OWN[1])),
        (PICTURE, {"min_pixels": 50_000, "max_pixels": 200_000}, size(50_000, 200_000)),
        (SMALL, {"detail": "low"}, {}),
        (SMALL, {"min_pixels": 1000}, size(1000, OWN[1])),
    ],
)
def test_a_picture_has_the_size_that_was_asked_for(
    folder: Path, random_router: Router, picture: Image.Image, options: dict[str, Any], how: dict[str, Any]
) -> None:
    assert ours(random_router, {"type": "image", "image": picture, **options}) == plain(folder, picture, "image", **how)


def test_an_exact_size_is_kept_in_whole_patches(folder: Path, random_router: Router) -> None:
    part = {"type": "image", "image": PICTURE, "resized_height": 200, "resized_width": 330}
    scaled = PICTURE.resize((320, 192), Image.Resampling.BICUBIC)
    assert ours(random_router, part) == plain(folder, scaled, "image", do_resize=False)
    video = {"type": "video", "video": CLIP, "resized_height": 64, "resized_width": 96}
    scaled_clip = [frame.resize((96, 64), Image.Resampling.BICUBIC) for frame in CLIP]
    assert ours(random_router, video) == plain(folder, scaled_clip, "video", do_resize=False)


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, {}),
        ({"max_pixels": 20_000}, size(4096, 5 * 20_000)),
        ({"total_pixels": 60_000}, size(4096, 60_000)),
        ({"min_pixels": 90_000, "max_pixels": 100_000}, size(5 * 90_000, 5 * 100_000)),
    ],
)
def test_each_frame_has_the_size_that_was_asked_for(
    folder: Path, random_router: Router, options: dict[str, Any], how: dict[str, Any]
) -> None:
    assert ours(random_router, {"type": "video", "video": CLIP, **options}) == plain(folder, CLIP, "video", **how)


def test_frames_three_pixels_high_are_not_taken_for_channels(
    folder: Path, random_router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    for shape in ((4, 3, 60, 3), (4, 60, 3, 3), (4, 3, 3, 3), (4, 1, 40, 3)):
        frames = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        found = ours(random_router, {"type": "video", "video": frames})
        assert "ambiguous" not in caplog.text
        assert found == plain(folder, frames, "video", input_data_format="channels_last"), shape


def test_several_sizes_in_one_request_keep_their_order(random_router: Router) -> None:
    sizes: list[dict[str, Any]] = [{"detail": "low"}, {}, {"max_pixels": 80_000}, {"detail": "low"}]
    parts = [{"type": "image", "image": PICTURE, **one} for one in sizes]
    fresh = Router.from_pretrained(random_router.instruct.parent).load()  # type: ignore[union-attr]
    together = fresh.ask(
        [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}], mode="instruct", max_new_tokens=1
    )
    assert together.usage.vision_tokens == sum(ours(random_router, part)[0] for part in parts)
    assert together.usage.encoded == 3  # the first and the last are one


def test_the_size_belongs_to_the_picture_in_every_cache(random_router: Router, tmp_path: Path) -> None:
    """A later turn with another size of the same picture encodes it again; a resumed chat keeps the size."""
    chat = random_router.chat()
    texts = []
    for options in ({"detail": "low"}, {"max_pixels": 70_000}, {"detail": "low"}):
        part = {"type": "image", "image": SMALL, **options}
        answer = chat.send([_user(part)], mode="instruct", max_new_tokens=TOKENS, do_sample=False)
        texts.append(answer.text)
    resumed = random_router.resume(chat.save(tmp_path / "chat"))
    assert [turn.message for turn in resumed.history] == [turn.message for turn in chat.history]
    assert [part.budget for part in resumed.history[1].message.pictures] == [PixelBudget(max_pixels=70_000)]
    asked: list[dict[str, Any]] = []
    for turn, text in zip(chat.history, texts, strict=True):
        budget = turn.message.pictures[0].budget
        asked.append(_user({"type": "image", "image": load_picture(SMALL, budget=budget)}))
        fresh = Router.from_pretrained(random_router.instruct.parent)  # type: ignore[union-attr]
        again = fresh.ask(asked, mode="instruct", max_new_tokens=TOKENS, do_sample=False)
        assert again.text == text
        asked.append({"role": "assistant", "content": text})


def test_a_picture_with_more_tokens_than_the_context_is_refused_before_it_is_encoded(random_router: Router) -> None:
    part = {"type": "image", "image": SMALL, "min_pixels": 2**22}
    before = random_router.cache.stats().encodes
    with pytest.raises(LimitError, match="max_pixels"):
        random_router.ask([_user(part)], mode="instruct", max_new_tokens=1)
    assert random_router.cache.stats().encodes == before


def test_the_limits_of_the_pocket_pair_are_fixed(router: Router) -> None:
    tokens = {ours(router, {"type": "image", "image": PICTURE, "detail": detail})[0] for detail in ("low", "high")}
    assert tokens == {ours(router, {"type": "image", "image": PICTURE})[0]}
    assert ours(router, {"type": "image", "image": PICTURE, "max_pixels": 2304})[0] < tokens.pop()


def test_a_wrong_budget_is_refused_when_it_is_made() -> None:
    for wrong in ({"min_pixels": 0}, {"resized_width": 5}, {"detail": "best"}, {"max_pixels": 9, "min_pixels": 10}):
        with pytest.raises(MessageError, match=next(iter(wrong))):
            PixelBudget(**wrong)  # type: ignore[arg-type]
    assert PixelBudget(detail="high") == PixelBudget(detail="auto") == PixelBudget()
