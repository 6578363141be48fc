"""Caption sources: a cache for captioners, the vision probe of a router artifact, and OCR."""

from __future__ import annotations

import threading
import unicodedata
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from vlroute.decision.artifact import CARD_FILE, read_artifact, write_artifact
from vlroute.errors import ArtifactError, SettingsError
from vlroute.inputs.media import Picture, Video
from vlroute.steps import Steps, wait


class HasDigest(Protocol):
    """Something that is identified by a digest of its content."""

    @property
    def digest(self) -> str:
        """Digest of the content."""


P = TypeVar("P", bound=HasDigest)
#: Describes one picture or video in a few words. May be slow and may raise.
Captioner = Callable[[Picture | Video], str]


class CachedCaptioner(Generic[P]):
    """Runs a captioner once per picture and keeps the captions that were used last. Thread-safe.

    Requests of the same caption at the same time share one run and its result, even if it fails. Errors are not cached:
    the next call tries again.

    Args:
        captioner: Describes one picture, see `vlroute.steps`.
        max_items: Number of captions to keep.

    Raises:
        ValueError: `max_items` is less than 1.
    """

    def __init__(self, captioner: Callable[[P], Steps[str]], max_items: int = 4096) -> None:
        if max_items < 1:
            raise ValueError(f"max_items must be at least 1, not {max_items}")
        self._captioner = captioner
        self._max_items = max_items
        self._captions: OrderedDict[str, str] = OrderedDict()
        self._running: dict[str, Future[str]] = {}
        self._lock = threading.Lock()

    def __call__(self, picture: P, /) -> Steps[str]:
        """The caption, without white space at its ends. Raises SettingsError if the captioner returns no string."""
        digest = picture.digest
        with self._lock:
            caption = self._kept(digest)
            if caption is not None:
                return caption
            run = self._running.get(digest)
            mine = run is None
            if run is None:
                run = self._running[digest] = Future()
        if mine:
            yield from self._run(picture, digest, run)
        return (yield from wait(run))

    def cached(self, picture: P) -> str | None:
        """The cached caption, if there is one. Neither runs the captioner nor waits for it."""
        with self._lock:
            return self._kept(picture.digest)

    def describe(self, pictures: Iterable[P]) -> Steps[str]:
        """The captions of several pictures in order, joined with "; "; empty ones are left out."""
        captions = []
        for picture in pictures:
            captions.append((yield from self(picture)))
        return "; ".join(filter(None, captions))

    def _kept(self, digest: str) -> str | None:
        caption = self._captions.get(digest)
        if caption is not None:
            self._captions.move_to_end(digest)
        return caption

    def _run(self, picture: P, digest: str, run: Future[str]) -> Steps[None]:
        try:
            caption: Any = yield from self._captioner(picture)
            if not isinstance(caption, str):
                raise SettingsError(f"a captioner must return a string, not {type(caption).__name__}")
        except BaseException as error:
            with self._lock:
                del self._running[digest]
            run.set_exception(error)
            return
        with self._lock:
            self._captions[digest] = caption.strip()
            if len(self._captions) > self._max_items:
                self._captions.popitem(last=False)
            del self._running[digest]
        run.set_result(caption.strip())


Floats = NDArray[np.float32]
#: Subfolder of a router artifact with its probe.
PROBE_FOLDER = "probe"
KIND = "vision probe"
REMEDY = "train it again (vlroute probe), or pass captioner='instruct'"


@dataclass(frozen=True, slots=True, eq=False)
class VisionProbe:
    """Predicts the caption of a picture or video from its pooled vision features.

    Attributes:
        texts: Captions or terms that it can predict.
        weights: Weights of the logits, float32 `[len(texts), width]`, for pooled features `[width]`.
        bias: Bias of the logits, `[len(texts)]`.
        whole: Whether the texts are whole captions, of which the most probable one is the caption. Otherwise they are
            terms, and the caption consists of those with a probability above one half.
        tower: Fingerprint of the tower that it was trained on.
        card: Provenance and metrics.

    Raises:
        ValueError: Shapes do not fit.
    """

    texts: tuple[str, ...]
    weights: Floats
    bias: Floats
    whole: bool
    tower: str
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.texts)
        if n == 0 or self.weights.ndim != 2 or len(self.weights) != n or self.bias.shape != (n,):
            raise ValueError(
                f"{n} texts with weights {list(self.weights.shape)} and bias {list(self.bias.shape)}: expected at "
                "least one text, a row of weights and one bias for each"
            )

    def describe(self, pooled: Floats) -> str:
        """The caption for pooled features.

        Args:
            pooled: Pooled vision features `[width]`, see `EngineRequest.pooled`.

        Returns:
            A caption, or terms joined with ", ".

        Raises:
            ArtifactError: The width differs from that of the training tower.
        """
        if pooled.shape != (self.weights.shape[1],):
            raise ArtifactError(
                f"the vision probe reads {self.weights.shape[1]} pooled features, not {list(pooled.shape)}: it was "
                f"trained on another tower; {REMEDY}"
            )
        logits = self.weights @ pooled + self.bias
        if self.whole:
            return self.texts[int(np.argmax(logits))]
        return ", ".join(self.texts[i] for i in np.argsort(-logits, kind="stable") if logits[i] > 0)

    def check_tower(self, tower: str) -> None:
        """Raise an ArtifactError if `tower` is not the fingerprint of the training tower."""
        if tower != self.tower:
            raise ArtifactError(
                f"the vision probe was trained on another vision tower (fingerprint {self.tower[:12]}…, this pair's "
                f"Instruct has {tower[:12]}…): its captions would be wrong; {REMEDY}"
            )

    def save(self, folder: str | Path) -> None:
        """Write the probe to a folder.

        Args:
            folder: The folder; existing files of a probe are replaced.
        """
        head = {"kind": KIND, "texts": list(self.texts), "whole": self.whole, "tower": self.tower}
        write_artifact(folder, {**self.card, **head}, {"weights": self.weights, "bias": self.bias})

    @classmethod
    def load(cls, folder: str | Path) -> VisionProbe:
        """Read what `save` wrote. No code in the folder is run.

        Args:
            folder: The folder of the probe.

        Returns:
            The probe.

        Raises:
            ArtifactError: A file is missing, damaged or not that of a probe.
        """
        try:
            card, arrays = read_artifact(folder)
        except ArtifactError as error:
            raise ArtifactError(f"vision probe: {error}. Alternatively: {REMEDY}") from error
        try:
            kind, texts, whole, tower = (card.pop(name) for name in ("kind", "texts", "whole", "tower"))
            typed = isinstance(texts, list) and isinstance(whole, bool) and isinstance(tower, str)
            if kind != KIND or not typed or not all(isinstance(text, str) for text in texts):
                raise ValueError("expected a vision probe with its texts and the fingerprint of its tower")
            return cls(tuple(texts), arrays["weights"], arrays["bias"], whole, tower, card)
        except (KeyError, ValueError) as error:
            raise ArtifactError(f"{Path(folder) / CARD_FILE} is not a vision probe ({error}); {REMEDY}") from error


def probe_of(router: str | Path) -> VisionProbe | None:
    """The probe in the folder of a router artifact, if there is one. Raises ArtifactError if it cannot be used."""
    folder = Path(router) / PROBE_FOLDER
    return VisionProbe.load(folder) if folder.is_dir() else None


#: Densities of text by the least share of the picture that boxes around text cover.
DENSITIES = ((0.2, "dense text"), (0.05, "some text"), (0.0, "little text"))
#: Numbers of lines by their least count; a classifier learns little from exact numbers.
LINES = ((32, "32 lines or more"), (16, "16 to 31 lines"), (8, "8 to 15 lines"), (4, "4 to 7 lines"),
         (2, "2 to 3 lines"), (0, "one line"))  # fmt: skip
#: Scripts by the first word of a letter's Unicode name; other letters count as "other letters".
SCRIPTS = {
    "LATIN": "letters", "FULLWIDTH": "letters", "CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese",
    "HANGUL": "Korean", "CYRILLIC": "Cyrillic", "GREEK": "Greek", "ARABIC": "Arabic",
}  # fmt: skip
KINDS = ("digits", *dict.fromkeys(SCRIPTS.values()), "other letters", "formulas")
LEAST_SHARE = 0.1  # of the characters; kinds that are rarer are left out, because they are often misread

Boxes = NDArray[np.floating[Any]]


class OcrCaptioner:
    """Describes the text in a picture or video in a few buckets: "dense text, 32 lines or more, digits, Chinese".

    Thread-safe.
    """

    def __init__(self, reader: Callable[..., Any] | None = None) -> None:
        """Load the models.

        Args:
            reader: A `rapidocr.RapidOCR` with other models. The models in its wheel read Chinese, Japanese and English;
                text that they cannot read counts as no text.

        Raises:
            ImportError: The extra `ocr` is not installed.
        """
        if reader is None:
            try:
                from rapidocr import RapidOCR
            except ImportError as error:
                raise ImportError(
                    f"OcrCaptioner reads with RapidOCR, but {error.name} is missing: pip install 'vlroute[ocr]'"
                ) from error
            reader = RapidOCR(params={"Global.log_level": "error"})
        self._read: Callable[..., Any] = reader

    def __call__(self, media: Picture | Video, /) -> str:
        """The caption, or "no text". For a video, three frames are read and the one with the most text is used."""
        if isinstance(media, Picture):
            return describe(*self._found(media.image))
        last = len(media.frames) - 1
        frames = [media.frames[i] for i in sorted({0, last // 2, last})]
        return describe(*max(map(self._found, frames), key=lambda found: len("".join(found[0]))))

    def _found(self, image: Image) -> tuple[tuple[str, ...], Boxes]:
        found = self._read(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))  # it takes arrays as BGR
        if found.txts is None:
            return (), np.zeros((0, 4, 2))
        return tuple(found.txts), found.boxes / np.asarray(image.size)


def describe(texts: Sequence[str], boxes: Boxes) -> str:
    """The caption of a picture with text.

    Args:
        texts: The texts that were read, `n`.
        boxes: The four corners around each text, x and y from 0 to 1, `[n, 4, 2]`.

    Returns:
        Density, number of lines and kinds of characters.
    """
    signs = Counter(kind for kind in map(_kind, "".join(texts)) if kind)
    if not signs:
        return "no text"
    if signs["Japanese"]:  # Japanese also uses Chinese characters
        signs["Japanese"] += signs.pop("Chinese", 0)
    covered = float(sum(np.prod(np.ptp(box, axis=0)) for box in boxes))
    density = next(name for least, name in DENSITIES if covered >= least)
    rows = _rows(boxes)
    lines = next(name for least, name in LINES if rows >= least)
    kinds = [kind for kind in KINDS if signs[kind] >= LEAST_SHARE * signs.total()]
    return ", ".join([density, lines, *kinds])


def _rows(boxes: Boxes) -> int:
    """Number of lines of text: boxes side by side are one line."""
    tops, bottoms = boxes[:, :, 1].min(axis=1), boxes[:, :, 1].max(axis=1)
    rows, reach = 0, -1.0
    for top, bottom in sorted(zip(tops.tolist(), bottoms.tolist(), strict=True), key=sum):
        middle = (top + bottom) / 2
        if middle > reach:
            rows, reach = rows + 1, bottom
    return rows


def _kind(char: str) -> str | None:
    """The kind of a character, of `KINDS`; None for white space and punctuation."""
    category = unicodedata.category(char)
    if category == "Nd":
        return "digits"
    if category == "Sm":
        return "formulas"
    if category[0] != "L":
        return None
    return SCRIPTS.get(unicodedata.name(char, "").split(" ")[0], "other letters")
