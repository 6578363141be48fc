"""What turns features into raw numbers: linear heads, and where training found them worth it neighbours and trees."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from vlroute.checks import refused
from vlroute.decision.artifact import CARD_FILE, REMEDY, Arrays, read_artifact, write_artifact
from vlroute.decision.features import DENSE, Features, GramEncoder, LexicalEncoder, RequestEncoder
from vlroute.decision.forest import Forest
from vlroute.decision.latency import LatencyModel
from vlroute.decision.neighbours import Neighbours
from vlroute.decision.text_encoder import Floats, TextEncoder, load_text_encoder
from vlroute.decision.tradeoff import CalibrationSet
from vlroute.errors import ArtifactError
from vlroute.types import ModelIdentity

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
        """What an artifact keeps; members as `neighbours.keys` and so on."""
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


CALIBRATION = "calibration_set."
ENCODERS = ("prompt", "caption", "crossed")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is expected of both modes before either runs. ValueError if a value is out of range.

    `p_*`: probability that the mode answers correctly, 0 to 1. `tokens_*`: expected generated tokens, finite,
    >= 0. `known`: share of the request's tokens that training has seen, 0 to 1; low means far from the
    training data.
    """

    p_instruct: float
    p_thinking: float
    tokens_instruct: float
    tokens_thinking: float
    known: float

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in (self.p_instruct, self.p_thinking, self.known)):
            raise ValueError(f"probabilities and known must be within 0 and 1: {self}")
        if not all(0 <= tokens < math.inf for tokens in (self.tokens_instruct, self.tokens_thinking)):
            raise ValueError(f"tokens must be finite and >= 0: {self}")

    @property
    def gain(self) -> float:
        """What thinking is worth here, in probability: p_thinking - p_instruct."""
        return self.p_thinking - self.p_instruct


class ComplexityClassifier:
    """Prompt and caption in, `Prediction` out. Made by `vlroute.learning.train`, loaded with `load`."""

    def __init__(
        self,
        encoder: RequestEncoder,
        heads: Heads,
        latency: LatencyModel,
        card: Mapping[str, Any] | None = None,
        calibration: CalibrationSet | None = None,
    ) -> None:
        """`latency`: as measured with the records. `card`: provenance, metrics. `calibration`: records on which
        targets are resolved. ValueError if shapes differ."""
        heads.check(encoder.width, encoder.embedding_width, len(DENSE) + encoder.embedding_width)
        self.encoder, self.heads = encoder, heads
        self.card: dict[str, Any] = dict(card or {})
        self.calibration = calibration
        self._latency = latency.to_dict()
        # plain floats: arithmetic on single numpy items would take longer than the dot products
        self._sigmoids: list[list[list[float]]] = heads.calibration.tolist()
        self._log_tokens: list[list[float]] = heads.log_tokens.tolist()

    @property
    def model(self) -> ModelIdentity | None:
        """The pair that gave the training answers; None if the artifact does not record it."""
        return ModelIdentity.from_card(self.card.get("pair"))

    @property
    def latency(self) -> LatencyModel:
        """A fresh `LatencyModel` that starts from what was measured when the records were collected."""
        return LatencyModel.from_dict(self._latency)

    def predict(self, prompt: str, caption: str | None = None) -> Prediction:
        """Predict for one request. No caption (None, "", blanks) is a condition with its own calibration."""
        features = self.encoder.encode(prompt, caption)
        raw = self.heads.raw(features)
        condition = int(features.captioned)
        p_instruct, p_thinking = (
            _sigmoid(slope * logit + intercept)
            for logit, (slope, intercept) in zip(raw[:2], (c[condition] for c in self._sigmoids), strict=True)
        )
        tokens_instruct, tokens_thinking = (
            math.exp(min(max(value, low), high) + smear)
            for value, (low, high, smear) in zip(raw[2:], self._log_tokens, strict=True)
        )
        return Prediction(p_instruct, p_thinking, tokens_instruct, tokens_thinking, features.known)

    def predict_many(self, requests: Iterable[tuple[str, str | None]]) -> list[Prediction]:
        """Predict for each (prompt, caption)."""
        return [self.predict(prompt, caption) for prompt, caption in requests]

    def save(self, folder: str | Path) -> None:
        """Write `router.json` and `weights.safetensors` into `folder`, replacing what was there."""
        vocabulary = {name: list(getattr(self.encoder, name).terms) for name in ENCODERS}
        arrays: Arrays = {f"idf_{name}": getattr(self.encoder, name).idf for name in ENCODERS}
        arrays |= {"grams": self.encoder.grams.grams, "idf_grams": self.encoder.grams.idf}
        arrays |= {"centre": self.encoder.centre, "scale": self.encoder.scale}
        arrays |= self.heads.to_arrays()
        if self.calibration is not None:
            arrays |= {f"{CALIBRATION}{f.name}": getattr(self.calibration, f.name) for f in fields(CalibrationSet)}
        text = self.encoder.text
        card = {
            **self.card,
            "pace": self._latency,
            "text_encoder": {"name": text.name, "fingerprint": text.fingerprint} if text else None,
            "dense": list(DENSE),
            "vocabulary": vocabulary,
        }
        write_artifact(folder, card, arrays)

    @classmethod
    def load(cls, folder: str | Path) -> ComplexityClassifier:
        """Read what `save` wrote. ArtifactError, with a remedy, if missing, damaged, of another schema or learnt with
        another text encoder than the one that its name stands for here. SettingsError if `folder` is no path."""
        if not isinstance(folder, str | Path) or not str(folder):
            raise refused("router", folder, "the folder of a router artifact")
        card, arrays = read_artifact(folder)
        text = _text_encoder(folder, card.pop("text_encoder", None))
        try:
            vocabulary, dense, latency = (card.pop(name) for name in ("vocabulary", "dense", "pace"))
            if dense != list(DENSE):
                raise ValueError("its plain numbers are not those of this version")
            lexical = {name: LexicalEncoder(vocabulary[name], arrays[f"idf_{name}"]) for name in ENCODERS}
            grams = GramEncoder(arrays["grams"], arrays["idf_grams"])
            encoder = RequestEncoder(**lexical, grams=grams, centre=arrays["centre"], scale=arrays["scale"], text=text)
            heads = Heads.from_arrays(arrays)
            known = {name.removeprefix(CALIBRATION): a for name, a in arrays.items() if name.startswith(CALIBRATION)}
            calibration = CalibrationSet(**known) if known else None
            ModelIdentity.from_card(card.get("pair"))
            return cls(encoder, heads, LatencyModel.from_dict(latency), card, calibration)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{Path(folder) / CARD_FILE} and its weights do not fit ({error}); {REMEDY}") from error


def _text_encoder(folder: str | Path, wanted: Any) -> TextEncoder | None:
    if wanted is None:
        return None
    path = Path(folder) / CARD_FILE
    try:
        name, fingerprint = wanted["name"], wanted["fingerprint"]
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: 'text_encoder' needs a name and a fingerprint; {REMEDY}") from error
    text = load_text_encoder(name)
    if text.fingerprint != fingerprint:
        raise ArtifactError(
            f"{path} was learnt with another text encoder {name!r} (fingerprint {fingerprint[:12]}…, here "
            f"{text.fingerprint[:12]}…): put that encoder back, or retrain the router with this one"
        )
    return text


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-min(max(logit, -30.0), 30.0)))
