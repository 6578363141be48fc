"""Restricts the tokens of answers to those that a grammar of llguidance allows."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from vlroute.errors import LimitError

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

_BITS = 32
_lock = threading.Lock()


class Constraint:
    """What a grammar allows next in one answer.

    While the grammar is incomplete, no end token is allowed. When nothing can follow, only end tokens are.

    Args:
        matcher: At the beginning of the answer.
        tokenizer: That of the matcher.
        ends: Ids that end the answer. Those that are text do not end it; if there are no others, that of the tokenizer
            does.
    """

    def __init__(self, matcher: LLMatcher, tokenizer: LLTokenizer, ends: frozenset[int]) -> None:
        self.matcher, self.tokenizer = matcher, tokenizer
        own = frozenset(tokenizer.eos_tokens)
        #: Ids that end the answer.
        self.ends = frozenset(one for one in ends if one in own or (one >= 0 and _is_control(tokenizer, one))) or own
        self._all_ends = self.ends | own

    def fork(self) -> Constraint:
        """A constraint in the same state, which changes independently of this one."""
        return Constraint(self.matcher.deep_copy(), self.tokenizer, self.ends)

    def push(self, token: int) -> None:
        """Add the next token of the answer. LimitError if the grammar is too complex."""
        if token not in self.ends and not self.matcher.consume_token(token):
            raise self.error()

    def finish(self, row: NDArray[np.int32]) -> None:
        """Correct the end tokens in the mask of the matcher. LimitError if the grammar is too complex."""
        if self.matcher.is_error():
            raise self.error()
        accepting = self.matcher.is_accepting()
        bits = row.view(np.uint32)
        for one in self._all_ends:
            bit = np.uint32(1 << one % _BITS)
            if accepting and one in self.ends:
                bits[one // _BITS] |= bit
            else:
                bits[one // _BITS] &= ~bit

    def error(self) -> LimitError:
        """The error of the matcher."""
        why = " ".join(self.matcher.get_error().partition("<state>")[0].split())[
            :200
        ]  # without the state of the parser
        if why.startswith("NoExtension"):
            why = "no text matches a part of it"
        return LimitError(
            f"the format of the answer is too complex: {why}; choose a simpler response_format or tool schema"
        )


def constraint(tokenizer: Any, vocabulary: int, grammar: str, ends: frozenset[int]) -> Constraint:
    """Compile a grammar for one answer. The latest grammars are kept.

    Args:
        tokenizer: The tokenizer of the model.
        vocabulary: Number of scores that the model gives to tokens.
        grammar: A grammar of llguidance.
        ends: Ids that end the answer.

    Returns:
        The constraint, at the beginning of the answer.

    Raises:
        LimitError: The grammar is too complex.
    """
    with _lock:  # a matcher cannot be used by two threads at once
        own = _tokenizer(tokenizer, vocabulary)
        matcher = _compiled(tokenizer, vocabulary, grammar).deep_copy()
    found = Constraint(matcher, own, ends)
    if matcher.is_error():
        raise found.error()
    return found


def allowed_tokens(constraints: Sequence[Constraint], vocabulary: int, device: torch.device) -> torch.Tensor:
    """Which tokens are allowed next in several answers, computed in parallel, with one transfer to the device.

    Args:
        constraints: That of each answer.
        vocabulary: Number of tokens.
        device: Where the result is used.

    Returns:
        `[answers, vocabulary]`, true where a token is allowed.

    Raises:
        LimitError: A grammar is too complex.
    """
    masks = np.zeros((len(constraints), -(-constraints[0].tokenizer.vocab_size // _BITS)), np.int32)
    if len(constraints) == 1:
        constraints[0].matcher.unsafe_compute_mask_ptr(masks.ctypes.data, masks.nbytes)
    else:
        _executor().unsafe_compute_mask_ptr(
            [(one.matcher, i) for i, one in enumerate(constraints)], masks.ctypes.data, masks[0].nbytes, len(masks)
        )
    for one, row in zip(constraints, masks, strict=True):
        one.finish(row)
    bits = torch.from_numpy(masks).to(device)[:, :, None] >> torch.arange(_BITS, dtype=torch.int32, device=device)
    return (bits & 1).bool().flatten(1)[:, :vocabulary]


def token_id(tokenizer: Any, token: str) -> int | None:
    """The id of an added token such as `<tool_call>`; None if the tokenizer does not have it."""
    found: int | None = tokenizer.convert_tokens_to_ids(token)
    return None if found == tokenizer.unk_token_id else found


def _is_control(tokenizer: LLTokenizer, token: int) -> bool:
    return token < tokenizer.vocab_size and tokenizer.is_special_token(token)


@lru_cache(maxsize=1)
def _executor() -> LLExecutor:
    from llguidance import LLExecutor

    return LLExecutor()


@lru_cache(maxsize=8)
def _tokenizer(tokenizer: Any, vocabulary: int) -> LLTokenizer:
    """The tokenizer of a checkpoint for llguidance. Added tokens, such as `<tool_call>`, are no text for it."""
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer, n_vocab=max(vocabulary, len(tokenizer)))


@lru_cache(maxsize=16)
def _compiled(tokenizer: Any, vocabulary: int, grammar: str) -> LLMatcher:
    from llguidance import LLMatcher

    return LLMatcher(_tokenizer(tokenizer, vocabulary), grammar, log_level=0)
