"""From pictures and videos to vision features: what the tower gives, kept apart from any prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from vlroute.engine.pair import Checkpoint
from vlroute.media import Picture, Video


@dataclass(frozen=True, slots=True)
class VisionFeatures:
    """What the tower gives for one picture or video.

    `grid` is (t, h, w) in patches; `merged` is `[t · h · w / merge², width]`, each of `deepstack` the same shape.
    """

    grid: tuple[int, int, int]
    merged: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.merged, *self.deepstack))

    def to(self, device: torch.device) -> VisionFeatures:
        """On `device`; itself where it is there already."""
        if self.merged.device == device:
            return self
        return VisionFeatures(self.grid, self.merged.to(device), tuple(layer.to(device) for layer in self.deepstack))

    def fits(self, merge_size: int) -> bool:
        """Whether every layer has the one row for each merged token that the grid asks for."""
        t, h, w = self.grid
        rows = t * h * w // merge_size**2
        return all(layer.shape[0] == rows for layer in (self.merged, *self.deepstack))


def _video_metadata(video: Video) -> dict[str, Any]:
    """Frame times as transformers wants them: an index for each frame, and frames a second of that index."""
    fps = 1000.0  # indices in milliseconds hold uneven frame times as well
    indices = [round(time * fps) for time in video.times]
    return {"fps": fps, "total_num_frames": indices[-1] + 1, "frames_indices": indices}


def _process(checkpoint: Checkpoint, pictures: Sequence[Picture], videos: Sequence[Video]) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    if pictures:
        images = [picture.image for picture in pictures]
        out.update(checkpoint.processor.image_processor(images=images, return_tensors="pt"))
    if videos:
        frames = [list(video.frames) for video in videos]
        metadata = [_video_metadata(video) for video in videos]
        processor = checkpoint.processor.video_processor
        out.update(processor(videos=frames, video_metadata=metadata, do_sample_frames=False, return_tensors="pt"))
    return out


@torch.inference_mode()
def encode(
    checkpoint: Checkpoint, pictures: Sequence[Picture], videos: Sequence[Video]
) -> tuple[list[VisionFeatures], list[VisionFeatures]]:
    """Run the image processor and the tower once over all pictures and once over all videos."""
    with checkpoint.turn:
        pixels = _process(checkpoint, pictures, videos)
        body = checkpoint.model.model
        images: list[VisionFeatures] = []
        clips: list[VisionFeatures] = []
        if pictures:
            grid = pixels["image_grid_thw"].to(checkpoint.device)
            values = pixels["pixel_values"].to(checkpoint.device, checkpoint.model.dtype)
            images = _split(body.get_image_features(values, grid, return_dict=True), grid)
        if videos:
            grid = pixels["video_grid_thw"].to(checkpoint.device)
            values = pixels["pixel_values_videos"].to(checkpoint.device, checkpoint.model.dtype)
            clips = _split(body.get_video_features(values, grid, return_dict=True), grid)
        return images, clips


def _split(out: Any, grids: torch.Tensor) -> list[VisionFeatures]:
    """One value per item. Split tensors are views that would keep the whole batch alive, so they are cloned."""
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
    """A fresh `mm_encoder_outputs` for one forward call: transformers changes the container it is given."""
    return {
        name: BaseModelOutputWithDeepstackFeatures(
            pooler_output=tuple(item.merged for item in items),
            deepstack_features=[tuple(layer) for layer in zip(*(item.deepstack for item in items), strict=True)],
        )
        for name, items in (("image", images), ("video", videos))
        if items
    }
