"""Separates reasoning and answer by token id, ends answers at stop strings, and makes every output complete."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from vlroute.engine.repetition import LoopDetector
from vlroute.engine.text import StopText, Trimmed
from vlroute.types import Channel, Closed

THINK, END_THINK = "<think>", "</think>"
#: Closes the reasoning if the model does not; the form that Qwen's chat templates use for earlier turns.
CLOSING = f"\n{END_THINK}\n\n"


class Decoder:
    """Decodes token ids one at a time; text is held back while its last character is incomplete.

    tokenizers' DecodeStream is not used: it raises on bytes that form no character, which sampling may generate.
    """

    #: With this many tokens pending, the first of them cannot belong to one unfinished character (4 bytes at most).
    MAX_PENDING = 8

    def __init__(self, tokenizer: Any) -> None:
        # the method of transformers checks and converts its arguments, which takes longer than decoding a few ids
        self._backend, self._ids = tokenizer.backend_tokenizer, list[int]()
        self._special = frozenset(tokenizer.all_special_ids)
        # decoding starts a little before the new tokens, because the text of some tokens depends on the one before
        self._start = self._end = 0
        self._known = ""  # the text from `_start` to `_end`

    def push(self, token: int) -> str:
        """The text that `token` completes."""
        if token in self._special:
            return ""
        self._ids.append(token)
        text = self._decode(self._start, len(self._ids))
        if not text.endswith("\ufffd"):
            return self._release(len(self._ids), text)
        if len(self._ids) - self._end < self.MAX_PENDING:
            return ""
        end = self._boundary()
        return self._release(end, self._decode(self._start, end))

    def flush(self) -> str:
        """The text of the tokens that were held back; bytes that form no character become U+FFFD."""
        return self._release(len(self._ids), self._decode(self._start, len(self._ids)))

    def _boundary(self) -> int:
        """An index near the end that does not split a character."""
        most = len(self._ids)
        whole = self._decode(self._end, most)
        candidates = range(most - 3, most)
        cuts = (i for i in candidates if self._decode(self._end, i) + self._decode(i, most) == whole)
        return next(cuts, most)

    def _release(self, end: int, text: str) -> str:
        """The new part of `text`, which is that from `_start` to `end`."""
        known = len(self._known)
        self._start, self._end = self._end, end
        self._known = self._decode(self._start, end)
        return text[known:]

    def _decode(self, start: int, end: int) -> str:
        return str(self._backend.decode(self._ids[start:end], skip_special_tokens=False))


class Splitter:
    """Turns generated token ids, one at a time, into pieces of thinking and of answer.

    The Thinking template ends the prompt with `<think>`, so only `</think>` appears in the output: everything before
    it is thinking, and without it there is no answer. Instruct output is answer throughout. `stops` end the answer, not
    the thinking: a stop string in a thought would leave no answer. `continues`: the answer continues a given beginning.
    """

    def __init__(self, tokenizer: Any, thinking: bool, stops: Sequence[str] = (), continues: bool = False) -> None:
        self.tokenizer = tokenizer
        self.start_id = tokenizer.convert_tokens_to_ids(THINK)
        self.end_id = tokenizer.convert_tokens_to_ids(END_THINK)
        self.channel: Channel = "thinking" if thinking else "answer"
        self.thinking_tokens = 0
        self.stop = StopText(stops)
        self._pieces: dict[Channel, list[str]] = {"thinking": [], "answer": []}
        self._begin(continues)

    @property
    def texts(self) -> dict[Channel, str]:
        """Thinking and answer so far."""
        return {channel: "".join(pieces) for channel, pieces in self._pieces.items()}

    def push(self, token: int) -> Iterator[tuple[Channel, str]]:
        """The pieces of text that `token` completes."""
        if self.channel == "thinking":
            self.thinking_tokens += 1
            if token == self.end_id:
                yield from self._emit(self.decoder.flush())
                self.channel = "answer"
                self._begin()
                return
            if token == self.start_id:
                return
        yield from self._emit(self.decoder.push(token))

    def flush(self) -> Iterator[tuple[Channel, str]]:
        """The text that was held back: an incomplete character or the beginning of a stop string."""
        yield from self._emit(self.decoder.flush())
        yield from self._kept(self.stop.flush())

    def _begin(self, continues: bool = False) -> None:
        # one decoder per channel, so that no incomplete character moves from one channel to the other
        self.decoder, self.trimmed = Decoder(self.tokenizer), Trimmed(continues)

    def _emit(self, text: str) -> Iterator[tuple[Channel, str]]:
        piece = self.trimmed.push(text)
        yield from self._kept(self.stop.push(piece) if self.channel == "answer" else piece)

    def _kept(self, piece: str) -> Iterator[tuple[Channel, str]]:
        if piece:
            self._pieces[self.channel].append(piece)
            yield self.channel, piece


def closing_length(tokenizer: Any) -> int:
    """Maximum number of tokens that closing the reasoning takes."""
    return len(_closing(tokenizer))


class OutputControl:
    """Forbids and forces tokens so that every output is complete. One object per answer.

    * The reasoning is closed exactly once: by the model, after `budget` tokens, when it repeats itself, when its answer
      no longer changes, or instead of an end token before `</think>`. Afterwards, `<think>` and `</think>` cannot be
      generated again.
    * An answer does not end before it contains visible text, because an empty answer would look like success. Nor does
      it begin with more than `MAX_BLANK` tokens of white space. The grammar of a constrained answer decides instead if
      nothing else than the end, or than white space, fits it.
    """

    #: Maximum number of tokens of white space at the beginning of an answer.
    MAX_BLANK = 8

    def __init__(
        self,
        tokenizer: Any,
        thinking: bool,
        ends: frozenset[int],
        budget: int | None = None,
        most: int | None = None,
        reserve: int = 0,
        close_loops: bool = True,
        answer_ends: frozenset[int] | None = None,
        after_reasoning: bool = False,
        continues: bool = False,
    ) -> None:
        """Control one output.

        Args:
            tokenizer: The tokenizer of the model.
            thinking: Whether the output begins with reasoning.
            ends: Ids that end the output.
            budget: Maximum number of reasoning tokens; None: no maximum.
            most: Maximum number of tokens of the output; None: no maximum.
            reserve: How many of these tokens are kept for the answer; 0: the reasoning may take all of them.
            close_loops: Whether reasoning that repeats itself is closed.
            answer_ends: Ids that end the answer, if a grammar constrains it. Then the closing is always that of
                `CLOSING`, because the grammar does not allow the white space that models generate after it.
            after_reasoning: Whether the output follows closed reasoning, as that of Instruct in a hybrid, whose prompt
                ends with empty reasoning.
            continues: Whether the output continues a given beginning, so that it may end at once.

        Raises:
            ValueError: The budget is negative.
        """
        if budget is not None and budget < 0:
            raise ValueError(f"thinking_budget must be 0 or more tokens, got {budget}")
        #: Why the reasoning was closed; None while it goes on, or if the model closed it.
        self.closed: Closed | None = None
        self._limit: Closed = "budget"
        if thinking and most is not None and reserve:
            left = max(0, most - reserve - closing_length(tokenizer))
            if budget is None or left < budget:
                budget, self._limit = left, "reserve"
        self._tokenizer, self._ends, self._budget = tokenizer, ends, budget if thinking else None
        self._loops = LoopDetector() if thinking and close_loops else None
        self._due: Closed | None = None
        self._blanks, self._most_blank = 0, min(self.MAX_BLANK, reserve - 1) if thinking and reserve else self.MAX_BLANK
        tags = (THINK, END_THINK) if thinking or after_reasoning else ()
        self._tags = [tokenizer.convert_tokens_to_ids(tag) for tag in tags]
        self._answer_ends, self._constrained = ends if answer_ends is None else answer_ends, answer_ends is not None
        self._only_tags, self._tags_and_ends = frozenset(self._tags), frozenset(self._tags) | self._answer_ends
        self._thinking, self._blank = thinking, not continues
        #: Whether the latest token ends the output.
        self.ended = False
        #: Number of tokens so far.
        self.count = 0
        self._last: int | None = None
        self._forced = deque[int]()

    def forced(self) -> int | None:
        """The id of the next token if it is forced, else None."""
        if self._thinking and not self._forced and (self.count == self._budget or self._due):
            self._close(self._due or self._limit)
        return self._told(self._forced.popleft()) if self._forced else None

    @property
    def thinking(self) -> bool:
        """Whether the next token belongs to the reasoning or closes it."""
        return self._thinking

    @property
    def open(self) -> bool:
        """Whether the next token belongs to the reasoning."""
        return self._thinking and not self._forced and self.count != self._budget and self._due is None

    @property
    def answering(self) -> bool:
        """Whether the next token is one of the answer that the model chooses."""
        return not self._thinking and not self._forced

    def close_early(self) -> None:
        """Close the reasoning with the next tokens, because its answer no longer changes."""
        self._due = "early"

    def trial(self) -> tuple[OutputControl, list[int]]:
        """The control of an answer that would follow if the reasoning were closed now; and the ids that close it."""
        answer_ends = self._answer_ends if self._constrained else None
        control = OutputControl(self._tokenizer, True, self._ends, close_loops=False, answer_ends=answer_ends)
        return control, [control.chosen(token) for token in self._closing()]

    @property
    def excluded(self) -> frozenset[int]:
        """The ids that are not allowed next."""
        if self._thinking:
            return frozenset()
        if self._blank and self._blanks >= self._most_blank and not self._constrained:
            return self._tags_and_ends | _blank_ids(self._tokenizer)
        return self._tags_and_ends if self._blank else self._only_tags

    def chosen(self, token: int) -> int:
        """Process the id that the model chose and return the id for the output.

        They differ if the model would end the reasoning without an answer.
        """
        if self._thinking and token in self._ends:
            self._close("end")
            token = self._forced.popleft()
        elif self._thinking and self._constrained and token == self._tags[1]:
            closing = _closing(self._tokenizer)
            self._forced.extend(closing[closing.index(token) + 1 :])
        return self._told(token)

    def _close(self, why: Closed) -> None:
        self.closed = why
        self._forced.extend(self._closing())

    def _closing(self) -> tuple[int, ...]:
        closing = _closing(self._tokenizer)
        if self._last is not None and self._text(self._last).endswith("\n"):
            closing = closing[closing.index(self._tags[1]) :]  # the text ends with a line break already
        return closing

    def _told(self, token: int) -> int:
        self.count, self._last = self.count + 1, token
        self.ended = token in self._answer_ends and not self._thinking and (self._constrained or not self._blank)
        if self._thinking:
            self._thinking = token != self._tags[1]
            if self._loops is not None and self._thinking and self._loops.push(token):
                self._due = "loop"
        elif self._blank:
            self._blank = not self._text(token).strip()
            self._blanks = self._blanks + 1 if self._blank else 0
        return token

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token], skip_special_tokens=True, clean_up_tokenization_spaces=False))


@lru_cache(maxsize=4)
def _closing(tokenizer: Any) -> tuple[int, ...]:
    """The ids of `CLOSING`."""
    return tuple(tokenizer(CLOSING, add_special_tokens=False)["input_ids"])


@lru_cache(maxsize=4)
def _blank_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of white space."""
    texts = tokenizer.backend_tokenizer.decode_batch([[i] for i in range(len(tokenizer))], skip_special_tokens=False)
    return frozenset(i for i, text in enumerate(texts) if not text.strip())
