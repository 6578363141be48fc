"""Train a vision probe: from the pooled features of pictures and what was said of them in their records."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MultiLabelBinarizer, StandardScaler

from vlroute.decision.features import tokenize
from vlroute.decision.vision_probe import VisionProbe
from vlroute.errors import InputError
from vlroute.inputs.media import Picture, Video
from vlroute.inputs.messages import Conversation, parse
from vlroute.learning.dataset import Example, Source, examples
from vlroute.records import read_all
from vlroute.router import Router

Floats = NDArray[np.float32]

MIN_RECORDS = 50
MIN_COUNT = 5  # a caption or term that fewer records hold cannot be learnt
WHOLE_SHARE = 0.95  # of the records: where this many say one of a few captions, whole captions are learnt
MAX_TEXTS = 256
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)  # C of the logistic regression: higher is weaker
FOLDS = 5
STEPS = len(PENALTIES) + 1


def pool(router: Router, conversation: Conversation) -> list[Floats]:
    """Pooled features `[2 · width]` of every picture, then of every video; encoded once, by the Instruct tower."""
    media: list[Picture | Video] = [*conversation.pictures, *conversation.videos]
    with router.request(conversation) as request:
        return [request.pooled(one) for one in media]


def train_probe(
    pooled: Floats, captions: Sequence[str], tower: str, *, seed: int = 0, advance: Callable[[], None] = lambda: None
) -> VisionProbe:
    """Fit a linear probe that says `captions[i]` of `pooled[i]`, float32 `[n, 2 · width]`.

    Where few captions are said again and again it learns them whole (multinomial logistic regression), else their
    words, each on its own. The penalty is the one whose texts are best on `FOLDS` parts left out; the card holds that
    figure. `tower`: the fingerprint of the tower (`Checkpoint.tower`). `advance` is called `STEPS` times.

    Raises:
        InputError: too few records, or nothing is said often enough to be learnt.
    """
    if len(pooled) != len(captions) or len(pooled) < MIN_RECORDS:
        raise InputError(
            f"a probe needs at least {MIN_RECORDS} captioned pictures, and a row of features for each; found "
            f"{len(pooled)} rows and {len(captions)} captions"
        )
    words = [set(tokenize(caption)) for caption in captions]
    often = _often(([caption] for caption in captions), len(captions))
    whole = sum(caption in often for caption in captions) >= WHOLE_SHARE * len(captions)
    texts = often if whole else _often(words, len(captions))
    if len(texts) < 2:
        raise InputError(
            f"fewer than two captions or words stand in at least {MIN_COUNT} records and are absent from as many: a "
            "probe has nothing to tell apart; collect more captioned records"
        )
    if whole:
        kept = [i for i, caption in enumerate(captions) if caption in often]
        x, said = pooled[kept], np.asarray([captions[i] for i in kept])
    else:
        x, said = pooled, MultiLabelBinarizer(classes=texts).fit_transform([one & {*texts} for one in words])
    scores = []
    for penalty in PENALTIES:
        guessed = cross_val_predict(_model(penalty, whole), x, said, cv=KFold(FOLDS, shuffle=True, random_state=seed))
        scores.append(float(np.mean(guessed == said)) if whole else float(f1_score(said, guessed, average="micro")))
        advance()
    best = int(np.argmax(scores))  # of equals the strongest penalty
    model = _model(PENALTIES[best], whole).fit(x, said)
    advance()
    weights, bias = _unscaled(model, whole)
    measured = {"same caption" if whole else "micro F1 of the words": round(scores[best], 4)}
    card: dict[str, Any] = {"records": len(x), "penalty": PENALTIES[best], "folds": FOLDS, "out of fold": measured}
    return VisionProbe(tuple(texts), weights, bias, whole, tower, card)


def _often(said: Iterable[Iterable[str]], n: int) -> list[str]:
    """What at least `MIN_COUNT` of the `n` records say and as many do not, the `MAX_TEXTS` most frequent, sorted."""
    counts = Counter(text for one in said for text in one if text)
    often = [text for text, count in counts.items() if MIN_COUNT <= count <= n - MIN_COUNT]
    return sorted(sorted(often, key=lambda text: (-counts[text], text))[:MAX_TEXTS])


def _model(penalty: float, whole: bool) -> Pipeline:
    logistic = LogisticRegression(C=penalty, max_iter=2000)
    return make_pipeline(StandardScaler(), logistic if whole else OneVsRestClassifier(logistic))


def _unscaled(model: Pipeline, whole: bool) -> tuple[Floats, Floats]:
    """Weights `[texts, width]` and bias `[texts]` for features as they are, the scaling folded in."""
    scaler, logistic = model[0], model[1]
    parts = [logistic] if whole else logistic.estimators_
    weights = np.concatenate([part.coef_ for part in parts])
    bias = np.concatenate([part.intercept_ for part in parts])
    if whole and len(weights) == 1:  # of two captions scikit-learn gives one row: for the second, against the first
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    weights = weights / scaler.scale_
    return weights.astype(np.float32), (bias - weights @ scaler.mean_).astype(np.float32)


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
