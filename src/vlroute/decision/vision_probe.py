"""A captioner that costs next to nothing: a linear map from pooled vision features to the captions of the records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlroute.decision.artifact import CARD_FILE, read_artifact, write_artifact
from vlroute.errors import ArtifactError

Floats = NDArray[np.float32]
#: Where the probe of a router artifact lies in its folder.
PROBE_FOLDER = "probe"
KIND = "vision probe"
REMEDY = "train it again (docs/concepts/decision.md), or pass captioner='instruct'"


@dataclass(frozen=True, slots=True, eq=False)
class VisionProbe:
    """Says of one picture or video what the captions in its training records said of such ones.

    `texts`: what it can say. `weights` float32 `[len(texts), width]` and `bias` `[len(texts)]`: logits from pooled
    features of `width` numbers. `whole`: the texts are whole captions and the likeliest one is said; else they are
    terms, and all those are said that are likelier than not. `tower`: fingerprint of the tower it was trained on.
    `card`: provenance and metrics. ValueError if shapes differ.
    """

    texts: tuple[str, ...]
    weights: Floats
    bias: Floats
    whole: bool
    tower: str
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.texts)
        if n == 0 or self.weights.ndim != 2 or len(self.weights) != n or self.bias.shape != (n,):
            raise ValueError(
                f"{n} texts with weights {list(self.weights.shape)} and bias {list(self.bias.shape)}: expected at "
                "least one text, a row of weights and one bias for each"
            )

    def describe(self, pooled: Floats) -> str:
        """The caption, from pooled features `[width]`. ArtifactError for another width: not the tower it knows."""
        if pooled.shape != (self.weights.shape[1],):
            raise ArtifactError(
                f"the vision probe reads {self.weights.shape[1]} pooled features, not {list(pooled.shape)}: it was "
                f"trained on another tower; {REMEDY}"
            )
        logits = self.weights @ pooled + self.bias
        if self.whole:
            return self.texts[int(np.argmax(logits))]
        return ", ".join(self.texts[i] for i in np.argsort(-logits, kind="stable") if logits[i] > 0)

    def check_tower(self, tower: str) -> None:
        """ArtifactError if `tower` is not the fingerprint of the tower it was trained on."""
        if tower != self.tower:
            raise ArtifactError(
                f"the vision probe was trained on another vision tower (fingerprint {self.tower[:12]}…, this pair's "
                f"Instruct has {tower[:12]}…): what it would say is meaningless; {REMEDY}"
            )

    def save(self, folder: str | Path) -> None:
        """Write two files into `folder`, as `decision.artifact` does, replacing what was there."""
        head = {"kind": KIND, "texts": list(self.texts), "whole": self.whole, "tower": self.tower}
        write_artifact(folder, {**self.card, **head}, {"weights": self.weights, "bias": self.bias})

    @classmethod
    def load(cls, folder: str | Path) -> VisionProbe:
        """Read what `save` wrote; runs no code. ArtifactError, with a remedy, if missing, damaged or no probe."""
        try:
            card, arrays = read_artifact(folder)
        except ArtifactError as error:
            raise ArtifactError(f"vision probe: {error}. Or else: {REMEDY}") from error
        try:
            kind, texts, whole, tower = (card.pop(name) for name in ("kind", "texts", "whole", "tower"))
            typed = isinstance(texts, list) and isinstance(whole, bool) and isinstance(tower, str)
            if kind != KIND or not typed or not all(isinstance(text, str) for text in texts):
                raise ValueError("expected a vision probe with its texts and the fingerprint of its tower")
            return cls(tuple(texts), arrays["weights"], arrays["bias"], whole, tower, card)
        except (KeyError, ValueError) as error:
            raise ArtifactError(f"{Path(folder) / CARD_FILE} is no vision probe ({error}); {REMEDY}") from error


def probe_of(router: str | Path) -> VisionProbe | None:
    """The probe that lies in a router artifact's folder, or None. ArtifactError if it cannot be used."""
    folder = Path(router) / PROBE_FOLDER
    return VisionProbe.load(folder) if folder.is_dir() else None
