"""Label new pictures with both modes of a pocket model: the records that its router is trained on.

    python -m training.pocket.label --jobs 2 --out training/pocket/records.jsonl.gz
    python -m training.pocket.label --jobs 2 --count 1260 --seed measured --out training/pocket/measured.jsonl.gz

The second command labels other requests, for the notebooks that show the router on requests that it has not seen.

The pictures have hidden difficulty (`Task.severity`) from 0 to 1, as in the proof: the router predicts how often each
mode is right among pictures with the same prompt and caption, so records of other pictures would bias its
probabilities. One request in 19 has a clean picture of a ring of arrows, because the questions about rings are asked
about clean pictures only. A third of the requests with a drawing have other forms that clients send: text before the
picture, other case and punctuation, a sentence next to the question. One request in ten has no picture, and one in 40
has a picture from outside the drawn tasks.

The evidence for later stages is written beside the records, see `vlroute.learning.evidence`.

Every answer is generated, one request at a time, so that the seconds are those of a single user. `--jobs 2` labels two
halves side by side; then seconds are comparable with each other only. A stopped run can be continued: until the output
is complete, the records so far are in files next to it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.page import POCKET, argument_parser, drop_incomplete_line, lines_of, side_by_side
from training.pocket.data import any_question, content, seen
from training.pocket.text import draw_text, vary
from training.pocket.unknown import draw_unknown
from vlroute import InputError, Record, Router, read_records, steps, write_records
from vlroute.inputs.messages import Conversation, parse
from vlroute.learning import Task, draw_evenly, draw_task
from vlroute.learning.collect import model_of_evidence, outcome_of
from vlroute.learning.evidence import EvidenceRow, Watch, evidence_file, read_evidence, write_evidence
from vlroute.learning.trial import plain
from vlroute.pipeline import RequestOptions
from vlroute.pocket.tasks import LANGUAGES, LEVELS, UNKNOWN
from vlroute.types import MODES

COUNT, SEED = 3600, "labels"
BANDS = 5


def band(severity: float | None) -> str:
    """The fifth of the scale that `severity` lies in, as text."""
    if severity is None:
        return "clean"
    low = min(int(BANDS * severity), BANDS - 1)
    return f"severity {low / BANDS:.1f}–{(low + 1) / BANDS:.1f}"


@dataclass(frozen=True, slots=True)
class Labeled:
    """A request with its right answer.

    Attributes:
        topic: Kind of task, "text" or "unknown".
        level: Its difficulty in words.
        language: "en" or "zh".
        conversation: The request.
        answer: The right answer.
    """

    topic: str
    level: str
    language: str
    conversation: Conversation
    answer: str


def about(task: Task, rng: random.Random) -> Labeled:
    """The question of `task`: mostly after the picture and in its original wording, else in another form."""
    source: Any = (task.frames, range(len(task.frames))) if task.is_video else task.frames[0]
    kind = "video" if task.is_video else "image"
    shown = {"type": kind, kind: source}
    parts = [shown, {"type": "text", "text": task.prompt}]
    if rng.random() < 1 / 3:
        form = content(rng, [seen(task)], vary(rng, task.prompt, task.language), task.language)
        parts = [part if part["type"] == "text" else shown for part in form if isinstance(part, dict)]
    level = f"{task.level}: {task.difficulty}, {band(task.severity)}"
    return Labeled(task.kind, level, task.language, parse([{"role": "user", "content": parts}]), task.answer)


def without_picture(rng: random.Random) -> Labeled:
    """A request without a picture."""
    request = draw_text(rng)
    return Labeled("text", request.kind, request.language, parse(request.prompt), request.answer)


def unknown(rng: random.Random) -> Labeled:
    """A known question about a picture from outside the drawn tasks."""
    language = rng.choice(LANGUAGES)
    conversation = parse(any_question(rng, language), draw_unknown(rng))
    return Labeled("unknown", "unknown picture", language, conversation, UNKNOWN[language])


def requests(count: int, seed: str) -> Iterator[Labeled]:
    """Draw `count` requests: pictures of hidden difficulty, then the others."""
    rng, rings, texts, strange = random.Random(f"others {seed}"), count // 19, count // 10, count // 40
    for i, task in enumerate(draw_evenly(count - rings - texts - strange, seed, hidden=True)):
        yield about(task, random.Random(f"form {seed} {i}"))
    for i in range(rings):
        yield about(draw_task(rng, "hop", LEVELS[i % 3], LANGUAGES[i // 3 % 2]), rng)
    yield from (without_picture(rng) for _ in range(texts))
    yield from (unknown(rng) for _ in range(strange))


def label(router: Router, request: Labeled, name: str) -> tuple[Record, EvidenceRow]:
    """The record of one request and its evidence. Before each answer the picture is removed from the caches.

    Spaces, punctuation and case of an answer do not matter.
    """
    outcomes, messages, watch = [], request.conversation.messages, Watch()
    for mode in MODES:
        router.forget()
        options = RequestOptions(mode=mode, trial=watch.trial if mode == "instruct" else None)
        answer = steps.run(router.pipeline.answer(request.conversation, options))
        outcomes.append(outcome_of(plain(answer.text) == plain(request.answer), answer))
    evidence = watch.row(name, *model_of_evidence(router))
    assert evidence is not None  # a model in this process gives it
    record = Record(
        id=name, prompt=request.conversation.prompt, caption=router.decide(messages).caption,
        instruct=outcomes[0], thinking=outcomes[1], set="pocket", topic=request.topic, level=request.level,
        language=request.language, model=router.identity.name, fingerprint=router.identity.fingerprint or "",
    )  # fmt: skip
    return record, evidence


def finished(partial: Path) -> list[Record]:
    """The records in `partial`, without an incomplete last line; none if there is no file."""
    if not partial.exists():
        return []
    drop_incomplete_line(partial)
    return list(read_records(partial)) if partial.stat().st_size else []


def label_part(model: Path, count: int, seed: str, partial: Path, part: int, jobs: int) -> None:
    """Label every `jobs`-th request from number `part`, and add the records to the file `partial`.

    InputError if the file has records of another pair or of other requests.
    """
    router, kept = Router.from_pretrained(model, captioner="instruct").load(), finished(partial)
    if any(record.fingerprint != router.identity.fingerprint for record in kept):
        raise InputError(f"{partial} has records of another pair: delete the file to start again")
    numbered = itertools.islice(enumerate(requests(count, seed)), part, None, jobs)
    drawn = ((f"{seed}-{i:05d}", request) for i, request in numbered)
    for record in kept:
        name, request = next(drawn, (None, None))
        if not request or (name, request.conversation.prompt, request.level) != (
            record.id,
            record.prompt,
            record.level,
        ):
            raise InputError(
                f"{partial} has records of other requests, from {record.id!r} on: delete the file or give another --out"
            )
    for name, request in drawn:
        record, evidence = label(router, request, name)
        write_evidence(evidence_file(partial), [evidence], append=True)
        write_records(partial, [record], append=True)


def main() -> None:
    parser = argument_parser(__doc__, None, "file of records")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", default=SEED)
    parser.add_argument("--model", type=Path, default=POCKET)
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    options = parser.parse_args()
    jobs, given = options.jobs, (options.model, options.count, options.seed)
    if not 1 <= jobs <= options.count:
        parser.error("--jobs must be at least 1 and at most --count")
    partials = [options.out.with_suffix(f".{part + 1}-of-{jobs}.partial.jsonl") for part in range(jobs)]
    work = [(*given, partial, part, jobs) for part, partial in enumerate(partials)]
    side_by_side(label_part, work, lambda: lines_of(partials), options.count, "labeling")
    records = sorted((record for partial in partials for record in finished(partial)), key=lambda record: record.id)
    evidence = read_evidence(partials)
    write_evidence(evidence_file(options.out), [evidence[record.id] for record in records])
    write_records(options.out, records)
    for partial in partials:
        partial.unlink()
        evidence_file(partial).unlink()
    print(f"{len(records)} records in {options.out}")


if __name__ == "__main__":
    main()
