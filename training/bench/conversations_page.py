"""docs/benchmarks/conversations.md from the figures in docs/benchmarks/conversations.json."""

from __future__ import annotations

from typing import Any, Literal

from training.bench.page import table
from training.bench.resident import LONGEST, Soak, Stretch
from training.bench.second_turn import FIRST, SECOND, SecondTurn

Part = Literal["pocket", "2b", "memory"]
TITLES: dict[Part, str] = {
    "pocket": "Second turn: the pocket pair",
    "2b": "Second turn: the 2B shape",
    "memory": "Memory over many turns",
}
#: What the second turn must reach at 1024² at the 2B shape, and keys and look-ups of an encoding anywhere.
BARS = {"same": 20.0, "other": 2.0, "lookup": 0.01}
BAR_SIDE = 1024
FLAT = 1.02  # the second half of the turns may hold this much of what the first held

INTRODUCTION = f"""# Conversations, measured

Written by `python -m training.bench.conversations` from `conversations.json`.

## How the second turn is measured

A picture and "{FIRST}", answered by Instruct; then "{SECOND}". Seconds are from the call to the first token of the
second answer, of which only one token is written; medians. All engines of a row ran one after the other on the same
machine, the same weights and the same prompt, warmed up before.

* *same mode*: Instruct answers again; the features and the tokens of the first turn are at hand.
* *other mode*: Thinking answers; it has read nothing yet, but finds the features of the picture.
* *plain*: transformers' `generate` on the whole conversation from pixels, with Instruct and with Thinking.
* *served*: `transformers serve` with Instruct, asked through the `openai` client, after the same first turn.
* *ratio*: plain (served) seconds over ours, in the same mode.
* *encoder calls*: how often a tower ran (a hook on it counts) for all pictures, all turns and both modes.
* *keys and look-ups*: hashing the pixels, the keys and a hit, as a share of encoding the picture."""


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.1f}"


def _verdict(value: float, met: bool) -> str:
    return f"{value:.1f}×" if met else f"**{value:.1f}×**"


def second_turn(rows: list[SecondTurn], with_bars: bool) -> list[str]:
    seconds, ratios = [], []
    for row in rows:
        size = f"{row.side} × {row.side}"
        seconds.append(
            [size, str(row.vision_tokens), str(row.prompt_tokens), str(row.unread_same),
             *map(_milliseconds, (row.encode, row.same, row.other, row.plain["instruct"], row.plain["thinking"],
                                  row.served))]
        )  # fmt: skip
        barred = with_bars and row.side == BAR_SIDE
        same, other = row.plain["instruct"] / row.same, row.plain["thinking"] / row.other
        share = row.lookup / row.encode
        ratios.append(
            [size, _verdict(same, not barred or same >= BARS["same"]),
             _verdict(row.served / row.same, not barred or row.served / row.same >= BARS["same"]),
             _verdict(other, not barred or other >= BARS["other"]),
             f"{row.encoder_calls} for {row.repeats}", f"{1e3 * row.lookup:.2f} ms",
             f"{100 * share:.3f} %" if share <= BARS["lookup"] else f"**{100 * share:.3f} %**"]
        )  # fmt: skip
    first = rows[0]
    lines = [
        f"{first.device}, {first.dtype}, {first.repeats} conversation{'s' * (first.repeats > 1)} each. Milliseconds:",
        "",
        *table(
            ["picture", "vision tokens", "prompt tokens", "unread, same mode", "encode", "same mode", "other mode",
             "plain Instruct", "plain Thinking", "served"],
            seconds,
        ),
        "",
        *table(
            ["picture", "same mode, against plain", "against served", "other mode, against plain",
             "encoder calls for pictures", "keys and look-ups", "share of an encode"],
            ratios,
        ),
    ]  # fmt: skip
    if with_bars:
        lines += [
            "",
            f"Asked for at {BAR_SIDE}²: same mode ≥ {BARS['same']:.0f}×, other mode ≥ {BARS['other']:.0f}×; keys and "
            f"look-ups ≤ {100 * BARS['lookup']:.0f} % anywhere. What falls short is bold.",
        ]
    return lines


def memory(soak: Soak) -> list[str]:
    half = len(soak.stretches) // 2
    before, after = (max(s.resident_most for s in part) for part in (soak.stretches[:half], soak.stretches[half:]))
    most = max(max(s.vision_most, s.prefix_most) for s in soak.stretches)
    rows = [
        [str(s.turn), f"{s.resident / 1e6:.1f}", f"{s.resident_most / 1e6:.1f}", f"{s.vision_most / 1e6:.2f}",
         f"{s.prefix_most / 1e6:.2f}", str(s.encodes), str(s.evictions), str(s.hits)]
        for s in soak.stretches
    ]  # fmt: skip
    return [
        f"{soak.turns:,} turns in conversations of 1 to {LONGEST}, modes and pictures at random, over {soak.pictures} "
        f"pictures of {soak.side} × {soak.side} pixels whose features take {soak.all_features / 1e6:.1f} MB together. "
        f"Vision features and prefixes have a budget of {soak.bound / 1e6:.2f} MB each (64 MiB). Pocket pair, its "
        "processor set to larger pictures. Memory in MB of 10⁶ bytes, over the turns since the row above:",
        "",
        *table(
            ["up to turn", "resident, mean", "resident, most", "vision cache, most", "prefix cache, most", "encoded",
             "evicted", "found"],
            rows,
        ),
        "",
        f"* Most ever held by a cache: {most / 1e6:.2f} MB, {'within' if most <= soak.bound else '**beyond**'} the "
        "budget.",
        f"* Most resident in the second half of the turns: {after / before:.3f} of the most in the first, "
        f"{'flat' if after <= FLAT * before else '**not flat**'} (at most {FLAT}).",
    ]  # fmt: skip


def render(found: dict[Part, dict[str, Any]]) -> str:
    """The page; parts without figures are left out."""
    lines = [INTRODUCTION]
    for part, title in TITLES.items():
        if not (rows := found.get(part, {}).get("rows")):
            continue
        lines += ["", f"## {title}", ""]
        if part == "memory":
            stretches = [Stretch(**each) for each in rows[0]["stretches"]]
            lines += memory(Soak(**{**rows[0], "stretches": stretches}))
        else:
            lines += second_turn([SecondTurn(**row) for row in rows], with_bars=part == "2b")
        if part == "2b":
            lines += ["", "Random weights of the real sizes: seconds are real, what the pair says is not."]
        lines += ["", f"Taken on: {found[part]['where']}"]
    return "\n".join(lines) + "\n"
