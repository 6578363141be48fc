"""Records of the prior of the real pair; the parallel prompts are not among them."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from training.prior.build import (
    CAPTIONS,
    NEAREST,
    ODDS,
    around,
    benchmark_records,
    first_sentence,
    main,
    prior_records,
    public_records,
)
from training.prior.prompts import LANGUAGES, PROMPTS, SLOT, load_wordings
from training.prior.scores import BENCHMARKS, BY_NAME, HANDS_ON

from vlroute.decision.features import terms_of, tokenize
from vlroute.pocket.tasks import TASKS, WORDINGS
from vlroute.records import Outcome, Record, read_records, write_records
from vlroute.types import MODES

PARALLEL = Path(__file__).parents[2] / "parallel_prompts.jsonl"
#: From this share of common words and word pairs two prompts count as near-copies.
NEAR = 0.6
#: Tech report, Instruct / Thinking in percent, as DESIGN lists them.
PUBLISHED = {
    "MMMU": (53.4, 61.4),
    "MMMU-Pro": (36.5, 42.5),
    "MathVista": (61.3, 73.6),
    "MathVision": (31.6, 45.9),
    "MathVerse": (52.1, 66.9),
    "LogicVista": (35.8, 50.0),
    "ChartQA": (79.1, 86.6),
    "InfoVQA": (72.4, 77.1),
    "MuirBench": (47.4, 68.1),
    "ERQA": (28.3, 41.8),
    "MMStar": (58.3, 68.1),
    "CharXiv-RQ": (26.8, 37.1),
    "RealWorldQA": (63.9, 69.5),
    "MMBench": (78.4, 79.9),
    "Video-MME": (61.9, 62.1),
    "MVBench": (61.7, 64.5),
    "SimpleVQA": (40.7, 43.6),
    "DocVQA": (93.3, 92.9),
    "OCRBench": (85.8, 79.2),
    "CountBench": (88.4, 84.1),
    "VLMsAreBlind": (56.0, 50.0),
    "VSI-Bench": (53.9, 48.0),
}


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return list(prior_records())


def parallel() -> list[dict[str, str | None]]:
    return [json.loads(line) for line in PARALLEL.read_text("utf-8").splitlines()]


def public_rows(count: int = 300) -> list[Record]:
    """Records as of public sets: another pair, far from the published level."""
    rng = random.Random(5)
    return [
        Record(
            f"{name}/{i}",
            f"<image 1> Question {i} about area? <image2>",
            "The image shows a table. It has four legs." if i % 2 else None,
            Outcome(rng.random() < 0.15, 1),
            Outcome(rng.random() < 0.8, 900),
            set=name,
            topic="Physics",
        )
        for name in (*NEAREST, "gsm8k")
        for i in range(count)
    ]


def test_table_holds_the_published_scores() -> None:
    found = {b.name: (b.instruct, b.thinking) for b in BENCHMARKS if b.source != HANDS_ON}
    assert found.keys() == PUBLISHED.keys()
    for name, (instruct, thinking) in PUBLISHED.items():
        assert found[name] == pytest.approx((instruct / 100, thinking / 100)), name
    assert len(BY_NAME) == len(BENCHMARKS)


def test_assumed_tokens_give_back_the_seconds_seen() -> None:
    for benchmark in BENCHMARKS:
        for mode in MODES:
            seconds = 0.2 + 0.02 * benchmark.effort.tokens(mode)
            assert seconds == pytest.approx(getattr(benchmark.effort, mode), abs=0.0101)
        assert benchmark.effort.tokens("thinking") > benchmark.effort.tokens("instruct") > 0


def test_wordings_are_parallel() -> None:
    wordings = load_wordings()
    assert wordings.keys() == BY_NAME.keys()
    for name, of_benchmark in wordings.items():
        questions = [wording.question for wording in of_benchmark]
        assert len(set(questions)) == len(questions) >= 20, name
        for wording in of_benchmark:
            for english, chinese in (wording.question, *wording.options, *wording.captions):
                assert set(SLOT.findall(english)) == set(SLOT.findall(chinese)), english
            assert [is_chinese(text) for text in wording.question] == [False, True]
            assert wording.captions
    assert all(path.read_text("utf-8").count("\n") < 300 for path in PROMPTS.iterdir())


def test_every_benchmark_in_both_languages_and_all_caption_conditions(records: list[Record]) -> None:
    cells = Counter((r.level, r.language, caption_language(r)) for r in records)
    assert cells.keys() == {(b.name, lang, c) for b in BENCHMARKS for lang in LANGUAGES for c in CAPTIONS}
    assert len(set(cells.values())) == 1
    assert len({r.id for r in records}) == len(records)
    for language in LANGUAGES:
        prompts = [r.prompt for r in records if r.language == language]
        assert len(set(prompts)) > 0.9 * len(prompts)
    assert not any("{" in text or "}" in text for r in records for text in (r.prompt, r.caption or ""))


def test_labels_are_the_published_scores(records: list[Record]) -> None:
    for record in records:
        benchmark = BY_NAME[record.level]
        assert (record.instruct.correct, record.thinking.correct) == (benchmark.instruct, benchmark.thinking)
        assert record.instruct.tokens == benchmark.effort.tokens("instruct")
        assert record.thinking.tokens == benchmark.effort.tokens("thinking")
        assert record.instruct.seconds is record.thinking.seconds is None  # nothing was timed
        assert record.topic == benchmark.topic


def test_a_pair_of_records_asks_the_same(records: list[Record]) -> None:
    numbers: dict[str, list[list[str]]] = defaultdict(list)
    for record in records:
        numbers[record.id.rpartition("/")[0]].append(digits(record.prompt))
    same = [english == chinese for english, chinese in numbers.values()]
    assert sum(same) > 0.9 * len(same)  # a wording may say "two" in one language and "2" in the other


def test_deterministic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public = tmp_path / "public"
    public.mkdir()
    write_records(public / "sets.jsonl.gz", public_rows(20))
    made = []
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        out = tmp_path / name
        arguments = ["build", "--draws", "6", "--public", str(public), "--public-rows", "9", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", arguments)
        main()
        made.append(out.read_bytes())
    assert made[0] == made[1]
    read = Counter(record.set for record in read_records(tmp_path / "a.jsonl.gz"))
    assert read == {"prior": 12 * len(BENCHMARKS), **dict.fromkeys(NEAREST, 9)}
    wordings = load_wordings()["ChartQA"]
    first, other = (list(benchmark_records(BY_NAME["ChartQA"], wordings, 6, seed)) for seed in (0, 1))
    assert first != other


def test_public_rows_keep_the_published_level_and_only_lean() -> None:
    rows = public_rows()
    before = {row.id: row for row in rows}
    made = list(public_records(rows))
    assert Counter(r.set for r in made) == dict.fromkeys(NEAREST, 300)  # gsm8k is left out
    for name, nearest in NEAREST.items():
        members = [r for r in made if r.set == name]
        for mode in MODES:
            score = getattr(BY_NAME[nearest], mode)
            shares = [float(getattr(r, mode).correct) for r in members]
            assert sum(shares) / len(shares) == pytest.approx(score, abs=1e-9)
            right, wrong = (
                {getattr(r, mode).correct for r in members if getattr(before[r.id], mode).correct is was}
                for was in (True, False)
            )
            (high,), (low,) = right, wrong
            assert high / (1 - high) == pytest.approx(ODDS * low / (1 - low))
        assert {r.topic for r in members} == {BY_NAME[nearest].topic}
        assert {r.thinking.tokens for r in members} == {BY_NAME[nearest].effort.tokens("thinking")}
        assert not any("<image" in r.prompt for r in members)
        assert {r.caption for r in members} == {None, "The image shows a table."}


def test_public_rows_do_not_depend_on_their_order() -> None:
    rows = public_rows(40)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert list(public_records(rows, 10)) == list(public_records(shuffled, 10))


@pytest.mark.parametrize("correct", [[1.0] * 5, [0.0] * 5, [0.5, 1.0, 0.0]])
def test_around_reaches_any_level(correct: list[float]) -> None:
    shares = around(correct, 0.9)
    assert sum(shares) / len(shares) == pytest.approx(0.9)


def test_first_sentence() -> None:
    assert first_sentence("A 2.5 m wall. More.") == "A 2.5 m wall."
    assert first_sentence("一面墙。 更多。") == "一面墙。"
    assert first_sentence(None) is None


def test_parallel_prompts_are_well_formed() -> None:
    rows = parallel()
    assert len(rows) >= 240
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert row.keys() == {"id", "family", "router", "en", "zh", "caption"}
        assert [is_chinese(row[language] or "") for language in LANGUAGES] == [False, True], row["id"]
    kinds = defaultdict(set)
    for row in rows:
        kinds[row["router"]].add(row["family"])
    assert kinds == {"pocket": set(TASKS), "qwen3-vl-2b": {benchmark.topic for benchmark in BENCHMARKS}}
    assert sum(row["router"] == "pocket" for row in rows) >= 40


def test_parallel_prompts_were_not_trained_on(records: list[Record]) -> None:
    trained = [terms(r.prompt) for r in records] + [
        terms(wording) for by_language in WORDINGS.values() for texts in by_language.values() for wording in texts
    ]
    holders: dict[str, set[int]] = defaultdict(set)
    for index, known in enumerate(trained):
        for term in known:
            holders[term].add(index)
    for row in parallel():
        for language in LANGUAGES:
            asked = terms(row[language] or "")
            assert asked
            common = Counter(index for term in asked for index in holders.get(term, ()))
            for index, shared in common.items():
                # the pocket pair's world is small: there only an exact copy counts
                limit = 1.0 if row["router"] == "pocket" else NEAR
                assert shared / len(asked | trained[index]) < limit, (row[language], sorted(trained[index]))


def terms(text: str) -> frozenset[str]:
    return frozenset(terms_of(tokenize(text)))


def digits(text: str) -> list[str]:
    return sorted(token for token in tokenize(text) if token[0].isdigit())


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= char <= "\u9fff" for char in text)


def caption_language(record: Record) -> str:
    if record.caption is None:
        return "none"
    return "zh" if is_chinese(record.caption) else "en"
