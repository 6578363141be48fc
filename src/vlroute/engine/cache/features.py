"""Vision features of one picture or video."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class VisionFeatures:
    """Output of the vision tower for one picture or video.

    Attributes:
        grid: (t, h, w) in patches.
        merged: merged tokens, `[t · h · w / merge², width]`.
        deepstack: one tensor per deepstack layer, each of the shape of `merged`.
    """

    grid: tuple[int, int, int]
    merged: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]

    def to(self, device: torch.device) -> VisionFeatures:
        """The features on `device`; the same object if they are already there."""
        if self.merged.device == device:
            return self
        return VisionFeatures(self.grid, self.merged.to(device), tuple(layer.to(device) for layer in self.deepstack))

    def fits(self, merge_size: int) -> bool:
        """Whether every layer has one row per merged token of the grid."""
        t, h, w = self.grid
        rows = t * h * w // merge_size**2
        return all(layer.shape[0] == rows for layer in (self.merged, *self.deepstack))
