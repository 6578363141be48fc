"""Which mode? Knows text, captions and numbers; never a model, never torch."""

from vlroute.decision.captioner import CachedCaptioner, Captioner
from vlroute.decision.classifier import ComplexityClassifier, Prediction
from vlroute.decision.encoder import LexicalEncoder
from vlroute.decision.pace import Pace
from vlroute.decision.policy import Decision, Policy, Stage

__all__ = [
    "CachedCaptioner",
    "Captioner",
    "ComplexityClassifier",
    "Decision",
    "LexicalEncoder",
    "Pace",
    "Policy",
    "Prediction",
    "Stage",
]
