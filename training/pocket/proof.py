"""Measure whether routing pays on a pocket model: new pictures of every hidden difficulty, every answer generated.

    python -m training.pocket.proof --jobs 2 --count 720 --seed validation --out training/pocket/validation
    python -m training.pocket.proof --jobs 2

The first command draws other pictures than the second one; its table of shares is used to choose the policy. Writes
OUT.md and OUT.json. A stopped run can be continued; figures of another router, pair or number of jobs are refused.
`--jobs 2` measures two halves side by side; then seconds are comparable with each other only. Takes about ten minutes
on two idle cores.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from training.page import POCKET, drop_incomplete_line, lines_of, render, side_by_side, write_json
from training.pocket.label import band
from vlroute import Answer, Decision, InputError, Mode, Router, Target, steps
from vlroute.decision.captions import PROBE_FOLDER
from vlroute.decision.selector import CAPTION_PROMPT
from vlroute.decision.wilson import share_interval
from vlroute.engine.local.checkpoint_files import is_hybrid
from vlroute.files import replace_file
from vlroute.inputs.media import DEFAULT_LIMITS
from vlroute.inputs.messages import parse
from vlroute.learning import Task, area_over_random, draw_evenly, ece, ece_if_calibrated, headroom_captured, is_right
from vlroute.learning.intervals import Interval, Sampling
from vlroute.learning.metrics import Values, share_by_score
from vlroute.learning.trial import ask_task, media
from vlroute.types import MODES

#: The policy to prove; chosen on the validation pictures of the pair.
THINKING_SHARE = 0.52
COUNT, SEED = 3024, "proof"
#: Sources of the caption, in the order of the table.
SOURCES = ("prompt alone", "caption by Instruct", "vision probe", "caption given")
SHARES = tuple(tenth / 10 for tenth in range(1, 10))
WARM_UP = 5  # pictures that are answered first and not counted: the first answers of a process are slow


@dataclass(frozen=True, slots=True)
class Measured:
    """One answer: whether it was right, and the seconds from the request to its end."""

    right: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision with its caption, and the seconds of captioning (without the tower) and deciding.

    `extra`: seconds that the router expects Thinking to take longer.
    """

    mode: Mode
    p_instruct: float
    p_thinking: float
    extra: float
    caption: str | None
    seconds: float

    @property
    def gain(self) -> float:
        return self.p_thinking - self.p_instruct


@dataclass(frozen=True, slots=True)
class Picture:
    """The answers of both modes and of the router about one picture, and the decision by each caption source."""

    task: str
    severity: float
    language: str
    prompt: str
    instruct: Measured
    thinking: Measured
    routed: Measured
    decision: Decided
    sources: dict[str, Decided]

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Picture:
        """The inverse of `asdict`."""
        measured = {name: Measured(**row[name]) for name in ("instruct", "thinking", "routed")}
        sources = {name: Decided(**one) for name, one in row["sources"].items()}
        return cls(**row | {"decision": Decided(**row["decision"]), "sources": sources, **measured})


def measure(router: Router, task: Task, turn: int) -> Picture:
    """Answer `task` routed and in both modes, in an order that changes with `turn` so that no way is always first."""
    ways: list[Mode | None] = [None, *MODES]
    answers = {way: ask_task(router, task, way) for way in ways[turn % 3 :] + ways[: turn % 3]}
    decision, timing = answers[None].decision, answers[None].timing

    def measured(answer: Answer) -> Measured:
        return Measured(is_right(task, answer.text), round(answer.timing.total, 6))

    return Picture(
        task.kind, round(task.severity or 0.0, 4), task.language, task.prompt,
        measured(answers["instruct"]), measured(answers["thinking"]), measured(answers[None]),
        decided(decision, decision.caption, timing.caption + timing.decide),
        {source: decide_by(router, task, source) for source in SOURCES},
    )  # fmt: skip


def decided(decision: Decision, caption: str | None, seconds: float) -> Decided:
    extra = decision.seconds_thinking - decision.seconds_instruct
    return Decided(decision.mode, decision.p_instruct, decision.p_thinking, round(extra, 6), caption, round(seconds, 6))


def decide_by(router: Router, task: Task, source: str) -> Decided:
    """The decision by one caption source. The tower runs before the clock starts: the answer needs it anyway."""
    sent = media(task)
    conversation = parse(task.prompt, sent.get("images"), sent.get("videos"), None, DEFAULT_LIMITS)
    seen = conversation.videos[0] if task.is_video else conversation.pictures[0]
    with router.request(conversation) as request:
        steps.run(request.pooled(seen))
        began = time.perf_counter()
        caption = ""  # a blank caption counts as none
        if source == "caption by Instruct":
            caption = steps.run(request.caption(seen, CAPTION_PROMPT))
        elif source == "vision probe" and router.selector.probe is not None:
            caption = router.selector.probe.describe(steps.run(request.pooled(seen)))
        elif source == "caption given":
            caption = task.caption
        decision = router.decide(task.prompt, caption=caption)
        seconds = time.perf_counter() - began
    return decided(decision, caption or None, seconds)


def run(
    router: Router, count: int, seed: str, partial: Path, head: dict[str, Any], part: int = 0, jobs: int = 1
) -> Iterator[Picture]:
    """Every `jobs`-th of the `count` pictures of `seed`, from number `part`.

    Those in `partial` are read, the others are measured and added to it. `head` identifies router, pair and settings
    and is the file's first line. InputError if the file has another one.
    """
    kept = read_partial(partial, head)
    yield from kept
    router.load()
    for turn, task in enumerate(draw_evenly(WARM_UP, f"{seed} warm-up", hidden=True)):
        measure(router, task, turn)
    tasks = enumerate(draw_evenly(count, seed, hidden=True))
    with partial.open("a", encoding="utf-8") as file:
        if file.tell() == 0:
            file.write(json.dumps(head) + "\n")
        for turn, task in itertools.islice(tasks, part + jobs * len(kept), None, jobs):
            one = measure(router, task, turn)
            file.write(json.dumps(asdict(one), ensure_ascii=False) + "\n")
            file.flush()
            yield one


def read_partial(partial: Path, head: dict[str, Any]) -> list[Picture]:
    if not partial.exists():
        return []
    drop_incomplete_line(partial)
    # not `splitlines`, which also splits at other characters than a newline
    rows = [json.loads(line) for line in partial.read_text(encoding="utf-8").split("\n") if line]
    if rows and rows[0] != head:
        raise InputError(f"{partial} was written with {rows[0]}, this run has {head}: delete the file to start again")
    return [Picture.from_dict(row) for row in rows[1:]]


def folders(model: Path) -> dict[Mode, Path]:
    """The checkpoint of each mode of a pair; that of both modes of a hybrid."""
    return dict.fromkeys(MODES, model) if is_hybrid(model) else {mode: model / mode for mode in MODES}


def fingerprint(*folders: Path) -> str:
    """SHA-256 of the weights in `folders`, without those in their own folders; 64 hex characters."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.glob("*.safetensors")):
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def summarize(rows: Sequence[Picture]) -> dict[str, Any]:
    """All figures of the page, ready for JSON. ValueError if there are no pictures.

    `ways`, `sources`, `groups`, `shares`: rows of the tables; accuracies and shares of Thinking in 0 to 1, mean seconds
    of an answer, areas over random in points. `figures`: [value, 95 % interval] by name.
    """
    if not rows:
        raise ValueError("a proof needs at least one picture")
    right = np.asarray([[getattr(row, mode).right for row in rows] for mode in MODES], dtype=float)
    seconds = np.asarray([[getattr(row, mode).seconds for row in rows] for mode in MODES])
    routed = _thinking([row.decision for row in rows])
    share, length = float(routed.mean()), np.asarray([float(len(row.prompt)) for row in rows])
    chosen = {
        "always instruct": np.zeros(len(rows)), "always thinking": np.ones(len(rows)),
        "random, same share": np.full(len(rows), share),
        "longest prompts, same share": share_by_score(length, share),
        "routed": routed, "oracle": (right[1] > right[0]).astype(float),
    }  # fmt: skip
    got = np.asarray([float(row.routed.right) for row in rows])
    ways: list[dict[str, Any]] = []
    for name, sent in chosen.items():
        correct, took = _mix(right, sent), _mix(seconds, sent)
        if name == "routed":
            correct, took = got, np.asarray([row.routed.seconds for row in rows])
        mean = float(took.mean())
        ways.append({
            "name": name, "accuracy": float(correct.mean()), "interval": share_interval(correct), "seconds": mean,
            "of_thinking": mean / float(seconds[1].mean()), "share": float(sent.mean()),
        })  # fmt: skip
    groups = {
        key: [_group(name, [row for row in rows if of(row) == name]) for name in sorted({of(row) for row in rows})]
        for key, of in (("task", lambda row: row.task), ("hidden difficulty", lambda row: band(row.severity)))
    }
    figures = _figures(rows, right, got, length)
    summary = {"pictures": len(rows), "ways": ways, "figures": figures, "groups": groups,
               "sources": [_source(name, rows, right, seconds) for name in SOURCES],
               "shares": [_at_share(share, rows, right, seconds) for share in SHARES]}  # fmt: skip
    return {**summary, "requirements": _requirements(summary)}


def _group(name: str, rows: Sequence[Picture]) -> dict[str, Any]:
    """Accuracies of one task or band of severity. `above`: Thinking above Instruct, with its interval, in points."""
    right = {way: np.asarray([float(getattr(row, way).right) for row in rows]) for way in (*MODES, "routed")}
    difference = right["thinking"] - right["instruct"]
    bounds = Sampling(len(rows)).difference(difference)
    return {
        "name": name, "pictures": len(rows), **{way: float(values.mean()) for way, values in right.items()},
        "oracle": float(np.maximum(right["instruct"], right["thinking"]).mean()),
        "above": 100 * float(difference.mean()), "interval": bounds and [100 * end for end in bounds],
        "share": float(_thinking([row.decision for row in rows]).mean()),
        "seconds": float(np.mean([row.routed.seconds for row in rows])),
    }  # fmt: skip


def _figures(rows: Sequence[Picture], right: Values, got: Values, length: Values) -> dict[str, Any]:
    gains, gain, sampling = np.asarray([row.decision.gain for row in rows]), right[1] - right[0], Sampling(len(rows))
    p = [np.asarray([getattr(row.decision, f"p_{mode}") for row in rows]) for mode in MODES]
    prompt_alone = _gains(rows, SOURCES[0])
    captured = headroom_captured(*(float(one.mean()) for one in (got, *right, np.maximum(*right))))
    figures: dict[str, tuple[float | None, Interval | None]] = {
        "area over random": (area_over_random(gains, *right), sampling.area(gains[None], gain)),
        "area of the oracle": (area_over_random(gain, *right), sampling.oracle_area(gain)),
        "share of the oracle's area": _of_oracle(gains, right),
        "area of the longest prompts": (area_over_random(length, *right), sampling.area(length[None], gain)),
        "headroom captured": (captured, sampling.headroom(got, *right)),
    }
    for name in SOURCES[1:]:
        by_source = _gains(rows, name)
        figures[f"area by {name} above the prompt alone"] = (
            area_over_random(by_source, *right) - area_over_random(prompt_alone, *right),
            sampling.area_difference(by_source, prompt_alone, gain),
        )
    for mode, predicted, correct in zip(MODES, p, right, strict=True):
        figures[f"ECE {mode}"] = ece(predicted, correct), None
        figures[f"chance level of ECE {mode}"] = ece_if_calibrated(predicted), None
    seconds = float(np.mean([row.decision.seconds for row in rows]))
    return figures | {"seconds of caption and decision, with the tower": (seconds, None)}


def _of_oracle(gains: Values, right: Values) -> tuple[float | None, Interval | None]:
    """Area over random of a ranking by `gains`, as a share of the oracle's, and its interval."""
    gain = right[1] - right[0]
    whole = area_over_random(gain, *right)
    if not whole:
        return None, None
    return area_over_random(gains, *right) / whole, Sampling(len(gain)).share_of_oracle_area(gains, gain)


def _thinking(decisions: Sequence[Decided]) -> Values:
    return np.asarray([float(decision.mode == "thinking") for decision in decisions])


def _mix(both: Values, sent: Values) -> Values:
    """Values of the chosen mode `[n]`, from those of both modes `[2, n]`; expected values for probabilities `sent`."""
    return np.asarray(both[0] + sent * (both[1] - both[0]))


def _gains(rows: Sequence[Picture], source: str) -> Values:
    return np.asarray([row.sources[source].gain for row in rows])


def _source(name: str, rows: Sequence[Picture], right: Values, seconds: Values) -> dict[str, Any]:
    """`captioning`: seconds of caption and decision. `seconds`: these plus the answer of the chosen mode.

    `same`: share of captions that equal the drawn ones.
    """
    decided = [row.sources[name] for row in rows]
    sent, gains = _thinking(decided), _gains(rows, name)
    same = [one.caption == row.sources["caption given"].caption for one, row in zip(decided, rows, strict=True)]
    spent = float(np.mean([one.seconds for one in decided]))
    of_oracle, interval = _of_oracle(gains, right)
    return {
        "name": name, "area": area_over_random(gains, *right), "of_oracle": of_oracle, "interval": interval,
        "accuracy": float(_mix(right, sent).mean()), "share": float(sent.mean()), "captioning": spent,
        "seconds": float(_mix(seconds, sent).mean()) + spent,
        "same": float(np.mean(same)) if any(one.caption for one in decided) else None,
    }  # fmt: skip


def _at_share(share: float, rows: Sequence[Picture], right: Values, seconds: Values) -> dict[str, Any]:
    """What `Target(thinking_share=share)` gives with captions of the vision probe; expected values.

    A price sends the pictures with the highest gain per extra second to Thinking, and none without a positive gain.
    """
    decided = [row.sources["vision probe"] for row in rows]
    gains = np.asarray([one.gain for one in decided])
    rate = gains / np.maximum([one.extra for one in decided], 1e-6)
    sent = share_by_score(rate, share) * (gains > 0)
    took = float(_mix(seconds, sent).mean() + np.mean([one.seconds for one in decided]))
    return {"target": share, "share": float(sent.mean()), "accuracy": float(_mix(right, sent).mean()),
            "seconds": took, "of_thinking": took / float(seconds[1].mean())}  # fmt: skip


def _requirements(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """`least`: whether the bound is a lower one. An undefined figure meets no requirement."""
    nan = float("nan")
    ways, sources = ({one["name"]: one for one in summary[key]} for key in ("ways", "sources"))
    value = {name: nan if one is None else one for name, (one, _) in summary["figures"].items()}
    low = {name: nan if interval is None else interval[0] for name, (_, interval) in summary["figures"].items()}
    routed, better = ways["routed"], max(ways[f"always {mode}"]["accuracy"] for mode in MODES)
    above, by_caption = "area by {} above the prompt alone".format, "caption by Instruct"
    captured = [sources[name]["of_oracle"] for name in (by_caption, "caption given")]
    of_oracle = nan if None in captured else 100 * max(captured)
    worst = min(summary["groups"]["task"], key=lambda task: float(task["above"]))
    rows = [
        ("area by prompt and the better of both captions, % of the oracle's", of_oracle, 70, False),
        (f"Thinking below Instruct on {worst['name']}, points", -worst["above"], 10, True),
        ("routed accuracy above the better single mode, points", 100 * (routed["accuracy"] - better), -0.5, True),
        ("routed seconds, % of always thinking, all router costs in", 100 * routed["of_thinking"], 55, False),
        ("area over random, points, low end of the 95 % interval", low["area over random"], 0, True),
        ("ECE instruct", value["ECE instruct"], 0.03, False),
        ("ECE thinking", value["ECE thinking"], 0.03, False),
        *((f"{above(name)}, points, low end of the 95 % interval", low[above(name)], 0, True)
          for name in ("vision probe", by_caption)),
    ]  # fmt: skip
    return [
        {"name": name, "measured": measured, "bound": bound, "least": least,
         "met": measured >= bound if least else measured <= bound}
        for name, measured, bound, least in rows
    ]  # fmt: skip


def prove_part(
    model: Path, router: Path, count: int, seed: str, partial: Path, head: dict[str, Any], part: int, jobs: int
) -> None:
    policy = Target(thinking_share=head["thinking share"])
    for _ in run(Router.from_pretrained(model, router=router, policy=policy), count, seed, partial, head, part, jobs):
        pass


def page(summary: dict[str, Any], head: dict[str, Any], model: str) -> str:
    """The text of the page. `model`: "pair" or "hybrid"."""
    policy = head["thinking share"]
    return render("proof.md", **summary, head=head, machine=platform.machine(), policy=policy, model=model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="path of page and figures, without .md; by default with the router")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", default=SEED)
    parser.add_argument("--model", type=Path, default=POCKET)
    parser.add_argument("--router", type=Path, help="by default that of the model")
    parser.add_argument("--thinking-share", type=float, default=THINKING_SHARE, help="the policy to prove")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    options = parser.parse_args()
    if not 1 <= options.jobs <= options.count:
        parser.error("--jobs must be at least 1 and at most --count")
    router: Path = options.router or options.model / "router"
    out: Path = options.out or router / "proof"
    head = {
        "seed": options.seed,
        "pictures": options.count,
        "processes": options.jobs,
        "thinking share": options.thinking_share,
        "router": fingerprint(router / PROBE_FOLDER, router)[:16],
        "pair": fingerprint(*folders(options.model).values())[:16],
    }
    jobs, given = options.jobs, (options.model, router, options.count, options.seed)
    partials = [out.with_suffix(f".{part + 1}-of-{jobs}.partial.jsonl") for part in range(jobs)]
    work = [(*given, partial, head, part, jobs) for part, partial in enumerate(partials)]
    side_by_side(prove_part, work, lambda: lines_of(partials) - jobs, options.count, "proving")
    summary = summarize([row for partial in partials for row in read_partial(partial, head)])
    text = page(summary, head, "hybrid" if is_hybrid(options.model) else "pair")
    replace_file(out.with_suffix(".md"), text.encode())
    write_json(out.with_suffix(".json"), {**head, **summary})
    for partial in partials:
        partial.unlink()
    Console().print(Markdown(text))


if __name__ == "__main__":
    main()
