"""Tables of questions and their pictures, out of uploaded files and zip files.

Nothing is unpacked to disk, and picture names in the table are only looked up among the uploaded files.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from vlroute.files import read_at_most
from vlroute.serving.ui.problems import PageError

#: Errors of the zip reader for damaged or encrypted files.
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, RuntimeError, ValueError
)  # fmt: skip
MAX_ROWS = 1000
MAX_MEMBERS = 5000
MAX_COLUMNS = 200
MAX_TABLE_BYTES = 8 * 2**20
MAX_UNPACKED_BYTES = 2**31
TABLES = (".csv", ".jsonl")
#: Names of columns that hold questions and names of pictures.
PROMPTS = ("prompt", "question", "query", "instruction", "text", "问题", "提问")
IMAGES = (
    "image", "picture", "img", "photo", "image_path", "image_file", "file_name", "filename", "file", "图片", "图像",
)  # fmt: skip

Reader = Callable[[int], bytes]
"""Reads at most this many bytes of a file, plus one if the file is longer."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """Which columns hold the questions and the names of the pictures, by index.

    Attributes:
        prompt: The column of questions; None if it is not known.
        image: The column of pictures; None if it is not known, `NO_PICTURES` if there are no pictures.
    """

    prompt: int | None
    image: int | None


NO_PICTURES = -1


@dataclass(frozen=True, slots=True)
class Table:
    """A table and its pictures.

    Attributes:
        columns: Names of the columns.
        rows: One text for each column; other values of JSON as JSON.
        pictures: Readers by full name, and by file name if it is unique; None for an ambiguous name.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    pictures: dict[str, Reader | None]

    def propose(self) -> Mapping:
        """The mapping by the names of the columns and, for pictures, by the uploaded files."""
        names = [column.strip().lower() for column in self.columns]
        prompt = next((names.index(name) for name in PROMPTS if name in names), None)
        places = [place for place in range(len(names)) if place != prompt]
        named = [names.index(name) for name in IMAGES if name in names and names.index(name) != prompt]
        found = {place: sum(self.has_picture(row[place]) for row in self.rows) for place in places}
        matching = [place for place in sorted(places, key=lambda place: -found[place]) if found[place]]
        by_name = sorted(named, key=lambda place: -found[place])
        image = next(iter([*by_name, *matching]), None)
        return Mapping(prompt, NO_PICTURES if image is None and not self.pictures else image)

    def checked(self, mapping: Mapping) -> Mapping:
        """Return a mapping that can be used.

        Args:
            mapping: What the visitor chose; None for the proposal.

        Returns:
            The mapping.

        Raises:
            PageError: A column is not known, or both are the same.
        """
        proposed = self.propose()
        prompt = proposed.prompt if mapping.prompt is None else mapping.prompt
        image = proposed.image if mapping.image is None else mapping.image
        if prompt is None or not 0 <= prompt < len(self.columns):
            raise PageError("no_prompt_column", columns=", ".join(self.columns[:20]))
        if image is None or not NO_PICTURES <= image < len(self.columns):
            raise PageError("no_image_column", columns=", ".join(self.columns[:20]))
        if prompt == image:
            raise PageError("same_column", column=self.columns[prompt])
        return Mapping(prompt, image)

    def has_picture(self, name: str) -> bool:
        """Whether a picture of this name was uploaded, and is not ambiguous."""
        return self._reader(name) is not None

    def picture(self, name: str, most: int) -> bytes:
        """Read one picture.

        Args:
            name: Name in the table.
            most: Maximum size in bytes.

        Returns:
            The bytes, at most `most` + 1.

        Raises:
            PageError: The picture was not uploaded, its name is ambiguous, or the zip file is damaged.
        """
        reader = self._reader(name)
        if reader is None:
            plain = _plain(name)
            many = plain in self.pictures or PurePosixPath(plain).name in self.pictures
            raise PageError("ambiguous_picture" if many else "missing_picture", name=name[:100])
        return reader(most)

    def _reader(self, name: str) -> Reader | None:
        plain = _plain(name)
        return self.pictures.get(plain) or self.pictures.get(PurePosixPath(plain).name)


def read_table(files: Sequence[str]) -> Table:
    """Find the table and the pictures in uploaded files and zip files.

    Args:
        files: Paths of the uploaded files.

    Returns:
        The table.

    Raises:
        PageError: There is no table or more than one, it cannot be read or is too large, or a zip file is damaged or
            too large.
    """
    found: list[tuple[str, Reader]] = []
    for file in files:
        if file.lower().endswith(".zip"):
            found += _members(file)
        else:
            found.append((Path(file).name, partial(_read, file)))
    if len(found) > MAX_MEMBERS:
        raise PageError("too_many_uploads", count=len(found), most=MAX_MEMBERS)
    tables = [(name, reader) for name, reader in found if name.lower().endswith(TABLES)]
    if len(tables) != 1:
        names = ", ".join(name for name, _ in tables[:5]) or "–"
        raise PageError("one_table", names=names)
    name, reader = tables[0]
    data = reader(MAX_TABLE_BYTES)
    if len(data) > MAX_TABLE_BYTES:
        raise PageError("large_table", name=name, most=MAX_TABLE_BYTES)
    text = _text(name, data)
    columns, rows = _jsonl(name, text) if name.lower().endswith(".jsonl") else _csv(name, text)
    if len(rows) > MAX_ROWS:
        raise PageError("too_many_rows", name=name, most=MAX_ROWS)
    if len(columns) > MAX_COLUMNS:
        raise PageError("too_many_columns", name=name, most=MAX_COLUMNS)
    if not rows:
        raise PageError("no_rows", name=name)
    pictures = _by_name([(name, reader) for name, reader in found if not name.lower().endswith(TABLES)])
    return Table(columns, rows, pictures)


def _by_name(found: list[tuple[str, Reader]]) -> dict[str, Reader | None]:
    """Readers by full name and by file name; None for an ambiguous name."""
    pictures: dict[str, Reader | None] = {}
    for name, reader in found:
        for key in {name, PurePosixPath(name).name}:
            pictures[key] = None if key in pictures else reader
    times = Counter(name for name, _ in found)
    for name, reader in found:  # a unique full name takes precedence over a file name
        if times[name] == 1:
            pictures[name] = reader
    return pictures


def _read(file: str, most: int) -> bytes:
    try:
        return read_at_most(file, most)
    except FileNotFoundError:
        raise PageError("missing_file", name=Path(file).name) from None


def _members(file: str) -> Iterator[tuple[str, Reader]]:
    name = Path(file).name
    try:
        with zipfile.ZipFile(file) as archive:
            members = [one for one in archive.infolist() if one.filename and not one.is_dir()]
    except FileNotFoundError:
        raise PageError("missing_file", name=name) from None
    except _DAMAGED as error:
        raise PageError("damaged_zip", name=name) from error
    if len(members) > MAX_MEMBERS:
        raise PageError("too_many_uploads", count=len(members), most=MAX_MEMBERS)
    if sum(one.file_size for one in members) > MAX_UNPACKED_BYTES:
        raise PageError("large_zip", name=name, most=MAX_UNPACKED_BYTES)
    for one in members:
        plain = _plain(one.filename)
        if not plain.startswith("__MACOSX/") and not PurePosixPath(plain).name.startswith("."):
            yield plain, partial(_read_member, file, one)


def _read_member(file: str, member: zipfile.ZipInfo, most: int) -> bytes:
    try:
        with zipfile.ZipFile(file) as archive, archive.open(member) as stream:
            return stream.read(most + 1)
    except _DAMAGED as error:
        raise PageError("damaged_member", name=member.filename[:100]) from error


def _csv(name: str, text: str) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        columns = tuple(title.strip() for title in next(reader, []))
        _check_names(name, columns)
        rows = []
        for line in reader:
            if not line:
                continue
            if len(line) > len(columns):
                raise PageError("long_row", name=name, line=reader.line_num, columns=len(columns), values=len(line))
            rows.append((*line, *[""] * (len(columns) - len(line))))
            if len(rows) > MAX_ROWS:
                break
    except csv.Error as error:
        raise PageError("bad_csv", name=name, line=reader.line_num) from error
    return columns, tuple(rows)


def _jsonl(name: str, text: str) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    lines: list[dict[str, object]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PageError("bad_json", name=name, line=number) from error
        if not isinstance(value, dict):
            raise PageError("no_object", name=name, line=number)
        lines.append(value)
        if len(lines) > MAX_ROWS:
            break
    keys = list(dict.fromkeys(key for line in lines for key in line))
    columns = tuple(key.strip() for key in keys)
    if lines:
        _check_names(name, columns)
    return columns, tuple(tuple(_cell(line.get(key)) for key in keys) for line in lines)


def _check_names(name: str, columns: tuple[str, ...]) -> None:
    if not any(columns):
        raise PageError("no_columns", name=name)
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise PageError("twice", name=name, columns=", ".join(twice[:5]))


def _cell(value: object) -> str:
    """A value of JSON as text."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(name: str, data: bytes) -> str:
    for encoding in ("utf-8-sig", "gb18030"):  # the second: what Excel writes in China
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise PageError("no_utf8", name=name)


def _plain(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./").strip()
