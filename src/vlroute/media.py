"""Pictures and videos as a caller sends them, turned into what a person sees, within limits."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import math
import os
import re
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vlroute.errors import InputError, LimitError, UnreadableMediaError
from vlroute.limits import DEFAULT_LIMITS, Limits
from vlroute.pixels import as_seen, from_array
from vlroute.video_file import decode_video

__all__ = [
    "DEFAULT_LIMITS",
    "Limits",
    "Picture",
    "PictureSource",
    "Video",
    "VideoSource",
    "is_timed",
    "load_picture",
    "load_video",
]

Array: TypeAlias = NDArray[Any]

# Formats whose header tells the true size and whose decoder starts no other program (EPS would).
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Picture:
    """One upright, opaque RGB picture. Equal pixels are equal pictures, wherever they came from."""

    image: Image.Image = field(repr=False, compare=False)
    """Mode RGB. Not to be changed in place: `digest` would no longer fit."""
    digest: str = field(init=False)
    """SHA-256 over kind, width, height and RGB bytes; 64 hex characters."""

    def __post_init__(self) -> None:
        if not isinstance(self.image, Image.Image) or self.image.mode != "RGB":
            raise UnreadableMediaError("a Picture holds a PIL image of mode RGB; use load_picture")
        digest = hashlib.sha256(b"vlroute picture\0" + struct.pack(">QQ", *self.size))
        digest.update(self.image.tobytes())
        object.__setattr__(self, "digest", digest.hexdigest())

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size


@dataclass(frozen=True, slots=True)
class Video:
    """At least two RGB frames of one size, each with its time. Equal frames and times are equal videos."""

    frames: tuple[Image.Image, ...] = field(repr=False, compare=False)
    times: tuple[float, ...] = field(repr=False, compare=False)
    """Seconds since the start, strictly increasing, never negative."""
    digest: str = field(init=False)
    """SHA-256 over kind, frame count, width, height, times and RGB bytes; 64 hex characters."""

    def __post_init__(self) -> None:
        if len(self.frames) < 2:
            raise UnreadableMediaError("a video needs at least 2 frames; send a single frame as a picture")
        if len(self.frames) != len(self.times):
            raise UnreadableMediaError(f"{len(self.frames)} frames need as many times, got {len(self.times)}")
        sizes = {(frame.mode, *frame.size) for frame in self.frames}
        if len(sizes) > 1 or self.frames[0].mode != "RGB":
            raise UnreadableMediaError(f"the frames of a video must be RGB and of one size, got {sorted(sizes)}")
        # Written so that a NaN, which compares false with everything, is refused.
        rising = all(early < late < math.inf for early, late in itertools.pairwise(self.times))
        if not (rising and self.times[0] >= 0):
            raise UnreadableMediaError("the times of a video must be seconds from 0 upwards, each later than the last")
        digest = hashlib.sha256(b"vlroute video\0" + struct.pack(">QQQ", len(self.frames), *self.size))
        digest.update(struct.pack(f">{len(self.times)}d", *self.times))
        for frame in self.frames:
            digest.update(frame.tobytes())
        object.__setattr__(self, "digest", digest.hexdigest())

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of every frame in pixels."""
        return self.frames[0].size

    @property
    def fps(self) -> float:
        """Mean frames per second."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


Encoded: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview
"""A path, a data URI, or the bytes of a file."""
PictureSource: TypeAlias = Encoded | Image.Image | Array | Picture
FrameSource: TypeAlias = Sequence[PictureSource] | Array
VideoSource: TypeAlias = Encoded | Video | FrameSource | tuple[FrameSource, Sequence[float] | Array]


def load_picture(source: PictureSource, limits: Limits = DEFAULT_LIMITS) -> Picture:
    """The picture in `source` as a person sees it: upright, flattened on white, 8-bit RGB, first frame.

    `source` is a path, a data URI, the bytes of a file, a PIL image, a numpy array (`[h, w]` or
    `[h, w, 1|3|4]`; uint8, bool, or floats in 0..1) or a `Picture`, which is returned as it is.
    Raises `LimitError` before decoding what is over `limits`, `UnreadableMediaError` for all else that fails.
    """
    if isinstance(source, Picture):
        return source
    name = _name(source)
    with _decoding(name):
        if isinstance(source, Image.Image):
            image = source
        elif isinstance(source, np.ndarray):
            image = from_array(source, name)
        else:
            Image.init()  # fills Image.OPEN, which an older Pillow or a lean build holds fewer formats in
            data = io.BytesIO(_read(source, name, limits, limits.max_bytes))
            image = Image.open(data, formats=[known for known in _FORMATS if known in Image.OPEN])
        limits.check_size(image.size, name)
        return Picture(as_seen(image, name))


def load_video(source: VideoSource, limits: Limits = DEFAULT_LIMITS, fps: float = 2.0) -> Video:
    """The frames of `source` with their times in seconds.

    `source` is a video file (path, data URI or bytes; needs `vlroute[video]`), a list or tuple of frames or
    an array `[n, h, w, c]` (frame i is then at i / `fps` seconds), a tuple `(frames, times)`, or a `Video`,
    which is returned as it is. A file is sampled evenly at about `fps` frames a second, like Qwen3-VL's own
    processor: at least 4 frames where it has them, at most `limits.max_frames`.
    Raises `LimitError` and `UnreadableMediaError` as `load_picture` does, `InputError` for an unusable `fps`.
    """
    if isinstance(source, Video):
        return source
    if not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise InputError(f"fps must be a positive number of frames a second, got {fps!r}")
    if isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        name = _name(source)
        with _decoding(name):
            data = _read(source, name, limits, limits.max_video_bytes)
            frames, times = decode_video(data, name, limits, fps)
            return Video(tuple(frames), tuple(times))
    seconds: Sequence[float] | Array | None = None
    if is_timed(source):
        source, seconds = source
    if not (isinstance(source, list | tuple) or (isinstance(source, np.ndarray) and source.ndim == 4)):
        raise UnreadableMediaError(
            f"a video cannot be read from {_name(source)}; pass a path, data URI, bytes, a list of frames, "
            "an array [n, h, w, c] or a tuple (frames, times)"
        )
    return _join_frames(source, seconds, limits, fps)


def is_timed(source: object) -> TypeGuard[tuple[FrameSource, Sequence[float] | Array]]:
    """Whether `source` is a tuple `(frames, times)`: two items, the second a flat list of numbers."""
    if not isinstance(source, tuple) or len(source) != 2:
        return False
    times = source[1]
    if isinstance(times, np.ndarray):
        return times.ndim == 1 and times.dtype.kind in "iuf"
    return isinstance(times, list | tuple | range) and all(isinstance(t, int | float | np.number) for t in times)


def _join_frames(
    source: Sequence[PictureSource] | Array, times: Sequence[float] | Array | None, limits: Limits, fps: float
) -> Video:
    count = len(source)
    if count > limits.max_frames:
        raise LimitError(f"a video of {count} frames is over the limit of {limits.max_frames}")
    share = max(1, limits.max_video_pixels // max(1, count))
    limits = replace(limits, max_pixels=min(limits.max_pixels, share))
    frames = []
    for index, frame in enumerate(source):
        try:
            frames.append(load_picture(frame, limits).image)
        except InputError as error:
            raise type(error)(f"frame {index} of a video: {error}") from error
    seconds = [index / fps for index in range(count)] if times is None else times
    return Video(tuple(frames), tuple(float(time) for time in seconds))


def _name(source: object) -> str:
    """What to call `source` in a message: short, and never its content."""
    if isinstance(source, str) and source[:5].lower() == "data:":
        return "data URI"
    if isinstance(source, str | os.PathLike):
        path = Path(os.fsdecode(source)).name
        return f"file {path!r}" if len(path) <= 100 else f"path of {len(path)} characters"
    if isinstance(source, bytes | bytearray | memoryview):
        return "bytes"
    if isinstance(source, Image.Image):
        return f"PIL image of mode {source.mode}"
    if isinstance(source, np.ndarray):
        return f"numpy array of shape {source.shape} and type {source.dtype}"
    return f"a {type(source).__name__}"


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turns whatever a decoder raises into a typed error: decoders fed with damaged files raise anything."""
    try:
        yield
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LimitError(f"{name} has more pixels than Pillow decodes; scale it down") from error
    except Exception as error:
        why = "unknown format" if isinstance(error, UnidentifiedImageError) else type(error).__name__
        raise UnreadableMediaError(f"{name} cannot be decoded, it may be damaged ({why})") from error


def _read(source: Encoded, name: str, limits: Limits, most: int) -> bytes:
    """The bytes of a file, given as they are, as a data URI or as a path; at most `most`."""
    if isinstance(source, bytes | bytearray | memoryview):
        size = source.nbytes if isinstance(source, memoryview) else len(source)
        _check_bytes(size, name, most)
        return bytes(source)
    if not isinstance(source, str | os.PathLike):
        raise UnreadableMediaError(
            f"{name} is not a picture; pass a path, data URI, bytes, PIL image or numpy array [h, w, c]"
        )
    text = os.fsdecode(source)
    if text[:5].lower() == "data:":
        return _read_data_uri(text, name, most)
    if _URL.match(text):
        raise UnreadableMediaError("vlroute fetches nothing: download it first, then pass its path or bytes")
    if not limits.local_files:
        raise UnreadableMediaError("paths are not allowed here: send a data URI (data:image/png;base64,...)")
    try:
        status = os.stat(text)  # before opening: to open a pipe would wait for its other end
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableMediaError(f"{name} is not a regular file")
        _check_bytes(status.st_size, name, most)
        return Path(text).read_bytes()
    except OSError as error:
        raise UnreadableMediaError(f"{name} cannot be read: {error.strerror}") from error


def _read_data_uri(uri: str, name: str, most: int) -> bytes:
    head, comma, payload = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise UnreadableMediaError("a data URI must look like data:image/png;base64,...")
    _check_bytes(len(payload) * 3 // 4 - payload.count("=", -2), name, most)
    try:
        return base64.b64decode(payload, validate=True)
    except ValueError as error:
        raise UnreadableMediaError("the base64 of a data URI is damaged") from error


def _check_bytes(size: int, name: str, most: int) -> None:
    if size > most:
        raise LimitError(f"{name} has {size} bytes, over the limit of {most}; compress it or scale it down")
