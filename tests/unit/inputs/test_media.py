"""Pictures: every format and source gives the same pixels and digest; damage and excess give typed errors."""

from __future__ import annotations

import base64
import io
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlroute.errors import InputError, LimitError, UnreadableMediaError
from vlroute.inputs.image import PIECE_PIXELS, pieces, to_array
from vlroute.inputs.limits import Limits
from vlroute.inputs.media import Picture, load_picture

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
LOSSLESS = ["PNG", "BMP", "DIB", "PPM", "TGA", "TIFF", "WEBP", "JPEG2000"]
Image.init()
LOSSY = ["JPEG", "MPO", "GIF", *(["AVIF"] if "AVIF" in Image.SAVE else [])]
OPTIONS: dict[str, dict[str, object]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **{**OPTIONS.get(format, {}), **options})
    return file.getvalue()


def pixels(source: object) -> np.ndarray:
    return np.asarray(load_picture(source).image)


def data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_formats_keep_every_pixel(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{format.lower()}"
    path.write_bytes(encode(PICTURE, format))
    assert np.array_equal(pixels(path), PIXELS)


@pytest.mark.parametrize("format", LOSSY)
def test_lossy_formats_stay_close(format: str) -> None:
    smooth = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    assert np.abs(pixels(encode(smooth, format)).astype(int) - np.asarray(smooth)).max() < 24


def test_one_content_has_one_digest_wherever_it_comes_from(tmp_path: Path) -> None:
    data = encode(PICTURE, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    sources = [path, str(path), data, bytearray(data), memoryview(data), PICTURE, PIXELS, data_uri(data)]
    sources += [encode(PICTURE, "BMP"), PIXELS.astype(np.float64) / 255, load_picture(PICTURE)]
    assert {load_picture(source) for source in sources} == {load_picture(data)}
    assert len(load_picture(data).digest) == 64
    again = pickle.loads(pickle.dumps(load_picture(data)))
    assert again == load_picture(data)


def test_digest_tells_shape_and_content_apart() -> None:
    flat = np.zeros((6, 4, 3), np.uint8)
    other = flat.copy()
    other[0, 0, 0] = 1
    shapes = [flat, flat.reshape(4, 6, 3), flat.reshape(2, 12, 3), other]
    assert len({load_picture(array).digest for array in shapes}) == 4


def test_picture_is_returned_as_it_is_and_independent_of_its_source() -> None:
    array = PIXELS.copy()
    image = PICTURE.copy()
    of_array, of_image = load_picture(array), load_picture(image)
    array[:] = 0
    image.paste("black", (0, 0, *image.size))
    assert load_picture(of_array) is of_array
    assert np.array_equal(np.asarray(of_array.image), PIXELS)
    assert np.array_equal(np.asarray(of_image.image), PIXELS)
    assert (of_array.size, of_array.image.info) == ((32, 24), {})


STORED = {  # how a camera stores what should be seen as `a`
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG", "PIL"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied_once(orientation: int, format: str) -> None:
    seen = PIXELS if format != "JPEG" else np.kron(PIXELS[:2, :3], np.ones((16, 16, 1), np.uint8))
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](seen)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encode(stored, "PNG" if format == "PIL" else format, exif=exif.tobytes())
    picture = load_picture(Image.open(io.BytesIO(file)) if format == "PIL" else file)
    difference = np.abs(np.asarray(picture.image).astype(int) - seen)
    assert np.median(difference) <= (4 if format == "JPEG" else 0)
    assert load_picture(picture.image) == picture
    assert not picture.image.getexif()


def test_transparency_is_flattened_on_white() -> None:
    clear = PICTURE.convert("RGBA")
    clear.putalpha(Image.new("L", PICTURE.size, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    for source in (
        clear,
        encode(clear, "PNG"),
        encode(clear, "WEBP"),
        np.asarray(clear),
        clear.convert("LA"),
        Image.new("PA", (4, 4)),
        encode(palette, "PNG", transparency=1),
        encode(palette, "GIF", transparency=1),
        encode(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        encode(Image.new("L", (4, 4), 7), "PNG", transparency=7),
    ):
        assert (pixels(source) == 255).all()
    assert (pixels(half) == 127).all()


def test_other_modes_become_rgb() -> None:
    assert (pixels(encode(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF")) == (255, 0, 0)).all()
    assert (pixels(encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")) == 255).all()
    assert (pixels(encode(Image.new("1", (4, 4), 1), "PNG")) == 255).all()
    assert np.array_equal(pixels(encode(PICTURE.convert("P"), "GIF")), np.asarray(PICTURE.convert("P").convert("RGB")))
    assert pixels(Image.new("HSV", (4, 4))).shape == pixels(Image.new("YCbCr", (4, 4))).shape == (4, 4, 3)
    assert (pixels(np.array([[True, False]]))[0] == [[255] * 3, [0] * 3]).all()
    assert (pixels(np.full((2, 2, 1), 0.5)) == 128).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(format: str) -> None:
    grey = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)
    assert pixels(encode(Image.fromarray(grey), format))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_an_animation_shows_its_first_frame() -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for format in ("GIF", "WEBP", "PNG"):
        file = encode(red, format, save_all=True, append_images=[blue])
        assert (pixels(file) == (255, 0, 0)).all(), format


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("format", [*LOSSLESS, *LOSSY])
def test_a_truncated_file_is_an_error_never_half_a_picture(format: str) -> None:
    file = encode(PICTURE, format)
    whole = load_picture(file)
    refused = 0
    for length in range(0, len(file), max(1, len(file) // 40)):
        try:
            assert load_picture(file[:length]) == whole  # only a footer was missing
        except UnreadableMediaError:
            refused += 1
    assert refused > 30


def forged_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 12_000, 30_000, 2**31 - 1])
def test_a_forged_size_is_refused_before_decoding(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded.append)
    monkeypatch.setattr("PIL.Image.core.new", decoded.append)
    with pytest.raises(LimitError, match="pixels"):
        load_picture(forged_png(side, side))
    assert not decoded


def test_limits_are_checked_on_the_encoded_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(PICTURE, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    exact, short = Limits(max_bytes=len(data)), Limits(max_bytes=len(data) - 1)
    for source in (path, data, memoryview(data), data_uri(data)):
        assert load_picture(source, exact) == load_picture(PICTURE)
    monkeypatch.setattr("base64.b64decode", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda _: pytest.fail("read"))
    for source in (path, data, memoryview(data), data_uri(data)):
        with pytest.raises(LimitError, match="bytes"):
            load_picture(source, short)
    with pytest.raises(LimitError, match="200:1"):
        load_picture(np.zeros((1, 201), np.uint8))
    assert load_picture(np.zeros((1, 200), np.uint8)).size == (200, 1)
    with pytest.raises(LimitError, match="767 pixels"):
        load_picture(PICTURE, Limits(max_pixels=32 * 24 - 1))


@pytest.mark.parametrize("bad", [{"max_bytes": 0}, {"max_pixels": -1}, {"max_frames": 1}, {"max_images": 1.5}])
def test_limits_are_validated(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Limits(**bad)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://example.org/a.png", "download it first"),
        ("missing.png", "'missing.png' cannot be read: No such file"),
        ("x" * 5000, "path of 5000 characters"),
        ("a\0b", "null character"),
        (os.curdir, "not a regular file"),
        (b"", "bytes"),
        (b"SECRET bytes", "unknown format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not supported"),
        ("data:image/png,SECRET", "must look like"),
        ("data:image/png;base64,SECRET?", "damaged"),
        (np.zeros((4, 4), np.int64), "uint8, bool, or floats"),
        (np.zeros((3, 4, 5), np.uint8), r"\[h, w, 1|3|4\]"),
        (np.zeros((0, 4), np.uint8), r"\[h, w\]"),
        (np.full((4, 4), np.nan), "0..1"),
        (np.full((4, 4), 255.0), "0..1"),
        (Image.new("F", (4, 4), 200), "0..1"),
        (Image.new("I", (4, 4), 70_000), "0..65535"),
        (Image.new("RGB", (0, 4)), "no pixels"),
        (17, "a int is not a picture"),
        (None, "not a picture"),
    ],
)
def test_unusable_sources_say_what_to_do(source: object, message: str) -> None:
    with pytest.raises(UnreadableMediaError, match=message) as caught:
        load_picture(source)
    assert "SECRET" not in str(caught.value)


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableMediaError, match="regular file"):
        load_picture(tmp_path / "pipe")


def test_a_server_can_forbid_paths(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(encode(PICTURE, "PNG"))
    for source in (tmp_path / "picture.png", str(tmp_path / "picture.png"), "missing.png"):
        with pytest.raises(UnreadableMediaError, match="not allowed"):
            load_picture(source, Limits(local_files=False))
    assert load_picture(data_uri(encode(PICTURE, "PNG")), Limits(local_files=False)) == load_picture(PICTURE)


def test_a_picture_made_by_hand_must_be_rgb() -> None:
    with pytest.raises(UnreadableMediaError, match="RGB"):
        Picture(Image.new("L", (4, 4)))


FILES = [encode(PICTURE, format) for format in [*LOSSLESS, *LOSSY]]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=400, deadline=None, database=None)
@given(st.sampled_from(FILES), st.data())
def test_damaged_files_raise_typed_errors_only(file: bytes, data: st.DataObject) -> None:
    broken = bytearray(file)
    for _ in range(data.draw(st.integers(1, 8))):
        broken[data.draw(st.integers(0, min(len(file), 200) - 1))] = data.draw(st.integers(0, 255))
    broken = broken[: data.draw(st.integers(len(file) // 2, len(file)))]
    try:
        picture = load_picture(broken, Limits(max_pixels=2**20))
    except InputError:
        return
    assert picture.image.mode == "RGB"
    assert load_picture(picture.image) == picture


@pytest.mark.parametrize("size", [(1, 1), (300, 2000), (PIECE_PIXELS + 7, 3), (PIECE_PIXELS // 4, 9)])
def test_pieces_of_an_image_are_its_bytes(size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 90).convert("RGB")
    assert b"".join(pieces(image)) == image.tobytes()
    assert (to_array(image) == np.array(image)).all()
