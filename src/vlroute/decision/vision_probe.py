"""The vision probe: a linear model that captions a picture from its pooled vision features, at almost no cost."""

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
#: Subfolder of a router artifact with its probe.
PROBE_FOLDER = "probe"
KIND = "vision probe"
REMEDY = "train it again (vlroute probe), or pass captioner='instruct'"


@dataclass(frozen=True, slots=True, eq=False)
class VisionProbe:
    """Predicts the caption of a picture or video from its pooled vision features.

    Attributes:
        texts: Captions or terms that it knows.
        weights: Weights of the logits, float32 `[len(texts), width]`, for pooled features `[width]`.
        bias: Bias of the logits, `[len(texts)]`.
        whole: Whether the texts are whole captions, of which the most probable one is the caption. Otherwise they are
            terms, and the caption consists of those with a probability above one half.
        tower: Fingerprint of the tower that it was trained on.
        card: Provenance and metrics.

    Raises:
        ValueError: Shapes do not fit.
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
        """The caption for pooled features.

        Args:
            pooled: Pooled vision features `[width]`, see `EngineRequest.pooled`.

        Returns:
            A caption, or terms joined with ", ".

        Raises:
            ArtifactError: The width differs from that of the training tower.
        """
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
        """Raise an ArtifactError if `tower` is not the fingerprint of the training tower."""
        if tower != self.tower:
            raise ArtifactError(
                f"the vision probe was trained on another vision tower (fingerprint {self.tower[:12]}…, this pair's "
                f"Instruct has {tower[:12]}…): its captions would be wrong; {REMEDY}"
            )

    def save(self, folder: str | Path) -> None:
        """Write the probe to a folder.

        Args:
            folder: The folder; existing files of a probe are replaced.
        """
        head = {"kind": KIND, "texts": list(self.texts), "whole": self.whole, "tower": self.tower}
        write_artifact(folder, {**self.card, **head}, {"weights": self.weights, "bias": self.bias})

    @classmethod
    def load(cls, folder: str | Path) -> VisionProbe:
        """Read what `save` wrote. No code in the folder is run.

        Args:
            folder: The folder of the probe.

        Returns:
            The probe.

        Raises:
            ArtifactError: A file is missing, damaged or not that of a probe.
        """
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
            raise ArtifactError(f"{Path(folder) / CARD_FILE} is not a vision probe ({error}); {REMEDY}") from error


def probe_of(router: str | Path) -> VisionProbe | None:
    """The probe in the folder of a router artifact, if there is one. Raises ArtifactError if it cannot be used."""
    folder = Path(router) / PROBE_FOLDER
    return VisionProbe.load(folder) if folder.is_dir() else None
