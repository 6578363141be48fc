"""Bytes of a picture or video file, passed as bytes, an open file, a path or a data URI."""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Callable
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


def decode_base64(text: str, name: str, most: int) -> bytes:
    """Decode base64 or a data URI.

    Line breaks, percent-encoding, missing padding and the URL-safe alphabet are accepted. Errors: see `read_encoded`.
    """
    if is_data_uri(text):
        return _read_data_uri(text, name, most)
    try:
        payload = unquote_to_bytes(text.encode("ascii")) if "%" in text else text.encode("ascii")
    except UnicodeEncodeError as error:
        raise UnreadableMediaError(f"{name}: base64 is damaged: character {error.start} is not ASCII") from error
    payload = b"".join(payload.split()).rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    check_bytes(len(payload) * 3 // 4, name, most)
    if not payload:
        raise UnreadableMediaError(f"{name} holds no data")
    if wrong := _NO_BASE64.search(payload):
        raise UnreadableMediaError(f"{name}: base64 is damaged: character {wrong.start()} is not a base64 character")
    if len(payload) % 4 == 1:
        raise UnreadableMediaError(f"{name}: base64 is damaged: {len(payload)} characters, so at least one is missing")
    return base64.b64decode(payload + b"=" * (-len(payload) % 4))


def check_bytes(size: int, name: str, most: int) -> None:
    """LimitError if `size` is greater than `most` bytes."""
    if size > most:
        raise LimitError(f"{name} has {size} bytes, more than the limit of {most}; compress it or scale it down")


def _read_data_uri(uri: str, name: str, most: int) -> bytes:
    head, comma, payload = uri.partition(",")
    if not comma or head.lower().rpartition(";")[2].strip() != "base64":
        raise UnreadableMediaError("a data URI must look like data:image/png;base64,...; only base64 is supported")
    return decode_base64(payload, name, most)


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
