"""Runs the vision tower: pictures and videos to vision features."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from vlroute.engine.cache.features import Features, VisionFeatures
from vlroute.engine.local.lock import PriorityLock
from vlroute.errors import LimitError
from vlroute.inputs.media import Picture, Video


def _process(processor: Any, pictures: Sequence[Picture], videos: Sequence[Video]) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    image_processor, video_processor = processor.image_processor, processor.video_processor
    if pictures:
        out |= _batched(image_processor, "images", [_image_arguments(image_processor, one) for one in pictures])
    if videos:
        out |= _batched(video_processor, "videos", [_video_arguments(video_processor, one) for one in videos])
    return out


def _batched(processor: Any, kind: str, items: Sequence[tuple[Any, dict[str, Any]]]) -> dict[str, torch.Tensor]:
    """Processor outputs of all items (input, keyword arguments); neighbors with equal arguments share a call."""
    found = []
    for arguments, group in itertools.groupby(items, key=lambda item: item[1]):
        inputs = [item for item, _ in group]
        if kind == "videos":  # otherwise transformers guesses the layout and warns
            arguments = {**arguments, "video_metadata": [{"total_num_frames": len(frames)} for frames in inputs]}
        found.append(processor(**{kind: inputs}, return_tensors="pt", **arguments))
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


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


def _check_tokens(model: Any, processor: Any, pixels: dict[str, torch.Tensor]) -> None:
    """LimitError if an item has more tokens than any prompt can hold; checked before the tower runs."""
    most = model.config.text_config.max_position_embeddings
    for name, kind in (("image_grid_thw", "picture"), ("video_grid_thw", "video")):
        if name in pixels:
            tokens = int(pixels[name].prod(-1).max()) // processor.image_processor.merge_size**2
            if tokens >= most:
                raise LimitError(
                    f"a {kind} has {tokens} tokens, but the model reads at most {most - 1}; send a smaller one, or set "
                    "max_pixels"
                )


@torch.inference_mode()
def encode(
    model: Any, processor: Any, lock: PriorityLock, pictures: Sequence[Picture], videos: Sequence[Video]
) -> Features:
    """Run processor and tower once for all pictures and once for all videos.

    Args:
        model: a Qwen3-VL model.
        processor: its processor.
        lock: held during the call.
        pictures: pictures to encode.
        videos: videos to encode.

    Returns:
        The features of the pictures and of the videos, in order.

    Raises:
        LimitError: an item has more tokens than any prompt can hold.
    """
    with lock:
        pixels = _process(processor, pictures, videos)
        _check_tokens(model, processor, pixels)
        body, device = model.model, model.device
        images: list[VisionFeatures] = []
        clips: list[VisionFeatures] = []
        if pictures:
            grid = pixels["image_grid_thw"].to(device)
            values = pixels["pixel_values"].to(device, model.dtype)
            images = _split(body.get_image_features(values, grid, return_dict=True), grid)
        if videos:
            grid = pixels["video_grid_thw"].to(device)
            values = pixels["pixel_values_videos"].to(device, model.dtype)
            clips = _split(body.get_video_features(values, grid, return_dict=True), grid)
        return images, clips


def _split(out: Any, grids: torch.Tensor) -> list[VisionFeatures]:
    """The features per item. They are cloned, because views would keep the memory of the whole batch alive."""
    return [
        VisionFeatures(
            grid=tuple(grid),
            merged=merged.clone(),
            deepstack=tuple(layer[i].clone() for layer in out.deepstack_features),
        )
        for i, (grid, merged) in enumerate(zip(grids.tolist(), out.pooler_output, strict=True))
    ]


def encoder_outputs(
    images: Sequence[VisionFeatures], videos: Sequence[VisionFeatures]
) -> dict[str, BaseModelOutputWithDeepstackFeatures]:
    """A new `mm_encoder_outputs` for one forward call, because transformers modifies the container."""
    return {
        name: BaseModelOutputWithDeepstackFeatures(
            pooler_output=tuple(item.merged for item in items),
            deepstack_features=[tuple(layer) for layer in zip(*(item.deepstack for item in items), strict=True)],
        )
        for name, items in (("image", images), ("video", videos))
        if items
    }
