"""Pictures and videos to vision features: pixels are prepared in any thread, the tower runs in the scheduler's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from transformers.image_utils import SizeDict

from vlroute.engine.cache.features import VisionFeatures
from vlroute.engine.cache.vision import Grid
from vlroute.errors import LimitError
from vlroute.inputs.image import to_array
from vlroute.inputs.media import Picture, Video

#: Items of at most so many pixels are prepared by one thread.
ONE_THREAD = 1024**2


@dataclass(frozen=True, slots=True)
class Pixels:
    """Input of the tower for one picture or video.

    Attributes:
        values: Normalized pixels, float32 `[t · h · w, channels · frames · patch²]`.
        grid: (t, h, w) in patches.
    """

    values: torch.Tensor
    grid: Grid


def prepare(model: Any, processor: Any, items: Sequence[Picture | Video]) -> list[Pixels]:
    """Resize and normalize as the processor of transformers does, so that every bit is equal to its output.

    Args:
        model: A Qwen3-VL model.
        processor: Its processor.
        items: Pictures and videos.

    Returns:
        The pixels of each item.

    Raises:
        LimitError: An item has more tokens than any prompt can hold.
    """
    sizes = [math.prod(item.size) * (1 if isinstance(item, Picture) else len(item.frames)) for item in items]
    threads = torch.get_num_threads()
    if threads == 1 or max(sizes, default=0) > ONE_THREAD:
        return [_prepared(model, processor, item) for item in items]
    # two threads would save nothing here, and the second one would wait for more work on a core that the tower needs
    torch.set_num_threads(1)
    try:
        return [_prepared(model, processor, item) for item in items]
    finally:
        torch.set_num_threads(threads)


def _prepared(model: Any, processor: Any, item: Picture | Video) -> Pixels:
    if isinstance(item, Picture):
        image, arguments = _image_arguments(processor.image_processor, item)
        values, grid = _patches(processor.image_processor, image, arguments)
        kind = "picture"
    else:
        frames, arguments = _video_arguments(processor.video_processor, item)
        # without metadata, transformers guesses the layout and warns
        arguments["video_metadata"] = [{"total_num_frames": len(frames)}]
        out = processor.video_processor(videos=[frames], return_tensors="pt", **arguments)
        values, grid, kind = out["pixel_values_videos"], tuple(out["video_grid_thw"][0].tolist()), "video"
    t, h, w = grid
    tokens = t * h * w // processor.image_processor.merge_size**2
    most = model.config.text_config.max_position_embeddings
    if tokens >= most:
        raise LimitError(
            f"a {kind} has {tokens} tokens, but the model reads at most {most - 1}; send a smaller one, or set "
            "max_pixels"
        )
    return Pixels(values.pin_memory() if model.device.type == "cuda" else values, (t, h, w))


def _patches(processor: Any, image: Image.Image, arguments: Mapping[str, Any]) -> tuple[torch.Tensor, Grid]:
    """Pixels and grid of one picture.

    The steps of the processor are called one by one, because its checks of arguments take longer for small pictures.
    """
    usual = ("do_resize", "do_rescale", "do_normalize", "patchify")
    if not all(getattr(processor, name, None) for name in usual):
        out = processor(images=[image], return_tensors="pt", **arguments)
        return out["pixel_values"], tuple(out["image_grid_thw"][0].tolist())
    pixels = torch.from_numpy(to_array(image)).permute(2, 0, 1).contiguous()[None]
    if arguments.get("do_resize", True):
        factor = processor.patch_size * processor.merge_size
        size = SizeDict(**{**dict(processor.size), **arguments.get("size", {})})
        pixels = processor.resize(pixels, size=size, resample=processor.resample, factor=factor)
    pixels = processor.rescale_and_normalize(
        pixels, True, processor.rescale_factor, True, processor.image_mean, processor.image_std
    )
    values, h, w = processor.patchify(pixels, processor.patch_size, processor.merge_size, processor.temporal_patch_size)
    return values[0], (1, h, w)


def _image_arguments(processor: Any, picture: Picture) -> tuple[Image.Image, dict[str, Any]]:
    """Input and keyword arguments of the image processor, equal to those of plain transformers for the same size."""
    size = picture.budget.exact_size(processor.patch_size * processor.merge_size)
    if size is not None:
        return picture.image.resize(size, Image.Resampling.BICUBIC), {"do_resize": False}
    return picture.image, _size(processor, picture.budget.bounds)


def _video_arguments(processor: Any, video: Video) -> tuple[list[Image.Image], dict[str, Any]]:
    """As `_image_arguments`, for videos. Without the layout, a frame of height 3 would be taken for channels first."""
    how: dict[str, Any] = {"do_sample_frames": False, "input_data_format": "channels_last"}
    frames = list(video.frames)
    size = video.budget.exact_size(processor.patch_size * processor.merge_size)
    if size is not None:
        return [frame.resize(size, Image.Resampling.BICUBIC) for frame in frames], {**how, "do_resize": False}
    return frames, how | _size(processor, partial(video.budget.bounds, frames=len(frames)))


def _size(processor: Any, bounds: Callable[[int, int], tuple[int, int]]) -> dict[str, Any]:
    """The argument `size`, if it differs from the setting of the processor."""
    own = (processor.size["shortest_edge"], processor.size["longest_edge"])
    asked = bounds(*own)
    return {} if asked == own else {"size": {"shortest_edge": asked[0], "longest_edge": asked[1]}}


def encode(model: Any, tower: Callable[..., list[torch.Tensor]], pixels: Sequence[Pixels]) -> list[VisionFeatures]:
    """Run the tower once for all items, pictures and videos alike. Returns the features of each."""
    values = [one.values.to(model.device, model.dtype, non_blocking=True) for one in pixels]
    grids = [one.grid for one in pixels]
    layers = tower(torch.cat(values) if len(values) > 1 else values[0], grids)
    if len(pixels) == 1:
        return [VisionFeatures(grids[0], layers[0], tuple(layers[1:]))]
    merged = len(layers[0]) / sum(map(math.prod, grids))
    sizes = [round(merged * math.prod(grid)) for grid in grids]
    # cloned, because views would keep the memory of the whole batch alive
    parts = zip(*(layer.split(sizes) for layer in layers), strict=True)
    return [
        VisionFeatures(grid, first.clone(), tuple(layer.clone() for layer in rest))
        for grid, (first, *rest) in zip(grids, parts, strict=True)
    ]
