"""The estimator: scikit-learn's own tools can handle it, and what it learns is a classifier that routes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict

from tests.synthetic_records import draw_records
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.errors import InputError
from vlroute.learning.estimator import ComplexityEstimator
from vlroute.learning.fit import fit_classifier

_, RECORDS = draw_records(240)
X = [(record.prompt, record.caption) for record in RECORDS]
Y = np.asarray([(float(record.instruct.correct), float(record.thinking.correct)) for record in RECORDS])


def test_it_is_the_same_classifier(tmp_path: Path) -> None:
    tokens = [[o.tokens or np.nan for o in (record.instruct, record.thinking)] for record in RECORDS]
    estimator = ComplexityEstimator(text_encoder=None).fit(X, Y, tokens)
    plain = fit_classifier(RECORDS)
    p = estimator.predict_proba(X[:20])
    expected = [plain.predict(*request) for request in X[:20]]
    np.testing.assert_allclose(p, [(one.p_instruct, one.p_thinking) for one in expected], atol=1e-6)
    assert estimator.classifier_.predict(*X[0]).tokens_thinking == pytest.approx(expected[0].tokens_thinking)
    assert list(estimator.classes_) == ["instruct", "thinking"]
    assert {one["name"] for one in estimator.model_selection_} >= {"words"}
    estimator.classifier_.save(tmp_path)
    assert ComplexityClassifier.load(tmp_path).predict(*X[0]).p_instruct == pytest.approx(p[0, 0])
    np.testing.assert_array_equal(estimator.predict(X[:20]), p >= 0.5)


def test_scikit_learn_clones_searches_and_cross_validates_it() -> None:
    estimator = clone(ComplexityEstimator(text_encoder=None, seed=3))
    assert estimator.get_params() == {"text_encoder": None, "seed": 3}
    p = cross_val_predict(estimator, X, Y, cv=KFold(3, shuffle=True, random_state=0), method="predict_proba")
    assert p.shape == Y.shape
    gain = p[:, 1] - p[:, 0]
    assert np.corrcoef(gain, Y[:, 1] - Y[:, 0])[0, 1] > 0.1
    search = GridSearchCV(estimator, {"text_encoder": [None, "static"]}, cv=2).fit(X, Y)
    assert search.best_score_ > 0
    assert search.best_estimator_.score(X, Y) > 0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(NotFittedError):
        ComplexityEstimator().predict_proba(X[:2])
    with pytest.raises(InputError, match=r"expected y and tokens of shape \[240, 2\]"):
        ComplexityEstimator().fit(X, Y[:, 0])
    with pytest.raises(InputError, match="from 0 to 1"):
        ComplexityEstimator().fit(X, Y * 2)
    with pytest.raises(InputError, match="3 requests are too few"):
        ComplexityEstimator().fit(X[:3], Y[:3])
    assert ComplexityEstimator(text_encoder=None).fit([prompt for prompt, _ in X], Y).predict_proba([]).shape == (0, 2)
