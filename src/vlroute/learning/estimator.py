"""The classifier behind scikit-learn's conventions: for pipelines of one's own, cross-validation and searches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.errors import InputError
from vlroute.learning.embeddings import remember
from vlroute.learning.fit import fit_classifier
from vlroute.learning.folds import Values
from vlroute.learning.metrics import area_over_random
from vlroute.records import Outcome, Record
from vlroute.types import MODES

#: (prompt, caption or None); a plain string is a prompt without caption.
Request = str | tuple[str, str | None]


class ComplexityEstimator(ClassifierMixin, BaseEstimator):
    """Which mode is right? `X`: requests, (prompt, caption or None); `y` `[n, 2]`: how right Instruct and Thinking are.

    `text_encoder`: see `load_text_encoder`; None: words only. After `fit`: `classifier_`, which a `Router` takes and
    which can be saved; `candidates_`, how the ways to learn compared; `classes_`, the modes in the order of columns.
    """

    def __init__(self, text_encoder: str | None = STATIC, seed: int = 0) -> None:
        self.text_encoder, self.seed = text_encoder, seed

    def fit(self, X: Sequence[Request], y: ArrayLike, tokens: ArrayLike | None = None) -> ComplexityEstimator:
        """Learn from `y` `[n, 2]`, 0 to 1, and the `tokens` `[n, 2]` that both modes wrote, if they are known.

        InputError for shapes or values that do not fit, or fewer than 20 requests.
        """
        right = np.asarray(y, dtype=float)
        written = np.full(right.shape, np.nan) if tokens is None else np.asarray(tokens, dtype=float)
        if right.shape != (len(X), 2) or written.shape != right.shape or not ((right >= 0) & (right <= 1)).all():
            raise InputError(
                f"expected y and tokens of shape [{len(X)}, 2] and y from 0 to 1, one column for each of {MODES}; "
                f"found y {list(right.shape)}, tokens {list(written.shape)}"
            )
        if len(X) < 20:
            raise InputError(f"{len(X)} requests are too few to learn from: at least 20 are needed")
        records = [
            Record(str(number), *_request(request), _outcome(right[number, 0], written[number, 0]),
                   _outcome(right[number, 1], written[number, 1]))
            for number, request in enumerate(X)
        ]  # fmt: skip
        text = load_text_encoder(self.text_encoder) if self.text_encoder else None
        classifier = fit_classifier(records, seed=self.seed, text=remember(records, text) if text else None)
        if classifier.encoder.text is not None:  # from now on other texts come
            classifier.encoder = classifier.encoder.with_text(text)
        self.classifier_ = classifier
        self.candidates_: list[dict[str, Any]] = classifier.card["candidates"]
        self.classes_ = np.asarray(MODES)
        return self

    def predict_proba(self, X: Sequence[Request]) -> Values:
        """How probably each mode is right, `[n, 2]`: Instruct, Thinking. The columns do not sum to one."""
        check_is_fitted(self)
        found = [self.classifier_.predict(*_request(request)) for request in X]
        return np.asarray([(one.p_instruct, one.p_thinking) for one in found]).reshape(-1, 2)

    def predict(self, X: Sequence[Request]) -> Values:
        """Whether each mode is rather right than wrong, `[n, 2]`, 0 or 1."""
        return (self.predict_proba(X) >= 0.5).astype(float)

    def score(self, X: Sequence[Request], y: ArrayLike) -> float:
        """Area over random in points, of the predicted gain: what a router is chosen by, not accuracy."""
        p, right = self.predict_proba(X), np.asarray(y, dtype=float)
        return area_over_random(p[:, 1] - p[:, 0], right[:, 0], right[:, 1])


def _request(request: Request) -> tuple[str, str | None]:
    return (request, None) if isinstance(request, str) else (request[0], request[1])


def _outcome(right: float, tokens: float) -> Outcome:
    return Outcome(float(right), None if np.isnan(tokens) else int(tokens))
