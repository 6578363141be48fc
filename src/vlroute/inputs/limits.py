"""Limits of one request, and the size that pictures and videos are scaled to."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, Literal, TypeGuard

from vlroute.checks import Whole, refused
from vlroute.errors import LimitError, MessageError, UnreadableMediaError

LOW_DETAIL = 512 * 512
_FACTOR = 32  # pixels of a merged patch in Qwen3-VL
_NAMES = ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request, checked before pixels are decoded. A request that exceeds one raises a `LimitError`.

    Raises:
        SettingsError: a number is not positive, or `max_frames` is less than 2.
    """

    max_bytes: int = 20 * 2**20
    """Bytes of one encoded picture."""
    max_pixels: int = 2**26
    """Width x height of one picture or of one frame (64 Mi, for cameras of up to 64 megapixels)."""
    max_scaled_pixels: int = 2**25
    """Width x height (x frames of a video) to which a request may scale a picture or video for the model.
    The processor of Qwen3-VL stops at 2**24 for a picture and at 25 million for a video."""
    max_aspect_ratio: int = 200
    """Longer side divided by shorter side; the processor of Qwen3-VL refuses more than 200."""
    max_images: int = 16
    """Pictures in a request, history included."""
    max_videos: int = 4
    """Videos in a request, history included."""
    max_video_bytes: int = 256 * 2**20
    """Bytes of one encoded video."""
    max_frames: int = 768
    """Frames of one video. A longer file is sampled at a lower rate, and a longer list of frames is refused."""
    max_video_pixels: int = 2**27
    """Width x height x frames of one video. Frames of a larger file are scaled down, and a larger list is refused.
    Qwen3-VL's processor shrinks a video to 25 million pixels anyway."""
    max_total_pixels: int = 3 * 2**26
    """Width x height of all pictures, and x frames of all videos, that are decoded for one request (192 Mi: 16 pictures
    of 12 megapixels, or a picture and a video of the sizes above)."""
    max_coded_frames: int = 216_000
    """Frames in a video file before sampling (one hour at 60 frames per second); limits the decoding work."""
    local_files: bool = True
    """Whether a path may name a local file. A server with remote clients sets it to False."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            least = 2 if item.name == "max_frames" else 1
            if item.name != "local_files":
                object.__setattr__(self, item.name, Whole(least, 2**63 - 1).read(f"Limits.{item.name}", value))
            elif not isinstance(value, bool):
                raise refused(f"Limits.{item.name}", value, "True or False")

    def check_size(self, size: tuple[int, int], name: str) -> None:
        """Check the size of a picture before it is decoded.

        Args:
            size: width and height in pixels.
            name: name of the picture for error messages.

        Raises:
            UnreadableMediaError: the picture has no pixels.
            LimitError: the picture exceeds a limit.
        """
        width, height = size
        if min(size) < 1:
            raise UnreadableMediaError(f"{name} has no pixels")
        if width * height > self.max_pixels:
            raise LimitError(f"{name}: {width}x{height} exceeds the limit of {self.max_pixels} pixels; scale it down")
        if max(size) > self.max_aspect_ratio * min(size):
            raise LimitError(f"{name}: {width}x{height} exceeds the aspect ratio {self.max_aspect_ratio}:1; crop it")

    def check_scaled(self, pixels: int, name: str) -> None:
        """LimitError if `pixels` is greater than `max_scaled_pixels`; `name`: the field that asks for them."""
        if pixels > self.max_scaled_pixels:
            raise LimitError(f"{name} asks for {pixels} pixels, more than the limit of {self.max_scaled_pixels}")


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class PixelBudget:
    """The size to which a picture, or each frame of a video, is scaled for the model.

    Without any field, the checkpoint's own processor chooses the size. Names as in qwen-vl-utils and the OpenAI API.

    Raises:
        MessageError: a value is wrong, or two contradict each other; the message names the field.
    """

    min_pixels: int | None = None
    """Minimum width x height; replaces the minimum of the processor."""
    max_pixels: int | None = None
    """Maximum width x height; replaces the maximum of the processor."""
    total_pixels: int | None = None
    """Maximum width x height x frames of a video."""
    resized_height: int | None = None
    """Exact height, rounded to whole patches; requires `resized_width` and excludes the bounds above."""
    resized_width: int | None = None
    """Exact width, rounded to whole patches."""
    detail: Literal["auto", "low", "high", "original"] | None = None
    """"low": at most 512 x 512 pixels, within the processor's own bounds. All others: the size that the processor
    chooses by itself; stored as None."""

    def __post_init__(self) -> None:
        if self.detail not in (None, "auto", "low", "high", "original"):
            raise MessageError(f"detail must be 'auto', 'low' or 'high', got {str(self.detail)[:40]!r}")
        if self.detail != "low":
            object.__setattr__(self, "detail", None)
        for name in _NAMES:
            object.__setattr__(self, name, whole_number(getattr(self, name), name))
        if (self.resized_height is None) != (self.resized_width is None):
            raise MessageError("resized_height and resized_width belong together: send both, or min_pixels, max_pixels")
        given = list(self.as_dict())
        bounds = [name for name in given if not name.startswith("resized")]
        if (bounds and self.resized_height is not None) or (self.detail and len(bounds) > 1):
            raise MessageError(f"{' and '.join(given)} contradict each other: send only one kind of size")
        if self.min_pixels is not None and self.min_pixels > (self.max_pixels or math.inf):
            raise MessageError(f"min_pixels ({self.min_pixels}) is greater than max_pixels ({self.max_pixels})")

    def check(self, limits: Limits, frames: int = 1) -> None:
        """Check this budget for one picture, or for a video.

        Args:
            limits: limits of the request.
            frames: number of frames; 1 for a picture.

        Raises:
            LimitError: the size exceeds `limits.max_scaled_pixels` or `limits.max_aspect_ratio`.
            MessageError: `total_pixels` is less than `min_pixels` x `frames`.
        """
        for name in ("min_pixels", "max_pixels"):
            limits.check_scaled((getattr(self, name) or 0) * (frames if name == "min_pixels" else 1), name)
        limits.check_scaled(self.total_pixels or 0, "total_pixels")
        if self.resized_height is not None and self.resized_width is not None:
            limits.check_size((self.resized_width, self.resized_height), "resized_width x resized_height")
            limits.check_scaled(self.resized_height * self.resized_width * frames, "resized_height x resized_width")
        if self.total_pixels is not None and self.total_pixels < (self.min_pixels or 0) * frames:
            raise MessageError(f"total_pixels ({self.total_pixels}) is less than min_pixels x {frames} frames")

    def bounds(self, least: int, most: int, frames: int | None = None) -> tuple[int, int]:
        """Bounds for width x height of a picture, or for width x height x frames of a video.

        `least` and `most` are the bounds of the checkpoint's processor. For a video, `most` applies to all frames
        together, even with `max_pixels`; `total_pixels` replaces it.
        """
        each = frames or 1
        if self.detail == "low":
            return least, max(least, min(most, LOW_DETAIL * each))
        low = least if self.min_pixels is None else self.min_pixels * each
        high = most if self.total_pixels is None else self.total_pixels
        if self.max_pixels is not None:
            high = self.max_pixels if frames is None else min(high, self.max_pixels * frames)
        if low > high:  # the request overrides the bound of the processor
            low, high = (high, high) if self.min_pixels is None else (low, low)
        return low, high

    def exact_size(self, factor: int) -> tuple[int, int] | None:
        """(width, height) in whole patches of `factor` pixels, if an exact size is set."""
        if self.resized_height is None or self.resized_width is None:
            return None
        sides = (self.resized_width, self.resized_height)
        width, height = (max(factor, round(side / factor) * factor) for side in sides)
        return width, height

    def target_size(self, size: tuple[int, int], frames: int | None = None) -> tuple[int, int]:
        """(width, height) of a picture of `size` within this budget, for a server that receives no budget.

        `frames`: number of frames of a video, each of which gets this size.
        """
        if exact := self.exact_size(_FACTOR):
            return exact
        low, high = (bound // (frames or 1) for bound in self.bounds(frames or 1, 2**63, frames))
        if self.detail == "low":
            high = LOW_DETAIL
        area = size[0] * size[1]
        if low <= area <= high:
            return size
        scale, rounded = (math.sqrt(high / area), math.floor) if area > high else (math.sqrt(low / area), math.ceil)
        width, height = (max(1, rounded(side * scale / _FACTOR)) * _FACTOR for side in size)
        return width, height

    def tag(self) -> bytes:
        """Bytes that identify this budget in a digest; empty without any field."""
        return " ".join(f"{name}={value}" for name, value in self.as_dict().items()).encode()

    def as_dict(self) -> dict[str, Any]:
        """The fields that are set, for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a number of Python or numpy; booleans are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def whole_number(value: object, name: str, least: int = 1) -> int | None:
    """`value` as an int; None stays None. MessageError that names `name` unless it is a whole number >= `least`."""
    if value is None:
        return None
    if not is_number(value) or value != value // 1 or value < least:
        raise MessageError(f"{name} must be a whole number, at least {least}, got {str(value)[:40]!r}")
    return int(value)


OWN_SIZE = PixelBudget()
"""The checkpoint's processor chooses the size."""
