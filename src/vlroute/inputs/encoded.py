"""Bytes of a picture or video file, passed as bytes, an open file, a path or a data URI."""

from __future__ import annotations

import binascii
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeGuard
from urllib.parse import unquote, unquote_to_bytes

from vlroute.errors import LimitError, UnreadableMediaError
from vlroute.inputs.limits import Limits

Encoded: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
"""A path, a data URI, the bytes of a file, or a file opened in binary mode."""

_URL = re.compile(r"\s*[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_FILE = re.compile(r"file://(localhost)?(?=/)", re.IGNORECASE)
_LIKE_BASE64 = re.compile(r"[\w+/-]{40,}={0,2}\s*", re.ASCII)
_PIECE = 2**20
_NO_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")


def is_data_uri(source: object) -> TypeGuard[str]:
    """Whether `source` is a string that begins with `data:` (case-insensitive, after any white space)."""
    return isinstance(source, str) and source[:64].lstrip()[:5].lower() == "data:"


def is_open_file(source: object) -> TypeGuard[BinaryIO]:
    """Whether `source` is a readable object and not a path."""
    return callable(getattr(source, "read", None)) and not isinstance(source, os.PathLike)


def name_of(source: object) -> str:
    """Short name of `source` for error messages, never its content."""
    if is_data_uri(source):
        return "data URI"
    if isinstance(source, str | os.PathLike):
        path = Path(os.fsdecode(source)).name
        return f"file {path!r}" if len(path) <= 100 else f"path of {len(path)} characters"
    if isinstance(source, bytes | bytearray | memoryview):
        return "bytes"
    if is_open_file(source):
        return "open file"
    return f"a {type(source).__name__}"


def read_encoded(source: Encoded, name: str, limits: Limits, most: int) -> bytes:
    """Read a picture or video file.

    Args:
        source: a path, a data URI, the bytes, or an open binary file.
        name: name for error messages.
        limits: `local_files` is checked.
        most: maximum size in bytes.

    Returns:
        The bytes of the file.

    Raises:
        LimitError: the file is longer than `most`.
        UnreadableMediaError: the file cannot be read, or is a path while `limits.local_files` is False.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        check_bytes(source.nbytes if isinstance(source, memoryview) else len(source), name, most)
        return bytes(source)
    if is_data_uri(source):
        return _read_data_uri(source, name, most)
    if is_open_file(source):
        return _read_open_file(source, name, most)
    if not isinstance(source, str | os.PathLike):
        accepted = "a path, data URI, bytes, open file, PIL image or numpy array [h, w, c]"
        if not limits.local_files:  # set by a server: its requests are JSON
            accepted = "a data URI (data:image/png;base64,...)"
        raise UnreadableMediaError(f"{name} is not a picture; pass {accepted}")
    text = os.fsdecode(source)
    if local := _FILE.match(text):
        text = unquote(text[local.end() :])
    elif _URL.match(text):
        raise UnreadableMediaError("vlroute does not fetch URLs: download it first, then pass its path or bytes")
    if not limits.local_files:
        raise UnreadableMediaError("paths are not allowed here: send a data URI (data:image/png;base64,...)")
    return _read_file(os.path.expanduser(text), name, most)


def decode_base64(text: str, name: str, most: int, start: int = 0) -> bytes:
    """Decode base64 or a data URI, from the character `start` of `text`.

    Line breaks, percent-encoding, missing padding and the URL-safe alphabet are accepted. Errors: see `read_encoded`.
    """
    if not start and is_data_uri(text):
        return _read_data_uri(text, name, most)
    pieces = [piece for piece in _base64_pieces(text, name, start) if piece]
    while pieces and not pieces[-1].rstrip(b"="):
        pieces.pop()
    if pieces:
        pieces[-1] = pieces[-1].rstrip(b"=")
    size, place = sum(map(len, pieces)), 0
    check_bytes(size * 3 // 4, name, most)
    if not size:
        raise UnreadableMediaError(f"{name} holds no data")
    for piece in pieces:
        if wrong := _NO_BASE64.search(piece):
            found = place + wrong.start()
            raise UnreadableMediaError(f"{name}: base64 is damaged: character {found} is not a base64 character")
        place += len(piece)
    if size % 4 == 1:
        raise UnreadableMediaError(f"{name}: base64 is damaged: {size} characters, so at least one is missing")
    data, rest = io.BytesIO(), b""
    for piece in pieces:
        whole = rest + piece
        end = len(whole) - len(whole) % 4
        data.write(binascii.a2b_base64(whole[:end]))
        rest = whole[end:]
    data.write(binascii.a2b_base64(rest + b"=" * (-len(rest) % 4)))
    return data.getvalue()


def _base64_pieces(text: str, name: str, start: int) -> Iterator[bytes]:
    """The characters of base64 without white space and percent-encoding, in the standard alphabet.

    In pieces, because other threads wait for the end of each operation on bytes.
    """
    standard, begin = bytes.maketrans(b"-_", b"+/"), start
    while start < len(text):
        end = start + _PIECE
        if (cut := text.rfind("%", end - 2, end)) >= 0:  # it may belong to the next two characters
            end = cut + 3
        try:
            piece = text[start:end].encode("ascii")
        except UnicodeEncodeError as error:
            raise UnreadableMediaError(
                f"{name}: base64 is damaged: character {start - begin + error.start} is not ASCII"
            ) from error
        piece = unquote_to_bytes(piece) if b"%" in piece else piece
        yield b"".join(piece.split()).translate(standard)
        start = end


def check_bytes(size: int, name: str, most: int) -> None:
    """LimitError if `size` is greater than `most` bytes."""
    if size > most:
        raise LimitError(f"{name} has {size} bytes, more than the limit of {most}; compress it or scale it down")


def _read_data_uri(uri: str, name: str, most: int) -> bytes:
    comma = uri.find(",")
    if comma < 0 or uri[:comma].lower().rpartition(";")[2].strip() != "base64":
        raise UnreadableMediaError("a data URI must look like data:image/png;base64,...; only base64 is supported")
    return decode_base64(uri, name, most, comma + 1)


def _read_open_file(file: BinaryIO, name: str, most: int) -> bytes:
    """Read from the beginning if the file is seekable, so that a buffer that was just written is read completely."""

    def read(size: int) -> bytes:
        try:
            piece = file.read(size)
        except (OSError, ValueError) as error:
            raise UnreadableMediaError(f"{name} cannot be read: {error}") from error
        if not isinstance(piece, bytes | bytearray | memoryview):
            raise UnreadableMediaError(f"{name} returns {type(piece).__name__} instead of bytes; open it in mode 'rb'")
        return bytes(piece)

    seek: Callable[[int], object] | None = getattr(file, "seek", None)
    try:
        if seek is not None and getattr(file, "seekable", lambda: True)():
            seek(0)
    except (OSError, ValueError) as error:
        raise UnreadableMediaError(f"{name} cannot be read: {error}") from error
    data = bytearray()
    while len(data) <= most and (piece := read(most + 1 - len(data))):
        data += piece
    if len(data) > most:
        raise LimitError(f"{name} has more than {most} bytes, the limit; compress it or scale it down")
    return bytes(data)


def _read_file(path: str, name: str, most: int) -> bytes:
    if "\0" in path:
        raise UnreadableMediaError(f"{name} cannot be read: a path cannot contain a null character")
    try:
        status = os.stat(path)  # checked before opening, because opening a pipe blocks until the other end is open
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableMediaError(f"{name} is not a regular file")
        check_bytes(status.st_size, name, most)
        return Path(path).read_bytes()
    except OSError as error:
        hint = "; for base64 send a data URI (data:image/png;base64,...), or the field base64 of a part"
        like = _LIKE_BASE64.fullmatch(path)
        raise UnreadableMediaError(f"{name} cannot be read: {error.strerror}{hint if like else ''}") from error
