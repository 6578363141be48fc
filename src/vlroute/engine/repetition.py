"""Detects repetition in a text while it is generated."""

from __future__ import annotations

from collections.abc import Hashable

#: Number of tokens that are looked up in the earlier text.
NGRAM = 8
#: Minimum score of a loop.
MIN_SCORE = 48
#: Loops with a period of at least this many tokens are reported after `PASSES` repeats: some models go through the same
#: steps several times to check them.
LONG_PERIOD, PASSES = 24, 4
#: Score that is lost for a token that is no repeat.
PENALTY = 4


class LoopDetector:
    """Detects exact and near repetition at the end of a growing sequence of tokens.

    A token is *repeated* if it and the tokens before it, `NGRAM` in all, occurred earlier. There are two scores: for
    repeats at a distance below `LONG_PERIOD`, and for the others. A repeated token raises its score by 1; every other
    token lowers it by `PENALTY`, but not below 0. The sequence loops if the first score reaches `MIN_SCORE`, or the
    second one `PASSES` × distance + `NGRAM`. A passage that is only quoted does not reach these scores. A loop with a
    short period is detected at most `MIN_SCORE + NGRAM` tokens after its first full repeat, a longer one about
    `PASSES - 1` periods after it. The time for each token does not depend on the length of the sequence.
    """

    def __init__(self) -> None:
        self._last: list[Hashable] = []
        self._seen: dict[tuple[Hashable, ...], int] = {}
        self._count = self._short = self._long = 0

    def push(self, token: Hashable) -> bool:
        """Add a token.

        Args:
            token: The next token, or a word.

        Returns:
            Whether the sequence loops.
        """
        self._count += 1
        self._last = [*self._last[1 - NGRAM :], token]
        key = tuple(self._last)
        earlier = self._seen.get(key) if len(key) == NGRAM else None
        self._seen[key] = self._count
        distance = 0 if earlier is None else self._count - earlier
        is_short = 0 < distance < LONG_PERIOD
        self._short = self._short + 1 if is_short else max(0, self._short - PENALTY)
        self._long = self._long + 1 if distance >= LONG_PERIOD else max(0, self._long - PENALTY)
        if is_short:
            return self._short >= MIN_SCORE
        return distance > 0 and self._long >= max(MIN_SCORE, PASSES * distance + NGRAM)
