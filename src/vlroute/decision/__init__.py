"""Which mode? Knows text, captions and numbers; never a model, never torch."""

from vlroute.decision.captions import CachedCaptioner, Captioner
from vlroute.decision.classifier import ComplexityClassifier, Prediction
from vlroute.decision.features import LexicalEncoder
from vlroute.decision.latency import LatencyModel
from vlroute.decision.policy import Policy
from vlroute.types import Decision, Stage

__all__ = [
    "CachedCaptioner",
    "Captioner",
    "ComplexityClassifier",
    "Decision",
    "LatencyModel",
    "LexicalEncoder",
    "Policy",
    "Prediction",
    "Stage",
]
