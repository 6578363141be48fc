"""Raw rows of JSONL, CSV, Parquet and Hugging Face data sets, streamed: never the whole data set in memory."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vlroute.errors import InputError

_BATCH = 16  # rows of a table turned into Python values at a time; each may hold several megabytes of pictures
_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")


@dataclass(frozen=True, slots=True)
class Row:
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

    def rows(self) -> Iterator[Row | InputError]:
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


def _jsonl_rows(path: Path) -> Iterator[Row | InputError]:
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
                yield Row(place, values, path.parent)
            else:
                yield InputError(f"{place}: expected a JSON object, found {type(values).__name__}")


def _csv_rows(path: Path) -> Iterator[Row | InputError]:
    csv.field_size_limit(2**31 - 1)  # data URIs are longer than the default of 131072
    with _open(path, text=True) as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for values in reader:
                place = f"{path}:{reader.line_num}"
                if None in values:
                    yield InputError(f"{place}: more fields than the header has columns; is a comma not quoted?")
                else:
                    yield Row(place, values, path.parent, textual=True)
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line_num}: {error}; expected CSV with a header") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    with _open_parquet(path) as table, _reading(path):
        number = 0
        for batch in table.iter_batches(batch_size=_BATCH):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path}: row {number}", values, path.parent)


def _hub_rows(source: Source) -> Iterator[Row]:
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
                yield Row(f"{source.name}: row {number}", values, folder)


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
