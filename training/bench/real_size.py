"""The pair at the 2B shape: what it costs to load and to answer. `python -m training.bench.real_size`

Random weights of the real sizes in bfloat16: memory and seconds are those of the real pair, what it says is not. Each
case, equal towers and different ones, runs in a fresh process; the table goes to docs/benchmarks/real_size.md. Takes
about 9 GB of disk; with --folder the checkpoints are kept and used again.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from training.bench.checkpoint_2b import CASES, PairWriter, Shape
from training.bench.measure import NEW_TOKENS, SAMPLING_SECONDS, SIDE, SPARE, Measurement, measure_apart
from training.bench.page import PAGES, hardware, table, versions


def _gb(size: int | float | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.2f}"


def render(measurements: list[Measurement], shape: Shape, load: float) -> str:
    """The page: hardware and its `load` from other work, versions, one table of memory and one of seconds."""
    cuda = any(m.cuda_peak is not None for m in measurements)
    memory = [
        [m.case, "yes" if m.shared_tower else "no", f"{m.load_seconds:.1f}", _gb(m.held), _gb(m.before),
         _gb(m.after_load), _gb(m.anonymous), _gb(m.peak), _gb(m.bound), "yes" if m.met else "**no**"]
        for m in measurements
    ]  # fmt: skip
    seconds = [
        [m.case, mode, str(a.prompt_tokens), str(a.vision_tokens), f"{a.first_seconds:.1f}", f"{a.vision_seconds:.2f}",
         f"{a.prefill_seconds:.2f}", f"{a.seconds_per_token:.3f}"]
        for m in measurements
        for mode, a in m.modes.items()
    ]  # fmt: skip
    where = "allocated on the CUDA device" if cuda else "resident"
    lines = [
        "# The pair at its real size",
        "",
        "Written by `python -m training.bench.real_size` (`make bench`). Two checkpoints of the 2B shape "
        f"(text {shape.layers} layers × {shape.width}, tower {shape.tower_depth} × {shape.tower_width}) with random "
        "weights in bfloat16: memory and seconds are real, what the pair says is not, so nothing here speaks of "
        "accuracy.",
        "",
        f"* Hardware: {hardware()}, {measurements[0].device}; load average before the start {load:.1f}.",
        f"* Versions: {versions()}",
        f"* Request: one drawn picture of {SIDE} × {SIDE} pixels, {NEW_TOKENS} new tokens, both modes.",
        "",
        "## Memory",
        "",
        *table(
            ["towers", "one tower kept", "load, s", "weights held, GB", "before loading, GB", "peak while loading, GB",
             "peak anonymous, GB", "peak, GB", "bound, GB", "bound met"],
            memory,
        ),
        "",
        f"GB are 10⁹ bytes. Each row is a process of its own. *Peak*: the most bytes ever {where}, from the start of "
        "the process to the last answer, nothing subtracted. *Bound*: both language models, one tower (equal) or two "
        f"(different), by the bytes of the loaded parameters, × {SPARE}. *Before loading*, *peak while loading* and "
        "*anonymous* are of the host: resident memory, and that part of it which no file backs (sampled every "
        f"{1000 * SAMPLING_SECONDS:.0f} ms). Where the files hold the very type that is asked for, on a CPU, weights "
        "stay pages of the file: they count as resident once touched, are not anonymous, and the system may take "
        "them back under pressure.",
        "",
        "## Seconds",
        "",
        *table(
            ["towers", "mode", "prompt tokens", "of them vision", "first answer", "tower", "prefill",
             "each further token"],
            seconds,
        ),
        "",
        "*First answer* is whole, and reads the weights in; the columns after it are of the second answer to the same "
        "request: picture processing and tower, prefill until the first token, each token after it. bfloat16 is the "
        "checkpoints' own type; a CPU without instructions for it computes faster in float32, in twice the memory.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def bench(folder: Path, shape: Shape, progress: Progress) -> list[Measurement]:
    writer = PairWriter(folder, shape)
    writer.prepare()
    found: list[Measurement] = []
    for case in CASES:
        task = progress.add_task(f"{case} towers", total=None, step="")

        def show(step: str, task: Any = task) -> None:
            progress.update(task, step=step)

        for step in writer.write(case):
            show(f"writing {step}")
        found.append(measure_apart(folder, case, show))
        progress.update(task, total=1, completed=1, step=f"peak {_gb(found[-1].peak)} of {_gb(found[-1].bound)} GB")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep the checkpoints here, and use those that are here")
    parser.add_argument("--out", type=Path, default=PAGES / "real_size.md", help="where the table goes")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.fields[step]}"), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="vlroute-2b-") as temporary, Progress(*columns) as progress:
        try:
            found = bench(options.folder.resolve() if options.folder else Path(temporary), Shape(), progress)
        except OSError as error:
            raise SystemExit(str(error)) from error
    options.out.write_text(render(found, Shape(), load), encoding="utf-8")
    if not all(measurement.met for measurement in found):
        raise SystemExit(f"a bound was missed, see {options.out}")


if __name__ == "__main__":
    main()
