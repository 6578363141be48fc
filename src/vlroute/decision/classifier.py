"""The complexity classifier: predicts how probably each mode is right, and how many tokens it generates."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vlroute.checks import refused
from vlroute.decision.artifact import CARD_FILE, REMEDY, Arrays, read_artifact, write_artifact
from vlroute.decision.budget import BudgetRule
from vlroute.decision.evidence import StageHeads
from vlroute.decision.features import DENSE, Features, GramEncoder, LexicalEncoder, RequestEncoder
from vlroute.decision.gain_interval import GainInterval
from vlroute.decision.hashed_terms import read_salt
from vlroute.decision.latency import LatencyModel
from vlroute.decision.record_hashes import RecordHashes
from vlroute.decision.text_encoder import KNOWN, STATIC, Floats, TextEncoder, load_text_encoder
from vlroute.decision.tradeoff import CalibrationSet
from vlroute.errors import ArtifactError
from vlroute.types import ModelIdentity, Stage, ToolUse

_CALIBRATION, _LATER, _STAGE, _START, _RECORDS = "calibration_set.", "later.", "stage.", "start.", "records."
_VOCABULARIES = ("prompt", "caption")
#: The largest absolute value in `Heads.log_tokens`. Records have at most 1e9 tokens, whose ln is 21.
MAX_LOG_TOKENS = 50.0
TRUST_VARIABLE = "VLROUTE_TRUST_ENCODER"


@dataclass(frozen=True, slots=True)
class Heads:
    """Four linear heads: "Instruct is right", "Thinking is right", and ln tokens of Instruct and Thinking.

    Attributes:
        weights: Weights of the feature columns, float32 `[width, 4]`.
        embedded: Weights of the embedding, for the first two heads, `[embedding width, 2]`.
        bias: `[4]`.
        calibration: Slope and intercept of Platt's sigmoid on the logits, `[2, 2, 2]`: head, without or with caption.
        log_tokens: `[2, 3]`: per mode the lowest and highest ln tokens of training, and the ln of Duan's smearing
            factor (1983), which turns the exponential of a mean into a mean.
    """

    weights: Floats
    embedded: Floats
    bias: Floats
    calibration: Floats
    log_tokens: Floats

    def check(self, width: int, embedding: int) -> None:
        """Raise a ValueError if a shape does not fit `width` and `embedding`, or if `log_tokens` is out of range."""
        shapes = {
            "weights": (width, 4), "embedded": (embedding, 2), "bias": (4,), "calibration": (2, 2, 2),
            "log_tokens": (2, 3),
        }  # fmt: skip
        for name, shape in shapes.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"{name} has shape {list(found)}, expected {list(shape)}")
        if not float(np.abs(self.log_tokens).max()) <= MAX_LOG_TOKENS:
            raise ValueError(f"log_tokens must be from -{MAX_LOG_TOKENS:g} to {MAX_LOG_TOKENS:g}")

    def raw(self, features: Features) -> list[float]:
        """Return the output of the four heads: logits before calibration, ln tokens before the limits."""
        raw = features.values @ self.weights[features.columns] + self.bias
        if len(features.embedding):
            raw[:2] += features.embedding @ self.embedded
        plain: list[float] = raw.tolist()
        return plain


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is expected of both modes before either runs.

    Attributes:
        p_instruct: Probability that Instruct answers correctly, 0 to 1.
        p_thinking: The same for Thinking.
        tokens_instruct: Expected number of generated tokens of Instruct, finite, >= 0.
        tokens_thinking: The same for Thinking.
        coverage: Share of the tokens of the request that training has seen, 0 to 1; low means far from the training
            data.

    Raises:
        ValueError: A value is out of range.
    """

    p_instruct: float
    p_thinking: float
    tokens_instruct: float
    tokens_thinking: float
    coverage: float

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in (self.p_instruct, self.p_thinking, self.coverage)):
            raise ValueError(f"probabilities and coverage must be between 0 and 1: {self}")
        if not all(0 <= tokens < math.inf for tokens in (self.tokens_instruct, self.tokens_thinking)):
            raise ValueError(f"tokens must be finite and >= 0: {self}")

    @property
    def gain(self) -> float:
        """Expected gain of thinking, in probability: `p_thinking - p_instruct`."""
        return self.p_thinking - self.p_instruct


@dataclass(frozen=True, slots=True)
class Start:
    """The router from which a training started. Its logits are added to those of the new heads.

    Attributes:
        classifier: The earlier router.
        slope: Factor of its logits, of both modes, float32 `[2]`.
        name: Name or folder that was given to the training.
    """

    classifier: ComplexityClassifier
    slope: Floats
    name: str


class ComplexityClassifier:
    """Predicts correctness and number of tokens of both modes from prompt and caption.

    `vlroute.learning.train` trains a classifier, `load` reads a trained one.

    Args:
        encoder: Computes the features.
        heads: Their weights.
        latency: The latency model of the training records.
        card: Provenance and metrics.
        calibration: Records on which targets are resolved.
        stages: Heads of the later stages, if the records had evidence.
        start: The router from which the training started.
        record_hashes: Hashes of the training records, see `RecordHashes`.

    Raises:
        ValueError: Shapes of `encoder` and `heads` differ.
    """

    def __init__(
        self,
        encoder: RequestEncoder,
        heads: Heads,
        latency: LatencyModel,
        card: Mapping[str, Any] | None = None,
        calibration: CalibrationSet | None = None,
        stages: StageHeads | None = None,
        start: Start | None = None,
        record_hashes: RecordHashes | None = None,
    ) -> None:
        heads.check(encoder.width, encoder.embedding_width)
        if start is not None and start.slope.shape != (2,):
            raise ValueError(f"the slopes of the first router have shape {list(start.slope.shape)}, expected [2]")
        self.encoder, self.heads = encoder, heads
        self.card: dict[str, Any] = dict(card or {})
        self.calibration, self.stages, self.start = calibration, stages, start
        self.record_hashes = record_hashes
        #: Automatic budgets of reasoning tokens; None without a calibration set.
        self.budgets = None
        self._gains: dict[tuple[Stage, ...], GainInterval] = {}
        if calibration is not None:
            self.budgets = BudgetRule(calibration.expected[:, 1], calibration.tokens[:, 1])
            by_stage = {(): calibration.p, **calibration.later}
            self._gains = {passed: GainInterval(p, calibration.right) for passed, p in by_stage.items()}
        self._latency = latency.to_dict()
        # lists of floats: arithmetic on single numpy items would take longer than the dot products
        self._sigmoids: list[list[list[float]]] = heads.calibration.tolist()
        self._log_tokens: list[list[float]] = heads.log_tokens.tolist()

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the weights, which tell artifacts apart."""
        weights = b"".join(np.ascontiguousarray(getattr(self.heads, f.name)).tobytes() for f in fields(Heads))
        if self.start is not None:
            weights += self.start.slope.tobytes() + self.start.classifier.fingerprint.encode()
        return hashlib.sha256(weights).hexdigest()[:16]

    @property
    def model(self) -> ModelIdentity | None:
        """The model that gave the training answers; None if the artifact does not record it."""
        return ModelIdentity.from_card(self.card.get("model"))

    @property
    def latency(self) -> LatencyModel:
        """A new `LatencyModel` with the values measured when the records were collected."""
        return LatencyModel.from_dict(self._latency)

    def predict(self, prompt: str, caption: str | None = None, tools: ToolUse = "") -> Prediction:
        """Predict for one request.

        Args:
            prompt: Text of the request.
            caption: Text about the pictures. None and blank text are a condition with a calibration of its own.
            tools: Whether tools are offered, or the last message is the result of one.

        Returns:
            The prediction for both modes.
        """
        logits, lengths, coverage = self._heads(prompt, caption, tools)
        tokens_instruct, tokens_thinking = (
            math.exp(min(max(value, low), high) + smear)
            for value, (low, high, smear) in zip(lengths, self._log_tokens, strict=True)
        )
        p_instruct, p_thinking = map(_sigmoid, logits)
        return Prediction(p_instruct, p_thinking, tokens_instruct, tokens_thinking, coverage)

    def logits(
        self, prompt: str, caption: str | None = None, tools: ToolUse = "", embedded: Features | None = None
    ) -> tuple[list[float], float]:
        """Return the calibrated logits that each mode is right, and the coverage.

        Args:
            prompt: Text of the request.
            caption: Text about the pictures, see `predict`.
            tools: See `predict`.
            embedded: See `RequestEncoder.encode`.

        Returns:
            Two logits, and the coverage, 0 to 1.
        """
        logits, _, coverage = self._heads(prompt, caption, tools, embedded)
        return logits, coverage

    def _heads(
        self, prompt: str, caption: str | None, tools: ToolUse, embedded: Features | None = None
    ) -> tuple[list[float], list[float], float]:
        """Calibrated logits of both modes, ln tokens of both, and the coverage. `embedded`: as of the encoder."""
        features = self.encoder.encode(prompt, caption, tools, embedded)
        raw, coverage = self.heads.raw(features), features.coverage
        if self.start is not None:
            first = self.start.classifier
            same = features if first.encoder.text is self.encoder.text else None
            before, known = first.logits(prompt, caption, tools, same)
            coverage = max(coverage, known)
            raw[:2] = [one + float(slope) * old for one, slope, old in zip(raw, self.start.slope, before, strict=False)]
        condition = int(features.captioned)
        sigmoids = (one[condition] for one in self._sigmoids)
        logits = [slope * logit + intercept for logit, (slope, intercept) in zip(raw, sigmoids, strict=False)]
        return logits, raw[2:], coverage

    def gain_interval(self, gain: float, passed: tuple[Stage, ...] = ()) -> tuple[float, float] | None:
        """The 95 % interval of the gain of requests with this predicted gain.

        Args:
            gain: The predicted gain.
            passed: The stages after "prompt" on which the prediction rests.

        Returns:
            Lower and upper limit; None without a calibration set for these stages.
        """
        found = self._gains.get(passed)
        return None if found is None else found.around(gain)

    def with_hashed_vocabulary(self) -> ComplexityClassifier:
        """Return a copy whose artifact contains hashes instead of the words and n-grams of the training requests.

        The terms of the predictions are added up in another order, so probabilities can differ by rounding, about 1e-7.
        The salt is derived from the weights: the same classifier has the same copy. See `hash_terms` for what a hash
        does not hide. The copy has no hashes of the training records, by which guessed records could be tested.

        Returns:
            The copy; this classifier if its vocabulary is hashed already.
        """
        if self.encoder.salt is not None:
            return self
        encoder, order = self.encoder.hashed(read_salt(self.fingerprint))
        heads = replace(self.heads, weights=self.heads.weights[order])
        start = self.start
        if start is not None:
            start = replace(start, classifier=start.classifier.with_hashed_vocabulary())
        return ComplexityClassifier(encoder, heads, self.latency, self.card, self.calibration, self.stages, start)

    def predict_many(
        self, requests: Iterable[tuple[str, str | None] | tuple[str, str | None, ToolUse]]
    ) -> list[Prediction]:
        """Predict for each (prompt, caption) or (prompt, caption, tools)."""
        return [self.predict(*request) for request in requests]

    def save(self, folder: str | Path) -> None:
        """Write `router.json` and its weights into `folder`; an existing artifact is replaced as a whole."""
        card, arrays = _content(self)
        if self.calibration is not None:
            own = {f.name: getattr(self.calibration, f.name) for f in fields(CalibrationSet) if f.name != "later"}
            later = {f"{_LATER}{'+'.join(passed)}": p for passed, p in self.calibration.later.items()}
            arrays |= {f"{_CALIBRATION}{name}": array for name, array in (own | later).items()}
        if self.stages is not None:
            arrays |= {f"{_STAGE}{name}": array for name, array in self.stages.arrays().items()}
        if self.record_hashes is not None:
            arrays |= {f"{_RECORDS}{name}": array for name, array in self.record_hashes.as_arrays().items()}
        if self.start is not None:
            first, weights = _content(self.start.classifier)
            arrays |= {f"{_START}{name}": array for name, array in {**weights, "slope": self.start.slope}.items()}
            fingerprint = self.start.classifier.fingerprint
            card = {"start": {"name": self.start.name, "fingerprint": fingerprint, **first}, **card}
        stages = None if self.stages is None else self.stages.as_card()
        write_artifact(folder, {**self.card, "latency": self._latency, "stages": stages, **card}, arrays)

    @classmethod
    def load(cls, folder: str | Path, trust_encoder: str | None = None) -> ComplexityClassifier:
        """Read the files that `save` wrote.

        Args:
            folder: The folder of the artifact.
            trust_encoder: A text encoder of the hub that may be downloaded if the artifact names it. Without this, the
                shipped encoder, local folders and a few known encoders are loaded. The environment variable
                `VLROUTE_TRUST_ENCODER` has the same meaning.

        Returns:
            The classifier.

        Raises:
            ArtifactError: The files are missing, damaged, of another schema, or belong to a text encoder that is not
                trusted or differs from the one of this name. The message contains a remedy.
            SettingsError: `folder` is not a path.
        """
        if not isinstance(folder, str | Path) or not str(folder):
            raise refused("router", folder, "the folder of a router artifact")
        card, arrays = read_artifact(folder)
        try:
            latency, first = LatencyModel.from_dict(card.pop("latency")), card.pop("start", None)
            encoder, heads = _encoder_and_heads(folder, card, arrays, trust_encoder)
            start = None
            if first is not None:
                if not isinstance(first, dict) or not isinstance(name := first.pop("name"), str):
                    raise ValueError("'start' is not an object with a name")
                weights = _named(arrays, _START)
                before = cls(*_encoder_and_heads(folder, first, weights, trust_encoder), latency)
                start = Start(before, weights["slope"], name)
            stored, own = _named(arrays, _CALIBRATION), card.pop("stages", None)
            later: dict[Any, Floats] = {tuple(name.split("+")): p for name, p in _named(stored, _LATER).items()}
            stored = {name: array for name, array in stored.items() if not name.startswith(_LATER)}
            calibration = CalibrationSet(**stored, later=later) if stored else None
            stages = None if own is None else StageHeads.load(own, _named(arrays, _STAGE))
            hashes = _named(arrays, _RECORDS)
            record_hashes = RecordHashes.from_arrays(hashes) if hashes else None
            ModelIdentity.from_card(card.get("model"))
            _check_provenance(card.get("provenance", {}))
            return cls(encoder, heads, latency, card, calibration, stages, start, record_hashes)
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{Path(folder) / CARD_FILE} and its weights do not fit ({error}); {REMEDY}") from error


def _content(classifier: ComplexityClassifier) -> tuple[dict[str, Any], Arrays]:
    """Card and arrays of encoder and heads."""
    encoder, text = classifier.encoder, classifier.encoder.text
    lexical = {name: getattr(encoder, name) for name in _VOCABULARIES}
    arrays: Arrays = {f"idf_{name}": one.idf for name, one in lexical.items()}
    arrays |= {"grams": encoder.grams.grams, "idf_grams": encoder.grams.idf}
    arrays |= {"center": encoder.center, "scale": encoder.scale}
    arrays |= {f.name: getattr(classifier.heads, f.name) for f in fields(Heads)}
    named = None
    if text is not None:
        named = {"name": text.name, "fingerprint": text.fingerprint, "revision": text.revision}
    card = {"text_encoder": named, "dense": list(DENSE)}
    vocabulary: dict[str, Any] = {name: list(one.terms) for name, one in lexical.items()}
    if encoder.salt is None:
        card["vocabulary"] = vocabulary
    else:  # earlier versions, which would take the hashes for words, miss the vocabulary and refuse the artifact
        card["hashed_vocabulary"] = {"salt": encoder.salt.hex(), **vocabulary}
    return card, arrays


def _encoder_and_heads(
    folder: str | Path, card: dict[str, Any], arrays: Arrays, trusted: str | None
) -> tuple[RequestEncoder, Heads]:
    """Read what `_content` returns, and remove it from the card."""
    text = _text_encoder(folder, card.pop("text_encoder", None), trusted)
    dense, hashed = card.pop("dense"), "hashed_vocabulary" in card
    vocabulary = card.pop("hashed_vocabulary" if hashed else "vocabulary")
    salt = read_salt(vocabulary["salt"]) if hashed else None
    if dense != list(DENSE[: len(dense)]):
        raise ValueError("the plain numbers are not those of this version")
    # of an earlier version, which did not have the last plain numbers: they get no weight
    _append(arrays, len(DENSE) - len(dense), center=0, scale=1, weights=0)
    encoder = RequestEncoder(
        **{name: LexicalEncoder(vocabulary[name], arrays[f"idf_{name}"], salt) for name in _VOCABULARIES},
        grams=GramEncoder(arrays["grams"], arrays["idf_grams"], salt),
        center=arrays["center"],
        scale=arrays["scale"],
        text=text,
    )
    return encoder, Heads(**{f.name: arrays[f.name] for f in fields(Heads)})


def _append(arrays: Arrays, count: int, **values: float) -> None:
    """Append `count` rows of one value to each of the named arrays."""
    for name, value in values.items():
        array = arrays[name]
        arrays[name] = np.concatenate([array, np.full((count, *array.shape[1:]), value, array.dtype)])


def _named(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The arrays whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _text_encoder(folder: str | Path, wanted: Any, trusted: str | None) -> TextEncoder | None:
    """The text encoder that the card names; ArtifactError if it is not trusted or if its content differs."""
    if wanted is None:
        return None
    path = Path(folder) / CARD_FILE
    try:
        name, fingerprint, revision = wanted["name"], wanted["fingerprint"], wanted.get("revision")
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: 'text_encoder' needs a name and a fingerprint; {REMEDY}") from error
    if not (isinstance(name, str) and isinstance(fingerprint, str) and isinstance(revision, str | None)):
        raise ArtifactError(f"{path}: name, fingerprint and revision of 'text_encoder' must be strings; {REMEDY}")
    if name not in (STATIC, *KNOWN, trusted, os.environ.get(TRUST_VARIABLE)) and not _is_folder(name):
        raise ArtifactError(
            f"{path} names the text encoder {name[:1000]!r}, which would be downloaded from the hub. If you trust it, "
            f"pass its name as trust_encoder= or in the environment variable {TRUST_VARIABLE}"
        )
    text = load_text_encoder(name, revision)
    if text.fingerprint != fingerprint:
        raise ArtifactError(
            f"{path} was trained with another text encoder of the name {name!r} (fingerprint {fingerprint[:12]}…, here "
            f"{text.fingerprint[:12]}…). Restore that encoder, or train the router again with this one"
        )
    return text


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):  # too long, or with a null character
        return False


def _check_provenance(provenance: Any) -> None:
    """Raise a ValueError if what is read of the provenance has another form: the names and hashes of the data."""
    data = provenance.get("data", []) if isinstance(provenance, dict) else None
    if not isinstance(data, list) or not all(
        isinstance(one, dict) and isinstance(one.get("sha256", ""), str) for one in data
    ):
        raise ValueError("'provenance' is not an object whose 'data' is a list of files")


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-min(max(logit, -30.0), 30.0)))
