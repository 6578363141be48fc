"""Labelled examples on disk: JSON lines, plain or gzipped, one record a line."""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlroute.checks import shown
from vlroute.errors import InputError
from vlroute.files import replace_file
from vlroute.types import Mode

if TYPE_CHECKING:
    from rich.console import Console

CHARS_PER_TOKEN = 4
#: Fields of a record that may be missing.
TEXTS = ("set", "family", "grade", "language", "pair", "fingerprint")
KEPT_REASONS = 3
#: The largest accepted values of an outcome: anything above is a mistake, and would spoil every mean.
MOST_TOKENS, MOST_SECONDS = 10**9, 10**6


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one mode did on one request.

    `correct`: true, false, or a share 0 to 1 of several tries. `tokens`: generated, reasoning included.
    `seconds`: the whole answer, prefill included. None where unknown. InputError if a value is out of range.
    """

    correct: bool | float
    tokens: int | None = None
    seconds: float | None = None
    prefill_seconds: float | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.correct, most=1):
            raise InputError(f"'correct' must be true, false or a number 0 to 1, not {shown(self.correct)}")
        if self.tokens is not None and not (type(self.tokens) is int and 0 <= self.tokens <= MOST_TOKENS):
            raise InputError(
                f"'tokens' must be a whole number from 0 to {MOST_TOKENS} or null, not {shown(self.tokens)}"
            )
        for name in ("seconds", "prefill_seconds"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not _is_number(value, MOST_SECONDS)):
                raise InputError(f"'{name}' must be a number from 0 to {MOST_SECONDS} or null, not {shown(value)}")


@dataclass(frozen=True, slots=True)
class Record:
    """One labelled example: what was asked, and how both modes did. A blank caption is kept as None.

    `pair` and `fingerprint`: which pair answered, see `ModelIdentity`; empty where unknown.
    """

    id: str
    prompt: str
    caption: str | None
    instruct: Outcome
    thinking: Outcome
    set: str = ""
    family: str = ""
    grade: str = ""
    language: str = ""
    pair: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        for name in ("id", "prompt", *TEXTS):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"'{name}' must be a string, not {getattr(self, name)!r}")
        if not self.id:
            raise InputError("'id' must not be empty")
        if self.caption is not None and not isinstance(self.caption, str):
            raise InputError(f"'caption' must be a string or null, not {self.caption!r}")
        for name in ("id", "prompt", "caption", *TEXTS):
            try:
                (getattr(self, name) or "").encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"'{name}' holds half a surrogate pair, {error.object[error.start]!r}, which no file can hold"
                ) from error
        object.__setattr__(self, "caption", (self.caption or "").strip() or None)


@dataclass(slots=True)
class Skipped:
    """Lines that could not be used: their number, and file, line and reason of the first ones."""

    count: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, error: InputError) -> None:
        """Count one line."""
        self.count += 1
        if len(self.reasons) < KEPT_REASONS:
            self.reasons.append(str(error))

    def __str__(self) -> str:
        lines = "1 line was skipped" if self.count == 1 else f"{self.count} lines were skipped"
        rest = f"; and {self.count - len(self.reasons)} more" if self.count > len(self.reasons) else ""
        return f"{lines}: {'; '.join(self.reasons)}{rest} (--strict makes this an error)"


def outcomes(records: Iterable[Record], mode: Mode) -> list[Outcome]:
    """How `mode` did on each record."""
    return [getattr(record, mode) for record in records]


def read_records(*paths: str | Path, skipped: Skipped | None = None) -> Iterator[Record]:
    """Stream records from `.jsonl` and `.jsonl.gz` files. Blank lines are skipped, unknown keys ignored.

    Two forms are read: our own (`instruct` and `thinking`, as `write_records` writes them) and routing
    records (`cheap` and `strong` with `chars`, taken as a quarter as many tokens).

    Args:
        paths: the files.
        skipped: collects lines that cannot be used and are left out. Without it, such lines raise.

    Raises:
        InputError: a file cannot be read or is truncated. Without `skipped`, also if a line is in neither form or
            repeats an id; the error names file and line.
    """
    first_seen: dict[str, str] = {}
    for path in map(Path, paths):
        for number, line in enumerate(_lines(path), 1):
            if line.isspace():
                continue
            place = f"{path}:{number}"
            try:
                try:
                    record = _record(json.loads(line.decode("utf-8-sig")))
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{place}: {error}") from error
                if record.id in first_seen:
                    raise InputError(f"{place}: id {record.id!r} was already used in {first_seen[record.id]}")
            except InputError as error:
                if skipped is None:
                    raise
                skipped.add(error)
                continue
            first_seen[record.id] = place
            yield record


def read_all(paths: Iterable[str | Path], *, strict: bool, console: Console) -> tuple[list[Record], Skipped]:
    """All records of the files, and the skipped lines, which are also printed on `console`.

    InputError as in `read_records`; with `strict`, also for the first unusable line; also if no record is left.
    """
    skipped = Skipped()
    with console.status("reading records"):
        records = list(read_records(*paths, skipped=None if strict else skipped))
    names = ", ".join(map(str, paths))
    if not records:
        why = f"; {skipped}" if skipped.count else ""
        raise InputError(f"{names}: no records that can be used; expected one JSON object per line{why}")
    if skipped.count:
        console.print(f"warning: {skipped}", style="yellow", markup=False, soft_wrap=True)
    return records, skipped


def write_records(path: str | Path, records: Iterable[Record], *, append: bool = False) -> int:
    """Write `records` and return how many; gzipped if the name ends in `.gz`.

    A new file appears whole or not at all. With `append` all lines go to the end in one write, after a torn last
    line of an interrupted run, if there is one, has been removed. InputError for appending to a gzipped file.
    """
    path = Path(path)
    lines = [json.dumps(asdict(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records]
    content = "".join(lines).encode()
    if append:
        if path.suffix == ".gz":
            raise InputError(f"{path}: cannot append to a gzipped file; write {path.stem} and compress it when done")
        _append(path, content)
        return len(lines)
    # no time stamp, so that equal records make equal files
    replace_file(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return len(lines)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read to its end ({error}); expected JSON lines") from error


def _append(path: Path, content: bytes) -> None:
    with path.open("a+b") as file:
        size = file.tell()
        file.seek(max(0, size - 1))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            last = file.read().rpartition(b"\n")[2]
            if _is_json(last):
                file.write(b"\n")
            else:
                file.truncate(size - len(last))
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _record(row: Any) -> Record:
    if not isinstance(row, dict):
        raise InputError(f"expected a JSON object, found {type(row).__name__}")
    for names in (("instruct", "thinking"), ("cheap", "strong")):
        if all(isinstance(row.get(name), dict) for name in names):
            break
    else:
        raise InputError("expected the objects 'instruct' and 'thinking' (or 'cheap' and 'strong')")
    for name in ("id", "prompt"):
        if name not in row:
            raise InputError(f"{name!r} is missing")
    texts = {name: row[name] for name in TEXTS if row.get(name) is not None}
    return Record(
        id=row["id"],
        prompt=row["prompt"],
        caption=row.get("caption"),
        instruct=_outcome(row[names[0]], names[0]),
        thinking=_outcome(row[names[1]], names[1]),
        **texts,
    )


def _outcome(value: Mapping[str, Any], name: str) -> Outcome:
    if "correct" not in value:
        raise InputError(f"'correct' is missing in {name!r}")
    tokens = value.get("tokens")
    chars = value.get("chars")
    if tokens is None and chars is not None:
        most = MOST_TOKENS * CHARS_PER_TOKEN
        if not _is_number(chars, most):
            raise InputError(f"{name!r}: 'chars' must be a number from 0 to {most} or null, not {shown(chars)}")
        tokens = math.ceil(chars / CHARS_PER_TOKEN)
    try:
        return Outcome(value["correct"], tokens, value.get("seconds"), value.get("prefill_seconds"))
    except InputError as error:
        raise InputError(f"{name!r}: {error}") from None


def _is_number(value: Any, most: int) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= most
