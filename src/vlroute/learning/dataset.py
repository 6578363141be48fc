"""Rows of a user's data set, one at a time: prompts with pictures or a video, and gold answers where there are any."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from vlroute.errors import InputError
from vlroute.learning.rows import Row, Source

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


def to_example(row: Row, columns: Mapping[str, Sequence[str]] | None = None) -> Example:
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


def _example(row: Row, columns: Mapping[str, Sequence[str]]) -> Example:
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


def _value(row: Row, column: str) -> Any:
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


def _source(row: Row, value: Any) -> Any:
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


def _video(row: Row, value: Any) -> Any:
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
