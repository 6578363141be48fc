"""Loads pictures and videos from files, bytes, data URIs, PIL images and arrays, within limits."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import os
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vlroute.checks import refused
from vlroute.errors import InputError, LimitError, MessageError, UnreadableMediaError, VLRouteError
from vlroute.inputs.decoding import current_budget
from vlroute.inputs.encoded import Encoded, is_open_file, name_of, read_encoded
from vlroute.inputs.image import channels_last, from_array, pieces, to_rgb, without_metadata
from vlroute.inputs.limits import DEFAULT_LIMITS, OWN_SIZE, Limits, PixelBudget
from vlroute.inputs.video import DEFAULT_SAMPLING, FrameSampling, decode_video

__all__ = [
    "DEFAULT_LIMITS",
    "DEFAULT_SAMPLING",
    "OWN_SIZE",
    "FrameSampling",
    "Limits",
    "Picture",
    "PictureSource",
    "PixelBudget",
    "Video",
    "VideoSource",
    "is_encoded",
    "is_timed",
    "load_picture",
    "load_video",
]

Array: TypeAlias = NDArray[Any]

# Formats whose header tells the true size and whose decoder starts no other program (EPS would).
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_SVG = re.compile(rb"\s*(<\?xml|<!--|<!DOCTYPE\s+svg|<svg)[^\0]*<svg|\s*<svg", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Picture:
    """One upright, opaque RGB picture. Pictures with equal pixels and budgets are equal, whatever their source."""

    image: Image.Image = field(repr=False, compare=False)
    """Image of mode RGB. Do not modify it in place, because `digest` would no longer match."""
    budget: PixelBudget = field(default=OWN_SIZE, repr=False, compare=False)
    """Size for the model; `image` keeps its own size."""
    digest: str = field(init=False)
    """SHA-256 over kind, width, height, RGB bytes and budget; 64 hex characters."""

    def __post_init__(self) -> None:
        if not isinstance(self.image, Image.Image) or self.image.mode != "RGB":
            raise UnreadableMediaError("a Picture holds a PIL image of mode RGB; use load_picture")
        digest = hashlib.sha256(b"vlroute picture\0" + struct.pack(">QQ", *self.size))
        for piece in pieces(self.image):
            digest.update(piece)
        digest.update(self.budget.tag())
        object.__setattr__(self, "digest", digest.hexdigest())

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size


@dataclass(frozen=True, slots=True)
class Video:
    """At least two RGB frames of one size, with their times. Videos with equal frames, times and budgets are equal."""

    frames: tuple[Image.Image, ...] = field(repr=False, compare=False)
    times: tuple[float, ...] = field(repr=False, compare=False)
    """Seconds since the start, strictly increasing, never negative."""
    budget: PixelBudget = field(default=OWN_SIZE, repr=False, compare=False)
    """Size for the model; `frames` keep their own size."""
    digest: str = field(init=False)
    """SHA-256 over kind, frame count, width, height, times, RGB bytes and budget; 64 hex characters."""

    def __post_init__(self) -> None:
        if len(self.frames) < 2:
            raise UnreadableMediaError("a video needs at least 2 frames; send a single frame as a picture")
        if len(self.frames) != len(self.times):
            raise UnreadableMediaError(f"{len(self.frames)} frames need as many times, got {len(self.times)}")
        sizes = {(frame.mode, *frame.size) for frame in self.frames}
        if len(sizes) > 1 or self.frames[0].mode != "RGB":
            raise UnreadableMediaError(f"the frames of a video must be RGB and of one size, got {sorted(sizes)}")
        # Written so that NaN is refused: it compares false with everything.
        rising = all(early < late < math.inf for early, late in itertools.pairwise(self.times))
        if not (rising and self.times[0] >= 0):
            raise UnreadableMediaError("the times of a video must be seconds from 0 upwards, each later than the last")
        digest = hashlib.sha256(b"vlroute video\0" + struct.pack(">QQQ", len(self.frames), *self.size))
        digest.update(struct.pack(f">{len(self.times)}d", *self.times))
        for frame in self.frames:
            for piece in pieces(frame):
                digest.update(piece)
        digest.update(self.budget.tag())
        object.__setattr__(self, "digest", digest.hexdigest())

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of every frame in pixels."""
        return self.frames[0].size

    @property
    def fps(self) -> float:
        """Mean frames per second."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


PictureSource: TypeAlias = Encoded | Image.Image | Array | Picture
FrameSource: TypeAlias = Sequence[PictureSource] | Array
VideoSource: TypeAlias = Encoded | Video | FrameSource | tuple[FrameSource, Sequence[float] | Array]


def load_picture(
    source: PictureSource,
    limits: Limits = DEFAULT_LIMITS,
    *,
    budget: PixelBudget = OWN_SIZE,
    channel_axis: int | None = None,
) -> Picture:
    """Load a picture as 8-bit RGB: upright (EXIF), transparency on white, first frame of an animation.

    Args:
        source: a path, a data URI, the bytes of a file, a file opened in binary mode, a PIL image, a numpy array
            (`[h, w]` or `[h, w, 1|3|4]`; uint8, bool, or floats in 0..1) or a `Picture`.
        limits: checked before pixels are decoded.
        budget: size of the picture for the model.
        channel_axis: the axis of an array that contains the channels, if it is not the last one.

    Returns:
        The picture.

    Raises:
        LimitError: the picture exceeds `limits`.
        UnreadableMediaError: the picture cannot be read or decoded.
        SettingsError: `limits` or `budget` has a wrong type.
    """
    if not isinstance(limits, Limits):
        raise refused("limits", limits, "a vlroute.Limits")
    if not isinstance(budget, PixelBudget):
        raise refused("budget", budget, "a vlroute.PixelBudget")
    budget.check(limits)
    name = _name(source)
    if channel_axis is not None and not isinstance(source, np.ndarray):
        raise _no_channel_axis(name)
    if isinstance(source, Picture):
        return source if budget in (OWN_SIZE, source.budget) else replace(source, budget=budget)
    with _decoding(name):
        if isinstance(source, Image.Image):
            image = source
        elif isinstance(source, np.ndarray):
            image = from_array(source, name, channel_axis)
        else:
            image = _opened(read_encoded(source, name, limits, limits.max_bytes), name)
        limits.check_size(image.size, name)
        current_budget().take(image.width * image.height, name, limits.max_total_pixels)
        return Picture(to_rgb(image, name), budget)


def load_video(
    source: VideoSource,
    limits: Limits = DEFAULT_LIMITS,
    fps: float | None = None,
    *,
    sampling: FrameSampling = DEFAULT_SAMPLING,
    budget: PixelBudget = OWN_SIZE,
    channel_axis: int | None = None,
) -> Video:
    """Load a video: its frames and their times in seconds.

    Args:
        source: a video file (path, data URI, bytes or open file; needs `vlroute[video]`), a list or tuple of frames,
            an array `[n, h, w, c]`, a tuple `(frames, times)`, or a `Video`.
        limits: checked before frames are decoded. At most `limits.max_frames` frames are taken from a file.
        fps: frames per second. For a file: how many are taken, instead of `sampling.fps`. For a list or array: its
            frame rate (2 if absent).
        sampling: how frames of a file are chosen.
        budget: size of the frames for the model.
        channel_axis: the axis of an array that contains the channels, if it is not the last one.

    Returns:
        The video.

    Raises:
        LimitError: the video exceeds `limits`.
        UnreadableMediaError: the video cannot be read or decoded.
        InputError: an invalid `fps`, a request for frames that do not exist, or an argument that has no effect on
            this kind of source.
        SettingsError: `limits`, `sampling` or `budget` has a wrong type.
    """
    if not isinstance(limits, Limits):
        raise refused("limits", limits, "a vlroute.Limits")
    if not isinstance(sampling, FrameSampling):
        raise refused("sampling", sampling, "a vlroute.FrameSampling")
    if not isinstance(budget, PixelBudget):
        raise refused("budget", budget, "a vlroute.PixelBudget")
    if sampling != DEFAULT_SAMPLING and not is_encoded(source):
        raise MessageError("sampling chooses frames of video files, but this video is sent as frames; leave it out")
    if fps is not None:
        if isinstance(source, Video) or is_timed(source):
            raise MessageError("fps has no effect on a video that is sent with its times; leave it out")
        if sampling.nframes is not None:
            raise MessageError("fps and sampling.nframes contradict each other: send one of them")
        sampling = replace(sampling, fps=fps)
    if channel_axis is not None and (isinstance(source, Video) or is_encoded(source)):
        raise _no_channel_axis(_name(source))
    if isinstance(source, Video):
        budget.check(limits, len(source.frames))
        return source if budget in (OWN_SIZE, source.budget) else replace(source, budget=budget)
    if is_encoded(source):
        name = _name(source)
        with _decoding(name):
            data = read_encoded(source, name, limits, limits.max_video_bytes)
            try:
                frames, times = decode_video(data, name, limits, sampling)
            except Exception as error:
                if not isinstance(error, VLRouteError) and _is_picture(data, name):
                    raise UnreadableMediaError(
                        f"{name} is a picture, not a video; pass it in images=, or pass the frames of one video as a "
                        "list in the list: videos=[[frame, frame, …]]"
                    ) from error
                raise
            budget.check(limits, len(frames))
            return Video(tuple(frames), tuple(times), budget)
    seconds: Sequence[float] | Array | None = None
    if is_timed(source):
        source, seconds = source
    if not (isinstance(source, list | tuple) or (isinstance(source, np.ndarray) and source.ndim == 4)):
        accepted = "a path, data URI, bytes, a list of frames, an array [n, h, w, c] or a tuple (frames, times)"
        if not limits.local_files:
            accepted = "a data URI (data:video/mp4;base64,...) or a list of frames"
        raise UnreadableMediaError(f"a video cannot be read from {_name(source)}; pass {accepted}")
    if channel_axis is not None and isinstance(source, np.ndarray):
        source, channel_axis = channels_last(source, _name(source), channel_axis), None
    budget.check(limits, len(source))
    frames = _join_frames(source, limits, channel_axis)
    spacing = 2.0 if fps is None else fps
    seconds = [index / spacing for index in range(len(frames))] if seconds is None else seconds
    try:
        times = [float(time) for time in seconds]
    except (OverflowError, TypeError) as error:
        raise UnreadableMediaError("the times of a video must be seconds from 0 upwards") from error
    return Video(tuple(frames), tuple(times), budget)


def is_encoded(source: object) -> TypeGuard[Encoded]:
    """Whether `source` contains or names the bytes of a file."""
    return isinstance(source, str | os.PathLike | bytes | bytearray | memoryview) or is_open_file(source)


def is_timed(source: object) -> TypeGuard[tuple[FrameSource, Sequence[float] | Array]]:
    """Whether `source` is a tuple `(frames, times)`: two items, the second a flat list of numbers."""
    if not isinstance(source, tuple) or len(source) != 2:
        return False
    times = source[1]
    if isinstance(times, np.ndarray):
        return times.ndim == 1 and times.dtype.kind in "iuf"
    return isinstance(times, list | tuple | range) and all(isinstance(t, int | float | np.number) for t in times)


def _no_channel_axis(name: str) -> UnreadableMediaError:
    return UnreadableMediaError(f"channel_axis applies to numpy arrays only, not to {name}; leave it out")


def _is_picture(data: bytes, name: str) -> bool:
    try:
        _opened(data, name)
    except Exception:  # damaged files raise many types of errors
        return False
    return True


def _join_frames(
    source: Sequence[PictureSource] | Array, limits: Limits, channel_axis: int | None
) -> list[Image.Image]:
    count = len(source)
    if count > limits.max_frames:
        raise LimitError(f"a video of {count} frames exceeds the limit of {limits.max_frames}")
    share = max(1, limits.max_video_pixels // max(1, count))
    limits = replace(limits, max_pixels=min(limits.max_pixels, share))
    frames = []
    for index, frame in enumerate(source):
        try:
            frames.append(load_picture(frame, limits, channel_axis=channel_axis).image)
        except InputError as error:
            raise type(error)(f"frame {index} of a video: {error}") from error
    return frames


def _opened(data: bytes, name: str) -> Image.Image:
    """The picture file in `data`, not decoded yet."""
    Image.init()  # fills Image.OPEN; older or minimal builds of Pillow have fewer formats
    formats = [known for known in _FORMATS if known in Image.OPEN]
    try:
        return Image.open(io.BytesIO(without_metadata(data)), formats=formats)
    except UnidentifiedImageError as error:
        kind = _foreign(data)
        why = f"it is {kind}, which is not supported" if kind else "it is damaged or of an unknown format"
        raise UnreadableMediaError(
            f"{name} cannot be decoded: {why}; convert it to one of {', '.join(formats)}"
        ) from error


def _foreign(data: bytes) -> str | None:
    """The name of a well-known format that is not supported."""
    if data[4:8] == b"ftyp":
        return "HEIC" if data[8:11] in (b"hei", b"hev", b"mif", b"msf") else "a video (pass it as one)"
    if _SVG.match(data[:4096].removeprefix(b"\xef\xbb\xbf")):
        return "SVG"
    known = {b"%PDF": "PDF", b"%!PS": "PostScript", b"8BPS": "a Photoshop file", b"\xff\x0a": "JPEG XL"}
    return next((kind for start, kind in known.items() if data.startswith(start)), None)


def _name(source: object) -> str:
    """Short name of `source` for error messages, never its content."""
    if isinstance(source, Image.Image):
        return f"PIL image of mode {source.mode}"
    if isinstance(source, np.ndarray):
        return f"numpy array of shape {source.shape} and type {source.dtype}"
    return name_of(source)


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Converts the errors of a decoder into typed errors; decoders raise many types for damaged files."""
    try:
        yield
    except VLRouteError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LimitError(f"{name} has more pixels than Pillow decodes; scale it down") from error
    except Exception as error:
        raise UnreadableMediaError(f"{name} cannot be decoded, it may be damaged ({type(error).__name__})") from error
