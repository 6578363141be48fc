"""Active collection: which requests to label next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.text_encoder import TextEncoder
from vlroute.errors import InputError

Values = NDArray[np.float64]
Request = tuple[str, str | None]

#: Of more requests, so many are drawn at random and compared: time and memory grow with the square.
MOST_COMPARED = 4000
#: Variance of the noise of a label, in units of the prior variance of a request's effect.
NOISE = 1.0


def choose_requests(
    requests: Sequence[Request],
    count: int,
    text: TextEncoder,
    *,
    labeled: Sequence[Request] = (),
    classifier: ComplexityClassifier | None = None,
    seed: int = 0,
) -> list[int]:
    """Choose requests to label that are typical and differ from each other.

    The effects of the requests on the gain are modeled as a Gaussian process whose covariance is that of the embeddings
    of prompt and caption. Labels are chosen one after the other, each so that it reduces the summed variance of the
    gain of all requests most (transductive experimental design, Yu, Bi and Tresp 2006). Therefore the chosen requests
    are typical, differ from each other and from the labeled ones. With a classifier, requests count more whose
    outcomes it cannot predict. No label is needed. On public sets, no advantage over random requests is certain
    (docs/benchmarks/choosing.md).

    Args:
        requests: Prompt and caption of each request.
        count: How many are chosen; of fewer requests, all.
        text: Embeds prompts and captions.
        labeled: Requests whose labels are known.
        classifier: A router trained so far.
        seed: Seed of the draw, if there are more than `MOST_COMPARED` requests.

    Returns:
        Positions in `requests`, in the order of the choice.

    Raises:
        InputError: `count` is not positive.
    """
    if count < 1:
        raise InputError(f"the number of requests to choose must be at least 1, not {count}")
    if not requests:
        return []
    rng = np.random.default_rng(seed)
    most = max(MOST_COMPARED, count)
    pool = np.sort(rng.permutation(len(requests))[:most])
    compared = [requests[at] for at in pool]
    known = [labeled[at] for at in np.sort(rng.permutation(len(labeled))[:MOST_COMPARED])]
    rows = _rows(compared + known, text)
    rows -= rows[: len(pool)].mean(axis=0)  # the bias of a router is known after a few labels
    weight = np.ones(len(rows)) if classifier is None else _uncertainty(compared + known, classifier)
    rows *= np.sqrt(weight)[:, None]
    covariance = _given(rows[: len(pool)], rows[len(pool) :])
    return [int(pool[at]) for at in _greedy(covariance, min(count, len(pool)))]


def _rows(requests: Sequence[Request], text: TextEncoder) -> Values:
    """Embeddings of prompt and caption side by side, `[n, 2 width]`."""
    texts = list(dict.fromkeys(part for prompt, caption in requests for part in (prompt, caption or "")))
    vectors = dict(zip(texts, text.encode(texts), strict=True))
    rows = [np.concatenate([vectors[prompt], vectors[caption or ""]]) for prompt, caption in requests]
    return np.asarray(rows, dtype=np.float64)


def _uncertainty(requests: Sequence[Request], classifier: ComplexityClassifier) -> Values:
    """Predicted variance of the gain of each request, in units of the largest possible one, `[n]`."""
    found = classifier.predict_many(requests)
    p = np.asarray([(one.p_instruct, one.p_thinking) for one in found])
    return np.asarray((p * (1 - p)).sum(axis=1) / 0.5)


def _given(rows: Values, known: Values) -> Values:
    """Covariance of `rows` after the labels of `known`, `[n, n]`."""
    covariance: Values = rows @ rows.T
    if len(known):
        between = rows @ known.T
        covariance -= between @ np.linalg.solve(known @ known.T + NOISE * np.eye(len(known)), between.T)
    return covariance


def _greedy(covariance: Values, count: int) -> list[int]:
    """Rows whose labels reduce the trace of the covariance most, one after the other. Changes `covariance`."""
    chosen: list[int] = []
    for _ in range(count):
        reduction = np.einsum("ij,ij->j", covariance, covariance) / (NOISE + covariance.diagonal())
        reduction[chosen] = -1.0
        best = int(reduction.argmax())
        chosen.append(best)
        column = covariance[:, best].copy()
        covariance -= np.outer(column, column / (NOISE + column[best]))
    return chosen
