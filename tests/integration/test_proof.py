"""The proof: figures of known rows, a dozen pictures that are answered, and a stopped run that continues."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training.pocket.proof import (
    SOURCES,
    Decided,
    Measured,
    Picture,
    fingerprint,
    folders,
    page,
    prove_part,
    read_partial,
    run,
    summarize,
)

from vlroute import Router
from vlroute.errors import InputError
from vlroute.files import shipped
from vlroute.learning.trial import draw_evenly

HEAD = {"seed": "test", "router": "0", "thinking share": 0.5}


def decided(gain: float, seconds: float = 0.001, caption: str | None = "words") -> Decided:
    return Decided("thinking" if gain > 0.2 else "instruct", 0.5 - gain / 2, 0.5 + gain / 2, 0.1, caption, seconds)


def picture(kind: int) -> Picture:
    """0: only Thinking is right; 1: both are; 2: only Instruct is. The probe decides correctly for 0 and 1."""
    instruct, thinking = ((False, True), (True, True), (True, False))[kind]
    gain = (0.9, 0.0, 0.4)[kind]
    thinks = gain > 0.2
    return Picture(
        task=("a", "b", "a")[kind], severity=0.3 * kind, language="en", prompt="x" * (kind + 1),
        instruct=Measured(instruct, 0.1), thinking=Measured(thinking, 0.4),
        routed=Measured(thinking if thinks else instruct, 0.45 if thinks else 0.15), decision=decided(gain, 0.05),
        sources={
            "prompt alone": decided(0.1, caption=None),
            "caption by Instruct": decided(gain, 0.2, "other words"),
            "vision probe": decided(gain),
            "caption given": decided(gain),
        },
    )  # fmt: skip


def test_the_figures_of_ten_known_pictures() -> None:
    proof = summarize([picture(kind) for kind in (0, 0, 0, 0, 1, 1, 1, 1, 1, 2)])
    ways = {way["name"]: way for way in proof["ways"]}
    accuracy = {name: way["accuracy"] for name, way in ways.items()}
    assert accuracy == pytest.approx(
        {"always instruct": 0.6, "always thinking": 0.9, "random, same share": 0.75,
         "longest prompts, same share": 0.5, "routed": 0.9, "oracle": 1.0}
    )  # fmt: skip
    seconds = {name: way["seconds"] for name, way in ways.items()}
    assert seconds["routed"] == pytest.approx(0.3)
    assert ways["routed"]["of_thinking"] == pytest.approx(0.75)
    assert ways["oracle"]["share"] == pytest.approx(0.4)
    assert seconds["random, same share"] == pytest.approx(0.25)
    sources = {source["name"]: source for source in proof["sources"]}
    assert sources["prompt alone"]["area"] == pytest.approx(0)
    assert sources["prompt alone"]["same"] is None
    assert sources["vision probe"]["area"] > 5
    assert sources["vision probe"]["same"] == 1
    assert sources["caption by Instruct"]["same"] == 0
    assert sources["caption by Instruct"]["seconds"] == pytest.approx(0.25 + 0.2)
    assert sources["vision probe"]["of_oracle"] == pytest.approx(proof["figures"]["share of the oracle's area"][0])
    assert sources["prompt alone"]["of_oracle"] == pytest.approx(0)
    some = proof["groups"]["task"][0]
    assert (some["name"], some["pictures"], some["routed"], some["share"], some["oracle"]) == ("a", 5, 0.8, 1, 1)
    assert some["above"] == pytest.approx(100 * (4 - 1) / 5)
    assert some["interval"][0] < some["above"] < some["interval"][1]
    bands = [(band["name"], band["pictures"]) for band in proof["groups"]["hidden difficulty"]]
    assert bands == [("severity 0.0–0.2", 4), ("severity 0.2–0.4", 5), ("severity 0.6–0.8", 1)]
    shares = {row["target"]: row for row in proof["shares"]}
    assert shares[0.4]["accuracy"] == pytest.approx(1.0)  # the four with the highest gain are those that need it
    assert shares[0.9]["share"] == pytest.approx(0.5)  # none without a positive gain
    assert shares[0.4]["seconds"] == pytest.approx(0.4 * 0.4 + 0.6 * 0.1 + 0.001)
    value, interval = proof["figures"]["ECE instruct"]
    assert value == pytest.approx((4 * 0.05 + 5 * 0.5 + 0.7) / 10)
    assert interval is None
    assert (proof["figures"]["chance level of ECE instruct"][0] or 0) > 0
    for name in ("area over random", "area of the oracle", "share of the oracle's area"):
        found, bounds = proof["figures"][name]
        assert bounds is None or bounds[0] <= (found or 0) <= bounds[1]


def test_what_must_be_shown_can_fail() -> None:
    rows = [picture(kind) for kind in (0, 0, 0, 0, 1, 1, 1, 1, 1, 2)]
    met = {one["name"].split(",")[0]: one["met"] for one in summarize(rows)["requirements"]}
    assert met["routed accuracy above the better single mode"]
    assert met["area over random"]
    assert not next(fulfilled for name, fulfilled in met.items() if name.startswith("Thinking below Instruct"))
    assert not met["routed seconds"]
    assert not met["ECE instruct"]
    worse = [replace(row, routed=Measured(False, 0.1)) for row in rows]
    met = {one["name"].split(",")[0]: one["met"] for one in summarize(worse)["requirements"]}
    assert not met["routed accuracy above the better single mode"]
    assert met["routed seconds"]
    met = {one["name"].split(",")[0]: one["met"] for one in summarize(rows[:-1])["requirements"]}
    first = "area by prompt and the better of both captions"
    assert not met[first]
    for sources in (["caption by Instruct"], ["caption given"]):
        half = [replace(row, sources=row.sources | dict.fromkeys(sources, decided(0.1))) for row in rows[:-1]]
        assert summarize(half)["requirements"][0]["measured"] == pytest.approx(100)  # by the other caption
    both = dict.fromkeys(("caption by Instruct", "caption given"), decided(0.1))
    blind = [replace(row, sources=row.sources | both) for row in rows]
    hurt = [replace(row, task="c", instruct=row.thinking, thinking=row.instruct) for row in rows]
    met = {one["name"].split(",")[0]: one for one in summarize([*blind, *hurt])["requirements"]}
    assert met[first]["met"]
    assert met["Thinking below Instruct on c"]["met"]
    assert met["Thinking below Instruct on c"]["measured"] == pytest.approx(30)


def test_undefined_figures_meet_nothing() -> None:
    proof = summarize([picture(1)] * 4)
    assert proof["figures"]["headroom captured"] == (None, None)
    assert proof["figures"]["share of the oracle's area"] == (None, None)
    assert not proof["requirements"][0]["met"]
    assert "| headroom captured | undefined | – |" in page(proof, HEAD, "pair")


def test_a_dozen_pictures_really_answered(router: Router, tmp_path: Path) -> None:
    partial = tmp_path / "proof.partial.jsonl"
    rows = list(run(router, 12, "test", partial, HEAD))
    tasks = list(draw_evenly(12, "test", hidden=True))
    assert [row.severity for row in rows] == pytest.approx([task.severity for task in tasks], abs=1e-4)
    assert [row.prompt for row in rows] == [task.prompt for task in tasks]
    for row, task in zip(rows, tasks, strict=True):
        assert row.routed.right == getattr(row, row.decision.mode).right  # decoding is greedy
        assert row.sources["prompt alone"].caption is None
        assert row.sources["caption given"].caption == task.caption
        assert row.sources["vision probe"].caption == row.decision.caption
        assert row.sources["vision probe"].seconds < row.sources["caption by Instruct"].seconds
        assert 0 < row.decision.seconds < row.routed.seconds
    text = page(summarize(rows), HEAD, "pair")
    assert text.startswith("# Does routing pay on the pocket pair?")
    ways = dict(re.findall(r"^\| ([a-z, ]+) \| ([\d.]+)% \|", text, re.MULTILINE))
    assert float(ways["routed"]) == pytest.approx(100 * np.mean([row.routed.right for row in rows]), abs=0.05)
    for source in SOURCES:
        assert f"| {source} | " in text


def test_a_stopped_run_continues(router: Router, tmp_path: Path) -> None:
    partial = tmp_path / "proof.partial.jsonl"
    going = run(router, 4, "test", partial, HEAD)
    first = [next(going), next(going)]
    going.close()
    with partial.open("a") as file:
        file.write('{"task": "torn')
    rows = list(run(router, 4, "test", partial, HEAD))
    assert rows[:2] == first
    assert [row.prompt for row in rows] == [task.prompt for task in draw_evenly(4, "test", hidden=True)]
    complete = partial.stat()
    assert list(run(router, 4, "test", partial, HEAD)) == rows
    assert (partial.stat().st_ino, partial.stat().st_mtime_ns) == (complete.st_ino, complete.st_mtime_ns)
    with pytest.raises(InputError, match="delete the file"):
        list(run(router, 4, "test", partial, {**HEAD, "router": "1"}))


def test_two_parts_share_the_pictures(tmp_path: Path) -> None:
    pair, halves = shipped("pocket"), []
    for part, partial in enumerate((tmp_path / "1.jsonl", tmp_path / "2.jsonl")):
        prove_part(pair, pair / "router", 5, "test", partial, HEAD, part, 2)
        halves.append([row.prompt for row in read_partial(partial, HEAD)])
    prompts = [task.prompt for task in draw_evenly(5, "test", hidden=True)]
    assert halves == [prompts[::2], prompts[1::2]]


@pytest.mark.parametrize(("model", "pictures"), [("pocket", 3000), ("pocket-hybrid", 1500)])
def test_the_shipped_page_says_what_its_figures_say(model: str, pictures: int) -> None:
    """Every verdict follows from its numbers, and the page is of the router and the model that are shipped."""
    folder = shipped(model) / "router"
    proof = json.loads((folder / "proof.json").read_text(encoding="utf-8"))
    page = (folder / "proof.md").read_text(encoding="utf-8")
    assert proof["pictures"] >= pictures
    assert proof["router"] == fingerprint(folder / "probe", folder)[:16]
    assert proof["pair"] == fingerprint(*folders(folder.parent).values())[:16]
    for one in proof["requirements"]:
        met = one["measured"] >= one["bound"] if one["least"] else one["measured"] <= one["bound"]
        assert f"| {one['name']} | {one['measured']:.3f} | " in page
        assert re.search(rf"^\| {re.escape(one['name'])} \|.* \| {'yes' if met else r'..no..'} \|$", page, re.MULTILINE)
