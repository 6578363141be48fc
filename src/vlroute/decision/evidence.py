"""Probabilities at the stages "prefill" and "answer", from evidence of the model itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlroute.decision.text_encoder import Floats
from vlroute.types import Stage

#: Stages after "prompt", in order.
LATER: tuple[Stage, ...] = ("prefill", "answer")
#: The later stages whose evidence a head uses.
Passed = tuple[Stage, ...]
ANSWER_NUMBERS = (
    "mean log-probability", "lowest log-probability", "sum of the log-probabilities",
    "log-probability of the first token", "mean entropy", "highest entropy", "entropy of the first token",
    "ln of one more than the number of tokens",
)  # fmt: skip
#: Probabilities are clipped to this distance from 0 and 1 before they are converted to logits.
MARGIN = 1e-4
#: Standardized evidence is clipped to this absolute value, so that one outlier does not determine the decision.
CLIP = 6.0


def answer_numbers(log_probs: Sequence[float], entropies: Sequence[float]) -> Floats:
    """Summarize the tokens of an Instruct answer.

    Args:
        log_probs: Log-probability of each token.
        entropies: Entropy of each token.

    Returns:
        The numbers of `ANSWER_NUMBERS`, float32; 0 for an answer without tokens.
    """
    if not len(log_probs):
        return np.zeros(len(ANSWER_NUMBERS), np.float32)
    log_p, entropy = np.asarray(log_probs, np.float64), np.asarray(entropies, np.float64)
    return np.asarray(
        [
            log_p.mean(), log_p.min(), log_p.sum(), log_p[0], entropy.mean(), entropy.max(), entropy[0],
            math.log1p(len(log_p)),
        ],
        np.float32,
    )  # fmt: skip


def logit(p: float) -> float:
    """The logit of a probability, which is clipped to `MARGIN` from 0 and 1."""
    p = min(max(p, MARGIN), 1 - MARGIN)
    return math.log(p / (1 - p))


@dataclass(frozen=True, slots=True)
class StageHead:
    """Two linear heads, "Instruct is right" and "Thinking is right", for one set of passed stages.

    The columns are the logits of both probabilities of the stage "prompt", followed by the evidence of the passed
    stages.

    Attributes:
        center: Mean of each column, `[columns]`.
        scale: Divisor of each column, `[columns]`.
        weights: `[columns, 2]`, calibration included.
        bias: `[2]`.
    """

    center: Floats
    scale: Floats
    weights: Floats
    bias: Floats

    def check(self, columns: int) -> None:
        """Raise a ValueError if a shape does not fit the number of columns, or a scale is not positive."""
        shapes = {"center": (columns,), "scale": (columns,), "weights": (columns, 2), "bias": (2,)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} of a stage has shape {list(getattr(self, name).shape)}, not {list(shape)}")
        if not bool((self.scale > 0).all()):
            raise ValueError("the scale of a stage must be positive")

    def probabilities(self, values: Floats) -> Floats:
        """Probabilities of both modes `[..., 2]` for the columns `[..., columns]`."""
        logits = self.standard(values) @ self.weights + self.bias
        return np.asarray(1 / (1 + np.exp(-np.clip(logits, -30, 30))))

    def standard(self, values: Floats) -> Floats:
        """Standardized columns."""
        return np.asarray(np.clip((values - self.center) / self.scale, -CLIP, CLIP))


@dataclass(frozen=True, slots=True)
class EvidenceSource:
    """The model that gave the evidence on which stages were trained.

    Attributes:
        fingerprint: Fingerprint of its checkpoints.
        layer: The layer of the hidden state.
        dtype: Number type in which the model computes.
        width: Width of the hidden state; 0 if there is none, as over endpoints.

    Raises:
        ValueError: A value has another type.
    """

    fingerprint: str
    layer: str = "last norm"
    dtype: str = ""
    width: int = 0

    def __post_init__(self) -> None:
        texts = (self.fingerprint, self.layer, self.dtype)
        if not all(isinstance(one, str) for one in texts) or type(self.width) is not int or self.width < 0:
            raise ValueError(f"the model of the evidence is described by three strings and a width, not by {self}")


@dataclass(frozen=True, slots=True)
class StageHeads:
    """The heads of all later stages.

    Attributes:
        source: The model that gave the evidence.
        heads: A head for each set of passed stages: ("prefill",), ("answer",) and ("prefill", "answer"), or those
            whose evidence the records had.
        recommended: The stages that a policy without `stages` uses, "prompt" first.

    Raises:
        ValueError: A shape is wrong.
    """

    source: EvidenceSource
    heads: Mapping[Passed, StageHead]
    recommended: Passed = ("prompt",)

    def __post_init__(self) -> None:
        if self.recommended[:1] != ("prompt",) or self.recommended[1:] not in ((), *self.heads):
            raise ValueError(f"no heads for the stages {self.recommended!r}")
        for passed, head in self.heads.items():
            if not passed or any(stage not in LATER for stage in passed):
                raise ValueError(f"unknown stages {passed!r}")
            head.check(columns(passed, self.source.width))

    @property
    def stages(self) -> Passed:
        """The later stages that some head uses."""
        return tuple(stage for stage in LATER if any(stage in passed for passed in self.heads))

    def predict(self, p: tuple[float, float], evidence: Mapping[Stage, Floats]) -> tuple[float, float]:
        """Probabilities that Instruct and Thinking are right.

        Args:
            p: Those of the stage "prompt".
            evidence: Hidden state and numbers of the answer, for the later stages that were passed.

        Returns:
            Both probabilities.
        """
        passed = tuple(stage for stage in LATER if stage in evidence)
        values = np.concatenate([[logit(one) for one in p], *(evidence[stage] for stage in passed)])
        p_instruct, p_thinking = self.heads[passed].probabilities(values).tolist()
        return p_instruct, p_thinking

    def arrays(self) -> dict[str, Floats]:
        """All arrays by name."""
        return {
            f"{'+'.join(passed)}.{name}": getattr(head, name)
            for passed, head in self.heads.items()
            for name in StageHead.__slots__
        }

    def as_card(self) -> dict[str, Any]:
        """The entry in the card of a router artifact."""
        heads = ["+".join(passed) for passed in self.heads]
        return {"source": asdict(self.source), "heads": heads, "recommended": list(self.recommended)}

    @classmethod
    def load(cls, card: Mapping[str, Any], arrays: Mapping[str, Floats]) -> StageHeads:
        """The inverse of `as_card` and `arrays`. KeyError, TypeError or ValueError if they do not fit."""
        heads: dict[Any, StageHead] = {
            tuple(str(name).split("+")): StageHead(**{part: arrays[f"{name}.{part}"] for part in StageHead.__slots__})
            for name in card["heads"]
        }
        return cls(EvidenceSource(**card["source"]), heads, tuple(card["recommended"]))


def columns(passed: Passed, width: int) -> int:
    """Number of columns of the head of these stages, with a hidden state of `width`."""
    return 2 + width * ("prefill" in passed) + len(ANSWER_NUMBERS) * ("answer" in passed)
