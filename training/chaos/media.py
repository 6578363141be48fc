"""Small files that decode to very many pixels."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from PIL import Image

from training.chaos.fairness import PATIENCE_SECONDS, bearer, percentile

FRAMES_PER_SECOND = 30


def picture_bombs(url: str, key: str, pid: int, count: int = 8, side: int = 8192) -> dict[str, float]:
    """Send large pictures at once, each in a request of its own.

    Args:
        url: Address of the server.
        key: A valid key.
        pid: Process id of the server, of which the memory is measured.
        count: Number of requests.
        side: Width and height in pixels.

    Returns:
        Seconds until the last reply, how many requests were answered, refused, or not answered in time, the growth of
        the resident memory in MiB at its peak and at the end, and the delay of `/health`.
    """
    return _attack(url, key, pid, [picture_body(side)] * count)


def video_bomb(url: str, key: str, pid: int, frames: int = 3000, side: int = 2048) -> dict[str, float]:
    """Send a small file with many large frames.

    Args:
        url: Address of the server.
        key: A valid key.
        pid: Process id of the server, of which the memory is measured.
        frames: Number of frames.
        side: Width and height in pixels.

    Returns:
        See `picture_bombs`.
    """
    return _attack(url, key, pid, [video_body(frames, side)])


def picture_body(side: int) -> bytes:
    """A chat request with a picture of one color.

    Args:
        side: Width and height in pixels.

    Returns:
        The JSON.
    """
    return _body("image", "png", blank_png(side))


def video_body(frames: int, side: int) -> bytes:
    """A chat request with a video of one color.

    Args:
        frames: Number of frames.
        side: Width and height in pixels.

    Returns:
        The JSON.
    """
    return _body("video", "mp4", blank_video(frames, side))


def blank_png(side: int) -> bytes:
    """A picture of one color.

    Args:
        side: Width and height in pixels.

    Returns:
        The file.
    """
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "navy").save(buffer, "PNG")
    return buffer.getvalue()


def blank_video(frames: int, side: int) -> bytes:
    """A video of one color. Two frames are encoded; the second one, which changes nothing, is repeated.

    Args:
        frames: Number of frames.
        side: Width and height in pixels.

    Returns:
        The file.
    """
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=FRAMES_PER_SECOND)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        image = av.VideoFrame.from_image(Image.new("RGB", (side, side), "navy"))
        packets = [packet for _ in range(2) for packet in stream.encode(image)] + list(stream.encode(None))
        first, same = bytes(packets[0]), bytes(packets[1])
        for number in range(frames):
            packet = av.Packet(same if number else first)
            packet.stream, packet.time_base = stream, stream.codec_context.time_base
            packet.pts = packet.dts = number
            packet.duration = 1
            packet.is_keyframe = number == 0
            container.mux(packet)
    return buffer.getvalue()


def resident(pid: int) -> float:
    """Resident memory of a process, on Linux.

    Args:
        pid: The process.

    Returns:
        Its memory in MiB.
    """
    line = next(one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def _body(kind: str, subtype: str, data: bytes) -> bytes:
    uri = f"data:{kind}/{subtype};base64,{base64.b64encode(data).decode()}"
    part = {"type": f"{kind}_url", f"{kind}_url": {"url": uri}}
    message = {"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}
    return json.dumps({"model": "instruct", "messages": [message], "max_tokens": 8}).encode()


def _attack(url: str, key: str, pid: int, bodies: list[bytes]) -> dict[str, float]:
    statuses, delays, before = Counter[int](), list[float](), resident(pid)
    peak, ended = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
            while not ended.wait(0.05):
                began = time.perf_counter()
                client.get("/health")
                delays.append(time.perf_counter() - began)
                peak = max(peak, resident(pid))

    def send(body: bytes) -> int:
        headers = bearer(key) | {"Content-Type": "application/json"}
        try:
            return httpx.post(
                f"{url}/v1/chat/completions", content=body, headers=headers, timeout=PATIENCE_SECONDS
            ).status_code
        except httpx.HTTPError:
            return 0

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    began = time.perf_counter()
    with ThreadPoolExecutor(len(bodies)) as pool:
        for status in pool.map(send, bodies):
            statuses[status] += 1
    seconds = time.perf_counter() - began
    ended.set()
    watching.join()
    return {
        "seconds": seconds, "answered": statuses[200], "late": statuses[504] + statuses[0],
        "refused": len(bodies) - statuses[200] - statuses[504] - statuses[0], "peak MiB": peak - before,
        "after MiB": resident(pid) - before, "health p95 s": percentile(delays),
    }  # fmt: skip
