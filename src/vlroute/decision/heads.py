"""What turns features into raw numbers: linear heads, and where training found them worth it neighbours and trees."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from vlroute.decision.artefact import Arrays
from vlroute.decision.encoder import Floats
from vlroute.decision.features import Features
from vlroute.decision.forest import Forest
from vlroute.decision.neighbours import Neighbours

_PARTS = ("neighbours", "forest")


@dataclass(frozen=True, slots=True)
class Heads:
    """Heads over `width` columns: right (Instruct, Thinking), ln tokens (Instruct, Thinking).

    `weights` float32 `[width, 4]`, `bias` `[4]`; `embedded` `[embedding width, 2]`: of the right heads, over the
    embedding. `neighbours` and `forest` add their logits times their row of `blend` `[2, 2]` (member, head).
    `calibration` `[2, 2, 2]`: head, without/with caption, (slope, intercept) of Platt's sigmoid on the raw logit.
    `log_tokens` `[2, 3]`: mode, (lowest and highest ln tokens of training, ln of Duan's smearing factor, which turns
    the exponential of a mean into a mean).
    """

    weights: Floats
    embedded: Floats
    bias: Floats
    calibration: Floats
    log_tokens: Floats
    blend: Floats
    neighbours: Neighbours | None = None
    forest: Forest | None = None

    def check(self, width: int, embedding: int, dense: int) -> None:
        """ValueError if a shape does not fit `width` columns, an `embedding` or what trees look at, `dense` wide."""
        shapes = {
            "weights": (width, 4), "embedded": (embedding, 2), "bias": (4,), "calibration": (2, 2, 2),
            "log_tokens": (2, 3), "blend": (2, 2),
        }  # fmt: skip
        for name, shape in shapes.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"{name} has shape {list(found)}, expected {list(shape)}")
        if self.neighbours is not None and self.neighbours.keys.shape[1] != embedding:
            raise ValueError(f"neighbours are {self.neighbours.keys.shape[1]} wide, the embedding {embedding}")
        if self.forest is not None and int(self.forest.feature.max()) >= dense:
            raise ValueError(f"a tree asks for feature {int(self.forest.feature.max())} of {dense}")

    @property
    def reads_embedding(self) -> bool:
        return self.neighbours is not None or self.forest is not None or bool(self.embedded.any())

    def raw(self, features: Features) -> list[float]:
        """The four raw numbers: logits before calibration, ln tokens before the limits."""
        raw = features.values @ self.weights[features.columns] + self.bias
        if len(features.embedding):
            raw[:2] += features.embedding @ self.embedded
        if self.neighbours is not None:
            raw[:2] += self.neighbours.logits(features.embedding) * self.blend[0]
        if self.forest is not None:
            raw[:2] += self.forest.logits(features.dense) * self.blend[1]
        plain: list[float] = raw.tolist()
        return plain

    def to_arrays(self) -> Arrays:
        """What an artefact keeps; members as `neighbours.keys` and so on."""
        arrays: Arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _PARTS}
        for part in _PARTS:
            if (member := getattr(self, part)) is not None:
                arrays |= {f"{part}.{f.name}": np.asarray(getattr(member, f.name)) for f in fields(member)}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Heads:
        """What `to_arrays` gave. KeyError or ValueError if something is missing or does not fit."""
        parts: dict[str, dict[str, Any]] = {
            part: {name.removeprefix(f"{part}."): a for name, a in arrays.items() if name.startswith(f"{part}.")}
            for part in _PARTS
        }
        if parts["forest"]:
            parts["forest"]["depth"] = int(parts["forest"]["depth"].item())
        neighbours = Neighbours(**parts["neighbours"]) if parts["neighbours"] else None
        forest = Forest(**parts["forest"]) if parts["forest"] else None
        plain = {f.name: arrays[f.name] for f in fields(cls) if f.name not in _PARTS}
        return cls(**plain, neighbours=neighbours, forest=forest)
