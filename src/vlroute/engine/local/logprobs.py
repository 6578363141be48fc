"""Log-probabilities of the tokens of one answer, with their texts and bytes."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from vlroute.engine.local.sampling import TokenScores
from vlroute.engine.scored import ScoredPieces
from vlroute.types import TokenLogprob

#: How tokenizers with byte fallback write a token of one byte.
_BYTE = re.compile("<0x([0-9A-F]{2})>")


class AnswerLogprobs(ScoredPieces):
    """Collects the log-probabilities of an answer, with the texts of its tokens.

    Args:
        tokenizer: The tokenizer of the model.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self._texts = _token_texts(tokenizer)

    def push(self, scores: TokenScores) -> None:
        """Add the next token."""
        top = tuple(self._entry(token, log_prob) for token, log_prob in scores.top)
        self.entries.append(self._entry(scores.token, scores.log_prob, top))

    def _entry(self, token: int, log_prob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        text, data = self._texts[token]
        return TokenLogprob(text, data, log_prob, top)


class TokenTexts(dict[int, tuple[str, bytes | None]]):
    """Text and bytes of each token, computed when they are needed; see `TokenLogprob`.

    Args:
        tokenizer: The tokenizer of the model.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend, self._special = tokenizer.backend_tokenizer, frozenset(tokenizer.all_special_ids)

    def __missing__(self, token: int) -> tuple[str, bytes | None]:
        name = self._backend.id_to_token(token)
        if name is None or token in self._special:  # the scores of some models have more places than there are tokens
            self[token] = name or "", None
        else:
            data = token_bytes(name, str(self._backend.decode([token], skip_special_tokens=False)))
            self[token] = data.decode("utf-8", "replace"), data
        return self[token]


#: One for each tokenizer, so that later answers find the texts.
_token_texts = lru_cache(maxsize=4)(TokenTexts)


def token_bytes(name: str, text: str) -> bytes:
    """The bytes of a token.

    Args:
        name: Its name in the vocabulary.
        text: Its text alone, in which U+FFFD stands for bytes that form no character.

    Returns:
        The bytes.
    """
    if "\ufffd" not in text:
        return text.encode()
    if one := _BYTE.fullmatch(name):
        return bytes.fromhex(one[1])
    table = _byte_level()
    return bytes(table[sign] for sign in name) if table.keys() >= {*name} else text.encode()


@lru_cache(maxsize=1)
def _byte_level() -> dict[str, int]:
    """The bytes of the characters in the vocabulary of a byte-level tokenizer, as GPT-2 and Qwen have it.

    Printable characters of Latin-1 stand for themselves, the other bytes for the characters from U+0100 on.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(own)]
    return {chr(byte): byte for byte in own} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
