"""Label new pictures with both modes of the pocket pair: records for training and for the model card.

    python -m training.pocket.label --count 1440 --seed labels --out training/pocket/records.jsonl.gz

Every answer is generated, one request at a time, so that the seconds are those of a single user. Resumable: the records
so far are in a file beside the output until it is complete.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from rich.progress import track

from training.page import POCKET, argument_parser
from vlroute import Answer, Outcome, Record, Router, read_records, write_records
from vlroute.learning import Trial, draw_evenly, run_trials
from vlroute.learning.trial import media


def outcome(trial: Trial, answer: Answer) -> Outcome:
    prefill = answer.timing.vision + answer.timing.prefill
    seconds = round(prefill + answer.timing.decode, 5)
    return Outcome(trial.right(answer), answer.usage.completion_tokens, seconds, round(prefill, 5))


def record(router: Router, trial: Trial, name: str) -> Record:
    task = trial.task
    caption = router.decide(task.prompt, **media(task)).caption
    return Record(
        id=name, prompt=task.prompt, caption=caption, set="pocket", topic=task.kind,
        level=f"{task.level}: {task.difficulty}", language=task.language,
        model=router.identity.name, fingerprint=router.identity.fingerprint or "",
        instruct=outcome(trial, trial.instruct), thinking=outcome(trial, trial.thinking),
    )  # fmt: skip


def main() -> None:
    parser = argument_parser(__doc__, None, "file of records")
    parser.add_argument("--count", type=int, default=1440)
    parser.add_argument("--seed", default="labels")
    parser.add_argument("--model", type=Path, default=POCKET)
    options = parser.parse_args()
    partial = options.out.with_suffix(".partial.jsonl")
    done = len(list(read_records(partial))) if partial.exists() else 0
    router = Router.from_pretrained(options.model, captioner="instruct")
    tasks = itertools.islice(draw_evenly(options.count, options.seed), done, None)
    trials = run_trials(router, tasks, routed=False)
    for i, trial in enumerate(track(trials, "labeling", total=options.count - done), start=done):
        write_records(partial, [record(router, trial, f"{options.seed}-{i:05d}")], append=True)
    write_records(options.out, read_records(partial))
    partial.unlink()
    print(f"{options.count} records in {options.out}")


if __name__ == "__main__":
    main()
