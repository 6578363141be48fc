"""Training of a vision probe: from pooled features of pictures to the captions in the records."""

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

from vlroute.decision.captions import VisionProbe
from vlroute.decision.features import tokenize
from vlroute.errors import InputError
from vlroute.inputs.media import Picture, Video
from vlroute.inputs.messages import Conversation, parse
from vlroute.learning.dataset import Example, Source, examples
from vlroute.records import read_all
from vlroute.router import Router
from vlroute.steps import run

Floats = NDArray[np.float32]

MIN_RECORDS = 50
MIN_COUNT = 5  # records that must contain a caption or word, and that must not
WHOLE_SHARE = 0.95  # of the records: if this share has one of few captions, whole captions are learned
MAX_TEXTS = 256
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)  # C of the logistic regression: higher is weaker
FOLDS = 5
STEPS = len(PENALTIES) + 1


def pool(router: Router, conversation: Conversation) -> list[Floats]:
    """Return pooled features `[2 · width]` of every picture, then of every video, from the Instruct tower."""
    media: list[Picture | Video] = [*conversation.pictures, *conversation.videos]
    with router.request(conversation) as request:
        return [run(request.pooled(one)) for one in media]


def train_probe(
    pooled: Floats, captions: Sequence[str], tower: str, *, seed: int = 0, advance: Callable[[], None] = lambda: None
) -> VisionProbe:
    """Fit a linear probe.

    If a few captions are repeated, the probe learns whole captions by multinomial logistic regression, otherwise each
    word separately. The penalty with the best texts in a cross-validation with `FOLDS` folds is used; the card of the
    probe contains its score.

    Args:
        pooled: Pooled features of the pictures, float32 `[n, 2 · width]`.
        captions: Their captions, n.
        tower: Fingerprint of the vision tower (`Checkpoint.tower`).
        seed: Seed of the folds.
        advance: Called `STEPS` times.

    Returns:
        The probe.

    Raises:
        InputError: There are too few records, or no caption or word is frequent enough.
    """
    if len(pooled) != len(captions) or len(pooled) < MIN_RECORDS:
        raise InputError(
            f"a probe needs at least {MIN_RECORDS} captioned pictures, with a row of features for each; found "
            f"{len(pooled)} rows and {len(captions)} captions"
        )
    words = [set(tokenize(caption)) for caption in captions]
    often = _often(([caption] for caption in captions), len(captions))
    whole = sum(caption in often for caption in captions) >= WHOLE_SHARE * len(captions)
    texts = often if whole else _often(words, len(captions))
    if len(texts) < 2:
        raise InputError(
            f"a probe needs at least two captions or words that {MIN_COUNT} records contain and {MIN_COUNT} do not: "
            "collect more captioned records"
        )
    if whole:
        kept = [i for i, caption in enumerate(captions) if caption in often]
        x, y = pooled[kept], np.asarray([captions[i] for i in kept])
    else:
        x, y = pooled, MultiLabelBinarizer(classes=texts).fit_transform([one & {*texts} for one in words])
    scores = []
    for penalty in PENALTIES:
        predicted = cross_val_predict(_model(penalty, whole), x, y, cv=KFold(FOLDS, shuffle=True, random_state=seed))
        scores.append(float(np.mean(predicted == y)) if whole else float(f1_score(y, predicted, average="micro")))
        advance()
    best = int(np.argmax(scores))  # of equal scores the one with the strongest penalty
    model = _model(PENALTIES[best], whole).fit(x, y)
    advance()
    weights, bias = _unscaled(model, whole)
    measured = {"same caption" if whole else "micro F1 of the words": round(scores[best], 4)}
    card: dict[str, Any] = {"records": len(x), "penalty": PENALTIES[best], "folds": FOLDS, "out of fold": measured}
    return VisionProbe(tuple(texts), weights, bias, whole, tower, card)


def _often(texts: Iterable[Iterable[str]], n: int) -> list[str]:
    """The most frequent texts that at least `MIN_COUNT` of the `n` records contain and as many do not, sorted."""
    counts = Counter(text for one in texts for text in one if text)
    often = [text for text, count in counts.items() if MIN_COUNT <= count <= n - MIN_COUNT]
    return sorted(sorted(often, key=lambda text: (-counts[text], text))[:MAX_TEXTS])


def _model(penalty: float, whole: bool) -> Pipeline:
    logistic = LogisticRegression(C=penalty, max_iter=2000)
    return make_pipeline(StandardScaler(), logistic if whole else OneVsRestClassifier(logistic))


def _unscaled(model: Pipeline, whole: bool) -> tuple[Floats, Floats]:
    """Weights `[texts, width]` and bias `[texts]` for unscaled features."""
    scaler, logistic = model[0], model[1]
    parts = [logistic] if whole else logistic.estimators_
    weights = np.concatenate([part.coef_ for part in parts])
    bias = np.concatenate([part.intercept_ for part in parts])
    if whole and len(weights) == 1:  # for two captions scikit-learn has one row: the second against the first
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    weights = weights / scaler.scale_
    return weights.astype(np.float32), (bias - weights @ scaler.mean_).astype(np.float32)


@dataclass(slots=True)
class _Rows:
    """Pooled features and captions, row by row; the number of skipped rows and the reason of the first."""

    pooled: list[Floats] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    skipped: int = 0
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
    """Train a vision probe for the model of `router`.

    A row of `source` is used if it has one picture or video, and a record of the same id with a caption. Each picture
    is encoded once by the vision tower; nothing is generated.

    Args:
        router: The router with the model.
        source: The data set that was collected.
        records: File that `collect` wrote for this data set.
        columns: Columns of the data set, as for `collect`.
        limit: Maximum number of rows.
        seed: Seed of the folds.
        strict: Raise an error for an unusable row or record, instead of skipping and counting it.
        console: Where progress is shown. Default: stderr.

    Returns:
        The probe.

    Raises:
        InputError: The files cannot be read, or too few rows can be used.
        CheckpointError: The model cannot be loaded.
    """
    console = console or Console(stderr=True)
    found, _ = read_all([records], strict=strict, console=console)
    captions = {record.id: record.caption for record in found if record.caption}
    total = source.count()
    router.load()
    with Progress(console=console) as progress:
        task = progress.add_task("encoding pictures", total=total if limit is None else min(limit, total or limit))
        rows = _encode(router, examples(source, columns, limit), captions, lambda: progress.advance(task), strict)
        if rows.skipped:
            console.print(f"{rows.skipped} rows skipped; the first: {rows.reason}", markup=False, soft_wrap=True)
        if not rows.pooled:
            raise InputError(f"no row of {source.name} can be used; the first: {rows.reason or 'there is none'}")
        task = progress.add_task("fitting", total=STEPS)
        probe = train_probe(
            np.stack(rows.pooled), rows.captions, router.pair.instruct.tower, seed=seed,
            advance=lambda: progress.advance(task),
        )  # fmt: skip
    data = {"file": Path(records).name, "sha256": hashlib.sha256(Path(records).read_bytes()).hexdigest()}
    return replace(probe, card={**probe.card, "data": data})


def _encode(
    router: Router,
    found: Iterable[Example | InputError],
    captions: Mapping[str, str],
    advance: Callable[[], None],
    strict: bool,
) -> _Rows:
    rows = _Rows()
    for example in found:
        try:
            if isinstance(example, InputError):
                raise example
            if example.id not in captions:
                raise InputError(f"{example.place}: there is no record with a caption for the id {example.id!r}")
            videos = None if example.video is None else [example.video]
            conversation = parse(example.prompt, list(example.images), videos, None, router.limits, router.sampling)
            pooled = pool(router, conversation)
            if len(pooled) != 1:
                raise InputError(f"{example.place}: {len(pooled)} pictures and videos; exactly one is needed")
            rows.pooled += pooled
            rows.captions.append(captions[example.id])
        except InputError as error:
            if strict:
                raise
            rows.skipped += 1
            rows.reason = rows.reason or str(error)
        advance()
    return rows
