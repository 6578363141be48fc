"""Videos: frames and times out of files and lists, within limits, damage as typed errors."""

from __future__ import annotations

import base64
import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlroute.errors import InputError, LimitError, UnreadableMediaError
from vlroute.inputs.limits import Limits
from vlroute.inputs.media import Video, load_picture, load_video

av = pytest.importorskip("av")
FRAMES = np.random.default_rng(0).integers(0, 256, (6, 24, 32, 3), dtype=np.uint8)


def write(path: Path, count: int = 30, rate: int = 10, size: tuple[int, int] = (64, 48), **options: str) -> Path:
    """A video whose red grows by 8 with every frame and whose upper left quarter is white."""
    codec = "libvpx" if path.suffix == ".webm" else "mpeg4"
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 4_000_000
        for index in range(count):
            image = Image.new("RGB", size, (8 * index % 256, 0, 0))
            image.paste("white", (0, 0, size[0] // 2, size[1] // 2))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "clip.mp4", movflags="faststart")


def reds(video: Video) -> list[int]:
    return [round(int(frame.getpixel((60, 44))[0]) / 8) for frame in video.frames]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "webm", "ts", "mov"])
def test_a_file_is_sampled_evenly_in_time(suffix: str, tmp_path: Path) -> None:
    video = load_video(write(tmp_path / f"clip.{suffix}"))
    evenly = np.linspace(0, 29, 6).round()  # 3 seconds at 2 a second, chosen as Qwen3VLVideoProcessor chooses
    assert video.times == pytest.approx(evenly / 10, abs=1e-3)
    assert np.abs(np.array(reds(video)) - evenly).max() <= 1
    assert video.size == (64, 48)
    assert video.fps == pytest.approx(5 / 2.9, rel=1e-3)


def test_path_bytes_and_data_uri_are_one_video(mp4: Path) -> None:
    data = mp4.read_bytes()
    uri = "data:video/mp4;base64," + base64.b64encode(data).decode()
    assert {load_video(source) for source in (mp4, str(mp4), data, memoryview(data), uri)} == {load_video(mp4)}


def test_the_number_of_frames_follows_fps_within_bounds(mp4: Path, tmp_path: Path) -> None:
    assert len(load_video(mp4, fps=10).frames) == len(load_video(mp4, fps=1e9).frames) == 30
    assert len(load_video(mp4, fps=0.01).frames) == 4
    assert load_video(mp4, Limits(max_frames=3), fps=10).times == pytest.approx((0, 1.45, 2.9), abs=0.051)
    assert len(load_video(write(tmp_path / "short.mp4", count=2)).frames) == 2
    with pytest.raises(UnreadableMediaError, match="send a single frame as a picture"):
        load_video(write(tmp_path / "still.mp4", count=1))


def test_large_frames_are_shrunk_to_the_pixel_budget(mp4: Path) -> None:
    video = load_video(mp4, Limits(max_video_pixels=6 * 32 * 24))
    assert (len(video.frames), video.size) == (6, (32, 24))


@pytest.mark.parametrize(
    ("matrix", "size", "white"),
    [
        ((0, 1, -1, 0), (48, 64), (40, 5)),
        ((-1, 0, 0, -1), (64, 48), (60, 40)),
        ((0, -1, 1, 0), (48, 64), (5, 60)),
    ],
)
def test_rotation_is_honoured(
    matrix: tuple[int, ...], size: tuple[int, int], white: tuple[int, int], mp4: Path
) -> None:
    a, b, c, d = (value << 16 for value in matrix)
    data = mp4.read_bytes()
    place = data.index(b"tkhd") + 4 + 20 + 20  # a track header keeps its display matrix here
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    assert data[place : place + 36] == upright
    video = load_video(data[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[place + 36 :])
    assert video.size == size
    assert min(video.frames[0].getpixel(white)) > 200


def test_video_limits_hold(mp4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LimitError, match="more than 29 frames"):
        load_video(mp4, Limits(max_coded_frames=29))
    assert len(load_video(mp4, Limits(max_coded_frames=30)).frames) == 6
    with pytest.raises(LimitError, match="64x48"):
        load_video(mp4, Limits(max_pixels=64 * 48 - 1))
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda _: pytest.fail("read"))
    with pytest.raises(LimitError, match="bytes"):
        load_video(mp4, Limits(max_video_bytes=100))


def test_damaged_files_and_other_files_are_refused(mp4: Path, tmp_path: Path) -> None:
    data = mp4.read_bytes()
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n" + mp4.as_uri().encode() + b"\n#EXT-X-ENDLIST\n"
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    for source in (
        data[: len(data) * 6 // 10],
        data[:100],
        b"",
        b"no video",
        playlist,
        picture,
        "missing.mp4",
    ):
        with pytest.raises(UnreadableMediaError):
            load_video(source)


@settings(max_examples=100, deadline=None, database=None)
@given(mutations=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
def test_mutated_files_raise_typed_errors_only(mp4: Path, mutations: list[tuple[float, int]]) -> None:
    data = bytearray(mp4.read_bytes())
    for place, value in mutations:
        data[int(place * len(data))] = value
    try:
        video = load_video(data, Limits(max_pixels=2**20, max_video_pixels=2**22))
    except InputError:
        return
    assert len(video.frames) <= 30


def test_without_pyav_the_error_says_what_to_install(mp4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UnreadableMediaError, match=r"pip install 'vlroute\[video\]'"):
        load_video(mp4)
    assert len(load_video(list(FRAMES)).frames) == 6


def test_frames_come_as_a_list_an_array_or_with_times() -> None:
    images = [Image.fromarray(frame) for frame in FRAMES]
    video = load_video(images)
    assert video.times == (0, 0.5, 1, 1.5, 2, 2.5)
    assert video.fps == 2
    assert load_video(video) is video
    times = [index / 2 for index in range(6)]
    same = [
        FRAMES,
        list(FRAMES),
        tuple(map(load_picture, images)),
        (FRAMES, times),
        (images, np.array(times)),
    ]
    assert {load_video(source) for source in same} == {video}
    assert load_video((images[0], images[1])).times == (0, 0.5)  # two frames, not frames and times
    assert load_video(images, fps=4).times[-1] == 1.25


def test_digest_covers_frames_times_and_shape() -> None:
    frames = np.zeros((2, 4, 6, 3), np.uint8)
    other = frames.copy()
    other[1, 0, 0, 0] = 1
    sources = [frames, other, frames.reshape(2, 6, 4, 3), frames.reshape(3, 4, 4, 3), (frames, [0.0, 0.6])]
    assert len({load_video(source).digest for source in sources}) == 5


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "at least 2 frames"),
        ([FRAMES[0]], "at least 2 frames"),
        ([FRAMES[0], FRAMES[1][:20]], "one size"),
        ((FRAMES, [0.0, 1.0]), "6 frames need as many times"),
        ((FRAMES[:2], [0.0, 0.0]), "each later than the last"),
        ((FRAMES[:2], [-1.0, 0.0]), "from 0 upwards"),
        ((FRAMES[:2], [0.0, math.nan]), "each later than the last"),
        ((FRAMES[:2], [0.0, math.inf]), "each later than the last"),
        ([FRAMES[0], b"no picture"], "frame 1 of a video: bytes"),
        (FRAMES[0], "cannot be read from numpy array of shape"),
        (Image.new("RGB", (8, 8)), "cannot be read from PIL image"),
        (12, "a list of frames"),
    ],
)
def test_unusable_frames_say_what_is_wrong(source: object, message: str) -> None:
    with pytest.raises(UnreadableMediaError, match=message):
        load_video(source)


def test_frame_lists_over_a_limit_are_refused() -> None:
    with pytest.raises(LimitError, match="6 frames"):
        load_video(FRAMES, Limits(max_frames=5))
    with pytest.raises(LimitError, match="frame 0"):
        load_video(FRAMES, Limits(max_video_pixels=6 * 24 * 32 - 1))
    assert load_video(FRAMES, Limits(max_frames=6, max_video_pixels=6 * 24 * 32))


@pytest.mark.parametrize("fps", [0, -1, math.nan, math.inf, "2"])
def test_fps_must_be_positive(fps: float) -> None:
    with pytest.raises(InputError, match="fps"):
        load_video(FRAMES, fps=fps)
