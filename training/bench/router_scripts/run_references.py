"""Plain references: no router, or a few lines of scikit-learn."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
from job import Fit, Requests, Score, Split, run
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

NEIGHBORS = 50
TOPIC_PRIOR = 20.0  # records that the mean of all topics counts for in the mean of one


def by_chance(requests: Requests, split: Split) -> Score:
    return lambda at: random.random()


def longest(requests: Requests, split: Split) -> Score:
    return lambda at: float(len(requests.prompts[at]))


def probability(matrix: Any, right: Any) -> tuple[Any, float]:
    """Weights and bias of a logistic head. A target between 0 and 1 is a right and a wrong row with partial weights."""
    wins, losses = np.flatnonzero(right > 0), np.flatnonzero(right < 1)
    rows = np.concatenate([wins, losses])
    weights = np.concatenate([right[wins], 1 - right[losses]])
    head = LogisticRegression(max_iter=500).fit(matrix[rows], np.repeat([1, 0], [len(wins), len(losses)]), weights)
    return head.coef_[0], float(head.intercept_[0])


def heads(matrix: Any, split: Split) -> Any:
    """Logits of "cheap is right" and "strong is right", as a function of a row."""
    fitted = [probability(matrix, right) for right in np.asarray(split.right, float).T]
    weights, bias = np.column_stack([one[0] for one in fitted]), np.asarray([one[1] for one in fitted])
    return lambda row: np.asarray(row @ weights).reshape(-1) + bias


def gain(logits: Any) -> float:
    cheap, strong = 1 / (1 + np.exp(-logits))
    return float(strong - cheap)


def words(requests: Requests, split: Split) -> tuple[Any, TfidfVectorizer]:
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    matrix = vectorizer.fit_transform([requests.prompts[at] for at in split.train])
    return heads(sparse.csr_matrix(matrix), split), vectorizer


def word_heads(requests: Requests, split: Split) -> Score:
    logits, vectorizer = words(requests, split)
    return lambda at: gain(logits(vectorizer.transform([requests.prompts[at]])))


def embedding_heads(encoder: str, requests: Requests, split: Split) -> Score:
    vectors = np.load(requests.embeddings[encoder])
    logits = heads(vectors[split.train], split)
    return lambda at: gain(logits(vectors[at]))


def blend(requests: Requests, split: Split) -> Score:
    lexical, vectorizer = words(requests, split)
    vectors = np.load(requests.embeddings["MiniLM"])
    logits = heads(vectors[split.train], split)
    return lambda at: gain((lexical(vectorizer.transform([requests.prompts[at]])) + logits(vectors[at])) / 2)


def neighbors(requests: Requests, split: Split) -> Score:
    vectors = np.load(requests.embeddings["MiniLM"])
    index = NearestNeighbors(n_neighbors=min(NEIGHBORS, len(split.train))).fit(vectors[split.train])
    gains = np.diff(np.asarray(split.right, float), axis=1)[:, 0]
    return lambda at: float(gains[index.kneighbors(vectors[at : at + 1], return_distance=False)[0]].mean())


def topic_means(requests: Requests, split: Split) -> Score:
    gains = np.diff(np.asarray(split.right, float), axis=1)[:, 0]
    topics = np.asarray([requests.topics[at] for at in split.train])
    overall = float(gains.mean())
    means = {
        topic: (gains[topics == topic].sum() + TOPIC_PRIOR * overall) / ((topics == topic).sum() + TOPIC_PRIOR)
        for topic in set(topics)
    }
    return lambda at: float(means.get(requests.topics[at], overall))


LEARNERS: dict[str, Fit] = {
    "random": by_chance,
    "longest prompt": longest,
    "mean per topic": topic_means,
    "TF-IDF heads": word_heads,
    "static heads": partial(embedding_heads, "static"),
    "MiniLM heads": partial(embedding_heads, "MiniLM"),
    "TF-IDF + MiniLM heads": blend,
    "kNN, MiniLM": neighbors,
}

if __name__ == "__main__":
    run("scikit-learn", LEARNERS)
