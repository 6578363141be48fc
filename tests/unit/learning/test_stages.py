"""Evidence files, and heads of later stages that are fitted on evidence."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlroute import InputError, Outcome, Record, VLRouteError, write_records
from vlroute.decision.classifier import Prediction
from vlroute.decision.latency import LatencyModel
from vlroute.engine.protocol import Evidence
from vlroute.learning.calibration import calibration_set
from vlroute.learning.evidence import EvidenceRow, Watch, evidence_file, read_evidence, write_evidence
from vlroute.learning.metrics import ece, ece_if_calibrated
from vlroute.learning.stages import (
    MIN_EVIDENCE,
    compare_stages,
    evidence_warnings,
    fit_stages,
    later_probabilities,
)
from vlroute.learning.train import train_router
from vlroute.records import Skipped

ANSWER = np.arange(8, dtype=np.float32)


def test_evidence_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    records = tmp_path / "a.jsonl.gz"
    state = np.float32([0.5, -1.25, 70_000.0])  # the last one is too large for float16
    rows = [EvidenceRow("one", ANSWER, state, "bfloat16", True), EvidenceRow("two", ANSWER)]
    write_evidence(evidence_file(records), rows)
    found = read_evidence([records, tmp_path / "without.jsonl"])
    assert evidence_file(records).name == "a.evidence.jsonl.gz"
    assert list(found) == ["one", "two"]
    assert found["one"].state.tolist() == [0.5, -1.25, 65_504.0]  # type: ignore[union-attr]
    assert found["one"].answer.tolist() == ANSWER.tolist()
    assert (found["one"].dtype, found["one"].shared_prompt, found["two"].state) == ("bfloat16", True, None)


def test_a_run_that_was_killed_while_writing_is_continued(tmp_path: Path) -> None:
    records = tmp_path / "a.jsonl"
    path = evidence_file(records)
    write_evidence(path, [EvidenceRow("one", ANSWER)], append=True)
    path.write_bytes(path.read_bytes() + b'{"id": "tw')
    write_evidence(path, [EvidenceRow("two", ANSWER), EvidenceRow("one", ANSWER + 1)], append=True)
    found = read_evidence([records])
    assert found["one"].answer[0] == 1
    assert "two" in found


@pytest.mark.parametrize(
    "line",
    [
        b'{"id": "one"}', b'{"id": 1, "answer": [0,0,0,0,0,0,0,0], "state": null, "dtype": "", "shared_prompt": false}',
        b'{"id": "one", "answer": [1], "state": null, "dtype": "", "shared_prompt": false}', b"[]", b"nonsense",
        b'{"id": "one", "answer": [0,0,0,0,0,0,0,NaN], "state": null, "dtype": "", "shared_prompt": false}',
        b'{"id": "one", "answer": [0,0,0,0,0,0,0,0], "state": "?", "dtype": "", "shared_prompt": false}',
    ],
)  # fmt: skip
def test_a_line_of_another_form_is_refused_by_name(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.evidence.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(InputError, match=r"a\.evidence\.jsonl:1"):
        read_evidence([tmp_path / "a.jsonl"])


def test_truncated_evidence_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.evidence.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}\n" * 100)[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        read_evidence([tmp_path / "a.jsonl.gz"])


def test_a_watch_collects_and_lets_the_answer_go_on() -> None:
    watch = Watch()
    assert watch.row("x") is None
    assert watch.trial.judge(Evidence(state=np.float32([1, 2]))) is None
    assert watch.trial.judge(Evidence(log_probs=[-1.0], entropies=[0.5], complete=True)) is None
    row = watch.row("x", "float32", True)
    assert row is not None
    assert row.state.tolist() == [1, 2]
    assert row.answer[0] == -1.0


def drawn(n: int, seed: int = 0) -> tuple[list[Record], list[Prediction], dict[str, EvidenceRow]]:
    """Records whose state says how probably Thinking is right, and whose answer says the same of Instruct."""
    rng = np.random.default_rng(seed)
    records, predictions, evidence = [], [], {}
    for i in range(n):
        a, b = rng.normal(0, 1.5), rng.normal(0.8, 1.5)
        instruct, thinking = rng.random() < 1 / (1 + np.exp(-a)), rng.random() < 1 / (1 + np.exp(-b))
        records.append(
            Record(str(i), f"{i}", None, Outcome(bool(instruct), 4, 0.14, 0.1), Outcome(bool(thinking), 50, 0.6, 0.1))
        )
        predictions.append(Prediction(0.5, 0.65, 4, 50, 1.0))
        answer = np.zeros(8, np.float32)
        answer[1] = a
        evidence[str(i)] = EvidenceRow(str(i), answer, np.float32([b, rng.normal(), rng.normal()]), "float32")
    return records, predictions, evidence


def test_heads_learn_what_evidence_says_and_are_calibrated() -> None:
    records, predictions, evidence = drawn(3000)
    fold = np.arange(3000) % 5
    fitted = fit_stages(records, predictions, evidence, fold, "f" * 64)
    assert fitted is not None
    assert set(fitted.later) == {("prefill",), ("answer",), ("prefill", "answer")}
    assert fitted.heads.source.width == 3
    assert fitted.heads.source.dtype == "float32"
    right = np.asarray([[one.instruct.correct, one.thinking.correct] for one in records], float)
    errors = {passed: ((p - right) ** 2).mean(0) for passed, p in fitted.later.items()}
    # what each evidence says about: the state about Thinking, the answer about Instruct; 0.25 is chance
    assert errors["prefill",][0] > 0.24
    assert errors["prefill",][1] < 0.19
    assert errors["answer",][0] < 0.19
    assert errors["answer",][1] > 0.21
    assert (errors["prefill", "answer"] < 0.19).all()
    for p in fitted.later.values():
        for column in (0, 1):
            assert ece(p[:, column], right[:, column]) < ece_if_calibrated(p[:, column]) + 0.01
    # the fitted head gives what its folds gave, within the noise of fitting
    state, answer = (evidence["7"].state, evidence["7"].answer)
    p = fitted.heads.predict((0.5, 0.65), {"prefill": state, "answer": answer})  # type: ignore[dict-item]
    assert p == pytest.approx(fitted.later["prefill", "answer"][7], abs=0.05)


def test_stages_are_compared_at_equal_seconds() -> None:
    records, predictions, evidence = drawn(3000)
    fitted = fit_stages(records, predictions, evidence, np.arange(3000) % 5, "f")
    latency = LatencyModel({"instruct": 0.01, "thinking": 0.01}, {"instruct": 0.1, "thinking": 0.1})
    found = {
        one.stages: one
        for one in compare_stages(calibration_set(records, predictions, fitted.rows, fitted.later), latency)
    }
    assert found["prompt",].interval is None
    assert found["prompt",].above == pytest.approx(0, abs=1e-9)
    every = found["prompt", "prefill", "answer"]
    assert every.above > 0.1
    assert every.interval is not None
    assert every.interval[0] > 0.05
    assert every.utility == max(one.utility for one in found.values())
    assert sum(every.shares) == pytest.approx(1)


def test_stages_are_compared_on_records_that_the_router_has_not_seen() -> None:
    """The plan comes from the calibration records, the outcomes from the others."""
    old, predictions, evidence = drawn(3000)
    fitted = fit_stages(old, predictions, evidence, np.arange(3000) % 5, "f")
    latency = LatencyModel({"instruct": 0.01, "thinking": 0.01}, {"instruct": 0.1, "thinking": 0.1})
    calibration = calibration_set(old, predictions, fitted.rows, fitted.later)
    new, predictions, evidence = drawn(2000, seed=1)
    later = later_probabilities(fitted.heads, predictions, [*evidence.values()])
    state, answer = evidence["7"].state, evidence["7"].answer
    p = fitted.heads.predict((0.5, 0.65), {"prefill": state, "answer": answer})
    assert later["prefill", "answer"][7].tolist() == pytest.approx(p)
    measured = calibration_set(new, predictions, None, later, limit=None)
    found = {one.stages: one for one in compare_stages(calibration, latency, False, 0.2, measured)}
    assert [*found] == [("prompt",), ("prompt", "prefill"), ("prompt", "answer"), ("prompt", "prefill", "answer")]
    every = found["prompt", "prefill", "answer"]
    assert every.above > 0.1
    assert every.interval is not None
    assert every.interval[1] - every.interval[0] == pytest.approx(0.04, abs=0.02)  # of 2000 records
    unlike = {one.stages: one for one in compare_stages(calibration, latency, False, 0.2)}
    assert unlike["prompt", "prefill", "answer"].accuracy != every.accuracy
    states = [replace(one, state=None) for one in evidence.values()]  # as over endpoints
    assert set(later_probabilities(fitted.heads, predictions, states)) == {("answer",)}


def test_few_records_with_evidence_give_no_later_stages() -> None:
    records, predictions, evidence = drawn(MIN_EVIDENCE + 10)
    few = dict([*evidence.items()][: MIN_EVIDENCE - 1])
    assert fit_stages(records, predictions, few, np.arange(len(records)) % 5, "f") is None
    some = dict([*evidence.items()][5:])
    fitted = fit_stages(records, predictions, some, np.arange(len(records)) % 5, "f")
    assert fitted is not None
    assert fitted.rows[0] == 5
    assert len(calibration_set(records, predictions, fitted.rows, fitted.later).coverage) == len(some)


def test_damaged_lines_are_skipped_and_named(tmp_path: Path) -> None:
    records = tmp_path / "a.jsonl"
    write_evidence(evidence_file(records), [EvidenceRow("one", ANSWER)])
    with evidence_file(records).open("ab") as file:
        file.write(
            b'{"id": "two", "answer": [0,0,0,0,0,0,0,0], "state": null, "dtype": [1], "shared_prompt": false}\n{"id'
        )
    skipped = Skipped()
    assert list(read_evidence([records], skipped)) == ["one"]
    assert skipped.count == 2
    assert "a.evidence.jsonl:2" in str(skipped)


def test_what_evidence_is_not_sufficient_for_is_said() -> None:
    records, _, evidence = drawn(MIN_EVIDENCE + 10)
    few = dict([*evidence.items()][:50])
    assert "no later stages: 50 of the 210 records have evidence" in evidence_warnings(records, few)[0]
    some = dict([*evidence.items()][5:])
    some["7"] = EvidenceRow("7", ANSWER)
    without, mixed = evidence_warnings(records, some)
    assert without.startswith("5 records have no evidence")
    assert "different widths (0, 3)" in mixed
    assert evidence_warnings(records, evidence) == []


def test_training_does_not_replace_its_evidence(tmp_path: Path) -> None:
    records, _, evidence = drawn(60)
    path = tmp_path / "a.jsonl"
    write_records(path, records)
    write_evidence(evidence_file(path), evidence.values())
    before = evidence_file(path).read_bytes()
    with pytest.raises(VLRouteError, match="evidence"):
        train_router([path], tmp_path / "router", oof=evidence_file(path))
    assert evidence_file(path).read_bytes() == before


def test_evidence_of_endpoints_has_no_state() -> None:
    records, predictions, evidence = drawn(400)
    bare = {name: EvidenceRow(name, row.answer) for name, row in evidence.items()}
    fitted = fit_stages(records, predictions, bare, np.arange(400) % 5, "")
    assert fitted is not None
    assert fitted.heads.stages == ("answer",)
    assert fitted.heads.source.width == 0
