"""One classifier trained on all records, and out-of-fold predictions for each record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import joblib
import numpy as np
from numpy.typing import NDArray

from vlroute.decision.classifier import ComplexityClassifier, Prediction
from vlroute.errors import InputError
from vlroute.learning.embeddings import EmbeddedTexts
from vlroute.learning.fit import MIN_RECORDS, fit_classifier
from vlroute.learning.folds import Together, folds_of, group_of
from vlroute.records import Record

MIN_PARALLEL = 10_000  # records times models: with fewer, starting processes takes longer than it saves

MANY_RECORDS = 5000

Predicted = dict[int, tuple[Prediction, Prediction]]


@dataclass(frozen=True, slots=True)
class OutOfFold:
    """Predictions of models that were not trained on the record.

    Attributes:
        given: Predictions for the records as they are, `[seed][record]`.
        without_caption: Predictions without the captions, `[seed][record]`.
        folds: Number of folds; None if one given router predicts all records.
        together: What shared a fold. With "text", records of the same text count as one draw in intervals.
    """

    given: list[list[Prediction]]
    without_caption: list[list[Prediction]]
    folds: int | None = None
    together: Together = "record"


def default_seeds(records: Sequence[Record]) -> int:
    """Return the number of different fold assignments: two, or one if there are many records."""
    return 1 if len(records) >= MANY_RECORDS else 2


def out_of_fold(
    records: Sequence[Record],
    *,
    folds: int,
    seeds: int,
    together: Together = "text",
    text: EmbeddedTexts | None = None,
    learner: str | None = None,
    jobs: int | None = None,
    advance: Callable[[], None] = lambda: None,
) -> tuple[ComplexityClassifier, OutOfFold]:
    """Train a classifier on all records and, for each seed, one model per fold that predicts this fold.

    Args:
        records: The training records.
        folds: Number of folds.
        seeds: How many times the records are assigned to folds.
        together: What shares a fold, see `folds_of`.
        text: Embedded texts of the records; None: words only.
        learner: The only base learner to consider, see `fit_classifier`.
        jobs: Number of processes. Default: one per core; one for a job of seconds.
        advance: Called after each model.

    Returns:
        The classifier of all records, and the predictions.

    Raises:
        InputError: Too few records remain without one of the folds.
    """
    models = 1 + folds * seeds
    if jobs is None:
        jobs = 1 if len(records) * models < MIN_PARALLEL else min(joblib.cpu_count(), models)
    assigned = [folds_of(records, folds, seed, together=together) for seed in range(seeds)]
    if len(records) - max(int(np.bincount(fold).max()) for fold in assigned) < MIN_RECORDS:
        texts = len({group_of(record) for record in records})
        raise InputError(
            f"{len(records)} records of {texts} different texts are too few to predict texts that training has not "
            "seen. If the same texts are repeated in use, train with --together record; otherwise add prompts"
        )
    work = [joblib.delayed(_fit)(records, None, 0, text, learner)]  # the longest first: no core is idle at the end
    work += [
        joblib.delayed(_fit)(records, fold == number, seed, text, learner)
        for seed, fold in enumerate(assigned)
        for number in range(folds)
    ]
    whole: list[ComplexityClassifier] = []
    found: list[Predicted] = [{} for _ in range(seeds)]
    for seed, classifier, predicted in joblib.Parallel(jobs, return_as="generator_unordered")(work):
        if classifier is None:
            found[seed] |= predicted
        else:
            whole.append(classifier)
        advance()
    pairs = [[by_index[index] for index in range(len(records))] for by_index in found]
    given, without_caption = ([[pair[side] for pair in seed] for seed in pairs] for side in (0, 1))
    return whole[0], OutOfFold(given, without_caption, folds, together)


def _fit(
    records: Sequence[Record],
    left_out: NDArray[np.bool_] | None,
    seed: int,
    text: EmbeddedTexts | None,
    learner: str | None,
) -> tuple[int, ComplexityClassifier | None, Predicted]:
    """The classifier of all records, or predictions, by index, for the records left out, with and without caption."""
    if left_out is None:
        return seed, fit_classifier(records, seed=seed, text=text, learner=learner), {}
    predicted: Predicted = {}
    if left_out.any():
        kept = [record for record, out in zip(records, left_out, strict=True) if not out]
        classifier = fit_classifier(kept, seed=seed, text=text, learner=learner)
        for index in np.flatnonzero(left_out).tolist():
            record = records[index]
            given = classifier.predict(record.prompt, record.caption, record.tools)
            bare = classifier.predict(record.prompt, tools=record.tools) if record.caption else given
            predicted[index] = given, bare
    return seed, None, predicted
