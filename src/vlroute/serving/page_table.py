"""What a batch is made of: a table of questions and the pictures it names, out of uploaded files and zips.

Nothing is unpacked to disk, and a name in a table is only ever looked up among what was uploaded with it.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from vlroute.errors import InputError, LimitError, UnreadableMediaError
from vlroute.files import read_at_most

MAX_ROWS = 1000
MAX_MEMBERS = 5000
MAX_TABLE_BYTES = 8 * 2**20
MAX_UNPACKED_BYTES = 2**31
TABLES = (".csv", ".jsonl")
PROMPTS, IMAGES = ("prompt", "question"), ("image", "picture")


@dataclass(frozen=True, slots=True)
class Row:
    """One question and the name of its picture, "" for none."""

    prompt: str
    image: str


Reader = Callable[[int], bytes]
"""Gives at most so many bytes of a file, and one more where it holds more."""


@dataclass(frozen=True, slots=True)
class Job:
    """`pictures`: readers by name; by the file's name alone too, where only one file has it."""

    rows: tuple[Row, ...]
    pictures: dict[str, Reader | None]

    def picture(self, name: str, most: int) -> bytes:
        """The bytes of one picture, at most `most` + 1. UnreadableMediaError if it was not uploaded or is damaged."""
        plain = _plain(name)
        reader = self.pictures.get(plain) or self.pictures.get(PurePosixPath(plain).name)
        if reader is None:
            many = plain in self.pictures or PurePosixPath(plain).name in self.pictures
            why = "is there more than once; name it with its folder" if many else "was not uploaded with the table"
            raise UnreadableMediaError(f"the picture {name[:100]!r} {why}")
        return reader(most)


def read_job(files: Sequence[str]) -> Job:
    """The one table among uploaded `files` and in their zips, and everything else by name.

    Raises:
        InputError: there is no table or more than one, or it cannot be read, or a zip is damaged.
        LimitError: too many rows or files, or a table or zip that is too large.
    """
    found: list[tuple[str, Reader]] = []
    for file in files:
        if file.lower().endswith(".zip"):
            found += _members(file)
        else:
            found.append((Path(file).name, partial(read_at_most, file)))
    if len(found) > MAX_MEMBERS:
        raise LimitError(f"{len(found)} files are over the limit of {MAX_MEMBERS}; split the batch")
    tables = [(name, reader) for name, reader in found if name.lower().endswith(TABLES)]
    if len(tables) != 1:
        names = ", ".join(name for name, _ in tables[:5]) or "none"
        raise InputError(f"a batch needs exactly one table (.csv or .jsonl), found: {names}")
    name, reader = tables[0]
    data = reader(MAX_TABLE_BYTES)
    if len(data) > MAX_TABLE_BYTES:
        raise LimitError(f"{name} is over the limit of {MAX_TABLE_BYTES} bytes; split the batch")
    rows = tuple(_rows(name, data))
    if not rows:
        raise InputError(f"{name} holds no rows; expected one question a row")
    return Job(rows, _by_name([(name, reader) for name, reader in found if not name.lower().endswith(TABLES)]))


def _by_name(found: list[tuple[str, Reader]]) -> dict[str, Reader | None]:
    """By full name and by file name; None where a name is not unique."""
    pictures: dict[str, Reader | None] = {}
    for name, reader in found:
        for key in {name, PurePosixPath(name).name}:
            pictures[key] = None if key in pictures else reader
    for name, reader in found:  # a full name means its own file, whatever others are called
        if sum(other == name for other, _ in found) == 1:
            pictures[name] = reader
    return pictures


def _members(file: str) -> Iterator[tuple[str, Reader]]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = [one for one in archive.infolist() if not one.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{Path(file).name} cannot be read as a zip, it may be damaged ({error})") from error
    if len(members) > MAX_MEMBERS:
        raise LimitError(f"{Path(file).name} holds {len(members)} files, over the limit of {MAX_MEMBERS}")
    if sum(one.file_size for one in members) > MAX_UNPACKED_BYTES:
        raise LimitError(f"{Path(file).name} holds more than {MAX_UNPACKED_BYTES} bytes unpacked; split it")
    for one in members:
        name = _plain(one.filename)
        if not name.startswith("__MACOSX/") and not PurePosixPath(name).name.startswith("."):
            yield name, partial(_read_member, file, one)


def _read_member(file: str, member: zipfile.ZipInfo, most: int) -> bytes:
    try:
        with zipfile.ZipFile(file) as archive, archive.open(member) as stream:
            return stream.read(most + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise UnreadableMediaError(f"{member.filename[:100]!r} cannot be unpacked ({error})") from error


def _rows(name: str, data: bytes) -> Iterator[Row]:
    lines = _jsonl(name, _text(name, data)) if name.lower().endswith(".jsonl") else _csv(name, _text(name, data))
    for number, line in enumerate(lines, start=1):
        if number > MAX_ROWS:
            raise LimitError(f"{name} holds more than {MAX_ROWS} rows; split the batch")
        yield Row(_field(line, PROMPTS), _field(line, IMAGES))


def _csv(name: str, text: str) -> Iterator[dict[str, object]]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        titles = {str(title).strip().lower() for title in reader.fieldnames or ()}
        if not titles & set(PROMPTS):
            raise InputError(f"{name} needs a column 'prompt' (and 'image' for pictures); found: {sorted(titles)[:10]}")
        for line in reader:
            yield {str(key).strip().lower(): value for key, value in line.items()}
    except csv.Error as error:
        raise InputError(f"{name} cannot be read as CSV ({error})") from error


def _jsonl(name: str, text: str) -> Iterator[dict[str, object]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name}, line {number}: not JSON ({error})") from error
        if not isinstance(value, dict):
            raise InputError(f"{name}, line {number}: expected an object with 'prompt' and 'image'")
        yield value


def _field(line: dict[str, object], names: Sequence[str]) -> str:
    value = next((line[name] for name in names if line.get(name) is not None), "")
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(name: str, data: bytes) -> str:
    for encoding in ("utf-8-sig", "gb18030"):  # the second: what Excel writes in China
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise InputError(f"{name} is not text in UTF-8; save it as UTF-8 and send it again")


def _plain(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./").strip()
