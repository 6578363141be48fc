"""Labeled examples on disk: JSON lines, plain or gzipped, one record a line."""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, get_args

from vlroute.checks import shown
from vlroute.errors import InputError
from vlroute.file_lock import locked
from vlroute.files import opened_privately, replace_file, sync_folder
from vlroute.types import Mode, ToolUse

if TYPE_CHECKING:
    from rich.console import Console

CHARS_PER_TOKEN = 4
#: Text fields of a record that a line may lack.
TEXTS = ("set", "topic", "level", "language", "model", "fingerprint")
#: Names that earlier versions wrote for these fields.
FORMER_NAMES = {"topic": "family", "level": "grade", "model": "pair"}
KEPT_REASONS = 3
#: The largest accepted values of an outcome. Larger ones are mistakes and would distort every mean.
MOST_TOKENS, MOST_SECONDS = 10**9, 10**6


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one mode did on one request.

    Attributes:
        correct: True, False, or the share of correct answers of several tries, 0 to 1.
        tokens: Number of generated tokens, reasoning included. None if unknown.
        seconds: Time of the whole answer, prefill included. None if unknown.
        prefill_seconds: Time before the first generated token. None if unknown.

    Raises:
        InputError: A value is out of range.
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
    """One labeled example: a request and how both modes did on it.

    Attributes:
        id: Unique name of the example.
        prompt: Text of the request.
        caption: Description of its picture. A blank one becomes None.
        instruct: Outcome of Instruct.
        thinking: Outcome of Thinking.
        set: Data set that the example comes from.
        topic: Kind of request; reports show figures by topic.
        level: Difficulty.
        language: Language of the prompt, such as "en".
        model: Name of the model that answered, see `ModelIdentity`. Empty if unknown.
        fingerprint: Fingerprint of its weights. Empty if unknown.
        tools: "offered": the request offered tools. "result": its last message was the result of a tool. "": neither.

    Raises:
        InputError: A value has the wrong type, the id is empty, or a text cannot be encoded as UTF-8.
    """

    id: str
    prompt: str
    caption: str | None
    instruct: Outcome
    thinking: Outcome
    set: str = ""
    topic: str = ""
    level: str = ""
    language: str = ""
    model: str = ""
    fingerprint: str = ""
    tools: ToolUse = ""

    def __post_init__(self) -> None:
        for name in ("id", "prompt", *TEXTS, "tools"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"'{name}' must be a string, not {getattr(self, name)!r}")
        if not self.id:
            raise InputError("'id' must not be empty")
        if self.caption is not None and not isinstance(self.caption, str):
            raise InputError(f"'caption' must be a string or null, not {self.caption!r}")
        if self.tools not in get_args(ToolUse):
            raise InputError(f"'tools' must be 'offered', 'result' or an empty string, not {shown(self.tools)}")
        for name in ("id", "prompt", "caption", *TEXTS):
            try:
                (getattr(self, name) or "").encode()
            except UnicodeEncodeError as error:
                half = error.object[error.start]
                raise InputError(
                    f"'{name}' contains half of a surrogate pair, {half!r}, which UTF-8 cannot encode"
                ) from error
        object.__setattr__(self, "caption", (self.caption or "").strip() or None)


@dataclass(slots=True)
class Skipped:
    """Unusable lines of input files.

    Attributes:
        count: Number of lines.
        reasons: File, line and reason of the first ones.
    """

    count: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, error: InputError) -> None:
        """Count one line.

        Args:
            error: Names file and line, and why the line cannot be used.
        """
        self.count += 1
        if len(self.reasons) < KEPT_REASONS:
            self.reasons.append(str(error))

    def __str__(self) -> str:
        lines = "1 line was skipped" if self.count == 1 else f"{self.count} lines were skipped"
        rest = f"; and {self.count - len(self.reasons)} more" if self.count > len(self.reasons) else ""
        return f"{lines}: {'; '.join(self.reasons)}{rest} (--strict makes this an error)"


def outcomes(records: Iterable[Record], mode: Mode) -> list[Outcome]:
    """Return the outcome of `mode` on each record.

    Args:
        records: The records.
        mode: Instruct or Thinking.

    Returns:
        One outcome per record, in the same order.
    """
    return [getattr(record, mode) for record in records]


def read_records(*paths: str | Path, skipped: Skipped | None = None) -> Iterator[Record]:
    """Stream records from `.jsonl` and `.jsonl.gz` files.

    Blank lines and unknown keys are ignored. Two forms are read: `instruct` and `thinking`, as `write_records` writes
    them, and routing records with `cheap` and `strong`, whose `chars` count as a quarter as many tokens.

    Args:
        *paths: The files.
        skipped: Collects lines that cannot be used; these are left out. Without it, such a line raises.

    Yields:
        One record per usable line.

    Raises:
        InputError: A file cannot be read or is truncated. Without `skipped`, also if a line has neither form or
            repeats an id; the error names file and line.
    """
    first_seen: dict[str, str] = {}
    for path in map(Path, paths):
        with open_data(path, "JSON lines") as file:
            for number, line in enumerate(file, 1):
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
    """Read all records of the files and warn about skipped lines.

    Args:
        paths: The files.
        strict: Raise an error for the first unusable line instead of skipping it.
        console: Shows progress and the warning.

    Returns:
        The records and the skipped lines.

    Raises:
        InputError: As in `read_records`, or no record is left.
    """
    skipped = Skipped()
    with console.status("reading records"):
        records = list(read_records(*paths, skipped=None if strict else skipped))
    names = ", ".join(map(str, paths))
    if not records:
        why = f"; {skipped}" if skipped.count else ""
        raise InputError(f"{names}: no usable records; expected one JSON object per line{why}")
    warn(console, skipped)
    return records, skipped


def warn(console: Console, skipped: Skipped) -> None:
    """Print a warning if lines were skipped.

    Args:
        console: Where to print.
        skipped: The lines.
    """
    if skipped.count:
        console.print(f"warning: {skipped}", style="yellow", markup=False, soft_wrap=True)


def write_records(path: str | Path, records: Iterable[Record], *, append: bool = False) -> int:
    """Write records as JSON lines.

    Args:
        path: The file; compressed if its name ends in `.gz`. A new file is written whole or not at all.
        records: The records.
        append: Add all lines to the end of the file in one write. An incomplete last line, which an interrupted run
            leaves, is removed first.

    Returns:
        The number of records written.

    Raises:
        InputError: Appending to a compressed file.
    """
    path = Path(path)
    lines = [json.dumps(asdict(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records]
    content = "".join(lines).encode()
    if append:
        append_lines(path, content)
        return len(lines)
    # without a time stamp, equal records make equal files
    data = gzip.compress(content, mtime=0) if path.suffix == ".gz" else content
    with locked(path):
        replace_file(path, data, private=True)
    return len(lines)


@contextmanager
def reading(name: str | Path, expected: str = "") -> Iterator[None]:
    """Turn the errors of file readers into errors that name the file.

    Args:
        name: The file or data set.
        expected: What it should contain.

    Raises:
        InputError: It is missing, truncated or damaged.
    """
    expected = expected and f"; expected {expected}"
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{name}: file not found{expected}") from error
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"{name}: cannot be read ({error}){expected}") from error


@contextmanager
def open_data(path: Path, expected: str = "", **how: Any) -> Iterator[IO[Any]]:
    """Open a plain or gzipped file for reading.

    Args:
        path: The file; its suffix tells whether it is compressed.
        expected: What it should contain, for error messages.
        **how: Arguments of `open`; by default the file yields bytes.

    Yields:
        The open file.

    Raises:
        InputError: It is missing, truncated or damaged.
    """
    how = {"mode": "rb", **how}
    with reading(path, expected), gzip.open(path, **how) if path.suffix == ".gz" else path.open(**how) as file:
        yield file


def append_lines(path: Path, content: bytes) -> None:
    """Append lines and wait until they are on disk. After an error, the file is as before.

    Args:
        path: The file. An incomplete last line, which an interrupted run leaves, is removed first.
        content: Whole lines.

    Other processes that append to the same file wait. A new file can be read by its owner only.

    Raises:
        InputError: The file is compressed.
        OutputError: Another process does not finish writing to it.
        OSError: The lines cannot be written.
    """
    if path.suffix == ".gz":
        raise InputError(f"{path}: cannot append to a gzipped file; write {path.stem} and compress it when done")
    with locked(path), open(path, "a+b", buffering=0, opener=opened_privately) as file:
        size = file.tell()
        if size == 0:
            sync_folder(path.parent)  # before the first line: the next process finds a file whose name is on disk
        file.seek(max(0, size - 1))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            last = file.read().rpartition(b"\n")[2]
            try:
                json.loads(last)
                content = b"\n" + content
            except ValueError:
                size -= len(last)
                file.truncate(size)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):  # otherwise the next call removes the incomplete line
                file.truncate(size)
            raise


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
    texts = {name: row.get(name, row.get(FORMER_NAMES.get(name))) for name in (*TEXTS, "tools")}
    return Record(
        id=row["id"],
        prompt=row["prompt"],
        caption=row.get("caption"),
        instruct=_outcome(row[names[0]], names[0]),
        thinking=_outcome(row[names[1]], names[1]),
        **{name: text for name, text in texts.items() if text is not None},
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
