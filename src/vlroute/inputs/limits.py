"""Limits of one request: bytes, pixels, pictures, videos and frames."""

from __future__ import annotations

from dataclasses import dataclass, fields

from vlroute.checks import Whole, refused
from vlroute.errors import LimitError, UnreadableMediaError


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
