"""What one request may cost: bounds on bytes, pixels, pictures, videos and frames."""

from __future__ import annotations

from dataclasses import dataclass, fields

from vlroute.checks import Whole, refused
from vlroute.errors import LimitError, UnreadableMediaError


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may cost. Checked before pixels are decoded; over a limit is a `LimitError`.

    A number that is not positive (or `max_frames` below 2) is a `SettingsError`.
    """

    max_bytes: int = 20 * 2**20
    """Bytes of one encoded picture."""
    max_pixels: int = 2**26
    """Width x height of one picture or of one frame (64 Mi: every phone camera up to 64 megapixels)."""
    max_scaled_pixels: int = 2**25
    """Width x height (x frames of a video) to which a request may scale a picture or video for the model.
    Qwen3-VL's own processor stops at 2**24 for a picture and at 25 million for a video."""
    max_aspect_ratio: int = 200
    """Longer side over shorter side; Qwen3-VL's processor refuses more than 200."""
    max_images: int = 16
    """Pictures in a request, history included."""
    max_videos: int = 4
    """Videos in a request, history included."""
    max_video_bytes: int = 256 * 2**20
    """Bytes of one encoded video."""
    max_frames: int = 768
    """Frames of one video; a longer video file is sampled more thinly, longer frame lists are refused."""
    max_video_pixels: int = 2**27
    """Width x height x frames of one video; a video file's frames are shrunk to fit, frame lists are refused.
    Qwen3-VL's processor shrinks a video to 25 million pixels anyway."""
    max_coded_frames: int = 216_000
    """Frames in a video file before sampling (one hour at 60 a second): bounds the decoding work."""
    local_files: bool = True
    """Whether a path may name a file of this machine. A server that takes messages from others says False."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            least = 2 if item.name == "max_frames" else 1
            if item.name != "local_files":
                object.__setattr__(self, item.name, Whole(least, 2**63 - 1).read(f"Limits.{item.name}", value))
            elif not isinstance(value, bool):
                raise refused(f"Limits.{item.name}", value, "True or False")

    def check_size(self, size: tuple[int, int], name: str) -> None:
        """Raises unless a picture of `size` (width, height) may be decoded; errors call it `name`."""
        width, height = size
        if min(size) < 1:
            raise UnreadableMediaError(f"{name} has no pixels")
        if width * height > self.max_pixels:
            raise LimitError(f"{name}: {width}x{height} is over the limit of {self.max_pixels} pixels; scale it down")
        if max(size) > self.max_aspect_ratio * min(size):
            raise LimitError(f"{name}: {width}x{height} is longer than {self.max_aspect_ratio}:1; crop it")

    def check_scaled(self, pixels: int, name: str) -> None:
        """LimitError if `pixels` is greater than `max_scaled_pixels`; `name`: the field that asks for them."""
        if pixels > self.max_scaled_pixels:
            raise LimitError(f"{name} asks for {pixels} pixels, more than the limit of {self.max_scaled_pixels}")


DEFAULT_LIMITS = Limits()
