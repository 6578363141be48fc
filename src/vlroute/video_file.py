"""Video files: evenly spaced frames out of a container, without trusting what its header says."""

from __future__ import annotations

import io
import math
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from vlroute.errors import LimitError, UnreadableMediaError
from vlroute.frame_sampling import FrameSampling
from vlroute.limits import Limits

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

    # The first pass reads packets only, so it is cheap and gives the true frame times.
    stamps: set[float | None] = set()
    with av.open(io.BytesIO(data), options=_CONTAINERS) as container:
        if not container.streams.video:
            raise UnreadableMediaError(f"{name} holds no video")
        stream = container.streams.video[0]
        limits.check_size((stream.width, stream.height), name)
        for count, packet in enumerate(container.demux(stream)):
            if count > limits.max_coded_frames:
                raise LimitError(f"{name} has over {limits.max_coded_frames} frames; cut or thin it out")
            if packet.is_corrupt:
                raise UnreadableMediaError(f"{name} is truncated or damaged at its frame {count}")
            if not packet.is_discard:  # cut off by an edit list: decoded, but never shown
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
        taken = 0
        for frame in islice(container.decode(stream), limits.max_coded_frames):
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
