"""Raw rows of JSONL, CSV, Parquet and Hugging Face data sets, streamed: never the whole data set in memory."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import IO, Any

from vlroute.errors import InputError

_BATCH = 16  # rows of a table turned into Python values at a time; each may hold several megabytes of pictures
_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")


@dataclass(frozen=True, slots=True)
class SourceRow:
    """`values` by column. `place`: file and line or row, for messages. `folder`: what paths are seen from.

    `textual`: every value is text, and what is empty is missing, as in CSV.
    """

    place: str
    values: Mapping[str, Any] = field(repr=False)
    folder: Path | None = None
    textual: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from: a file, a folder, or a data set's name on the hub; with `split` and `config` if it has any.

    A folder is one that `save_to_disk` wrote, or holds files that `datasets.load_dataset` understands.
    """

    name: str
    split: str | None = None
    config: str | None = None

    @property
    def file(self) -> Path | None:
        """The file that it is, if it is one. InputError for a file of an unknown kind."""
        path = Path(self.name).expanduser()
        if path.is_dir() or not (path.is_file() or self.name.endswith(_SUFFIXES)):
            return None
        if not self.name.endswith(_SUFFIXES):
            raise InputError(f"{path}: unknown kind of data set; expected {', '.join(_SUFFIXES)} or a folder")
        return path

    def count(self) -> int | None:
        """How many rows there are; None where only reading them all would tell."""
        path = self.file
        if path is None:
            dataset = _hub_dataset(self)
            split = (dataset.info.splits or {}).get(self.split)
            rows = getattr(dataset, "num_rows", None) or getattr(split, "num_examples", None)
            return rows if isinstance(rows, int) else None
        if path.suffix == ".parquet":
            with _open_parquet(path) as table:
                return int(table.metadata.num_rows)
        if ".csv" in path.suffixes:
            return sum(1 for _ in _csv_rows(path))
        with _open(path) as file:
            return sum(1 for line in file if not line.isspace())

    def rows(self) -> Iterator[SourceRow | InputError]:
        """Every row, in order. An error stands for a line that cannot be read, so that those after it can.

        Raises InputError for a source that is not there, cannot be read to its end, or needs a package.
        """
        path = self.file
        if path is None:
            yield from _hub_rows(self)
        elif path.suffix == ".parquet":
            yield from _parquet_rows(path)
        elif ".csv" in path.suffixes:
            yield from _csv_rows(path)
        else:
            yield from _jsonl_rows(path)


def _jsonl_rows(path: Path) -> Iterator[SourceRow | InputError]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            place = f"{path}:{number}"
            try:
                values = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                yield InputError(f"{place}: {error}; expected one JSON object a line")
                continue
            if isinstance(values, dict):
                yield SourceRow(place, values, path.parent)
            else:
                yield InputError(f"{place}: expected a JSON object, found {type(values).__name__}")


def _csv_rows(path: Path) -> Iterator[SourceRow | InputError]:
    csv.field_size_limit(2**31 - 1)  # data URIs are longer than the default of 131072
    with _open(path, text=True) as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for values in reader:
                place = f"{path}:{reader.line_num}"
                if None in values:
                    yield InputError(f"{place}: more fields than the header has columns; is a comma not quoted?")
                else:
                    yield SourceRow(place, values, path.parent, textual=True)
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line_num}: {error}; expected CSV with a header") from error


def _parquet_rows(path: Path) -> Iterator[SourceRow]:
    with _open_parquet(path) as table, _reading(path):
        number = 0
        for batch in table.iter_batches(batch_size=_BATCH):
            for values in batch.to_pylist():
                number += 1
                yield SourceRow(f"{path}: row {number}", values, path.parent)


def _hub_rows(source: Source) -> Iterator[SourceRow]:
    datasets = _datasets()
    dataset = _hub_dataset(source)
    features = dataset.features or {}
    labels = {name: kind for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    folder = Path(source.name) if Path(source.name).is_dir() else None
    number = 0
    with _reading(Path(source.name)):
        # As arrow tables, pictures stay encoded: `parse` decodes them within its limits, and a bad one fails alone.
        for table in dataset.with_format("arrow").iter(batch_size=_BATCH):
            for values in table.to_pylist():
                number += 1
                for name, kind in labels.items():
                    if values[name] is not None and values[name] >= 0:
                        values[name] = kind.int2str(values[name])
                yield SourceRow(f"{source.name}: row {number}", values, folder)


def _hub_dataset(source: Source) -> Any:
    datasets = _datasets()
    folder = Path(source.name).expanduser()
    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        if saved:
            found = datasets.load_from_disk(str(folder))
            if isinstance(found, dict) and source.split is not None:
                found = found[source.split]
        else:
            name = str(folder) if folder.is_dir() else source.name
            found = datasets.load_dataset(name, source.config, split=source.split, streaming=True)
    except (OSError, ValueError, KeyError) as error:
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(
            f"{source.name}: cannot be loaded ({why}); expected a file ({', '.join(_SUFFIXES)}), a folder written by "
            "save_to_disk, or a data set of the Hugging Face hub, with its split and config if it has several"
        ) from error
    if isinstance(found, dict):
        raise InputError(f"{source.name}: has the splits {', '.join(found)}; say which one (--split)")
    return found


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError("Hugging Face data sets need more packages: pip install 'vlroute[collect]'") from error
    return datasets


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError("Parquet needs more packages: pip install 'vlroute[collect]'") from error
    with _reading(path):
        return parquet.ParquetFile(path)


@contextmanager
def _open(path: Path, text: bool = False) -> Iterator[IO[Any]]:
    how: dict[str, Any] = {"mode": "rt", "encoding": "utf-8-sig", "newline": ""} if text else {"mode": "rb"}
    with _reading(path), gzip.open(path, **how) if path.suffix == ".gz" else path.open(**how) as file:
        yield file


@contextmanager
def _reading(name: Path) -> Iterator[None]:
    """Turns what readers raise into an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"{name}: cannot be read to its end ({error})") from error


COLUMNS = (
    "id", "prompt", "images", "image", "video", "answer", "options", "caption", "set", "family", "grade", "language",
)  # fmt: skip
_LISTED = re.compile(r"^\s*\(?A\s*[).:、]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Example:
    """One row. `images` and `video` are sources for `messages.parse`, not yet opened.

    `answers`: each of them is right; none: no gold. `options`: of a multiple choice, without letters. `prompt`: what
    the models are asked, the options as lettered lines included. `id`: the row's own, or one that follows from its
    content, so that it stays the same where rows are added or moved. `place`: file and line, for messages.
    """

    id: str
    prompt: str
    images: tuple[Any, ...] = field(default=(), repr=False)
    video: Any = field(default=None, repr=False)
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    caption: str | None = None
    set: str = ""
    family: str = ""
    grade: str = ""
    language: str = ""
    place: str = ""


def to_example(row: SourceRow, columns: Mapping[str, Sequence[str]] | None = None) -> Example:
    """The example in a raw row. `columns`: our name → the row's column; for images there may be several.

    InputError, naming file and line, for a row without a prompt or with values of the wrong kind.
    """
    columns = columns or {}
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        raise InputError(f"unknown column {unknown[0]!r} to map; known: {', '.join(COLUMNS)}")
    try:
        return _example(row, columns)
    except InputError as error:
        raise InputError(f"{row.place}: {error}") from error


def examples(
    source: Source, columns: Mapping[str, Sequence[str]] | None, limit: int | None
) -> Iterator[Example | InputError]:
    """The first `limit` rows; an error stands for one that cannot be used, or whose id came before."""
    first: dict[str, str] = {}
    for number, row in enumerate(source.rows()):
        if number == limit:
            return
        if isinstance(row, InputError):
            yield row
            continue
        try:
            example = to_example(row, columns)
            if example.id in first:
                raise InputError(f"{example.place}: the same row (id {example.id}) as {first[example.id]}; left out")
        except InputError as error:
            yield error
            continue
        first[example.id] = example.place
        yield example


def parse_columns(text: str) -> dict[str, list[str]]:
    """ "prompt=question,images=image_1,images=image_2" as a mapping. InputError for anything else."""
    columns: dict[str, list[str]] = {}
    for pair in filter(None, text.split(",")):
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not (equals and ours in COLUMNS and theirs):
            raise InputError(f"cannot map {pair!r}; expected name=column, where name is one of: {', '.join(COLUMNS)}")
        columns.setdefault(ours, []).append(theirs)
    for name, several in columns.items():
        if len(several) > 1 and name not in ("image", "images"):
            raise InputError(f"{name} is mapped to {len(several)} columns; only images may be")
    return columns


def _example(row: SourceRow, columns: Mapping[str, Sequence[str]]) -> Example:
    values = {name: _value(row, columns.get(name, (name,))[0]) for name in COLUMNS}
    for name in columns.keys() & {"prompt", "answer"}:
        if columns[name][0] not in row.values:
            raise InputError(f"there is no column {columns[name][0]!r}; found: {', '.join(map(str, row.values))}")
    prompt = values["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"'prompt' must be a string that is not blank, not {_short(prompt)}; use a column mapping?")
    pictured = [*columns.get("images", ()), *columns.get("image", ())] or ["images", "image"]
    sources = [source for column in pictured for source in _list(_value(row, column))]
    images = tuple(_source(row, source) for source in sources if source is not None)
    options = tuple(_text("options", option) for option in _list(values["options"]))
    options = tuple(_unlettered(index, option) for index, option in enumerate(options))
    texts = {name: _text(name, values[name]) for name in ("set", "family", "grade", "language")}
    answers = _answers(values["answer"], options)
    caption = None if values["caption"] is None else _text("caption", values["caption"])
    if options and not _LISTED.search(prompt):
        lettered = zip(ascii_uppercase, options, strict=False)
        prompt = "\n".join([prompt, *(f"{letter}. {option}" for letter, option in lettered)])
    return Example(
        id=_text("id", values["id"]) or _id_of([prompt, answers, images, values["video"]]),
        prompt=prompt, images=images, video=_video(row, values["video"]), answers=answers, options=options,
        caption=caption, place=row.place, **texts,
    )  # fmt: skip


def _value(row: SourceRow, column: str) -> Any:
    """None for what is missing: absent, null, NaN (as tables without nulls have it), and blank in CSV."""
    value = row.values.get(column)
    if isinstance(value, float) and math.isnan(value):
        return None
    return None if row.textual and value == "" else value


def _list(value: Any) -> list[Any]:
    """Several values: a list, or a JSON list as text; a single value is a list of one."""
    if value is None:
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return [value]
    return list(value) if isinstance(value, list | tuple) else [value]


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.15g}"  # 3.0 where a table with gaps made a float of 3
    if not isinstance(value, str | int):
        raise InputError(f"{name!r} must be a string or a number, not {_short(value)}")
    return str(value)


def _answers(value: Any, options: Sequence[str]) -> tuple[str, ...]:
    """A whole number beside options counts them from 0, as class labels do, unless an option says that number."""
    if type(value) is int and options and str(value) not in options:
        if not 0 <= value < len(options):
            raise InputError(f"'answer' {value} is no index of the {len(options)} options, which count from 0")
        return (ascii_uppercase[value],)
    several = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return tuple(answer for answer in (_text("answer", one) for one in several) if answer.strip())


def _unlettered(index: int, option: str) -> str:
    letter = ascii_uppercase[index : index + 1]
    if not letter:
        raise InputError(f"more than {len(ascii_uppercase)} options; a letter stands for each of them")
    return re.sub(rf"^\s*\(?{letter}\s*[).:、]\s*", "", option)


def _source(row: SourceRow, value: Any) -> Any:
    """A picture or video file: bytes, data URI, or a path seen from the data set's folder."""
    if isinstance(value, Mapping):  # as Hugging Face stores pictures
        if value.get("bytes") is None and value.get("path") is None:
            raise InputError("a picture with neither bytes nor path; expected a path, data URI or bytes")
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise InputError(f"a picture must be a path, a data URI or bytes, not {_short(value)}")
    if value[:5].lower() == "data:" or "://" in value or row.folder is None:
        return value
    return str(row.folder / value)


def _video(row: SourceRow, value: Any) -> Any:
    """A video file, or its frames as a list."""
    if value is None:
        return None
    frames = _list(value)
    return [_source(row, frame) for frame in frames] if len(frames) > 1 else _source(row, frames[0])


def _id_of(content: Any) -> str:
    def stable(value: Any) -> Any:
        return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)

    text = json.dumps(content, ensure_ascii=False, default=stable)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _short(value: Any) -> str:
    """What a value is, for messages: never its whole content."""
    return repr(value)[:60] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
