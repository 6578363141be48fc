"""One classifier trained on all records, and out-of-fold predictions for each record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import joblib
import numpy as np

from vlroute.decision.classifier import ComplexityClassifier, Prediction
from vlroute.errors import InputError
from vlroute.learning.assumptions import mean_tokens
from vlroute.learning.corpus import Corpus, Mask
from vlroute.learning.embeddings import EmbeddedTexts
from vlroute.learning.fit import MIN_RECORDS, Fitted, fit_heads, predictions
from vlroute.learning.folds import Together, folds_of, group_of
from vlroute.records import Record
from vlroute.types import MODES

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
    start: tuple[str, ComplexityClassifier] | None = None,
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
        start: Name of the router from which the training starts, and this router.
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
            f"{len(records)} records contain only {texts} different texts, too few to predict texts that training has "
            "not seen. If the same texts are repeated in use, train with --together record; otherwise add prompts"
        )
    corpus, usual = Corpus(records, text, start and start[1]), mean_tokens(records)
    tokens = [usual[mode] for mode in MODES]
    # the longest first: no core is idle at the end
    work = [joblib.delayed(_fit)(corpus, None, 0, tokens, learner)]
    work += [
        joblib.delayed(_fit)(corpus, fold == number, seed, tokens, learner)
        for seed, fold in enumerate(assigned)
        for number in range(folds)
    ]
    whole: list[Fitted] = []
    found: list[Predicted] = [{} for _ in range(seeds)]
    for seed, fitted, predicted in joblib.Parallel(jobs, return_as="generator_unordered")(work):
        if fitted is not None:
            whole.append(fitted)
        found[seed] |= predicted
        advance()
    pairs = [[by_index[index] for index in range(len(records))] for by_index in found]
    given, without_caption = ([[pair[side] for pair in seed] for seed in pairs] for side in (0, 1))
    return whole[0].classifier(corpus, records, text, start), OutOfFold(given, without_caption, folds, together)


def _fit(
    corpus: Corpus, left_out: Mask | None, seed: int, tokens: Sequence[float], learner: str | None
) -> tuple[int, Fitted | None, Predicted]:
    """The classifier of all records, or predictions, by index, for the records left out, with and without caption."""
    if left_out is None:
        return seed, fit_heads(corpus, np.arange(len(corpus.right)), tokens, seed=seed, learner=learner), {}
    out = np.flatnonzero(left_out)
    if not len(out):
        return seed, None, {}
    fitted = fit_heads(corpus, np.flatnonzero(~left_out), tokens, seed=seed, learner=learner)
    design = corpus.design(fitted.vocabulary, out)
    rows = predictions(fitted, design)
    bare = design.given + design.captioned[design.given]
    pairs = ((rows[own], rows[other]) for own, other in zip(design.given.tolist(), bare.tolist(), strict=True))
    return seed, None, dict(zip(out.tolist(), pairs, strict=True))
