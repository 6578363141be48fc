"""The pocket pair, loaded once for all tests that generate."""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlroute import Limits, Router
from vlroute.cli.app import TERMINAL
from vlroute.engine.cache.prefix import PrefixCache
from vlroute.engine.cache.vision import VisionCache
from vlroute.engine.protocol import Reply
from vlroute.files import shipped
from vlroute.inputs.messages import Conversation
from vlroute.learning.trial import media
from vlroute.pocket import Task, draw_task
from vlroute.serving.cluster.start import SAFE
from vlroute.steps import run
from vlroute.types import MODES, Mode

__all__ = [
    "BUDGETS", "DEVICE", "DTYPE", "MANY", "PICTURES", "ROOT", "SECONDS", "VIDEO", "features_of", "forget", "lacking",
    "media", "pixel_path", "reply", "task",
]  # fmt: skip

# Ray reads these variables when it is imported, which some test modules do
os.environ.update(SAFE)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _device() -> torch.device:
    """The device that VLROUTE_TEST_DEVICE names."""
    name = os.environ.get("VLROUTE_TEST_DEVICE") or "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0]
        raise pytest.UsageError(f"VLROUTE_TEST_DEVICE={name!r} cannot be used here: {why}") from None


def _dtype() -> torch.dtype:
    """The dtype that VLROUTE_TEST_DTYPE names."""
    name = os.environ.get("VLROUTE_TEST_DTYPE") or ("bfloat16" if DEVICE.type == "cuda" else "float32")
    if name not in DTYPES:
        raise pytest.UsageError(f"VLROUTE_TEST_DTYPE={name!r} is none of {', '.join(DTYPES)}")
    return DTYPES[name]


#: Device and dtype of the models in this run, see CONTRIBUTING.md.
DEVICE = _device()
DTYPE = _dtype()
if DEVICE.type == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # commands in processes of their own use the CPU as well
torch.backends.cudnn.allow_tf32 = False  # else plain transformers rounds the patches of pictures in float32

ROOT = Path(__file__).resolve().parents[1]
SECONDS = tuple(float(second) for second in range(8))
MANY = Limits(max_images=18, max_videos=6)  # six turns of three pictures and a video
#: Bytes for vision features and for prefixes: roomy, room for about one picture, room for nothing.
BUDGETS = {"roomy": (2**26, 2**26), "tight": (40_000, 300_000), "none": (0, 0)}


@pytest.fixture(autouse=True)
def no_terminal_log() -> Iterator[None]:
    """A command that ran in this process leaves a handler behind, which would write each line of later tests."""
    yield
    log = logging.getLogger("vlroute")
    for one in [one for one in log.handlers if one.name == TERMINAL]:
        log.removeHandler(one)
        log.setLevel(logging.NOTSET)


@pytest.fixture(scope="module", autouse=True)
def model_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """The dtype of models in this module; models that are loaded without a device or dtype get those of the run."""
    dtype = torch.float32 if request.node.get_closest_marker("float32") else DTYPE
    with pytest.MonkeyPatch.context() as patch:
        if (DEVICE.type, dtype) != ("cpu", torch.float32):  # which are the defaults of vlroute
            patch.setattr("vlroute.engine.local.checkpoint.default_device", lambda: str(DEVICE))
            patch.setattr("vlroute.engine.local.checkpoint.default_dtype", lambda device: dtype)
        yield dtype


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """A test that sets the number of threads, as training does, does not slow down the tests after it."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def router(model_dtype: torch.dtype) -> Router:
    return _pocket(model_dtype)


@cache
def _pocket(dtype: torch.dtype) -> Router:
    return Router.from_pretrained(device=DEVICE, dtype=dtype).load()


@pytest.fixture(scope="session")
def routers() -> dict[str, Router]:
    """The pocket pair under each of the budgets, in float32, so that caches change no answer."""
    return _with_budgets("pocket")


@pytest.fixture(scope="session")
def hybrids() -> dict[str, Router]:
    """The same for the pocket hybrid."""
    return _with_budgets("pocket-hybrid")


def _with_budgets(model: str) -> dict[str, Router]:
    return {
        name: Router.from_pretrained(
            model, limits=MANY, vision_cache=VisionCache(vision), prefix_cache=PrefixCache(prefix),
            device=DEVICE, dtype=torch.float32,
        ).load()
        for name, (vision, prefix) in BUDGETS.items()
    }  # fmt: skip


@pytest.fixture(scope="session")
def plain(folders: dict[str, Path]) -> dict[str, Any]:
    """Model and processor of each mode in plain transformers, in float32."""
    from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

    load = Qwen3VLForConditionalGeneration.from_pretrained
    return {
        mode: (load(folder, dtype=torch.float32).to(DEVICE).eval(), AutoProcessor.from_pretrained(folder))
        for mode, folder in folders.items()
    }


@pytest.fixture(scope="session")
def plain_hybrid() -> dict[str, Any]:
    """The same for the pocket hybrid, whose model is that of both modes."""
    from transformers import AutoProcessor, Qwen3_5ForConditionalGeneration

    folder = shipped("pocket-hybrid")
    model = Qwen3_5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).to(DEVICE).eval()
    return dict.fromkeys(MODES, (model, AutoProcessor.from_pretrained(folder)))


@pytest.fixture(scope="session")
def folders() -> dict[str, Path]:
    return {"instruct": shipped("pocket/instruct"), "thinking": shipped("pocket/thinking")}


@pytest.fixture
def other_tower(folders: dict[str, Path], tmp_path: Path) -> Path:
    """The Thinking checkpoint with one bit of its tower changed."""
    folder = tmp_path / "thinking"
    shutil.copytree(folders["thinking"], folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.visual.blocks.1.mlp.linear_fc1.bias"].view(torch.int32)[0] ^= 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def lacking(part: str) -> NoReturn:
    """Skip the test, or fail it where every system part is meant to be there."""
    if os.environ.get("VLROUTE_ALL_PARTS"):
        pytest.fail(f"{part}, and VLROUTE_ALL_PARTS is set")
    pytest.skip(part)


def reply(router: Router, conversation: Conversation, mode: Mode, *rest: Any) -> Reply:
    """One answer of the engine alone, past decision and captions; `rest` as of `Request.answer`."""
    with router.request(conversation) as request:
        return run(request.answer(mode, *(rest or ({},))))


def forget(router: Router) -> None:
    """Empty the caches of vision features and of prefixes."""
    router.cache.clear()
    router.prefixes.clear()


def task(kind: str, level: str = "hard", seed: int = 0, language: str = "en") -> Task:
    return draw_task(random.Random(seed), kind, level, language)


def pixel_path(processor: Any, conversation: Conversation, **options: Any) -> Any:
    """Model inputs as plain transformers makes them, with pixels. `options`: arguments of the chat template."""
    text = processor.apply_chat_template(conversation.template(), add_generation_prompt=True, tokenize=False, **options)
    media: dict[str, Any] = {}
    if conversation.pictures:
        media["images"] = [picture.image for picture in conversation.pictures]
    if conversation.videos:
        media["videos"] = [list(video.frames) for video in conversation.videos]
        media["do_sample_frames"] = False
        media["video_metadata"] = [
            {"fps": 1.0, "total_num_frames": len(video.times), "frames_indices": list(video.times)}
            for video in conversation.videos
        ]
    return processor(text=[text], return_tensors="pt", **media).to(DEVICE)


@torch.inference_mode()
def features_of(model: Any, processor: Any, conversation: Conversation) -> list[tuple[torch.Tensor, ...]]:
    """Features of the pictures or of the videos of a conversation by plain transformers: merged, then each layer."""
    inputs = pixel_path(processor, conversation)
    if conversation.videos:
        out = model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True)
    else:
        out = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
    return list(zip(out.pooler_output, *_per_item(out), strict=True))


def _per_item(out: Any) -> list[Sequence[torch.Tensor]]:
    """Each deepstack layer in parts of one item."""
    sizes = [len(one) for one in out.pooler_output]
    return [layer if isinstance(layer, tuple | list) else layer.split(sizes) for layer in out.deepstack_features]


PICTURES = [task(kind, level, seed).frames[0] for seed, (kind, level) in enumerate(
    [("ocr", "easy"), ("count", "hard"), ("math", "hard"), ("gui", "hard"), ("hop", "medium")])]  # fmt: skip
PICTURES.append(PICTURES[0].resize((140, 70)))
VIDEO = task("video", "hard").frames
