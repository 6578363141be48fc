"""Files of evidence: hidden states and the confidence of Instruct's answers, one JSON object per line.

The evidence of `records.jsonl` or `records.jsonl.gz` is in `records.evidence.jsonl` or `records.evidence.jsonl.gz`.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlroute.decision.evidence import ANSWER_NUMBERS, answer_numbers
from vlroute.decision.text_encoder import Floats
from vlroute.engine.protocol import Evidence, Trial
from vlroute.errors import InputError
from vlroute.files import replace_file
from vlroute.records import Skipped, append_lines, open_data

MAX_FLOAT16 = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """The evidence of one record.

    Attributes:
        id: Id of the record.
        answer: See `answer_numbers`.
        state: Hidden state of the prompt, float16 `[width]`; None over endpoints.
        dtype: Number type in which the model computed.
        shared_prompt: Whether Thinking can continue the prompt that Instruct has read.
    """

    id: str
    answer: Floats
    state: Floats | None = None
    dtype: str = ""
    shared_prompt: bool = False

    def as_line(self) -> str:
        """The row as one line of JSON."""
        state = None
        if self.state is not None:
            small = np.clip(self.state, -MAX_FLOAT16, MAX_FLOAT16).astype("<f2")
            state = base64.b64encode(small.tobytes()).decode("ascii")
        answer = [round(float(one), 5) for one in self.answer]
        row = {"id": self.id, "answer": answer, "state": state}
        return json.dumps({**row, "dtype": self.dtype, "shared_prompt": self.shared_prompt}) + "\n"

    @classmethod
    def from_line(cls, line: bytes) -> EvidenceRow:
        """The inverse of `as_line`. ValueError if the line has another form."""
        row = json.loads(line)
        try:
            answer = np.asarray(row["answer"], np.float32)
            state = row["state"]
            state = None if state is None else np.frombuffer(base64.b64decode(state, validate=True), "<f2")
            own = cls(
                row["id"], answer, None if state is None else state.astype(np.float32), row["dtype"],
                row["shared_prompt"],
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"expected id, answer and state ({error})") from error
        finite = [own.answer] if own.state is None else [own.answer, own.state]
        if not (isinstance(own.dtype, str) and isinstance(own.shared_prompt, bool)):
            raise ValueError("'dtype' must be a string and 'shared_prompt' true or false")
        if not isinstance(own.id, str) or own.answer.shape != (len(ANSWER_NUMBERS),):
            raise ValueError(f"expected a string as id and {len(ANSWER_NUMBERS)} numbers as answer")
        if not all(np.isfinite(one).all() for one in finite):
            raise ValueError("numbers must be finite")
        return own


class Watch:
    """Collects the evidence of one Instruct answer.

    Attributes:
        trial: Passed to the engine. It never ends the answer.
    """

    def __init__(self) -> None:
        self.trial = Trial(self._see, state=True, answer=True, seconds=math.inf)
        self._state: Floats | None = None
        self._answer: Floats | None = None

    def _see(self, evidence: Evidence) -> None:
        if evidence.state is not None and not evidence.log_probs and not evidence.complete:
            self._state = evidence.state
        else:
            self._answer = answer_numbers(evidence.log_probs, evidence.entropies)

    def row(self, id: str, dtype: str = "", shared_prompt: bool = False) -> EvidenceRow | None:
        """The evidence of the record `id`; None if the engine gave none. Other arguments: see `EvidenceRow`."""
        return None if self._answer is None else EvidenceRow(id, self._answer, self._state, dtype, shared_prompt)


def evidence_file(records: str | Path) -> Path:
    """The file of the evidence of a record file."""
    path = Path(records)
    stem, ending = (path.name.removesuffix(".gz"), ".gz") if path.suffix == ".gz" else (path.name, "")
    return path.with_name(f"{stem.removesuffix('.jsonl')}.evidence.jsonl{ending}")


def write_evidence(path: str | Path, rows: Iterable[EvidenceRow], *, append: bool = False) -> None:
    """Write rows, like `write_records`.

    Args:
        path: The file.
        rows: The rows.
        append: Add them to the end of the file.

    Raises:
        InputError: Appending to a compressed file.
    """
    path = Path(path)
    content = "".join(row.as_line() for row in rows).encode()
    if append:
        append_lines(path, content)
    else:
        replace_file(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content, private=True)


def read_evidence(paths: Sequence[str | Path], skipped: Skipped | None = None) -> dict[str, EvidenceRow]:
    """Read the evidence of record files.

    Args:
        paths: The record files; those without evidence are skipped.
        skipped: Collects lines that cannot be used; these are left out. Without it, such a line raises.

    Returns:
        The rows by id of the record. If an id is repeated, as after a run that was continued, the last row counts.

    Raises:
        InputError: A file cannot be read, or a line has another form.
    """
    found: dict[str, EvidenceRow] = {}
    for path in map(evidence_file, paths):
        if not path.exists():
            continue
        with open_data(path, "JSON lines") as file:
            for number, line in enumerate(file, 1):
                if line.isspace():
                    continue
                try:
                    row = EvidenceRow.from_line(line)
                except ValueError as error:
                    failed = InputError(f"{path}:{number}: {error}")
                    if skipped is None:
                        raise failed from error
                    skipped.add(failed)
                    continue
                found[row.id] = row
    return found
