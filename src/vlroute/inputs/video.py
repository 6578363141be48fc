"""Decodes video files and chooses their frames as the video processor of the checkpoint does."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlroute.errors import InputError, LimitError, MessageError, UnreadableMediaError
from vlroute.inputs.decoding import current_budget
from vlroute.inputs.limits import Limits, is_number, whole_number

#: Files in which transformers looks for the settings of a video processor, in this order.
_FILES = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")


@dataclass(frozen=True, slots=True)
class FrameSampling:
    """Number of frames taken from a video file, and the part they are taken from. Defaults are those of Qwen3-VL.

    Raises:
        InputError: an unusable `fps`.
        MessageError: another value is wrong, or two contradict each other; the message names the field.
    """

    fps: float = 2.0
    """Frames taken per second."""
    min_frames: int = 4
    """Minimum number of frames, if the file has as many."""
    max_frames: int = 768
    """Maximum number of frames."""
    nframes: int | None = None
    """Exact number of frames; overrides the three fields above."""
    video_start: float | None = None
    """Start of the part, in seconds."""
    video_end: float | None = None
    """End of the part, in seconds."""

    def __post_init__(self) -> None:
        if not is_number(self.fps) or not 0 < self.fps < math.inf:
            raise InputError(f"fps must be a positive number of frames a second, got {str(self.fps)[:40]!r}")
        for name, least in (("min_frames", 1), ("max_frames", 1), ("nframes", 2)):
            object.__setattr__(self, name, whole_number(getattr(self, name), name, least))
        if self.min_frames > self.max_frames:
            raise MessageError(f"min_frames ({self.min_frames}) is greater than max_frames ({self.max_frames})")
        for name in ("video_start", "video_end"):
            second = getattr(self, name)
            if second is not None and not (is_number(second) and 0 <= second < math.inf):
                raise MessageError(f"{name} must be a number of seconds from 0 up, got {str(second)[:40]!r}")
        if self.video_end is not None and (self.video_start or 0) >= self.video_end:
            raise MessageError(f"video_start ({self.video_start or 0}) must be less than video_end ({self.video_end})")

    def asked(self, **options: Any) -> FrameSampling:
        """A copy with the options of a request, which override contradicting bounds of the checkpoint."""
        if "nframes" in options and "fps" in options:
            raise MessageError("fps and nframes contradict each other: send one of them")
        changed = replace(self, **{name: value for name, value in options.items() if not name.endswith("_frames")})
        least, most = (whole_number(options.get(name), name) for name in ("min_frames", "max_frames"))
        if "nframes" in options and not (least or 1) <= (changed.nframes or 1) <= (most or math.inf):
            bound = "min_frames" if (changed.nframes or 1) < (least or 1) else "max_frames"
            raise MessageError(f"nframes ({changed.nframes}) and {bound} ({options[bound]}) contradict each other")
        if least is not None and most is not None:
            return replace(changed, min_frames=least, max_frames=most)
        if least is not None:
            return replace(changed, min_frames=least, max_frames=max(least, self.max_frames))
        if most is not None:
            return replace(changed, min_frames=min(most, self.min_frames), max_frames=most)
        return changed

    def indices(self, times: NDArray[np.float64], rate: float, most: int) -> NDArray[np.int64]:
        """Indices of the frames to take, computed as in `Qwen3VLVideoProcessor.sample_frames`.

        Args:
            times: seconds of each frame since the first, ascending.
            rate: mean frames per second, as stated in the container.
            most: maximum number of frames; overrides `min_frames`.

        Returns:
            The indices, ascending.

        Raises:
            LimitError: `nframes` is greater than `most`.
            MessageError: there are fewer than `nframes` frames, or fewer than 2 in the chosen part.
        """
        first, last = 0, len(times)
        if self.video_start is not None:
            first = int(np.searchsorted(times, self.video_start - 1e-6))
        if self.video_end is not None:
            last = int(np.searchsorted(times, self.video_end + 1e-6, side="right"))
        total = last - first
        if total < 2 and (self.video_start is not None or self.video_end is not None):
            raise MessageError(
                f"there are fewer than 2 frames between video_start and video_end; the video ends at {times[-1]:.2f} s"
            )
        if self.nframes is not None:
            if self.nframes > most:
                raise LimitError(f"nframes asks for {self.nframes} frames, more than the limit of {most}")
            if self.nframes > total:
                raise MessageError(f"nframes asks for {self.nframes} frames, but there are only {total}")
            count = self.nframes
        else:
            count = min(max(int(min(total / rate * self.fps, total)), self.min_frames), self.max_frames, most, total)
        return np.asarray(first + np.linspace(0, total - 1, count).round(), dtype=np.int64)


DEFAULT_SAMPLING = FrameSampling()


def sampling_of(checkpoint: str | Path) -> FrameSampling | None:
    """Settings of the video processor of a checkpoint; None if the checkpoint is not on this machine.

    Args:
        checkpoint: a folder, or a hub id that may be in the local cache. Nothing is downloaded.

    Returns:
        The sampling, or None if the settings are not on this machine or damaged.
    """
    for name in _FILES:
        file = _found(checkpoint, name)
        if file is None:
            continue
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
            if name == _FILES[0]:
                settings = settings.get("video_processor")
            if settings is None:
                continue
            known = {key: settings[key] for key in ("fps", "min_frames", "max_frames") if settings.get(key) is not None}
            return FrameSampling(**known)
        except (OSError, ValueError, AttributeError, TypeError):
            return None  # damaged; loading the checkpoint reports it
    return None


def _found(checkpoint: str | Path, name: str) -> Path | None:
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(str(checkpoint), name)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


# Containers that cannot point to other files or addresses, as playlists can.
_CONTAINERS = {"format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,ogg,gif"}
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


def decode_video(
    data: bytes, name: str, limits: Limits, sampling: FrameSampling
) -> tuple[list[Image.Image], list[float]]:
    """Upright RGB frames of one size, chosen by `sampling`, and their seconds since the first frame of the file.

    Raises `LimitError` over a limit, `MessageError` for frames that do not exist, `UnreadableMediaError` if there is no
    video to decode or PyAV is missing, and errors of PyAV for damaged files.
    """
    try:
        import av
    except ImportError as error:
        message = "video files need PyAV: pip install 'vlroute[video]', or pass the frames as a list"
        raise UnreadableMediaError(message) from error

    budget = current_budget()
    # The first pass reads packets only, so it is cheap and gives the true frame times.
    stamps: set[float | None] = set()
    with av.open(io.BytesIO(data), options=_CONTAINERS) as container:
        if not container.streams.video:
            raise UnreadableMediaError(f"{name} contains no video")
        stream = container.streams.video[0]
        limits.check_size((stream.width, stream.height), name)
        for count, packet in enumerate(container.demux(stream)):
            budget.check()
            if count > limits.max_coded_frames:
                raise LimitError(f"{name} has more than {limits.max_coded_frames} frames; shorten it")
            if packet.is_corrupt:
                raise UnreadableMediaError(f"{name} is truncated or damaged at its frame {count}")
            if not packet.is_discard:  # removed by an edit list: decoded, but not shown
                stamps.add(_seconds(packet))
        rate = float(stream.average_rate or 0)
    every = np.array(sorted(stamp for stamp in stamps if stamp is not None))
    if not len(every):
        raise UnreadableMediaError(f"{name} has no frame times")
    if not 0 < rate < math.inf:
        rate = (len(every) - 1) / max(float(every[-1] - every[0]), 1e-6) or 1.0
    wanted = every[sampling.indices(every - every[0], rate, limits.max_frames)]

    frames: list[Image.Image] = []
    times: list[float] = []
    with av.open(io.BytesIO(data), options=_CONTAINERS) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        # A later frame may be larger than the header said; the decoder itself refuses it then, before it
        # allocates. Doubled because codecs round sizes up to whole blocks.
        stream.codec_context.options = {"max_pixels": str(2 * limits.max_pixels)}
        shrink = math.sqrt(limits.max_video_pixels / (len(wanted) * stream.width * stream.height))
        width, height = (max(1, int(side * min(1.0, shrink))) for side in (stream.width, stream.height))
        budget.take(len(wanted) * width * height, name, limits.max_total_pixels)
        taken = 0
        for frame in islice(container.decode(stream), limits.max_coded_frames):
            budget.check()
            time = _seconds(frame)
            if time is None or time < wanted[taken] - 1e-6:
                continue
            turn = _TURNS.get(round(getattr(frame, "rotation", 0)) % 360)
            image: Image.Image = frame.to_image(width=width, height=height, interpolation="AREA")
            frames.append(image if turn is None else image.transpose(turn))
            times.append(max(0.0, float(time - every[0])))
            taken = int(np.searchsorted(wanted, time + 1e-6, side="right"))
            if taken == len(wanted):
                break
    return frames, times


def _seconds(timed: Any) -> float | None:
    """When a packet or frame is shown; old containers such as AVI store the decoding time only."""
    stamp = timed.dts if timed.pts is None else timed.pts
    return None if stamp is None or timed.time_base is None else float(stamp * timed.time_base)
