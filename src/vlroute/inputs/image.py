"""Converts decoded images and arrays to upright RGB: EXIF orientation, transparency, 16-bit values.

Metadata is removed before decoding, so that damaged metadata does not make a picture unreadable.
"""

from __future__ import annotations

import operator
import re
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from vlroute.errors import UnreadableMediaError

PIECE_PIXELS = 2**18
_PNG = b"\x89PNG\r\n\x1a\n"
#: Chunks that determine the pixels. All others are removed: text, color profiles, animation control, and chunks
#: for which Pillow would refuse the whole file.
_PNG_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_JPEG = b"\xff\xd8"
_FILL = re.compile(rb"\xff+")


def without_metadata(data: bytes) -> bytes:
    """`data` of a PNG or JPEG file with its pixels and EXIF orientation only; other formats unchanged."""
    if data.startswith(_PNG):
        return _PNG + b"".join(_png_chunks(data))
    if data.startswith(_JPEG):
        return _JPEG + b"".join(_jpeg_segments(data))
    return data


def _png_chunks(data: bytes) -> list[bytes]:
    kept: list[bytes] = []
    color_type, colors, at = -1, 0, len(_PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : end - 4]
        if kind == b"IHDR" and len(body) >= 10:
            color_type = body[9]
        elif kind == b"PLTE":
            colors = len(body) // 3
        wanted = kind in _PNG_PIXELS or end > len(data)  # the decoder reports a truncated chunk
        if kind == b"tRNS":  # ignored if it has another size, as in libpng
            wanted = {0: len(body) == 2, 2: len(body) == 6, 3: 0 < len(body) <= colors}.get(color_type, False)
        if kind in (b"tRNS", b"eXIf"):
            wanted = (wanted or kind == b"eXIf") and data[end - 4 : end] == zlib.crc32(kind + body).to_bytes(4, "big")
        if wanted:
            kept.append(data[at:end])
        at = end
    return [*kept, data[at:]]


def _jpeg_segments(data: bytes) -> list[bytes]:
    """All segments except comments and application data.

    EXIF and XMP (orientation) and complete JFIF and Adobe segments (color space) are kept.
    """
    kept: list[bytes] = []
    at = len(_JPEG)
    while fill := _FILL.match(data, at):
        at = fill.end() - 1
        if at + 4 > len(data) or data[at + 1] == 0xDA:  # the scan begins
            break
        kind, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : end]
        wanted = not (0xE0 <= kind <= 0xEF or kind == 0xFE)
        wanted |= kind == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14
        wanted |= kind == 0xE1
        wanted |= kind == 0xEE and body.startswith(b"Adobe") and len(body) >= 12
        if wanted:
            kept.append(data[at:end])
        if end < at + 4:  # a marker without a length, or a damaged one
            break
        at = end
    return [*kept, data[at:]]


# damaged EXIF is ignored, so Pillow's warning about it does not help
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning, r"PIL\.")

_Turn = Image.Transpose
_EXIF_TRANSPOSITIONS = {
    2: _Turn.FLIP_LEFT_RIGHT,
    3: _Turn.ROTATE_180,
    4: _Turn.FLIP_TOP_BOTTOM,
    5: _Turn.TRANSPOSE,
    6: _Turn.ROTATE_270,
    7: _Turn.TRANSVERSE,
    8: _Turn.ROTATE_90,
}


#: Factors by which Pillow multiplies gray values of 2 and 4 bits.
_GRAY_STEPS = {"L;2": 85, "L;4": 17}


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A new RGB image with the visible content of `image`, without metadata.

    Args:
        image: modes I and I;16 have values in 0..65535, mode F in 0..1.
        name: name for error messages.

    Returns:
        The upright image; transparent pixels are blended with white.

    Raises:
        UnreadableMediaError: values are out of range. Decoders of Pillow raise further errors.
    """
    rawmode = image.tile[0][3] if getattr(image, "tile", None) else None  # type: ignore[attr-defined]
    tinted = rawmode == "RGB;16B" and isinstance(image.info.get("transparency"), tuple)
    low = _low_bytes(image) if tinted else None
    image.load()  # before the orientation is read: in a PNG it may follow the pixels, and Pillow rotates a TIFF itself
    turn, clear = _orientation(image), image.info.get("transparency")
    # Pillow scales the pixels to 8 bits, but not the transparent value; corrected here once, in place
    if rawmode in _GRAY_STEPS and isinstance(clear, int):
        image.info["transparency"] = clear * _GRAY_STEPS[rawmode]
    elif image.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, even if loaded before
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if low is not None and isinstance(clear, tuple):
        exact = (np.asarray(image) == np.array(clear) >> 8) & (low == np.array(clear) & 255)
        image = image.copy()
        image.putalpha(Image.fromarray(np.where(exact.all(axis=2), 0, 255).astype(np.uint8)))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F":
        image = from_array(np.asarray(image), name)
    elif image.mode.startswith("I"):
        gray = np.asarray(image)
        image = _from_16_bit(gray, name)
        if isinstance(clear, int):
            image.putalpha(Image.fromarray(np.where(gray == clear, 0, 255).astype(np.uint8)))
    elif image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque)
    rgb = image.convert("RGB")
    rgb.info = {}  # otherwise the next reader would apply the orientation again
    return rgb


def pieces(image: Image.Image) -> Iterator[bytes]:
    """The bytes of an RGB image in pieces of whole rows.

    All bytes at once would double the memory of a large image, and stop all other threads while they are copied.

    Args:
        image: The image.

    Yields:
        Together `image.tobytes()`.
    """
    rows = max(PIECE_PIXELS // image.width, 1)
    if image.height <= rows:
        yield image.tobytes()
        return
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height))).tobytes()


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """An RGB image as an array of shape (height, width, 3), equal to `np.array(image)`; see `pieces`."""
    array = np.empty((image.height, image.width, 3), np.uint8)
    values, at = array.reshape(-1), 0
    for piece in pieces(image):
        values[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
    return array


def from_array(array: NDArray[Any], name: str, channel_axis: int | None = None) -> Image.Image:
    """The image in `array`: `[h, w]` or `[h, w, 1|3|4]`; uint8, bool, or floats in 0..1.

    `channel_axis`: where the channels are, if not last. Raises `UnreadableMediaError` for every other shape, type or
    value.
    """
    if channel_axis is not None:
        array = channels_last(array, name, channel_axis)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise UnreadableMediaError(
            f"{name}: pass the shape [h, w] or [h, w, 1|3|4], or set channel_axis to the axis of the channels"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype.kind == "f":
        # Written so that a NaN, which compares false with everything, is refused.
        if not (array.min() >= 0 and array.max() <= 1):
            raise UnreadableMediaError(f"{name}: floats must lie in 0..1; scale or clip them first")
        array = np.rint(array * 255)
    elif array.dtype != np.uint8:
        raise UnreadableMediaError(f"{name}: pass uint8, bool, or floats in 0..1")
    return Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8))


def channels_last(array: NDArray[Any], name: str, channel_axis: int) -> NDArray[Any]:
    """`array` with its axis `channel_axis` moved to the end. `UnreadableMediaError` if it has no such axis."""
    if array.ndim < 3:
        raise UnreadableMediaError(f"{name} has no channel axis; leave channel_axis out")
    try:
        if isinstance(channel_axis, bool):
            raise TypeError
        return np.moveaxis(array, operator.index(channel_axis), -1)
    except (TypeError, ValueError) as error:
        axes = f"one of its {array.ndim} axes"
        raise UnreadableMediaError(f"{name}: channel_axis must be {axes}, not {channel_axis!r}") from error


def _low_bytes(image: Image.Image) -> NDArray[Any]:
    """The low bytes of a PNG file of 16 bits per color that is not decoded yet; Pillow decodes the high bytes only."""
    file = image.fp  # type: ignore[attr-defined]
    start = file.tell()
    low: Any = Image.open(file, formats=["PNG"])
    low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
    pixels = np.asarray(low)
    file.seek(start)
    return pixels


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """The transposition for the orientation of `image`; None if the metadata are damaged or set none."""
    try:
        return _EXIF_TRANSPOSITIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF raises many types of errors
        return None


def _from_16_bit(gray: NDArray[Any], name: str) -> Image.Image:
    if gray.min() < 0 or gray.max() > 65535:
        raise UnreadableMediaError(f"{name}: gray values must lie in 0..65535; scale them first")
    return Image.fromarray(((gray.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
