"""Finds `<think>` and `</think>` in complete or streamed text. Tags inside Markdown code count as text."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from enum import Enum


class Tag(Enum):
    """A boundary between reasoning and answer."""

    OPEN = "<think>"
    CLOSE = "</think>"


_TOKENS = re.compile(r"</?think>|`+|~+|\n|[^<`~\n]+|<")
_PARTIAL = re.compile(r"</?(?:t(?:h(?:i(?:nk?)?)?)?)?$")  # a tag may continue in the next piece
#: Quote and list markers that may precede a code fence in its line.
_INDENT = re.compile(r"(?:[ \t\r>]|[-*+](?=[ \t]|$)|\d{1,9}(?:[.)](?=[ \t]|$)|$))*$")
_LONGEST_INDENT = 100


class ThinkTags:
    """Splits text into reasoning and answers, independent of how it is divided into pieces. Takes linear time.

    Reasoning ends at the first `</think>` outside code. An answer that begins with `<think>` starts new reasoning. Any
    other `<think>` in an answer is text; any other `</think>` outside code is dropped.

    Code is a Markdown code span (between two runs of equally many backticks in one paragraph) or a fenced block. A
    paragraph ends at a blank line or a fence; quotes and list items that interrupt it are not recognized. An
    unclosed fence in an answer extends to the end, as in Markdown. An unclosed fence in reasoning hides no tag, because
    otherwise the whole answer would be lost.
    """

    def __init__(self, thought: bool) -> None:
        """Create a splitter for one text.

        Args:
            thought: whether the text begins with reasoning, as it does after a prompt that ends with `<think>`.
        """
        self._partial = ""
        self._begin(thought)

    def _begin(self, thought: bool) -> None:
        self.thought, self.empty, self._document = thought, True, _Document(thought)  # empty except for white space

    def push(self, piece: str) -> Iterator[str | Tag]:
        """Yield text, tags at a boundary, and `OPEN` tags within reasoning, as soon as they are certain."""
        text = self._partial + piece
        found = _PARTIAL.search(text, max(len(text) - len(Tag.CLOSE.value), 0))
        cut = found.start() if found else len(text)
        self._partial = text[cut:]
        yield from self._scan(text[:cut])

    def flush(self) -> Iterator[str | Tag]:
        """Yield what was held back, after the end of the text."""
        rest, self._partial = self._partial, ""
        yield from self._scan(rest)
        while True:
            document = self._document
            rest = yield from self._passed(list(document.end()))
            if document is self._document:  # no other boundary was found
                return
            yield from self._scan(rest)

    def _scan(self, text: str) -> Iterator[str | Tag]:
        todo = [_TOKENS.finditer(text)]
        while todo:
            if (token := next(todo[-1], None)) is None:
                todo.pop()
            elif rest := (yield from self._passed(list(self._document.read(token[0])))):
                todo.append(_TOKENS.finditer(rest))

    def _passed(self, items: list[str | Tag]) -> Generator[str | Tag, None, str]:
        """Yield items; return the text after a boundary, which belongs to a new document."""
        for i, item in enumerate(items):
            if item is (Tag.CLOSE if self.thought else Tag.OPEN) and (self.thought or self.empty):
                rest = _text(items[i + 1 :]) + _text(self._document.held)
                self._begin(not self.thought)
                yield item
                return rest
            if isinstance(item, str):
                self.empty = self.empty and not item.strip()
                yield item
            elif item is Tag.OPEN:
                yield item if self.thought else item.value
        return ""


class _Document:
    """Reads Markdown token by token; yields each tag as a Tag or, inside code, as text."""

    def __init__(self, thought: bool) -> None:
        self._thought = thought
        self.held: list[str | Tag] = []  # from the first tag that may or may not be inside code
        self._runs: list[tuple[int, int]] = []  # of backticks, from the first unmatched run: length, index in held
        self._run = ("", 0, 0)  # the run of backticks or tildes that may continue: character, length, position
        self._indent: str | None = ""  # the start of the line, while a fence may follow
        self._opening: tuple[str, int, int] | None = None  # the run that may make this line a fence
        self._fence: tuple[str, int, int] | None = None
        self._closing = False

    def read(self, token: str) -> Iterator[str | Tag]:
        kind = token[0]
        if kind in "`~" and kind == self._run[0]:
            self._run = (kind, self._run[1] + len(token), self._run[2])
            yield from self._given(token)
            return
        yield from self._end_run()
        if kind in "`~":
            self._run = (kind, len(token), len(self.held))
            yield from self._given(token)
        elif token == "\n":
            yield from self._end_line()
            yield from self._given(token)
        elif token in (Tag.OPEN.value, Tag.CLOSE.value):
            yield from self._tag(Tag(token))
        else:
            if self._indent is not None:
                self._indent += token
                if len(self._indent) > _LONGEST_INDENT or not _INDENT.match(self._indent):
                    self._indent = None
            self._closing = self._closing and not token.strip()
            yield from self._given(token)

    def end(self) -> Iterator[str | Tag]:
        """Yield what was held back."""
        yield from self._end_run()
        yield from self._end_line()
        yield from self._released()

    def _given(self, item: str | Tag) -> Iterator[str | Tag]:
        if self.held:
            self.held.append(item)
        else:
            yield item

    def _tag(self, tag: Tag) -> Iterator[str | Tag]:
        if self._closing and tag is Tag.CLOSE:  # "```</think>"
            yield from self._end_line()
        self._indent, self._closing = None, False
        if self._fence and not self._thought:
            yield from self._given(tag.value)
        elif self._fence or self._runs or self._opening:
            self.held.append(tag)
        else:
            yield from self._given(tag)

    def _end_run(self) -> Iterator[str | Tag]:
        (kind, length, place), self._run = self._run, ("", 0, 0)
        if not kind:
            return
        first, self._indent = self._indent is not None and length >= 3, None
        if self._fence:
            self._closing = first and kind == self._fence[0] and length >= self._fence[1]
            return
        if kind == "`" and self._opening and self._opening[0] == "`":  # the line does not start with a fence
            (_, opened, place), self._opening = self._opening, None
            if len(self._runs) > 1 and self._runs[0][0] == opened:  # but the run closes a span
                code, after, self.held, self._runs = self.held[:place], self.held[place:], [], []
                yield _text(code)
                yield from after
                place = 0
        if first:
            self._opening = (kind, length, place)
        elif self._opening or kind == "~":
            return
        elif self._runs and self._runs[0][0] == length:
            self._runs.clear()
            yield from self._as_text()
            return
        if kind == "`":
            self._runs.append((length, place))

    def _end_line(self) -> Iterator[str | Tag]:
        if self._fence and self._closing:
            self._fence, self._closing = None, False
            yield from self._as_text()
        elif self._opening:
            (kind, _, place), self._fence, self._opening = self._opening, self._opening, None
            if kind == "`":
                self._runs.pop()
            after, self.held = self.held[place:], self.held[:place]
            yield from self._released()
            if self._thought and any(isinstance(item, Tag) for item in after):
                self.held = after
            else:
                yield _text(after)
        elif not self._fence and self._indent is not None and not self._indent.strip():  # the paragraph ends
            yield from self._released()
        self._indent = ""

    def _as_text(self) -> Iterator[str]:
        """Yield the held items, all of them inside code."""
        if self.held:
            yield _text(self.held)
            self.held = []

    def _released(self) -> Iterator[str | Tag]:
        """Yield the held items: tags inside code spans of this paragraph as text, the others as tags."""
        partner: dict[int, int] = {}  # position of the next run of the same length
        following: dict[int, int] = {}
        for i in range(len(self._runs) - 1, -1, -1):
            length = self._runs[i][0]
            if length in following:
                partner[i] = following[length]
            following[length] = i
        i = place = 0
        while i < len(self._runs):
            if (end := partner.get(i)) is not None:
                yield from self.held[place : self._runs[i][1]]
                yield _text(self.held[self._runs[i][1] : self._runs[end][1]])
                i, place = end, self._runs[end][1]
            i += 1
        yield from self.held[place:]
        self.held, self._runs = [], []


def _text(items: Iterable[str | Tag]) -> str:
    return "".join(item if isinstance(item, str) else item.value for item in items)


_TAG = re.compile(r"</?think>")
_MARK = re.compile(r"(?P<line>^ {0,3})?(?P<mark>`+|~{3,})", re.MULTILINE)  # start or end of code in Markdown


def without_reasoning(text: str) -> str:
    """The answer in `text`, which may begin with reasoning if the server does not separate the two.

    Removes `<think>...</think>` at the beginning, and everything up to a `</think>` without a matching `<think>`. Tags
    in code and later pairs of tags belong to the answer.
    """
    code = _code(text)
    cut, begins, opened, block = 0, _begin(text, 0), -1, False
    for tag in _TAG.finditer(text):
        while code and code[0][1] <= tag.start():
            code.popleft()
        if code and code[0][0] <= tag.start():
            continue
        if tag[0] == "<think>":
            opened = tag.start() if opened < 0 else opened
        else:
            if opened == begins or (opened < 0 and not block):
                block = opened == begins
                cut, begins = tag.end(), _begin(text, tag.end())
            opened = -1
    return text[begins:] if cut else text


def _begin(text: str, at: int) -> int:
    """Position of the first character from `at` on that is not white space."""
    found = re.compile(r"\S").search(text, at)
    return found.start() if found else len(text)


def _code(text: str) -> deque[tuple[int, int]]:
    """Ranges of code in Markdown, ascending: fenced blocks (an unclosed one to the end) and spans in a paragraph."""
    marks = [*_MARK.finditer(text)]
    after: dict[str, list[int]] = {}
    for i, mark in enumerate(marks):
        after.setdefault(mark["mark"], []).append(i)
    breaks = [found.start() for found in re.finditer(r"\n[ \t]*\n", text)]
    code = deque[tuple[int, int]]()
    i = 0
    while i < len(marks):
        mark = marks[i]
        same = after[mark["mark"]]
        at = bisect_right(same, i)
        closing = marks[same[at]] if at < len(same) else None
        fence = len(mark["mark"]) >= 3 and mark["line"] is not None
        paragraph = bisect_right(breaks, mark.start())
        end_of_paragraph = breaks[paragraph] if paragraph < len(breaks) else len(text)
        in_paragraph = mark["mark"][0] == "`" and closing is not None and closing.start() < end_of_paragraph
        if closing is not None and (fence or in_paragraph):
            code.append((mark.start(), closing.end()))
            i = same[at] + 1
        elif fence:
            code.append((mark.start(), len(text)))
            break
        else:
            i += 1
    return code
