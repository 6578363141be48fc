"""Finds out when a text repeats itself, while it is generated."""

from __future__ import annotations

from collections.abc import Hashable

#: Length of the sequences that are looked up in the earlier text.
SEQUENCE = 8
#: Fewest repeated tokens of a loop.
LEAST = 48
#: A loop of this period or a longer one is none before `PASSES` repeats: some models go through the same steps
#: several times on purpose.
LONG, PASSES = 24, 4
#: How many repeated tokens one new token outweighs: a loop may change one token in about 40.
NEW = 4


class LoopDetector:
    """Detects exact and near repetition at the end of a growing sequence of tokens.

    A token is *repeated* if it and the tokens before it, `SEQUENCE` in all, occurred before. The score rises by 1 with
    each repeated token and falls by `NEW`, to 0 at the lowest, with each other one. The sequence loops once the score
    reaches `LEAST`, or, if the earlier occurrence is `LONG` tokens away or more, `PASSES` times this distance and
    `SEQUENCE`. A passage that is only quoted again is shorter than that. A loop of a short period is found at most
    `LEAST + SEQUENCE` tokens after its first full repeat, a longer one `PASSES - 1` periods later. The time for each
    token does not depend on the length.
    """

    def __init__(self) -> None:
        self._last: list[Hashable] = []
        self._seen: dict[tuple[Hashable, ...], int] = {}
        self._count = self._score = 0

    def push(self, token: Hashable) -> bool:
        """Add a token.

        Args:
            token: The next token, or a word.

        Returns:
            Whether the sequence loops.
        """
        self._count += 1
        self._last = [*self._last[1 - SEQUENCE :], token]
        key = tuple(self._last)
        earlier = self._seen.get(key) if len(key) == SEQUENCE else None
        self._seen[key] = self._count
        if earlier is None:
            self._score = max(0, self._score - NEW)
            return False
        self._score += 1
        period = self._count - earlier
        return self._score >= (LEAST if period < LONG else max(LEAST, PASSES * period + SEQUENCE))
