"""Edge cases of inputs: pictures with damaged metadata, unusual layouts, open files, data URIs."""

from __future__ import annotations

import base64
import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlroute import InputError, LimitError, Limits, UnreadableMediaError, load_picture, load_video

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
NO_FILES = Limits(local_files=False)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(source: Any) -> Any:
    return np.asarray(load_picture(source).image)


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc or zlib.crc32(kind + body))


def png(width: int, depth: int, color_type: int, row: bytes, *chunks: bytes) -> bytes:
    """One row of pixels, and chunks before them."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, color_type, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + data + chunk(b"IEND", b"")


PNG = encode(PICTURE, "PNG")
CLEAR, NEARLY = (0x1234, 0x2345, 0x3456), (0x1299, 0x2345, 0x3456)
JPEG = encode(PICTURE, "JPEG")
WEBP = encode(PICTURE, "WEBP", lossless=True)
kinds = st.sampled_from(
    [
        b"eXIf",
        b"iCCP",
        b"tEXt",
        b"zTXt",
        b"iTXt",
        b"pHYs",
        b"gAMA",
        b"cHRM",
        b"sRGB",
        b"tIME",
        b"sPLT",
        b"acTL",
        b"fcTL",
    ]
)
heads = st.sampled_from(
    [b"", b"Exif\0\0", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0",
     b"ICC_PROFILE\0\x01\x02", b"MPF\0", b"JFIF\0", b"Adobe", b"Photoshop 3.0\0", b"key\0\0", b"key\0\0\0\0\0"]
)  # fmt: skip
#: Up to a whole EXIF entry that gives the orientation a wrong type or value.
tails = st.binary(max_size=60) | st.binary(max_size=8).map(lambda value: b"\x01\0\x12\x01\x03\0" + value)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None, database=None)
@given(kinds, heads, tails, st.sampled_from([None, 1]))
def test_broken_metadata_do_not_refuse_a_png(kind: bytes, head: bytes, tail: bytes, crc: int | None) -> None:
    body = head + tail
    for file in (PNG[:33] + chunk(kind, body, crc) + PNG[33:], PNG[:-12] + chunk(kind, body, crc) + PNG[-12:]):
        assert sorted(load_picture(file).size) == [24, 32]
    zipped = chunk(kind, head + zlib.compress(bytes(2**21)), crc)
    assert np.array_equal(pixels(PNG[:33] + zipped + PNG[33:]), PIXELS)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None, database=None)
@given(st.sampled_from([*range(0xE0, 0xF0), 0xFE]), heads, tails)
def test_broken_metadata_do_not_refuse_a_jpeg(marker: int, head: bytes, tail: bytes) -> None:
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(head + tail) + 2) + head + tail
    for fill in (b"", b"\xff" * 5):
        assert sorted(load_picture(JPEG[:2] + fill + segment + JPEG[2:]).size) == [24, 32]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=100, deadline=None, database=None)
@given(st.sampled_from(["WEBP", "AVIF", "TIFF", "PNG", "PIL"]), heads, tails)
def test_broken_exif_does_not_refuse_any_format(format: str, head: bytes, tail: bytes) -> None:
    body = head + tail
    if format == "WEBP":
        frame = struct.pack("<I", 31)[:3] + struct.pack("<I", 23)[:3]
        inside = b"WEBPVP8X" + struct.pack("<IB3x", 10, 8) + frame + WEBP[12:]
        inside += b"EXIF" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
        file: Any = b"RIFF" + struct.pack("<I", len(inside)) + inside
    elif format == "PIL":
        file = PICTURE.copy()
        file.info["exif"] = body
    else:
        try:
            file = encode(PICTURE, format, exif=body)
        except Exception:  # a library that does not even write this
            return
    assert sorted(load_picture(file).size) == [24, 32]


def test_broken_exif_is_no_warning() -> None:
    """In a process of its own: pytest resets the filters."""
    script = """
import io
from PIL import Image
from vlroute import load_picture
file = io.BytesIO()
Image.new("RGB", (30, 20)).save(file, "JPEG", exif=b"Exif\\0\\0II*\\0\\x08\\0\\0\\0\\xff\\xff\\x12\\x01")
load_picture(file.getvalue())
"""
    done = subprocess.run([sys.executable, "-W", "default", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_the_orientation_of_good_exif_is_kept_beside_broken_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    broken = chunk(b"iCCP", b"no profile")
    file = encode(PICTURE, "PNG", exif=exif.tobytes())
    assert load_picture(file[:33] + broken + file[33:]).size == (24, 32)
    photo = encode(PICTURE, "JPEG", exif=exif.tobytes())
    assert load_picture(photo[:2] + b"\xff\xe2\0\x0eICC_PROFILE\0" + photo[2:]).size == (24, 32)


@pytest.mark.parametrize(
    ("file", "seen"),
    [
        (png(2, 16, 0, struct.pack(">2H", 300, 40_000), chunk(b"tRNS", struct.pack(">H", 300))), [255, 156]),
        (png(2, 16, 0, struct.pack(">2H", 300, 301), chunk(b"tRNS", struct.pack(">H", 300))), [255, 1]),
        (png(2, 8, 0, bytes([3, 200]), chunk(b"tRNS", struct.pack(">H", 3))), [255, 200]),
        (png(2, 4, 0, bytes([0x3A]), chunk(b"tRNS", struct.pack(">H", 3))), [255, 170]),
        (png(4, 2, 0, bytes([0b00011011]), chunk(b"tRNS", struct.pack(">H", 1))), [0, 255, 170, 255]),
        (png(2, 16, 2, struct.pack(">6H", 300, 0, 0, 9, 9, 9), chunk(b"tRNS", b"\x01\x2c\0\0\0\0")), [255, 0]),
        (png(2, 16, 2, struct.pack(">6H", *CLEAR, *NEARLY), chunk(b"tRNS", struct.pack(">3H", *CLEAR))), [255, 0x12]),
        (png(2, 8, 0, bytes([3, 200]), chunk(b"tRNS", b"\0")), [3, 200]),  # of a wrong size: ignored
        (png(1, 8, 6, bytes([9, 9, 9, 255]), chunk(b"tRNS", b"\0\3")), [9]),
        (png(2, 8, 3, b"\0\1", chunk(b"PLTE", bytes([1, 1, 1, 4, 4, 4])), chunk(b"tRNS", bytes(300))), [1, 4]),
        (png(2, 8, 3, b"\0\1", chunk(b"PLTE", bytes([1, 1, 1, 4, 4, 4])), chunk(b"tRNS", bytes(1))), [255, 4]),
    ],
)  # fmt: skip
def test_a_transparent_color_is_laid_on_white_at_every_depth(file: bytes, seen: list[int]) -> None:
    assert pixels(file)[0, :, 0].tolist() == seen


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_premultiplied_modes_equal_plain_ones(mode: str) -> None:
    plain = Image.new(mode, (4, 4), (200, 128) if mode == "LA" else (200, 0, 0, 128))
    assert np.array_equal(pixels(plain.convert(f"{mode[:-1]}a")), pixels(plain))


def test_every_mode_of_pillow_is_read_or_refused() -> None:
    grey, color = ["1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B"], ["P", "PA", "RGB", "RGBA", "RGBa", "RGBX"]
    for mode in [*grey, *color, "CMYK", "YCbCr", "LAB", "HSV"]:
        assert load_picture(Image.new(mode, (4, 4))).image.mode == "RGB", mode


def test_arrays_are_read_channels_last_unless_told_otherwise() -> None:
    first = np.moveaxis(PIXELS, -1, 0)
    for axis in (0, -3, np.int64(0)):
        assert load_picture(first, channel_axis=axis) == load_picture(PIXELS)
    assert load_picture(np.moveaxis(PIXELS, -1, 1), channel_axis=1) == load_picture(PIXELS)
    flat = np.zeros((3, 200, 3), np.uint8)
    assert load_picture(flat).size == (200, 3)
    for array in (first, PIXELS[None], PIXELS[:, :, :2]):
        with pytest.raises(UnreadableMediaError, match="channel_axis"):
            load_picture(array)
    for axis in (3, -4, 0.5, "0"):
        with pytest.raises(UnreadableMediaError, match="channel_axis"):
            load_picture(PIXELS, channel_axis=axis)  # type: ignore[arg-type]
    with pytest.raises(UnreadableMediaError, match="channel_axis"):
        load_picture(PICTURE, channel_axis=0)


@pytest.mark.parametrize("axis", [0, 1, -1, True])
def test_a_gray_array_has_no_channel_axis(axis: Any) -> None:
    for source in (np.zeros((5, 7), np.uint8), *([np.zeros((3, 4, 5), np.uint8)] if axis is True else [])):
        with pytest.raises(UnreadableMediaError, match="channel_axis"):
            load_picture(source, channel_axis=axis)
        with pytest.raises(UnreadableMediaError, match="channel_axis"):
            load_video([source, source], channel_axis=axis)


def test_frames_are_read_channels_last_unless_told_otherwise() -> None:
    frames = np.random.default_rng(1).integers(0, 256, (4, 20, 3, 3), dtype=np.uint8)
    video = load_video(frames)
    assert video.size == (3, 20)
    assert load_video(np.moveaxis(frames, -1, 1), channel_axis=1) == video
    assert load_video([np.moveaxis(frame, -1, 0) for frame in frames], channel_axis=0) == video
    assert load_video(frames.swapaxes(1, 2)).size == (20, 3)
    with pytest.raises(UnreadableMediaError, match="channel_axis"):
        load_video(np.zeros((4, 3, 20, 20), np.uint8))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(40), "HEIC"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<svg/>", "SVG"),
        (b"\0\0\0\x18ftypisom" + bytes(40), "video"),
        (b"%PDF-1.7\n", "PDF"),
        (b"nothing known", "format"),
    ],
)
def test_foreign_formats_are_named_and_the_known_ones_listed(data: bytes, kind: str) -> None:
    with pytest.raises(UnreadableMediaError, match=kind) as caught:
        load_picture(data)
    assert "PNG" in str(caught.value)
    assert "JPEG" in str(caught.value)


def test_open_files_and_buffers_are_read_from_their_beginning(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")  # its position is at the end
    with path.open("rb") as file, path.open("rb", buffering=0) as raw:
        for source in (buffer, file, file, raw):
            assert load_picture(source, NO_FILES) == load_picture(PICTURE)
            assert load_picture(source, Limits(max_bytes=len(PNG))) == load_picture(PICTURE)
            with pytest.raises(LimitError, match="bytes"):
                load_picture(source, Limits(max_bytes=len(PNG) - 1))
    with pytest.raises(UnreadableMediaError, match="closed"):
        load_picture(file)
    with path.open(encoding="latin-1") as text, pytest.raises(UnreadableMediaError, match="rb"):
        load_picture(text)  # type: ignore[arg-type]


def test_home_folders_and_file_addresses_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a picture.png").write_bytes(PNG)
    address = (tmp_path / "a picture.png").as_uri()
    for source in ("~/a picture.png", Path("~/a picture.png"), address, "FILE" + address[4:]):
        assert load_picture(source) == load_picture(PICTURE)
        with pytest.raises(UnreadableMediaError, match="not allowed"):
            load_picture(source, NO_FILES)
    for source in ("file://other-host/a.png", " http://example.org/a.png", "S3://bucket/a.png"):
        with pytest.raises(UnreadableMediaError):
            load_picture(source)


BASE64 = base64.b64encode(PNG).decode()


def wrapped(text: str, width: int, end: str) -> str:
    return "".join(text[at : at + width] + end for at in range(0, len(text), width))


@pytest.mark.parametrize(
    "uri",
    [
        f"DATA:IMAGE/PNG;BASE64,{BASE64}",
        f" \n data:image/png;base64, {BASE64}\n",
        f"data:;base64,{BASE64}",
        f"data:image/png;name=a.png;charset=utf-8; base64,{BASE64}",
        "data:image/png;base64," + wrapped(BASE64, 76, "\n"),
        "data:image/png;base64," + wrapped(BASE64, 64, "\r\n"),
        "data:image/png;base64," + quote(BASE64, safe=""),
        "data:image/png;base64," + wrapped(BASE64, 76, "%0A"),
        "data:image/png;base64," + BASE64.rstrip("="),
        "data:image/png;base64," + BASE64 + "==",
        "data:image/png;base64," + BASE64.translate(str.maketrans("+/", "-_")),
    ],
)
def test_data_uris_as_tools_write_them(uri: str) -> None:
    assert load_picture(uri, NO_FILES) == load_picture(PICTURE)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("data:image/png;base64", "must look like"),
        ("data:image/png,%89PNG", "must look like"),
        ("data:image/png;base64,", "no data"),
        ("data:image/png;base64,====", "no data"),
        ("data:image/png;base64,iVBO*Rw0", "4"),
        ("data:image/png;base64,iVBO=Rw0", "4"),
        ("data:image/png;base64,iVBOR", "missing"),
        ("data:image/png;base64,iVBÖRw0K", "ASCII"),
        ("data:image/png;base64,iVBO%zzR", "4"),
    ],
)
def test_damaged_data_uris_say_what_is_wrong(uri: str, why: str) -> None:
    with pytest.raises(UnreadableMediaError, match=why):
        load_picture(uri)


@settings(max_examples=150, deadline=None, database=None)
@given(st.data())
def test_whatever_is_done_to_a_data_uri_it_is_read_or_refused(data: st.DataObject) -> None:
    text = "data:image/png;base64," + BASE64
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 60))
        piece = data.draw(st.sampled_from([" ", "\n", "%0A", "%", "=", ";", ",", "\0", "é", "-", "_", "data:"]))
        text = text[:at] + piece + text[at + data.draw(st.integers(0, 1)) :]
    with contextlib.suppress(InputError):
        assert load_picture(text, NO_FILES).image.mode == "RGB"
