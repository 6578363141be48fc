"""Train the vision probe of a pocket router from its committed records, into `models/pocket/router/probe`.

    python -m training.pocket.probe

The pictures of the records are drawn again from their seed. Takes about a minute and a half.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.progress import Progress, track

from training.page import POCKET, argument_parser
from training.pocket.label import SEED, requests
from vlroute import InputError, Record, Router, read_records
from vlroute.decision.captions import PROBE_FOLDER
from vlroute.learning.probe import STEPS, Floats, pool, train_probe

RECORDS = Path(__file__).with_name("records.jsonl.gz")


def redraw(router: Router, records: list[Record], seed: str) -> tuple[Floats, list[str]]:
    """Pooled features `[n, 2 · width]` of the records' pictures, and their captions.

    InputError if `seed` draws other requests.
    """
    rows: list[Floats] = []
    captions: list[str] = []
    drawn = requests(len(records), seed)
    for record, request in track(zip(records, drawn, strict=True), "encoding the pictures", total=len(records)):
        asked = request.conversation
        if record.prompt != asked.prompt:
            raise InputError(
                f"record {record.id!r} has the prompt {record.prompt!r}, but seed {seed!r} draws {asked.prompt!r}: the "
                "drawing code has changed; label again with training.pocket.label"
            )
        if asked.pictures or asked.videos:
            rows += pool(router, asked)
            captions.append(record.caption or "")
        router.cache.clear()
    return np.stack(rows), captions


def main() -> None:
    parser = argument_parser(__doc__, POCKET / "router" / PROBE_FOLDER, "folder of the probe")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--model", type=Path, default=POCKET)
    parser.add_argument("--seed", default=SEED, help="seed of the records' pictures")
    options = parser.parse_args()
    records = list(read_records(options.records))
    router = Router.from_pretrained(options.model).load()
    pooled, captions = redraw(router, records, options.seed)
    with Progress() as progress:
        task = progress.add_task("fitting", total=STEPS)
        probe = train_probe(pooled, captions, router.pair.instruct.tower, advance=lambda: progress.advance(task))
    data = {"file": options.records.name, "sha256": hashlib.sha256(options.records.read_bytes()).hexdigest()}
    probe = replace(probe, card={**probe.card, "data": data})
    probe.save(options.out)
    print(f"{len(probe.texts)} texts, {probe.card}; wrote {options.out}")


if __name__ == "__main__":
    main()
