"""Boosted trees evaluated in plain numpy: all trees descend together, one level a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlroute.decision.text_encoder import Floats

Nodes = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Forest:
    """Two boosted forests (Instruct is right, Thinking is right) of equally many trees; absent trees are leaves of 0.

    All arrays `[2, trees, nodes]`. An inner node goes `left` where `x[feature] <= threshold`, else `right`; a leaf
    points at itself both ways and adds `value`. `base` `[2]`: what every sum starts from. `depth`: steps to any leaf.
    """

    feature: Nodes
    threshold: Floats
    left: Nodes
    right: Nodes
    value: Floats
    base: Floats
    depth: int

    def __post_init__(self) -> None:
        """ValueError unless every node leads to a node."""
        shape = self.value.shape
        if len(shape) != 3 or shape[0] != 2 or self.base.shape != (2,):
            raise ValueError(f"a forest has shape [2, trees, nodes] and a base of [2], not {list(shape)}")
        for name in ("feature", "threshold", "left", "right"):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {list(getattr(self, name).shape)}, expected {list(shape)}")
        if shape[2] < 1 or any(((to < 0) | (to >= shape[2])).any() for to in (self.left, self.right)):
            raise ValueError("a tree points at a node that is not there")
        if (self.feature < 0).any() or not 0 <= self.depth <= shape[2]:
            raise ValueError(f"a tree asks for a negative feature, or its depth of {self.depth} cannot be")

    def logits(self, x: Floats) -> Floats:
        """float32 `[2]` for features `[width]`."""
        head, tree = np.ogrid[: self.value.shape[0], : self.value.shape[1]]
        node = np.zeros(self.value.shape[:2], np.int32)
        for _ in range(self.depth):
            goes_left = x[self.feature[head, tree, node]] <= self.threshold[head, tree, node]
            node = np.where(goes_left, self.left[head, tree, node], self.right[head, tree, node])
        return np.asarray(self.value[head, tree, node].sum(axis=1) + self.base, np.float32)
