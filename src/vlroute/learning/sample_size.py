"""How many records an interval of a given width needs, and how good a router is after so many records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from vlroute.decision.text_encoder import TextEncoder
from vlroute.errors import InputError
from vlroute.learning.embeddings import embed_texts
from vlroute.learning.fit import MIN_RECORDS, fit_classifier, too_few
from vlroute.learning.folds import Together, folds_of, group_of
from vlroute.learning.intervals import Interval, Sampling
from vlroute.learning.metrics import area_over_random
from vlroute.records import Record, outcomes
from vlroute.types import MODES

#: Folds of the out-of-fold predictions and of a learning curve.
FOLDS = 5
#: A width that is smaller than the present one by more than this factor is refused: records grow with its square.
MOST_TIMES_NARROWER = 100


@dataclass(frozen=True, slots=True)
class Needed:
    """How many records an interval of a given width needs.

    Attributes:
        records: Number of records now.
        width: Width of the interval now, in the unit of the interval.
        more: Additional records for the wanted width; 0 if the interval is narrow enough.
    """

    records: int
    width: float
    more: int


def records_for_width(interval: Interval, records: int, width: float) -> Needed:
    """Estimate how many more records narrow an interval to a given width.

    The standard error of a mean of influence values falls with the square root of the number of records. This assumes
    that new records are drawn like the present ones: the same kinds of requests, as many repeated texts, and the same
    variance of the influence values. A router that becomes better with more records changes this variance little.

    Args:
        interval: The interval on the present records.
        records: Their number.
        width: The wanted width: upper minus lower end.

    Returns:
        The estimate.

    Raises:
        InputError: The wanted width is not positive, or less than a hundredth of the present one.
    """
    check_width(width)
    now = interval[1] - interval[0]
    if now > MOST_TIMES_NARROWER * width:
        raise InputError(
            f"a width of {width:g} is less than a hundredth of the present one, {now:.3g}, and needs more than "
            f"{MOST_TIMES_NARROWER**2:,} times as many records: choose a greater width"
        )
    return Needed(records, now, max(0, math.ceil(records * (now / width) ** 2) - records))


def check_width(width: float) -> None:
    """Check the wanted width of an interval.

    Args:
        width: The width.

    Raises:
        InputError: It is not positive or not finite.
    """
    if not 0 < width < math.inf:
        raise InputError(f"the width of an interval must be a positive number, not {width:g}")


@dataclass(frozen=True, slots=True)
class LearningPoint:
    """A router after a number of training records.

    Attributes:
        records: Number of training records.
        area: Area over random on records that training has not seen, in points.
        interval: Its 95 % interval.
    """

    records: int
    area: float
    interval: Interval | None


def learning_curve(
    records: Sequence[Record],
    sizes: Sequence[int] | None = None,
    *,
    folds: int = FOLDS,
    seed: int = 0,
    together: Together = "text",
    text: TextEncoder | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[LearningPoint]:
    """Train routers on parts of the records, and measure each on the records of a fold that it has not seen.

    For each size and fold, a router is trained on so many records that are drawn from the other folds; smaller parts
    are contained in larger ones. Each record is predicted once at each size.

    Args:
        records: Labeled records.
        sizes: Numbers of training records, each at least 20 and at most the number outside a fold. Default: 50, 100,
            200 and so on, and this number.
        folds: Number of folds.
        seed: Seed of folds and draws.
        together: What shares a fold, see `folds_of`.
        text: Embeds prompts and captions; None: words only.
        advance: Called after each training.

    Returns:
        One point per size.

    Raises:
        InputError: A size is out of range, or there are too few records or texts for a size.
    """
    if not records:
        raise InputError(too_few(0, "record", MIN_RECORDS, "for a learning curve"))
    fold = folds_of(records, folds, seed, together=together)
    most = len(records) - int(np.bincount(fold).max())
    if most < MIN_RECORDS:
        texts = f" with {len({group_of(record) for record in records})} different texts" if together == "text" else ""
        raise InputError(
            f"{len(records)} records{texts} are too few for a learning curve: only {most} are outside the largest of "
            f"{folds} folds, at least {MIN_RECORDS} are needed"
        )
    if sizes is None:
        sizes = [*_doubled(most), most]
    if wrong := [size for size in sizes if not MIN_RECORDS <= size <= most]:
        raise InputError(f"sizes must be from {MIN_RECORDS} to {most} for {len(records)} records, not {wrong[0]}")
    embedded = embed_texts(records, text, console=Console(quiet=True)) if text else None
    right = np.asarray([[float(o.correct) for o in outcomes(records, mode)] for mode in MODES])
    groups = [group_of(record) for record in records] if together == "text" else None
    sampling = Sampling(len(records), groups, folds)
    gains = np.zeros((len(sizes), len(records)))
    rng = np.random.default_rng(seed)
    for number in range(folds):
        others = rng.permutation(np.flatnonzero(fold != number)).tolist()
        tested = np.flatnonzero(fold == number).tolist()
        asked = [(records[at].prompt, records[at].caption, records[at].tools) for at in tested]
        for row, size in zip(gains, sizes, strict=True):
            router = fit_classifier([records[at] for at in others[:size]], seed=seed, text=embedded)
            row[tested] = [one.gain for one in router.predict_many(asked)]
            advance()
    return [
        LearningPoint(size, area_over_random(row, *right), sampling.area(row[None], right[1] - right[0]))
        for size, row in zip(sizes, gains, strict=True)
    ]


def _doubled(most: int) -> Iterator[int]:
    """50, 100, 200 and so on, as long as `most` is at least half as much again."""
    size = 50
    while size * 1.5 <= most:
        yield size
        size *= 2


def records_for_area(
    records: Sequence[Record], width: float, *, together: Together = "text", text: TextEncoder | None = None
) -> tuple[LearningPoint, Needed]:
    """Estimate how many more records narrow the interval of the area over random of a router trained on them.

    Args:
        records: Labeled records, at least 50.
        width: The wanted width, in points.
        together: What shares a fold, see `folds_of`.
        text: Embeds prompts and captions; None: words only.

    Returns:
        The area on left-out records now, and the estimate; see `records_for_width` for what it assumes.

    Raises:
        InputError: There are too few records, or the width cannot be estimated, see `records_for_width`.
    """
    if len(records) < 50:
        raise InputError(too_few(len(records), "record", 50, "to estimate a width from"))
    size = len(records) - int(np.bincount(folds_of(records, FOLDS, 0, together=together)).max())
    if size < MIN_RECORDS:
        texts = len({group_of(record) for record in records})
        raise InputError(
            f"{len(records)} records contain only {texts} different texts, too few to estimate a width from: add "
            "records with other prompts"
        )
    (now,) = learning_curve(records, [size], together=together, text=text)
    if now.interval is None:
        raise InputError("all records have the same text: no interval can be computed")
    return now, records_for_width(now.interval, len(records), width)
