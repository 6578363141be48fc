"""Removes metadata from picture files, so that damaged metadata does not make a picture unreadable."""

from __future__ import annotations

import re
import zlib

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
    """All segments except application data and comments; of application data, the EXIF and XMP segments (orientation)
    and complete JFIF and Adobe segments (color space)."""
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
