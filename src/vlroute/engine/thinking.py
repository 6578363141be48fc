"""Reasoning apart from the answer, by token id; and a budget for reasoning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor

from vlroute.engine.protocol import Channel
from vlroute.engine.stop_text import StopText
from vlroute.engine.trimmed import Trimmed

THINK, END_THINK = "<think>", "</think>"
#: What ends a thought that ran out of budget: the very bytes with which the Thinking template ends one itself.
CLOSING = f"\n{END_THINK}\n\n"


class Decoder:
    """Token ids to text, one at a time: text is held back while its last character is incomplete.

    (tokenizers' own DecodeStream raises on bytes that never make a character, which a sampling model may write.)
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.ids = tokenizer, list[int]()
        self.start = self.read = 0  # decoding begins a little before what is new: some tokens depend on their neighbour

    def push(self, token: int) -> str:
        self.ids.append(token)
        known = self._decode(self.ids[self.start : self.read])
        text = self._decode(self.ids[self.start :])
        if text.endswith("\ufffd") or len(text) <= len(known):
            return ""
        self.start, self.read = self.read, len(self.ids)
        return text[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Splitter:
    """Turns generated token ids, one at a time, into pieces of thinking and of answer.

    The Thinking template ends the prompt with `<think>`, so only `</think>` appears in the output: everything before
    it is thinking, and without it there is no answer. Instruct output is answer throughout. `stops` end the answer, not
    the thinking: a stop string in a thought would leave no answer.
    """

    def __init__(self, tokenizer: Any, thinking: bool, stops: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.start_id = tokenizer.convert_tokens_to_ids(THINK)
        self.end_id = tokenizer.convert_tokens_to_ids(END_THINK)
        self.channel: Channel = "thinking" if thinking else "answer"
        self.texts: dict[Channel, str] = {"thinking": "", "answer": ""}
        self.thinking_tokens = 0
        self.stop = StopText(stops)
        self._begin()

    def _begin(self) -> None:
        # a decoder of its own for each channel: no half character crosses the border
        self.decoder, self.trimmed = Decoder(self.tokenizer), Trimmed()

    def push(self, token: int) -> Iterator[tuple[Channel, str]]:
        if self.channel == "thinking":
            self.thinking_tokens += 1
            if token == self.end_id:
                self.channel = "answer"
                self._begin()
                return
            if token == self.start_id:
                return
        piece = self.trimmed.push(self.decoder.push(token))
        if self.channel == "answer":
            piece = self.stop.push(piece)
        yield from self._said(piece)

    def flush(self) -> Iterator[tuple[Channel, str]]:
        """What was held back in case a stop string had begun."""
        yield from self._said(self.stop.flush())

    def _said(self, piece: str) -> Iterator[tuple[Channel, str]]:
        if piece:
            self.texts[self.channel] += piece
            yield self.channel, piece


class ThinkingBudget(LogitsProcessor):
    """After `budget` tokens of thinking without `</think>`, makes the model write `CLOSING` and then answer."""

    def __init__(self, tokenizer: Any, prompt_length: int, budget: int) -> None:
        if budget < 0:
            raise ValueError(f"thinking_budget must be 0 or more tokens, got {budget}")
        self.closing = tokenizer(CLOSING, add_special_tokens=False)["input_ids"]
        self.end_id = tokenizer.convert_tokens_to_ids(END_THINK)
        self.prompt_length, self.budget = prompt_length, budget

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        for row, ids in enumerate(input_ids[:, self.prompt_length :].tolist()):
            over = len(ids) - self.budget
            if 0 <= over < len(self.closing) and self.end_id not in ids[: self.budget]:
                scores[row, :] = -float("inf")
                scores[row, self.closing[over]] = 0.0
        return scores
