"""Router artifacts whose later stages predict what a test wants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.evidence import EvidenceSource, StageHead, StageHeads, columns
from vlroute.types import Stage

LATER: dict[str, tuple[Stage, ...]] = {"prefill": ("prefill",), "answer": ("answer",), "both": ("prefill", "answer")}


def certain(
    classifier: ComplexityClassifier, fingerprint: str, width: int, **p: tuple[float, float]
) -> ComplexityClassifier:
    """`classifier` with heads that always predict `p` of the stages, and a calibration set in which they are right.

    `p`: probabilities of both modes by "prefill", "answer" or "both".
    """
    heads = {}
    for name, both in p.items():
        count = columns(LATER[name], width)
        logits = np.log(np.asarray(both) / (1 - np.asarray(both)))
        heads[LATER[name]] = StageHead(
            np.zeros(count, np.float32), np.ones(count, np.float32), np.zeros((count, 2), np.float32),
            logits.astype(np.float32),
        )  # fmt: skip
    records = classifier.calibration
    assert records is not None
    # the last stage is worth its seconds at any margin: it turns half of the decisions
    turned = np.where(np.arange(len(records.p))[:, None] % 2, [[0.99, 0.01]], [[0.01, 0.99]]).astype(np.float32)
    later = {
        passed: np.full_like(turned, 0.5) if passed == ("prefill",) and len(heads) > 1 else turned for passed in heads
    }
    return ComplexityClassifier(
        classifier.encoder, classifier.heads, classifier.latency, classifier.card, replace(records, later=later),
        StageHeads(EvidenceSource(fingerprint, width=width), heads),
    )  # fmt: skip
