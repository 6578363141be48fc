"""What is in the picture, in a few words: made once per picture by whatever captioner is plugged in."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

from vlroute.errors import SettingsError


class HasDigest(Protocol):
    """Anything that names its content: equal digests mean equal pictures."""

    @property
    def digest(self) -> str: ...


P = TypeVar("P", bound=HasDigest)
P_contra = TypeVar("P_contra", bound=HasDigest, contravariant=True)


class Captioner(Protocol[P_contra]):
    """Describes one picture in a few words. May be slow; may raise."""

    def __call__(self, picture: P_contra, /) -> str: ...


class CachedCaptioner(Generic[P]):
    """Runs `captioner` once per picture; the `max_items` captions used last are kept. Thread-safe.

    Two threads that ask for the same picture share one run and its outcome, captions and failures alike. A
    failure propagates and is not kept: the next call tries again.
    """

    def __init__(self, captioner: Captioner[P], max_items: int = 4096) -> None:
        """ValueError if `max_items` < 1."""
        if max_items < 1:
            raise ValueError(f"max_items must be at least 1, not {max_items}")
        self._captioner = captioner
        self._max_items = max_items
        self._captions: OrderedDict[str, str] = OrderedDict()
        self._running: dict[str, Future[str]] = {}
        self._lock = threading.Lock()

    def __call__(self, picture: P, /) -> str:
        """The caption, stripped. SettingsError if the captioner gives no string; else whatever it raises."""
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
            self._run(picture, digest, run)
        return run.result()

    def cached(self, picture: P) -> str | None:
        """The caption if it is there; never runs the captioner, never waits for it."""
        with self._lock:
            return self._kept(picture.digest)

    def describe(self, pictures: Iterable[P]) -> str:
        """The captions of several pictures in their order, joined with "; "; empty ones are left out."""
        return "; ".join(caption for picture in pictures if (caption := self(picture)))

    def _kept(self, digest: str) -> str | None:
        caption = self._captions.get(digest)
        if caption is not None:
            self._captions.move_to_end(digest)
        return caption

    def _run(self, picture: P, digest: str, run: Future[str]) -> None:
        try:
            caption = self._captioner(picture)
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
