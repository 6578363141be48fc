"""Shared by benchmarks and recipes: paths, progress, a process of its own, and pages written from Jinja templates."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from rich.progress import Progress

from vlroute.decision.wilson import wilson_interval
from vlroute.files import replace_file

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "benchmarks"
POCKET = ROOT / "models" / "pocket"
POCKET_HYBRID = ROOT / "models" / "pocket-hybrid"
STARTED = time.monotonic()
os.environ.setdefault("TQDM_DISABLE", "1")  # no bars of transformers in the processes that measure


def argument_parser(
    description: str | None, out: Path | None = PAGES, out_help: str = "folder of the page and its figures"
) -> argparse.ArgumentParser:
    """A parser whose help keeps the lines of a module's docstring, with `--out`; required if there is no default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=out, required=out is None, help=out_help)
    return parser


def bold_unless(text: str, met: bool) -> str:
    return text if met else f"**{text}**"


def share_of(count: int, of: int) -> tuple[float, float, float]:
    """A share with the ends of its 95 % Wilson interval."""
    mean = count / of
    return mean, *wilson_interval(mean, mean * (1 - mean) / of, of)


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("pages")), undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip
TEMPLATES.filters.update(fmt=format, bold_unless=bold_unless, share_of=share_of, split=str.split)


def render(template: str, **values: Any) -> str:
    """Fill in a template of `pages/`. Filters: `fmt(spec)` as Python's `format`, `bold_unless(met)`, `share_of(n)`."""
    return TEMPLATES.get_template(template).render(**values)


def figures(name: str, folder: Path = PAGES) -> Any:
    """The figures that `publish` wrote; {} if there are none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def write_json(path: Path, data: Any) -> None:
    replace_file(path, (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode())


def publish(name: str, data: Any, folder: Path = PAGES) -> Path:
    """Write the figures of a benchmark to `name.json` in `folder` and its page to `name.md`; returns the page."""
    write_json(folder / f"{name}.json", data)
    page = folder / f"{name}.md"
    replace_file(page, render(f"{name}.md", data=data, **data).encode())
    return page


def put_section(page: Path, begin: str, end: str, section: str) -> None:
    """Write `section` between the marks of `page`, or with them at its end."""
    before, _, rest = page.read_text("utf-8").partition(begin)
    replace_file(page, f"{before}{begin}\n{section}{end}{rest.partition(end)[2]}".encode())


def step(text: str) -> None:
    """Print progress with the seconds since the start."""
    print(f"{time.monotonic() - STARTED:7.1f} s  {text}", file=sys.stderr, flush=True)


def in_own_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function of a module in a fresh process, whose memory and threads are its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def lines_of(files: Iterable[Path]) -> int:
    """Number of lines in those of the `files` that exist."""
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


def drop_incomplete_line(file: Path) -> None:
    """Remove the incomplete last line that a killed process leaves."""
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        replace_file(file, whole)


def side_by_side(
    work: Callable[..., None], parts: Sequence[tuple[Any, ...]], done: Callable[[], int], total: int, text: str
) -> None:
    """Call `work(*part)` for each part in a process of its own. The processes share the cores evenly.

    `done` returns how much of `total` is finished. SystemExit if a process fails; the others are ended then.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(parts))))
    # daemons also end if this process is interrupted
    running = [get_context("spawn").Process(target=work, args=part, daemon=True) for part in parts]
    for one in running:
        one.start()
    with Progress() as progress:
        bar = progress.add_task(text, total=total)
        while any(one.is_alive() for one in running) and not any(one.exitcode for one in running):
            connection.wait([one.sentinel for one in running if one.is_alive()], timeout=1)
            progress.update(bar, completed=done())
    failed = any(one.exitcode for one in running)
    for one in running:
        one.terminate()  # has no effect on those that have ended
    if failed:
        raise SystemExit(f"{text}: a process failed; start again to continue")


def environment(*packages: str) -> str:
    """Hardware, load before the start, versions and date of a measurement."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    names = (*packages, "torch", "transformers")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB of memory; load average before the start {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, {versions}; {platform.system()}. {time.strftime('%Y-%m-%d')}."
    )


def committed_figures() -> list[Path]:
    """The figures of all pages. Those of `routers.md` are beside it, above the folder of benchmarks."""
    return sorted([*PAGES.glob("*.json"), *PAGES.parent.glob("*.json")])


def main() -> None:
    """Write all pages anew from their committed figures: `python -m training.page`."""
    for path in committed_figures():
        publish(path.stem, json.loads(path.read_text("utf-8")), path.parent)


if __name__ == "__main__":
    main()
