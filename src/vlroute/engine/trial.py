"""The state of a trial during one answer, for local and remote engines. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vlroute.engine.protocol import Evidence, OnPiece, Piece, Trial
from vlroute.types import Channel, Stage


class RunningTrial:
    """Calls the judge of a trial, and holds back the text of the answer until it is decided.

    Args:
        trial: The trial; None if the answer has none.
        on_piece: Called with each piece that is passed on.
        stages: The stages for which the engine gives evidence. A stage that is not among them decides nothing.
    """

    def __init__(
        self, trial: Trial | None = None, on_piece: OnPiece | None = None, stages: Sequence[Stage] = ()
    ) -> None:
        self._trial, self._on_piece = trial, on_piece
        self._held: list[tuple[Channel, Piece]] = []
        #: Whether the judge is called when the prompt has been read.
        self.needs_state = trial is not None and trial.state and "prefill" in stages
        #: Whether it is called, if still undecided, when the answer has ended or `Trial.seconds` after its first token.
        self.needs_answer = trial is not None and trial.answer and "answer" in stages
        #: Whether the judge has ended the answer (`rejected`), and whether a piece was passed on (`begun`).
        self.rejected = self.begun = False

    @property
    def undecided(self) -> bool:
        """Whether text is held back."""
        return self.needs_state or self.needs_answer

    def is_due(self, seconds: float) -> bool:
        """Whether an undecided answer must be decided `seconds` after its first token."""
        return self._trial is not None and self.needs_answer and seconds >= self._trial.seconds

    def judge(self, evidence: Evidence) -> bool:
        """Let the judge decide, and pass on the text that was held back if the answer goes on.

        Args:
            evidence: Evidence of the answer so far.

        Returns:
            Whether the answer goes on.
        """
        if self._trial is None:
            return True
        verdict = self._trial.judge(evidence)
        if verdict is None and self.needs_state and self.needs_answer:
            self.needs_state = False
        elif verdict is None or verdict:
            self.release()
        else:
            self.rejected, self.needs_state, self.needs_answer = True, False, False
        return not self.rejected

    def push(self, pieces: Iterable[tuple[Channel, Piece]]) -> None:
        """Pass on the pieces, hold them back, or drop them after the judge has ended the answer."""
        for channel, piece in pieces:
            if self.undecided:
                self._held.append((channel, piece))
            elif not self.rejected:
                self.begun = True
                if self._on_piece is not None:
                    self._on_piece(channel, piece)

    def release(self) -> None:
        """Decide that the answer goes on, unless the judge has decided."""
        held, self._held, self.needs_state, self.needs_answer = self._held, [], False, False
        self.push(held)
