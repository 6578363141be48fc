"""Active collection chooses typical, different, unlabeled requests, and those whose outcome is uncertain."""

from __future__ import annotations

import numpy as np
import pytest

from tests.synthetic_records import draw_records
from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.errors import InputError
from vlroute.learning.choose import NOISE, Request, choose_requests
from vlroute.learning.fit import fit_classifier
from vlroute.records import Outcome, Record
from vlroute.types import MODES

TEXT = load_text_encoder(STATIC)
COLORS = ("red", "green", "blue", "black", "white", "brown", "yellow", "purple")
TEMPLATES = (
    "What is the total price of the {} apples in the basket?",
    "Which city is the capital of the country with the {} flag?",
    "Read the {} text on the sign aloud.",
)
REQUESTS: list[Request] = [(template.format(color), None) for template in TEMPLATES for color in COLORS]


def kinds(chosen: list[int]) -> list[int]:
    return [at // len(COLORS) for at in chosen]


def test_the_first_choices_are_of_different_kinds() -> None:
    chosen = choose_requests(REQUESTS, 24, TEXT)
    assert sorted(chosen) == list(range(24))
    assert sorted(kinds(chosen[:3])) == [0, 1, 2]
    assert chosen == choose_requests(REQUESTS, 24, TEXT)


def test_a_kind_with_labels_comes_last() -> None:
    known = [TEMPLATES[1].format(color) for color in ("orange", "grey", "pink", "golden")]
    labeled = [(prompt, None) for prompt in known * 5]
    assert 1 not in kinds(choose_requests(REQUESTS, 4, TEXT, labeled=labeled))


def test_uncertain_outcomes_count_more() -> None:
    """Instruct and Thinking are always right about the first two kinds, and half of the time about the third."""
    rng = np.random.default_rng(0)
    records = []
    for number, (prompt, _) in enumerate(REQUESTS * 6):
        certain = "sign" not in prompt
        instruct, thinking = (Outcome(bool(certain or rng.random() < 0.5)) for _ in MODES)
        records.append(Record(str(number), prompt, None, instruct, thinking))
    classifier = fit_classifier(records, text=TEXT)
    assert kinds(choose_requests(REQUESTS, 6, TEXT, classifier=classifier)).count(2) >= 4


def test_each_choice_reduces_the_summed_variance_most() -> None:
    """Against the posterior covariance of each possible next choice, computed in full."""
    _, records = draw_records(30)
    requests = [(record.prompt, record.caption) for record in records]
    chosen = choose_requests(requests, 4, TEXT)
    rows = np.asarray([np.concatenate(TEXT.encode([prompt, caption or ""])) for prompt, caption in requests])
    rows = (rows - rows.mean(axis=0)).astype(float)

    def variance(known: list[int]) -> float:
        part = rows[known]
        gram = np.linalg.inv(part @ part.T + NOISE * np.eye(len(known)))
        return float(np.trace(rows @ rows.T - rows @ part.T @ gram @ part @ rows.T))

    for step in range(1, 5):
        before = chosen[: step - 1]
        found = {at: variance([*before, at]) for at in range(30) if at not in before}
        assert found[chosen[step - 1]] == pytest.approx(min(found.values()), rel=1e-5)


def test_more_are_asked_for_than_there_are_and_none() -> None:
    assert sorted(choose_requests(REQUESTS[:3], 10, TEXT)) == [0, 1, 2]
    assert choose_requests([], 10, TEXT) == []
    with pytest.raises(InputError, match="at least 1"):
        choose_requests(REQUESTS, 0, TEXT)
