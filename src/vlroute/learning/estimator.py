"""The classifier as a scikit-learn estimator, for pipelines, cross-validation and searches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.errors import InputError
from vlroute.learning.embeddings import embed_texts
from vlroute.learning.fit import MIN_RECORDS, fit_classifier, too_few
from vlroute.learning.metrics import area_over_random
from vlroute.records import Outcome, Record
from vlroute.types import MODES, ToolUse

#: (prompt, caption or None), (prompt, caption or None, tools as in `Record`), or a prompt alone.
Request = str | tuple[str, str | None] | tuple[str, str | None, ToolUse]


class ComplexityEstimator(ClassifierMixin, BaseEstimator):
    """Predicts which modes are right.

    `X` are requests, `y` `[n, 2]` tells how right Instruct and Thinking are, 0 to 1.

    Args:
        text_encoder: See `load_text_encoder`; None: words only.
        seed: Seed of the inner folds.

    Attributes:
        classifier_: The fitted `ComplexityClassifier`, which a `Router` accepts and which can be saved.
        model_selection_: Comparison of the base learners.
        classes_: The modes in the order of the columns.
    """

    def __init__(self, text_encoder: str | None = STATIC, seed: int = 0) -> None:
        self.text_encoder, self.seed = text_encoder, seed

    def fit(self, X: Sequence[Request], y: ArrayLike, tokens: ArrayLike | None = None) -> ComplexityEstimator:
        """Fit the classifier.

        Args:
            X: At least 20 requests.
            y: How right both modes are, 0 to 1, `[n, 2]`.
            tokens: Tokens that both modes generated, `[n, 2]`, NaN if unknown.

        Returns:
            The estimator.

        Raises:
            InputError: Shapes or values do not fit, or there are too few requests.
        """
        right = np.asarray(y, dtype=float)
        generated = np.full(right.shape, np.nan) if tokens is None else np.asarray(tokens, dtype=float)
        if right.shape != (len(X), 2) or generated.shape != right.shape or not ((right >= 0) & (right <= 1)).all():
            raise InputError(
                f"expected y and tokens of shape [{len(X)}, 2] and y from 0 to 1, with one column for each of {MODES}; "
                f"found y {list(right.shape)}, tokens {list(generated.shape)}"
            )
        if len(X) < MIN_RECORDS:
            raise InputError(too_few(len(X), "request", MIN_RECORDS, "to learn from"))
        records = [
            Record(
                str(number),
                prompt,
                caption,
                instruct=_outcome(right[number, 0], generated[number, 0]),
                thinking=_outcome(right[number, 1], generated[number, 1]),
                tools=tools,
            )
            for number, (prompt, caption, tools) in enumerate(map(_request, X))
        ]
        text = load_text_encoder(self.text_encoder) if self.text_encoder else None
        classifier = fit_classifier(records, seed=self.seed, text=embed_texts(records, text) if text else None)
        if classifier.encoder.text is not None:  # other texts have to be embedded from now on
            classifier.encoder = classifier.encoder.with_text(text)
        self.classifier_ = classifier
        self.model_selection_: list[dict[str, Any]] = classifier.card["model_selection"]
        self.classes_ = np.asarray(MODES)
        return self

    def predict_proba(self, X: Sequence[Request]) -> NDArray[np.float64]:
        """Return the probability that Instruct and Thinking are right, `[n, 2]`. Rows do not sum to 1."""
        check_is_fitted(self)
        found = [self.classifier_.predict(*_request(request)) for request in X]
        return np.asarray([(one.p_instruct, one.p_thinking) for one in found]).reshape(-1, 2)

    def predict(self, X: Sequence[Request]) -> NDArray[np.float64]:
        """Return whether each mode is more probably right than wrong, `[n, 2]`, 0 or 1."""
        return (self.predict_proba(X) >= 0.5).astype(float)

    def score(self, X: Sequence[Request], y: ArrayLike) -> float:
        """Return the area over random of the predicted gain, in points: the criterion for a router, not accuracy."""
        p, right = self.predict_proba(X), np.asarray(y, dtype=float)
        return area_over_random(p[:, 1] - p[:, 0], right[:, 0], right[:, 1])


def _request(request: Request) -> tuple[str, str | None, ToolUse]:
    if isinstance(request, str):
        return request, None, ""
    return (*request, "") if len(request) == 2 else request


def _outcome(right: float, tokens: float) -> Outcome:
    return Outcome(float(right), None if np.isnan(tokens) else int(tokens))
