"""Examples of a user's data set: rows of JSONL, CSV, Parquet and Hugging Face data sets, read one after the other.

JSONL and CSV have readers of their own. Those of `datasets` stop at the first broken line, give no line numbers and
guess types ("007" becomes 7). Here a broken line is reported with its number and the lines after it are read.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from vlroute.errors import InputError
from vlroute.records import FORMER_NAMES, open_data, reading

#: Rows of a table that are turned into Python values at a time; each may contain several megabytes of pictures.
BATCH = 16
SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
INSTALL = "pip install 'vlroute[collect]'"


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A raw row of a data set.

    Attributes:
        place: File and line or row, for messages.
        values: The values by column.
        folder: Folder that relative paths start from.
        textual: Every value is text and an empty one is missing, as in CSV.
    """

    place: str
    values: Mapping[str, Any] = field(repr=False)
    folder: Path | None = None
    textual: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from.

    Attributes:
        name: A file, a data set of the Hugging Face hub, or a folder that `save_to_disk` wrote or that contains files
            which `datasets.load_dataset` understands.
        split: Which split, if there are several.
        config: Which configuration of a hub data set, if there are several.
    """

    name: str
    split: str | None = None
    config: str | None = None

    @property
    def file(self) -> Path | None:
        """The path of a file; None for a folder or a data set of the hub.

        Raises:
            InputError: A file of an unknown kind.
        """
        path = Path(self.name).expanduser()
        if path.is_dir() or not (path.is_file() or self.name.endswith(SUFFIXES)):
            return None
        if not self.name.endswith(SUFFIXES):
            raise InputError(f"{path}: unknown kind of data set; expected {', '.join(SUFFIXES)} or a folder")
        return path

    def count(self) -> int | None:
        """Count the rows.

        Returns:
            The number of rows; None if only reading all of them would tell.

        Raises:
            InputError: As in `rows`.
        """
        path = self.file
        if path is None:
            dataset = _load(self)
            split = (dataset.info.splits or {}).get(self.split)
            rows = getattr(dataset, "num_rows", None) or getattr(split, "num_examples", None)
            return rows if isinstance(rows, int) else None
        if path.suffix == ".parquet":
            with reading(path):
                return int(_parquet().read_metadata(path).num_rows)
        if ".csv" in path.suffixes:
            return sum(1 for _ in _csv_rows(path))
        with open_data(path) as file:
            return sum(1 for line in file if not line.isspace())

    def rows(self) -> Iterator[SourceRow | InputError]:
        """Read every row, in order.

        Yields:
            A row, or the error for a line that cannot be read.

        Raises:
            InputError: The source does not exist or is truncated, or a package is missing.
        """
        path = self.file
        if path is None:
            yield from _dataset_rows(self)
        elif path.suffix == ".parquet":
            with reading(path), _parquet().ParquetFile(path) as table:
                yield from _table_rows(path, table.iter_batches(batch_size=BATCH), path.parent)
        elif ".csv" in path.suffixes:
            yield from _csv_rows(path)
        else:
            yield from _jsonl_rows(path)


def _jsonl_rows(path: Path) -> Iterator[SourceRow | InputError]:
    with open_data(path) as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            place = f"{path}:{number}"
            try:
                values = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield InputError(f"{place}: {error}; expected one JSON object per line")
                continue
            if isinstance(values, dict):
                yield SourceRow(place, values, path.parent)
            else:
                yield InputError(f"{place}: expected a JSON object, found {type(values).__name__}")


def _csv_rows(path: Path) -> Iterator[SourceRow | InputError]:
    csv.field_size_limit(2**31 - 1)  # data URIs are longer than the default of 131072
    with open_data(path, mode="rt", encoding="utf-8-sig", newline="") as file:
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


def _dataset_rows(source: Source) -> Iterator[SourceRow]:
    dataset = _load(source)
    kind = _datasets().ClassLabel
    labels = {name: feature for name, feature in (dataset.features or {}).items() if isinstance(feature, kind)}
    folder = Path(source.name) if Path(source.name).is_dir() else None
    with reading(source.name):
        # arrow tables keep pictures encoded: `parse` decodes them within its limits, and a broken one fails alone
        batches = dataset.with_format("arrow").iter(batch_size=BATCH)
        for row in _table_rows(source.name, batches, folder):
            named = {
                name: label.int2str(index)
                for name, label in labels.items()
                if (index := row.values[name]) is not None and index >= 0
            }
            yield SourceRow(row.place, {**row.values, **named}, folder)


def _table_rows(name: str | Path, batches: Iterable[Any], folder: Path | None) -> Iterator[SourceRow]:
    rows = (values for batch in batches for values in batch.to_pylist())
    for number, values in enumerate(rows, 1):
        yield SourceRow(f"{name}: row {number}", values, folder)


def _load(source: Source) -> Any:
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
            f"{source.name}: cannot be loaded ({why}); expected a file ({', '.join(SUFFIXES)}), a folder written by "
            "save_to_disk, or a data set of the Hugging Face hub, with its split and config if it has several"
        ) from error
    if isinstance(found, dict):
        raise InputError(f"{source.name}: has the splits {', '.join(found)}; choose one (--split)")
    return found


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"Hugging Face data sets need more packages: {INSTALL}") from error
    return datasets


def _parquet() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError(f"Parquet needs more packages: {INSTALL}") from error
    return parquet


COLUMNS = (
    "id", "prompt", "images", "image", "video", "answer", "options", "caption", "set", "topic", "level", "language",
)  # fmt: skip
_LISTED = re.compile(r"^\s*\(?A\s*[).:、]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Example:
    """One example of a data set.

    Attributes:
        id: The row's own id, or one computed from its content, which stays the same if rows are added or moved.
        prompt: Text for the models. Options are appended as lettered lines unless it lists them itself.
        images: Sources of pictures for `messages.parse`, not yet opened.
        video: Source of a video, or the list of its frames.
        answers: Gold answers; each of them is right. Empty if there is none.
        options: Options of a multiple-choice question, without letters.
        caption: Description of the picture, if the data set has one.
        set: Data set that the example comes from.
        topic: Kind of question.
        level: Difficulty.
        language: Language of the prompt.
        place: File and line, for messages.
        row: The row with all its columns; None for an example that was not read from a data set.
    """

    id: str
    prompt: str
    images: tuple[Any, ...] = field(default=(), repr=False)
    video: Any = field(default=None, repr=False)
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    caption: str | None = None
    set: str = ""
    topic: str = ""
    level: str = ""
    language: str = ""
    place: str = ""
    row: SourceRow | None = field(default=None, repr=False, compare=False)


def to_example(row: SourceRow, columns: Mapping[str, Sequence[str]] | None = None) -> Example:
    """Convert a raw row to an example.

    Args:
        row: The row.
        columns: Our name of a column → the names in the data set. Images may come from several columns.

    Returns:
        The example.

    Raises:
        InputError: The row has no prompt or a value of the wrong type; the error names file and line.
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
    """Read the examples of a data set.

    Args:
        source: The data set.
        columns: See `to_example`.
        limit: Maximum number of rows; None for all.

    Yields:
        An example, or the error for a row that cannot be used or whose id was used before.
    """
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


def row_to_label(example: Example, folder: Path, columns: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
    """Return the row of an example in a form that a JSON lines file in another folder can hold.

    The file can be read as a data set with the same column mapping and gives the same examples, with the same ids even
    if answers are added: without a column of ids, an id is computed from the content.

    Args:
        example: An example that was read from a data set.
        folder: Folder of the file. Relative paths of pictures and videos are changed to start from it.
        columns: The mapping with which the example was read, see `to_example`.

    Returns:
        "id", "place", and all columns of the row; pictures that it contains as bytes are data URIs.
    """
    row, columns = example.row, columns or {}
    assert row is not None
    values = {name: _value(row, name) for name in row.values}
    values = {name: _embedded(value) if isinstance(value, bytes) else value for name, value in values.items()}
    for name in [*_pictured(columns), *columns.get("video", ("video",))]:
        sources = [_moved(row, one, folder) for one in _list(_value(row, name)) if one is not None]
        if sources:
            values[name] = sources if len(sources) > 1 else sources[0]
    values[columns.get("id", ("id",))[0]] = example.id
    return {"id": example.id, "place": example.place, **values}


def parse_columns(text: str) -> dict[str, list[str]]:
    """Parse a column mapping.

    Args:
        text: Such as "prompt=question,images=image_1,images=image_2".

    Returns:
        The mapping for `to_example`.

    Raises:
        InputError: An unknown name, a missing column, or several columns for anything but images.
    """
    columns: dict[str, list[str]] = {}
    for pair in filter(None, text.split(",")):
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not (equals and ours in COLUMNS and theirs):
            raise InputError(f"cannot map {pair!r}; expected name=column, where name is one of: {', '.join(COLUMNS)}")
        columns.setdefault(ours, []).append(theirs)
    for name, several in columns.items():
        if len(several) > 1 and name not in ("image", "images"):
            raise InputError(f"{name} is mapped to {len(several)} columns; only images may have several")
    return columns


def _example(row: SourceRow, columns: Mapping[str, Sequence[str]]) -> Example:
    former = {name: old for name, old in FORMER_NAMES.items() if name not in row.values and name not in columns}
    values = {name: _value(row, columns.get(name, (former.get(name, name),))[0]) for name in COLUMNS}
    for name in columns.keys() & {"prompt", "answer"}:
        if columns[name][0] not in row.values:
            raise InputError(f"there is no column {columns[name][0]!r}; found: {', '.join(map(str, row.values))}")
    prompt = values["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"'prompt' must be a string that is not blank, not {_short(prompt)}; is the column mapped?")
    sources = [source for column in _pictured(columns) for source in _list(_value(row, column))]
    images = tuple(_source(row, source) for source in sources if source is not None)
    options = tuple(_text("options", option) for option in _list(values["options"]))
    options = tuple(_unlettered(index, option) for index, option in enumerate(options))
    texts = {name: _text(name, values[name]) for name in ("set", "topic", "level", "language")}
    answers = _answers(values["answer"], options)
    caption = None if values["caption"] is None else _text("caption", values["caption"])
    if options and not _LISTED.search(prompt):
        lettered = zip(ascii_uppercase, options, strict=False)
        prompt = "\n".join([prompt, *(f"{letter}. {option}" for letter, option in lettered)])
    return Example(
        id=_text("id", values["id"]) or _id_of([prompt, answers, images, values["video"]]),
        prompt=prompt, images=images, video=_video(row, values["video"]), answers=answers, options=options,
        caption=caption, place=row.place, row=row, **texts,
    )  # fmt: skip


def _pictured(columns: Mapping[str, Sequence[str]]) -> list[str]:
    """The columns of pictures."""
    return [*columns.get("images", ()), *columns.get("image", ())] or ["images", "image"]


def _value(row: SourceRow, column: str) -> Any:
    """None for a missing value: absent, null, NaN (in tables without nulls), or blank in CSV."""
    value = row.values.get(column)
    if isinstance(value, float) and math.isnan(value):
        return None
    return None if row.textual and value == "" else value


def _list(value: Any) -> list[Any]:
    """A list, or a JSON list as text, as a list; a single value as a list of one."""
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
        return f"{value:.15g}"  # a table with gaps stores 3 as 3.0
    if not isinstance(value, str | int):
        raise InputError(f"{name!r} must be a string or a number, not {_short(value)}")
    return str(value)


def _answers(value: Any, options: Sequence[str]) -> tuple[str, ...]:
    """With options, a whole number is the index of one, from 0 as in class labels, unless it is itself an option."""
    if type(value) is int and options and str(value) not in options:
        if not 0 <= value < len(options):
            raise InputError(f"'answer' {value} is no index of the {len(options)} options; the first has index 0")
        return (ascii_uppercase[value],)
    several = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return tuple(answer for answer in (_text("answer", one) for one in several) if answer.strip())


def _unlettered(index: int, option: str) -> str:
    letter = ascii_uppercase[index : index + 1]
    if not letter:
        raise InputError(f"more than {len(ascii_uppercase)} options; each needs a letter")
    return re.sub(rf"^\s*\(?{letter}\s*[).:、]\s*", "", option)


def _source(row: SourceRow, value: Any) -> Any:
    """A picture or video file: bytes, a data URI, or a path relative to the data set's folder."""
    if isinstance(value, Mapping):  # a picture as Hugging Face stores it
        if value.get("bytes") is None and value.get("path") is None:
            raise InputError("a picture has neither bytes nor path; expected a path, data URI or bytes")
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise InputError(f"a picture must be a path, a data URI or bytes, not {_short(value)}")
    if value[:5].lower() == "data:" or "://" in value or row.folder is None:
        return value
    return str(row.folder / value)


def _moved(row: SourceRow, value: Any, folder: Path) -> str:
    """A picture or video file for a row in a file of `folder`, see `_source`."""
    source = _source(row, value)
    if isinstance(source, bytes):
        return _embedded(source)
    text = str(source)
    named: str = value["path"] if isinstance(value, Mapping) else value
    if text[:5].lower() == "data:" or "://" in text or row.folder is None or os.path.isabs(named):
        return text
    parent, name = os.path.split(text)
    try:
        # without symbolic links, because ".." leads out of the folder that a link points to
        return str(Path(os.path.relpath(os.path.realpath(parent), os.path.realpath(folder)), name))
    except ValueError:  # another drive of Windows
        return os.path.abspath(text)


def _embedded(data: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


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
    """A short description of a value, for messages."""
    return repr(value)[:60] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
