"""What happened to the requests most like this one: nearest neighbours by the cosine of their embeddings, in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlroute.decision.text_encoder import Floats

NEAREST = 50
#: How much sooner a nearer neighbour counts: a cosine lower by 1/8 counts 1/e of it.
SHARPNESS = 8.0
#: The mean of all keys counts as this many neighbours, so that no share becomes 0 or 1.
PRIOR = 2.0


@dataclass(frozen=True, slots=True)
class Neighbours:
    """`keys` `[n, width]`: joined embeddings of prompt and caption. `right` `[n, 2]`: how right (Instruct, Thinking)
    was, 0 to 1. ValueError if the shapes do not fit."""

    keys: NDArray[np.floating]
    right: Floats

    def __post_init__(self) -> None:
        if self.keys.ndim != 2 or not len(self.keys) or self.right.shape != (len(self.keys), 2):
            raise ValueError(f"keys {list(self.keys.shape)} and right {list(self.right.shape)} do not belong together")

    def logits(self, embedding: Floats) -> Floats:
        """Logit of the neighbours' weighted share of right answers, float32 `[2]`, for an embedding `[width]`."""
        logits: Floats = self.logits_many(embedding[None])[0]
        return logits

    def logits_many(self, embeddings: Floats) -> Floats:
        """The same for `[m, width]`: `[m, 2]`."""
        cosine = embeddings @ self.keys.T
        k = min(NEAREST, len(self.keys))
        nearest = np.argpartition(cosine, -k, axis=1)[:, -k:]
        near = np.take_along_axis(cosine, nearest, axis=1)
        weight = np.exp(SHARPNESS * (near - near.max(axis=1, keepdims=True)))
        right = np.einsum("mk,mkh->mh", weight, self.right[nearest]) + PRIOR * self.right.mean(axis=0)
        share = (right / (weight.sum(axis=1, keepdims=True) + PRIOR)).clip(1e-3, 1 - 1e-3)
        return np.asarray(np.log(share / (1 - share)), np.float32)
