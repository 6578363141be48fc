"""Drift: how recent requests differ from those on which a router artifact was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.wilson import student_95
from vlroute.learning.ratings import Rating
from vlroute.store import StoredAnswer


@dataclass(frozen=True, slots=True)
class Drift:
    """Figures of recent requests beside those of training.

    Attributes:
        coverage: Mean coverage of the recent requests, see `Prediction`; None without requests.
        coverage_in_training: Mean coverage of the calibration set; None if the artifact has none.
        calibration: Mean expected probability of a right answer minus the share of right answers, over the recent
            ratings: above 0, the router expects too much. None without ratings.
        calibration_interval: Its 95 % interval; None with fewer than two ratings.
        latency: Seconds of the recent answers, divided by the expected seconds; None if there are none.
    """

    coverage: float | None
    coverage_in_training: float | None
    calibration: float | None
    calibration_interval: tuple[float, float] | None
    latency: float | None


def measure_drift(
    classifier: ComplexityClassifier, answers: Sequence[StoredAnswer], ratings: Sequence[Rating]
) -> Drift:
    """Measure the drift.

    Args:
        classifier: The artifact in use.
        answers: The recent answers.
        ratings: The recent ratings.

    Returns:
        The figures.
    """
    covered = [classifier.predict(one.prompt, one.caption, one.decision.get("tools", "")).coverage for one in answers]
    trained = classifier.calibration
    errors = np.asarray([one.expected - one.correct for one in ratings])
    interval = None
    if len(errors) > 1:
        half = student_95(len(errors) - 1) * float(errors.std(ddof=1)) / len(errors) ** 0.5
        interval = float(errors.mean()) - half, float(errors.mean()) + half
    expected = sum(float(one.decision.get(f"seconds_{one.mode}", 0.0)) for one in answers)
    return Drift(
        fmean(covered) if covered else None,
        None if trained is None else float(trained.coverage.mean()),
        float(errors.mean()) if len(errors) else None,
        interval,
        sum(one.seconds for one in answers) / expected if expected > 0 else None,
    )
