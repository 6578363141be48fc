"""One classifier from all records, and what classifiers that had not seen a record predict of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import joblib
import numpy as np

from vlroute.decision.classifier import ComplexityClassifier, Prediction
from vlroute.errors import InputError
from vlroute.learning.embeddings import Remembered
from vlroute.learning.fit import LEAST, fit_classifier
from vlroute.learning.folds import Mask, Together, folds_of
from vlroute.records import Record

MIN_PARALLEL = 10_000  # records times models: with fewer, starting processes takes longer than they save

Predicted = dict[int, tuple[Prediction, Prediction]]


@dataclass(frozen=True, slots=True)
class Unseen:
    """Predictions by models that had not seen the record: `[seed][record]`, as it is and without its caption.

    `folds`: into how many parts the records were cut; None if one given router predicts all of them. `together`: what
    shared a fold; with "text", records of the same text count as one draw in intervals.
    """

    given: list[list[Prediction]]
    without_caption: list[list[Prediction]]
    folds: int | None = None
    together: Together = "record"


def cross_fit(
    records: Sequence[Record],
    *,
    folds: int,
    seeds: int,
    together: Together = "text",
    text: Remembered | None = None,
    only: str | None = None,
    jobs: int | None = None,
    advance: Callable[[], None] = lambda: None,
) -> tuple[ComplexityClassifier, Unseen]:
    """Train a classifier of all records and, per seed, `folds` models that each predict the fold left out.

    `advance` is called after each of the `1 + folds * seeds` models. `together`: what shares a fold, see `folds_of`.
    `text`: the embedded texts, see `embeddings.remember`. `only`: see `fit_classifier`. `jobs`: processes at the same
    time; by default one a core, and one in all for a job of seconds. InputError where a fold leaves too few records.
    """
    models = 1 + folds * seeds
    if jobs is None:
        jobs = 1 if len(records) * models < MIN_PARALLEL else min(joblib.cpu_count(), models)
    cuts = [folds_of(records, folds, seed, together=together) for seed in range(seeds)]
    if len(records) - max(int(np.bincount(cut).max()) for cut in cuts) < LEAST:
        texts = len({(record.prompt.strip(), record.caption) for record in records})
        raise InputError(
            f"{len(records)} records of {texts} different texts are too few to predict texts that training has not "
            "seen. If the same texts come again in use, train with --together record; otherwise give more prompts"
        )
    work = [joblib.delayed(_fit)(records, None, 0, text, only)]  # the longest first, so that no core waits for it
    work += [
        joblib.delayed(_fit)(records, cut == number, seed, text, only)
        for seed, cut in enumerate(cuts)
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
    return whole[0], Unseen(given, without_caption, folds, together)


def _fit(
    records: Sequence[Record], left_out: Mask | None, seed: int, text: Remembered | None, only: str | None
) -> tuple[int, ComplexityClassifier | None, Predicted]:
    """Of all records the classifier; else by index what one predicts of those left out, with and without caption."""
    if left_out is None:
        return seed, fit_classifier(records, seed=seed, text=text, only=only), {}
    kept = [record for record, out in zip(records, left_out, strict=True) if not out]
    classifier = fit_classifier(kept, seed=seed, text=text, only=only)
    predicted = {}
    for index in np.flatnonzero(left_out).tolist():
        record = records[index]
        given = classifier.predict(record.prompt, record.caption)
        predicted[index] = given, classifier.predict(record.prompt) if record.caption else given
    return seed, None, predicted
