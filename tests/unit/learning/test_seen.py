"""Records that a router was trained on are recognized in other files, by hashes in its artifact."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.synthetic_records import draw_records
from vlroute import write_records
from vlroute.decision import record_hashes
from vlroute.decision.artifact import read_artifact, write_artifact
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.record_hashes import RecordHashes
from vlroute.errors import ArtifactError, InputError
from vlroute.learning import Assessment, evaluate_router, train_router
from vlroute.learning.correction import Correction, extended
from vlroute.learning.ratings import AskedRequest, Rating
from vlroute.learning.seen import seen_records
from vlroute.model_card import model_card
from vlroute.records import Outcome, Record

SALT = np.asarray([7], np.uint64)
QUIET = Console(quiet=True)
UNKNOWN = (
    "the router does not recognize all records that it was trained on, so it is unknown whether all of these records "
    "are new to it"
)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return draw_records(120)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> Path:
    """`router` was trained on the first 60 records, in a file that is gone."""
    where = tmp_path_factory.mktemp("seen")
    train(where, "router", records[:60])
    return where


def train(where: Path, name: str, records: list[Record], start: Path | None = None) -> ComplexityClassifier:
    path = where / f"{name}.jsonl"
    write_records(path, records)
    train_router([path], where / name, folds=2, seeds=1, encoder=None, learner="words", start=start, console=QUIET)
    return ComplexityClassifier.load(where / name)


def test_records_are_recognized_in_any_file_and_after_another_grading(folder: Path, records: list[Record]) -> None:
    router = ComplexityClassifier.load(folder / "router")
    assert seen_records(router, records[::-1]) == records[59::-1]
    graded = [replace(one, topic="x", instruct=replace(one.instruct, correct=0.5)) for one in records]
    assert len(seen_records(router, graded)) == 60
    timed = [replace(one, thinking=replace(one.thinking, seconds=9.0)) for one in records]  # answered again
    assert seen_records(router, timed) == []
    others = [replace(one, id=f"other-{one.id}") for one in records]
    assert seen_records(router, others) == []


def test_a_training_from_a_router_refuses_its_records_in_a_file_that_has_grown(
    folder: Path, records: list[Record]
) -> None:
    with pytest.raises(InputError, match=r"router was trained on 60 of these 120 records, such as 'r0': pass only new"):
        train(folder, "grown", records, folder / "router")
    with pytest.raises(InputError, match="on 1 of these 61 records, such as 'r59'"):
        train(folder, "grown", records[59:], folder / "router")
    second = train(folder, "second", records[60:], folder / "router")
    assert not [one for one in second.card["warnings"] if "recognize" in one]
    assert len(seen_records(second, records)) == 120  # those of both trainings
    assert second.record_hashes is not None
    assert second.record_hashes.complete


def test_an_evaluation_warns_of_some_records_that_are_not_new(folder: Path, records: list[Record]) -> None:
    write_records(folder / "mixed.jsonl", records[50:])
    found = evaluate_router([folder / "mixed.jsonl"], folder / "router", 0.1, console=QUIET)
    assert found.kind == "not all new"
    (warning,) = found.warnings
    assert warning.startswith(
        "not all records are new. The router was trained on 10 of these 70 records, such as 'r50',"
    )
    write_records(folder / "new.jsonl", records[60:])
    assert evaluate_router([folder / "new.jsonl"], folder / "router", 0.1, console=QUIET).warnings == []


def test_hashes_are_kept_by_corrections_and_left_out_of_private_copies(
    folder: Path, records: list[Record], tmp_path: Path
) -> None:
    router = ComplexityClassifier.load(folder / "router")
    assert len(seen_records(extended(router, []), records)) == 60
    assert "hashes of 60 training records" in model_card(router, None, "x")
    private = router.with_hashed_vocabulary()
    private.save(tmp_path)
    assert ComplexityClassifier.load(tmp_path).record_hashes is None
    assert "training records, each" not in model_card(private, None, "x")


def test_artifacts_of_earlier_versions_recognize_whole_files_only(
    folder: Path, records: list[Record], tmp_path: Path
) -> None:
    card, arrays = read_artifact(folder / "router")
    write_artifact(tmp_path, card, {name: one for name, one in arrays.items() if not name.startswith("records.")})
    router = ComplexityClassifier.load(tmp_path)
    assert router.record_hashes is None
    assert seen_records(router, records) == []
    with pytest.raises(InputError, match=r"was trained on router\.jsonl"):
        train(folder, "router", records[:60], tmp_path)
    second = train(folder, "new", records[60:], tmp_path)
    assert len(seen_records(second, records)) == 60
    assert f"{tmp_path} does not recognize all records" in second.card["warnings"][0]
    assert "does not recognize all records" in (folder / "new" / "report.md").read_text("utf-8")
    found = assess(folder, "mixed", records[:61], folder / "new")
    assert found.warnings[0].startswith("not all records are new. The router was trained on at least 1 of these 61")
    found = assess(folder, "first", records[:60], folder / "new")
    assert (found.kind, found.warnings) == ("perhaps new", [UNKNOWN])


def test_records_without_seconds_have_no_hash(records: list[Record], tmp_path: Path) -> None:
    """Others could guess them, and rows of different files can be equal."""
    untimed = [replace(one, instruct=untimed_outcome(one.instruct), thinking=untimed_outcome(one.thinking))
               for one in records[:60]]  # fmt: skip
    half = [replace(one, instruct=untimed_outcome(one.instruct)) for one in records[60:]]
    router = train(tmp_path, "router", untimed + half)
    assert router.record_hashes is not None
    assert len(router.record_hashes.hashes) == 60
    assert seen_records(router, untimed + half) == half
    (warning,) = assess(tmp_path, "again", (untimed + half)[59:61], tmp_path / "router").warnings
    assert "trained on at least 1 of these 2 records" in warning
    assert assess(tmp_path, "untimed", untimed, tmp_path / "router").kind == "perhaps new"
    train(tmp_path, "others", untimed[:30] + records[60:], tmp_path / "router")  # equal rows may be new


def test_what_was_learned_from_ratings_is_unknown(folder: Path, records: list[Record]) -> None:
    base = ComplexityClassifier.load(folder / "router")
    asked = AskedRequest("a", records[60].prompt, None, "", 1.0, 0.0)
    correction = Correction.of(base, [Rating("a", asked, "thinking", 1.0, 1.0, 0.5, True)], 0.0)
    learned = correction.apply(correction.fit()[0])
    assert len(seen_records(learned, records)) == 60
    assert learned.record_hashes is not None
    assert not learned.record_hashes.complete


def untimed_outcome(outcome: Outcome) -> Outcome:
    return replace(outcome, seconds=None, prefill_seconds=None)


def assess(where: Path, name: str, records: list[Record], router: Path) -> Assessment:
    write_records(where / f"{name}.jsonl", records)
    return evaluate_router([where / f"{name}.jsonl"], router, 0.1, console=QUIET)


@pytest.mark.parametrize("wrong", [np.zeros((2, 2), np.uint64), np.zeros(3, np.int64)])
def test_damaged_hashes_are_refused(folder: Path, tmp_path: Path, wrong: np.ndarray) -> None:
    card, arrays = read_artifact(folder / "router")
    write_artifact(tmp_path, card, {**arrays, "records.hashes": wrong})
    with pytest.raises(ArtifactError, match="hashes of training records"):
        ComplexityClassifier.load(tmp_path)


def test_equal_trainings_have_equal_hashes_and_texts_are_not_stored(folder: Path, records: list[Record]) -> None:
    first = ComplexityClassifier.load(folder / "router").record_hashes
    again = train(folder, "again", records[:60]).record_hashes
    other = train(folder, "other", records[:61]).record_hashes
    assert first is not None
    assert again is not None
    assert other is not None
    np.testing.assert_array_equal(first.hashes, again.hashes)
    assert not np.isin(first.hashes, other.hashes).any()  # another salt


def test_of_many_records_a_sample_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_hashes, "MOST_HASHES", 100)
    keys = [json.dumps(number) for number in range(1000)]
    sample = RecordHashes.of(keys, SALT, complete=True)
    assert len(sample.hashes) == 100
    assert not sample.complete
    assert sample.contain(keys).sum() == 100
    assert 20 < sample.contain(keys[:500]).sum() < 80
    assert not sample.contain([f"{key} " for key in keys]).any()
    more = sample.and_those_of(RecordHashes.of([f"{key} " for key in keys], SALT, complete=True))
    assert len(more.hashes) == 100
    assert 20 < np.isin(sample.hashes, more.hashes).sum() < 80
    assert not more.complete
    assert RecordHashes.of(keys[:100], SALT, complete=True).complete
    assert not RecordHashes.of([], SALT, complete=True).contain(keys).any()
