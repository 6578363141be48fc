"""Videos at the edges: frames chosen as Qwen3VLVideoProcessor chooses them, options of a part, sizes for the model."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor, Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata
from transformers.video_utils import load_video as decode

from vlroute import (
    FrameSampling,
    InputError,
    LimitError,
    Limits,
    MessageError,
    Router,
    UnreadableMediaError,
    load_video,
)
from vlroute.inputs.messages import parse

av = pytest.importorskip("av")
ROOMY = Limits()
STEP = 4  # red of a frame: its number times this


def write(path: Path, times: list[int], base: Fraction, rate: Fraction | None = None) -> Path:
    """A video whose frame i is shown at times[i] x base seconds and is red by 4 x i, without loss."""
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1" if path.suffix == ".mkv" else "png", rate=rate or 1 / base)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "bgr0" if path.suffix == ".mkv" else "rgb24"
        stream.time_base = base
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_image(Image.new("RGB", (16, 16), (STEP * index % 256, STEP * index // 256, 0)))
            frame.pts, frame.time_base = time, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def chosen(video: Any) -> list[int]:
    return [(red + 256 * green) // STEP for red, green, _ in (frame.getpixel((0, 0)) for frame in video.frames)]


def expected(path: Path, processor: Any, **options: Any) -> list[int]:
    """What transformers takes of the file, by its own decoder and sampler."""
    found: list[Any] = []

    def sample(metadata: VideoMetadata, **_: Any) -> Any:
        found.append(processor.sample_frames(metadata, **options))
        return found[0]

    decode(str(path), sample_indices_fn=sample, backend="pyav")
    return [int(index) for index in found[0]]


RATES = [Fraction(1), Fraction(5), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(60)]


@pytest.mark.parametrize("rate", RATES, ids=str)
def test_the_frames_of_a_file_are_those_of_the_processor(rate: Fraction, tmp_path: Path) -> None:
    processor = Qwen3VLVideoProcessor()
    for count in [*range(2, 42), 59, 60, 61, 89, 90, 91, 120, 121]:
        path = write(tmp_path / f"{count}.mov", [*range(count)], 1 / rate)
        assert chosen(load_video(path)) == expected(path, processor), count
        if count % 7 == 0:
            for fps in (0.5, 1, 3, 7.5):
                assert chosen(load_video(path, fps=fps)) == expected(path, processor, fps=fps), (count, fps)


@pytest.mark.parametrize("seed", range(12))
def test_the_frames_of_a_file_with_a_variable_rate_are_those_of_the_processor(seed: int, tmp_path: Path) -> None:
    drawn = np.random.default_rng(seed)
    times = np.cumsum(drawn.integers(1, 40, drawn.integers(4, 120))).tolist()
    path = write(tmp_path / "clip.mov", times, Fraction(1, 100))
    video = load_video(path)
    assert chosen(video) == expected(path, Qwen3VLVideoProcessor())
    assert video.times == pytest.approx([(times[index] - times[0]) / 100 for index in chosen(video)])


def test_a_container_without_a_frame_count_is_sampled_the_same(tmp_path: Path) -> None:
    for count in (7, 30, 61):
        mkv, mov = (write(tmp_path / f"{count}.{kind}", [*range(count)], Fraction(1, 25)) for kind in ("mkv", "mov"))
        assert chosen(load_video(mkv)) == chosen(load_video(mov))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds at ten frames a second."""
    return write(tmp_path_factory.mktemp("clip") / "clip.mov", [*range(60)], Fraction(1, 10))


def of_part(clip: Path, limits: Limits = ROOMY, **options: Any) -> Any:
    part = {"type": "video", "path": str(clip), **options}
    return parse([{"role": "user", "content": [part, {"type": "text", "text": "?"}]}], limits=limits).videos[0]


@pytest.mark.parametrize(
    ("options", "indices"),
    [
        ({}, np.linspace(0, 59, 12)),
        ({"fps": 1}, np.linspace(0, 59, 6)),
        ({"fps": None}, np.linspace(0, 59, 12)),
        ({"nframes": 5}, np.linspace(0, 59, 5)),
        ({"num_frames": 5.0}, np.linspace(0, 59, 5)),
        ({"max_frames": 3}, np.linspace(0, 59, 3)),
        ({"min_frames": 20}, np.linspace(0, 59, 20)),
        ({"min_frames": 600}, np.arange(60)),
        ({"fps": 5, "max_frames": 8}, np.linspace(0, 59, 8)),
        ({"video_start": 2}, np.linspace(20, 59, 8)),
        ({"video_end": 1.95}, np.linspace(0, 19, 4)),
        ({"video_start": 2.0, "video_end": 3.0, "fps": 10}, np.arange(20, 31)),
        ({"video_start": 5, "video_end": 99, "nframes": 2}, [50, 59]),
    ],
)
def test_options_of_a_part_choose_the_frames(clip: Path, options: dict[str, Any], indices: Any) -> None:
    video = of_part(clip, **options)
    assert chosen(video) == np.round(indices).astype(int).tolist()
    assert video.times == pytest.approx(np.round(indices) / 10)  # seconds of the whole file


@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({"nframes": 61}, MessageError, "nframes"),
        ({"nframes": 50}, LimitError, "nframes"),
        ({"min_frames": 50}, LimitError, "min_frames"),
        ({"video_start": 7}, MessageError, "video_start"),
        ({"video_start": 1.01, "video_end": 1.15}, MessageError, "video_end"),
        ({"fps": "2"}, InputError, "fps"),
        ({"fps": True}, InputError, "fps"),
        ({"video_start": "1"}, MessageError, "video_start"),
    ],
)
def test_frames_that_are_not_there_are_refused(
    clip: Path, options: dict[str, Any], error: type[Exception], field: str
) -> None:
    limits = Limits(max_frames=40) if error is LimitError else Limits()
    with pytest.raises(error, match=field):
        of_part(clip, limits, **options)
    assert len(of_part(clip, Limits(max_frames=40), max_frames=50, fps=10).frames) == 40


def test_a_pair_brings_its_own_choice_of_frames(clip: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    """The pocket pair takes 2 to 8 frames; the router knows it before the pair is loaded."""
    settings = json.loads((folders["instruct"] / "processor_config.json").read_text())
    for name, wanted in (("pocket", {}), ("other", {"fps": 1, "min_frames": 3, "max_frames": 5})):
        folder = tmp_path / name
        for mode, source in folders.items():
            shutil.copytree(source, folder / mode)
        settings["video_processor"] |= wanted
        (folder / "instruct" / "processor_config.json").write_text(json.dumps(settings))
        router = Router.from_pretrained(folder)
        processor = AutoProcessor.from_pretrained(folder / "instruct").video_processor
        chat = router.chat()
        chat.send("?", videos=clip, mode="instruct", max_new_tokens=1)
        assert chosen(chat.history[0].message.videos[0]) == expected(clip, processor)
    # as older checkpoints keep them
    (folder / "instruct" / "processor_config.json").unlink()
    (folder / "instruct" / "preprocessor_config.json").write_text(json.dumps(settings["image_processor"]))
    (folder / "instruct" / "video_preprocessor_config.json").write_text(json.dumps({"fps": 3, "max_frames": 30}))
    router = Router.from_pretrained(folder)
    assert (router.sampling().fps, router.sampling().min_frames, router.sampling().max_frames) == (3, 4, 30)
    assert Router.from_pretrained("nobody/no-such-pair").sampling() == FrameSampling()


def test_what_has_no_effect_on_a_video_is_refused(clip: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(3)]
    video = load_video(frames)
    for source, options, name in [
        (video, {"fps": 9}, "fps"),
        ((frames, [0, 1, 2]), {"fps": 9}, "fps"),
        (frames, {"sampling": FrameSampling(nframes=2)}, "sampling"),
        (video, {"sampling": FrameSampling(nframes=2)}, "sampling"),
        (clip, {"fps": 9, "sampling": FrameSampling(nframes=2)}, "nframes"),
        (clip, {"channel_axis": 0}, "channel_axis"),
        (video, {"channel_axis": "x"}, "channel_axis"),
    ]:
        with pytest.raises(InputError, match=name):
            load_video(source, **options)  # type: ignore[arg-type]


def test_paths_of_frames_are_not_taken_for_videos(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        path = tmp_path / f"frame.{kind.lower()}"
        Image.new("RGB", (8, 8)).save(path, kind)
        with pytest.raises(UnreadableMediaError, match="picture"):
            parse("What happens?", videos=[str(path), str(path)])
        assert len(parse("What happens?", videos=[[str(path), str(path)]]).videos[0].frames) == 2
