"""The whole offline job, small: what it writes, that it is honest, that odd data does not break it."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.synthetic_records import draw_records
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.errors import InputError
from vlroute.learning.evaluate import Evaluation
from vlroute.learning.prediction_file import read_oof
from vlroute.learning.train import train_router
from vlroute.records import Outcome, Record, write_records

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
QUIET = Console(file=io.StringIO(), width=120)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation, list[Record]]:
    """One run over 600 drawn records."""
    folder = tmp_path_factory.mktemp("job")
    _, records = draw_records(600)
    write_records(folder / "records.jsonl.gz", records)
    evaluation = train_router(
        [folder / "records.jsonl.gz"],
        folder / "router",
        oof=folder / "oof.jsonl",
        folds=3,
        seeds=1,
        together="record",
        console=QUIET,
    )
    return folder, evaluation, records


def test_routing_beats_every_baseline_on_learnable_data(job: tuple[Path, Evaluation, list[Record]]) -> None:
    rows = {row.name: row for row in job[1].rows}
    routed = rows["routed"].accuracy
    assert routed < rows["oracle"].accuracy
    withheld = rows["routed, captions withheld"]
    assert routed >= withheld.accuracy - 0.01
    assert (rows["routed"].seconds or 0) < (withheld.seconds or 0) - 0.1  # blind, it thinks where it need not
    for name in ("always instruct", "random, same share", "longest prompts, same share"):
        assert routed > rows[name].accuracy + 0.02, name
    assert rows["always thinking"].seconds == pytest.approx(1.3, abs=0.05)
    figures = job[1].figures
    assert (figures["area over random"].value or 0) > (figures["area over random, captions withheld"].value or 0) + 0.5
    for name, figure in figures.items():
        assert figure.value is not None
        if "ECE" in name:  # biased on few records: a chance level instead of an interval
            assert figure.interval is None
        else:
            assert figure.interval is not None
            assert figure.interval[0] <= figure.value <= figure.interval[1]


def test_rows_are_right(job: tuple[Path, Evaluation, list[Record]]) -> None:
    _, evaluation, records = job
    rows = {row.name: row for row in evaluation.rows}
    assert rows["always instruct"].accuracy == pytest.approx(np.mean([r.instruct.correct for r in records]))
    assert rows["oracle"].accuracy == pytest.approx(
        np.mean([max(r.instruct.correct, r.thinking.correct) for r in records])
    )
    assert rows["always thinking"].tokens == pytest.approx(np.mean([r.thinking.tokens or 0 for r in records]))
    share = rows["routed"].share
    assert 0 < share < 1
    assert rows["longest prompts, same share"].share == pytest.approx(share)
    expected = (1 - share) * rows["always instruct"].accuracy + share * rows["always thinking"].accuracy
    assert rows["random, same share"].accuracy == pytest.approx(expected)


def test_the_artifact_says_where_it_comes_from(job: tuple[Path, Evaluation, list[Record]]) -> None:
    folder, evaluation, _ = job
    classifier = ComplexityClassifier.load(folder / "router")
    provenance = classifier.card["provenance"]
    assert provenance["records"] == 600
    assert provenance["sets"] == {"drawn": 600}
    assert provenance["data"][0]["file"] == "records.jsonl.gz"
    assert len(provenance["data"][0]["sha256"]) == 64
    assert "scikit-learn" in provenance["libraries"]
    assert classifier.card["metrics"]["figures"]["gain AUC"]["value"] == evaluation.figures["gain AUC"].value
    assert str(folder) not in (folder / "router" / "router.json").read_text("utf-8")
    assert classifier.predict("Add the numbers.", "four numbers").gain > 0.4


def test_the_report_shows_every_row_and_figure(job: tuple[Path, Evaluation, list[Record]]) -> None:
    folder, evaluation, _ = job
    report = (folder / "router" / "report.md").read_text("utf-8")
    for name in [*(row.name for row in evaluation.rows), *evaluation.figures]:
        assert f"| {name} |" in report
    assert "Seconds are measured" in report
    assert str(folder) not in report
    assert "routed" in QUIET.file.getvalue()  # type: ignore[attr-defined]


def test_out_of_fold_predictions_by_id(job: tuple[Path, Evaluation, list[Record]]) -> None:
    folder, _, records = job
    rows = [json.loads(line) for line in (folder / "oof.jsonl").read_text("utf-8").splitlines()]
    assert [row["id"] for row in rows] == [record.id for record in records]
    classifier = ComplexityClassifier.load(folder / "router")
    differences = [
        abs(row["p_instruct"] - classifier.predict(record.prompt, record.caption).p_instruct)
        for row, record in zip(rows, records, strict=True)
    ]
    assert 0 < np.mean(differences) < 0.1  # near the final model, yet made by others
    assert all(0 < row["tokens_instruct"] < row["tokens_thinking"] for row in rows)
    assert len({row["tokens_thinking"] for row in rows}) > 2  # expected of each request
    assert read_oof(folder / "oof.jsonl", records).tokens is not None
    with pytest.raises(InputError, match="600 of 600 records have another request or other outcomes"):
        read_oof(folder / "oof.jsonl", [replace(one, prompt=f"{one.prompt}?") for one in records])


def noise(count: int, rng: random.Random) -> list[Record]:
    """Which mode is right has nothing to do with the text; Thinking is a little worse."""
    words = [f"word{i}" for i in range(60)]
    return [
        Record(
            f"n{index}",
            " ".join(rng.choices([w.replace("word", "w") + "x" for w in words], k=8)) + f" {index}",
            None,
            Outcome(rng.random() < 0.5, 5, 0.2),
            Outcome(rng.random() < 0.45, 50, 1.2),
        )
        for index in range(count)
    ]


def test_where_nothing_can_be_learnt_no_harm_is_done(tmp_path: Path) -> None:
    write_records(tmp_path / "r.jsonl", noise(300, random.Random(3)))
    evaluation = train_router([tmp_path / "r.jsonl"], tmp_path / "out", folds=3, seeds=1, console=QUIET)
    rows = {row.name: row for row in evaluation.rows}
    better = max(rows["always instruct"].accuracy, rows["always thinking"].accuracy)
    assert rows["routed"].accuracy > better - 0.03
    assert (evaluation.figures["ECE instruct"].value or 1) < 0.1


@pytest.mark.parametrize("correct", [(True, True), (False, False), (True, False), (0.5, 0.25)])
def test_modes_that_are_always_alike(tmp_path: Path, correct: tuple[bool | float, bool | float]) -> None:
    records = [Record(f"c{i}", f"Read sign {i}", None, Outcome(correct[0]), Outcome(correct[1])) for i in range(60)]
    write_records(tmp_path / "r.jsonl", records)
    evaluation = train_router([tmp_path / "r.jsonl"], tmp_path / "out", folds=2, seeds=1, console=QUIET)
    assert evaluation.figures["headroom captured"].value is None
    assert evaluation.rows[0].tokens is None
    prediction = ComplexityClassifier.load(tmp_path / "out").predict("Read sign 3")
    assert prediction.p_instruct == pytest.approx(float(correct[0]), abs=0.05)
    assert prediction.p_thinking == pytest.approx(float(correct[1]), abs=0.05)


def test_too_few_records_and_wrong_settings_are_refused(tmp_path: Path) -> None:
    write_records(tmp_path / "r.jsonl", noise(10, random.Random(0)))
    with pytest.raises(InputError, match=r"^10 records are too few to learn from: at least 50 are needed"):
        train_router([tmp_path / "r.jsonl"], tmp_path / "out", console=QUIET)
    write_records(tmp_path / "r.jsonl", noise(1, random.Random(0)))
    with pytest.raises(InputError, match=r"^1 record is too few"):
        train_router([tmp_path / "r.jsonl"], tmp_path / "out", console=QUIET)
    write_records(tmp_path / "r.jsonl", noise(60, random.Random(0)))
    for name, value in (("folds", 1), ("seeds", 0), ("price", -1), ("price", float("nan"))):
        with pytest.raises(InputError, match=rf"^{name} must be a .*, not {value}$"):  # only what is wrong
            train_router([tmp_path / "r.jsonl"], tmp_path / "out", console=QUIET, **{name: value})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared routing records lie outside the repository")
def test_on_real_records_it_beats_prompt_length(tmp_path: Path) -> None:
    evaluation = train_router([DATA / "gsm8k.jsonl.gz"], tmp_path, folds=3, seeds=1, console=QUIET)
    assert (evaluation.figures["area over random"].value or 0) > 2.3
    assert evaluation.figures["area of the longest prompts"].value == pytest.approx(2.20, abs=0.01)
    assert "Seconds are assumed" in (tmp_path / "report.md").read_text("utf-8")
