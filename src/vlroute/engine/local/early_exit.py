"""Ends a thought whose answer no longer changes (dynamic early exit, Yang et al., 2025, arXiv 2504.15895)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from vlroute.engine.local.grammar import Constraint, allowed_tokens
from vlroute.engine.local.reasoning import OutputControl

#: Maximum number of answer tokens of a trial. Longer answers are compared by their beginning.
MAX_TRIED = 32
#: Number of reasoning tokens before the first trial, and at least between two trials.
EVERY = 8
#: The distance of two trials grows with the length of the thought, by this share of it, so that all trials together
#: take a time that is proportional to that of the thought.
GROWTH = 0.25


class EarlyExit:
    """Tries the answer at intervals of one thought: greedily, as if the thought were closed there.

    The thought ends if two trials in a row give the same answer and the model is sure of each of its tokens. A trial
    ends with the first token of which it is not. The tokens of a trial are not part of the output.

    Yang et al. compare the geometric mean of the probabilities with a threshold, at the words where a thought turns,
    and ask for a short answer. Here, every token has to reach the threshold, so that most trials end after a token or
    two; and the answer has to be the same twice.
    """

    def __init__(self, confidence: float | None) -> None:
        """Begin a thought. `confidence`: minimum probability of each token of the answer; None: no trials."""
        self._threshold = None if confidence is None else math.log(confidence)
        #: Ids that follow the thought during a trial: those that close it, and the answer so far.
        self.ids: list[int] = []
        #: Constrains the answer of the trial.
        self.constraint: Constraint | None = None
        self._control: OutputControl | None = None
        self._answer: list[int] = []
        self._previous: list[int] | None = None
        self._next = EVERY  # number of reasoning tokens at which the next trial begins

    @property
    def running(self) -> bool:
        """Whether a trial is in progress."""
        return self._control is not None

    def is_due(self, control: OutputControl) -> bool:
        """Whether a trial has to begin before the next token of the thought."""
        return self._threshold is not None and not self.running and control.count >= self._next and control.open

    def begin(self, control: OutputControl, constraint: Constraint | None = None) -> None:
        """Begin a trial after the tokens that `control` has processed. `constraint`: that of the answer."""
        self._control, self.ids = control.trial()
        self.constraint = None if constraint is None else constraint.fork()
        self._answer = []

    def skip(self, control: OutputControl) -> None:
        """Leave out the trial that is due."""
        self._previous, self._next = None, control.count + self._distance(control)

    def _distance(self, control: OutputControl) -> int:
        """Number of reasoning tokens until the next trial."""
        return max(EVERY, int(GROWTH * control.count))

    def abandon(self) -> None:
        """End a trial without a result. It is due again."""
        self._control, self.constraint, self.ids = None, None, []

    def excluded(self) -> frozenset[int]:
        """The ids that may not come next in the trial."""
        assert self._control is not None, "`begin` comes first"
        return self._control.excluded

    def push(self, token: int, log_prob: float, control: OutputControl) -> bool:
        """Add the most probable token of a trial.

        Args:
            token: Its id.
            log_prob: Natural logarithm of its probability.
            control: That of the thought. It is told to close the thought if two answers agree.

        Returns:
            Whether the trial has ended.
        """
        assert self._control is not None, "`begin` comes first"
        assert self._threshold is not None, "without a threshold there are no trials"
        sure = log_prob >= self._threshold
        if sure:
            self.ids.append(self._control.chosen(token))
            self._answer.append(token)
            if self.constraint is not None:
                self.constraint.push(token)
            if not self._control.ended and len(self._answer) < MAX_TRIED:
                return False
        if sure and self._answer == self._previous:
            control.close_early()
        self._previous = self._answer if sure else None
        self._next = control.count + self._distance(control)
        self.abandon()
        return True


def most_probable(
    logits: torch.Tensor, excluded: Sequence[frozenset[int]], constraints: Sequence[Constraint | None]
) -> list[tuple[int, float]]:
    """The most probable id of each row and the natural logarithm of its probability.

    Args:
        logits: Logits of the model, `[rows, vocabulary]`.
        excluded: The ids that are not allowed in each row, unless its constraint allows no others.
        constraints: What constrains each row.

    Returns:
        Both of each row.
    """
    scores = logits.to(torch.float32, copy=True)
    if found := [(i, one) for i, one in enumerate(constraints) if one is not None]:
        rows = torch.tensor([i for i, _ in found]).to(logits.device)
        allowed = allowed_tokens([one for _, one in found], logits.shape[-1], logits.device)
        scores[rows] = scores[rows].masked_fill(~allowed, -torch.inf)
    limited = scores.clone()
    for row, ids in zip(limited, excluded, strict=True):
        row[torch.tensor(sorted(ids), dtype=torch.long, device=row.device)] = -torch.inf
    limited = torch.where((limited == -torch.inf).all(-1, keepdim=True), scores, limited)
    values, tokens = limited.log_softmax(-1).max(-1)
    return [*zip(tokens.tolist(), values.tolist(), strict=True)]
