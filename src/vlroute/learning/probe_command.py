"""A vision probe from a user's data set: its pictures, and the captions that `vlroute collect` recorded of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from vlroute.decision.vision_probe import VisionProbe
from vlroute.errors import InputError
from vlroute.learning.dataset import Example, examples
from vlroute.learning.records import read_all
from vlroute.learning.rows import Source
from vlroute.learning.train_probe import STEPS, Floats, pool, train_probe
from vlroute.messages import parse
from vlroute.router import Router


@dataclass(slots=True)
class Seen:
    """Pooled features and recorded captions, row by row; rows passed over, and why the first of them was."""

    pooled: list[Floats] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    passed: int = 0
    reason: str = ""


def learn_probe(
    router: Router,
    source: Source,
    records: str | Path,
    *,
    columns: Mapping[str, Sequence[str]] | None = None,
    limit: int | None = None,
    seed: int = 0,
    strict: bool = False,
    console: Console | None = None,
) -> VisionProbe:
    """Teach a probe for `router`'s pair to say of each picture in `source` what `records` say of it.

    A row is used if it has one picture or video, and a record of the same id with a caption: what `collect` wrote of
    this source. Each picture goes once through the tower; nothing is generated. `columns`: as `collect`'s.
    `strict`: raise an error for a row or a line of `records` that cannot be read, instead of skipping and counting it.

    Raises:
        InputError: the files cannot be read, or too few rows can be used.
        CheckpointError: the pair cannot be loaded.
    """
    console = console or Console(stderr=True)
    found, _ = read_all([records], strict=strict, console=console)
    captions = {record.id: record.caption for record in found if record.caption}
    total = source.count()
    router.load()
    with Progress(console=console) as progress:
        task = progress.add_task("seeing", total=total if limit is None else min(limit, total or limit))
        seen = _see(router, examples(source, columns, limit), captions, lambda: progress.advance(task), strict)
        if seen.passed:
            console.print(f"{seen.passed} rows passed over; the first: {seen.reason}", markup=False, soft_wrap=True)
        if not seen.pooled:
            raise InputError(f"no row of {source.name} can teach a probe; the first: {seen.reason or 'there is none'}")
        task = progress.add_task("fitting", total=STEPS)
        probe = train_probe(
            np.stack(seen.pooled), seen.captions, router.pair.instruct.tower, seed=seed,
            advance=lambda: progress.advance(task),
        )  # fmt: skip
    data = {"file": Path(records).name, "sha256": hashlib.sha256(Path(records).read_bytes()).hexdigest()}
    return replace(probe, card={**probe.card, "data": data})


def _see(
    router: Router,
    found: Iterable[Example | InputError],
    captions: Mapping[str, str],
    advance: Callable[[], None],
    strict: bool,
) -> Seen:
    seen = Seen()
    for example in found:
        try:
            if isinstance(example, InputError):
                raise example
            if example.id not in captions:
                raise InputError(f"{example.place}: no record with a caption has its id, {example.id!r}")
            videos = None if example.video is None else [example.video]
            conversation = parse(example.prompt, list(example.images), videos, None, router.limits, router.sampling)
            pooled = pool(router, conversation)
            if len(pooled) != 1:
                raise InputError(f"{example.place}: {len(pooled)} pictures and videos; a caption is of one")
            seen.pooled += pooled
            seen.captions.append(captions[example.id])
        except InputError as error:
            if strict:
                raise
            seen.passed += 1
            seen.reason = seen.reason or str(error)
        advance()
    return seen
