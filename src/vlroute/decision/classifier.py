"""The complexity classifier: how probably is each mode right, and how much will it write?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vlroute.checks import refused
from vlroute.decision.artefact import CARD_FILE, REMEDY, Arrays, read_artefact, write_artefact
from vlroute.decision.encoder import LexicalEncoder
from vlroute.decision.features import DENSE, RequestEncoder
from vlroute.decision.frontier import CalibrationSet
from vlroute.decision.grams import GramEncoder
from vlroute.decision.heads import Heads
from vlroute.decision.pace import Pace
from vlroute.decision.text_encoder import TextEncoder, load_text_encoder
from vlroute.errors import ArtefactError
from vlroute.pair_identity import PairIdentity

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
        pace: Pace,
        card: Mapping[str, Any] | None = None,
        calibration: CalibrationSet | None = None,
    ) -> None:
        """`pace`: as measured with the records. `card`: provenance, metrics. `calibration`: what targets are resolved
        on. ValueError if shapes differ."""
        heads.check(encoder.width, encoder.embedding_width, len(DENSE) + encoder.embedding_width)
        self.encoder, self.heads = encoder, heads
        self.card: dict[str, Any] = dict(card or {})
        self.calibration = calibration
        self._pace = pace.to_dict()
        # plain floats: arithmetic on single numpy items would take longer than the dot products
        self._sigmoids: list[list[list[float]]] = heads.calibration.tolist()
        self._log_tokens: list[list[float]] = heads.log_tokens.tolist()

    @property
    def pair(self) -> PairIdentity | None:
        """The pair that gave the training answers; None if the artifact does not record it."""
        return PairIdentity.from_card(self.card.get("pair"))

    @property
    def pace(self) -> Pace:
        """A fresh `Pace` that starts from what was measured when the records were collected."""
        return Pace.from_dict(self._pace)

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
            "pace": self._pace,
            "text_encoder": {"name": text.name, "fingerprint": text.fingerprint} if text else None,
            "dense": list(DENSE),
            "vocabulary": vocabulary,
        }
        write_artefact(folder, card, arrays)

    @classmethod
    def load(cls, folder: str | Path) -> ComplexityClassifier:
        """Read what `save` wrote. ArtefactError, with a remedy, if missing, damaged, of another schema or learnt with
        another text encoder than the one that its name stands for here. SettingsError if `folder` is no path."""
        if not isinstance(folder, str | Path) or not str(folder):
            raise refused("router", folder, "the folder of a router artefact")
        card, arrays = read_artefact(folder)
        text = _text_encoder(folder, card.pop("text_encoder", None))
        try:
            vocabulary, dense, pace = (card.pop(name) for name in ("vocabulary", "dense", "pace"))
            if dense != list(DENSE):
                raise ValueError("its plain numbers are not those of this version")
            lexical = {name: LexicalEncoder(vocabulary[name], arrays[f"idf_{name}"]) for name in ENCODERS}
            grams = GramEncoder(arrays["grams"], arrays["idf_grams"])
            encoder = RequestEncoder(**lexical, grams=grams, centre=arrays["centre"], scale=arrays["scale"], text=text)
            heads = Heads.from_arrays(arrays)
            known = {name.removeprefix(CALIBRATION): a for name, a in arrays.items() if name.startswith(CALIBRATION)}
            calibration = CalibrationSet(**known) if known else None
            PairIdentity.from_card(card.get("pair"))
            return cls(encoder, heads, Pace.from_dict(pace), card, calibration)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"{Path(folder) / CARD_FILE} and its weights do not fit ({error}); {REMEDY}") from error


def _text_encoder(folder: str | Path, wanted: Any) -> TextEncoder | None:
    if wanted is None:
        return None
    path = Path(folder) / CARD_FILE
    try:
        name, fingerprint = wanted["name"], wanted["fingerprint"]
    except (KeyError, TypeError) as error:
        raise ArtefactError(f"{path}: 'text_encoder' needs a name and a fingerprint; {REMEDY}") from error
    text = load_text_encoder(name)
    if text.fingerprint != fingerprint:
        raise ArtefactError(
            f"{path} was learnt with another text encoder {name!r} (fingerprint {fingerprint[:12]}…, here "
            f"{text.fingerprint[:12]}…): put that encoder back, or retrain the router with this one"
        )
    return text


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-min(max(logit, -30.0), 30.0)))
