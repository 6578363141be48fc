"""Load a pair and answer, measured in a process of its own: `python -m training.bench.measure FOLDER CASE`."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image, ImageDraw

from training.bench.checkpoint_2b import CASES, Case
from vlroute import Answer, Router
from vlroute.modes import MODES, Mode

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "How many circles are in the picture?"
SIDE = 448
NEW_TOKENS = 16
SPARE = 1.15  # peak memory may be this much of the weights that have to be held
SAMPLING_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Answered:
    """One mode. `first_seconds`: its first answer; all else: its second, when every weight has been touched."""

    first_seconds: float
    vision_seconds: float
    prefill_seconds: float
    seconds_per_token: float
    prompt_tokens: int
    vision_tokens: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """One case in a process of its own; bytes throughout.

    `needed`: both language models, and one tower where both are equal, else two, summed from the parameters.
    `before`: resident before anything is loaded (Python, torch, transformers). `peak`: most ever resident, from the
    start of the process, weight files in memory included; on CUDA the most ever allocated there. `anonymous`: most
    ever resident that no file backs, sampled; None where the system does not tell.
    """

    case: Case
    device: str
    load_seconds: float
    shared_tower: bool
    held: int
    needed: int
    before: int
    after_load: int
    host_peak: int
    cuda_peak: int | None
    anonymous: int | None
    modes: dict[Mode, Answered]

    @property
    def peak(self) -> int:
        return self.host_peak if self.cuda_peak is None else self.cuda_peak

    @property
    def bound(self) -> float:
        return self.needed * SPARE

    @property
    def met(self) -> bool:
        return self.peak <= self.bound


def draw_picture(side: int = SIDE, number: int = 24) -> Image.Image:
    """Shapes and a sign; `number` makes it another picture of the same size."""
    picture = Image.new("RGB", (SIDE, SIDE), (245, 240, 225))
    draw = ImageDraw.Draw(picture)
    for i, ink in enumerate(((180, 30, 30), (30, 60, 180), (20, 120, 50))):
        draw.circle((90 + 130 * i, 130 + 70 * i), 50, fill=ink)
    draw.rectangle((40, 300, 200, 410), outline=(20, 20, 20), width=4)
    draw.text((60, 330), f"EXIT {number}", fill=(20, 20, 20), font_size=32)
    return picture if side == SIDE else picture.resize((side, side))


def device_name(device: torch.device) -> str:
    cuda = device.type == "cuda"
    return torch.cuda.get_device_name(device) if cuda else f"CPU ({torch.backends.cpu.get_cpu_capability()})"


def resident(field: str) -> int | None:
    """Bytes under `field` of this process's status (VmRSS, VmHWM, RssAnon), None where there is no such thing."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(sizes[0]) * 1024 if sizes else None


def peak_resident() -> int:
    """VmHWM rather than `ru_maxrss`: Linux passes the latter on from a parent process, however large that was."""
    if (peak := resident("VmHWM")) is not None:
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def highest(field: str) -> Iterator[Callable[[], int | None]]:
    """Samples `field` in a thread; what it yields gives the most seen so far."""
    seen = [resident(field)]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLING_SECONDS):
            seen[0] = max(seen[0] or 0, resident(field) or 0)

    if seen[0] is None:
        yield lambda: None
        return
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: seen[0]
    finally:
        done.set()
        thread.join()


def _ask(router: Router, mode: Mode) -> Answer:
    return router.ask(PROMPT, draw_picture(), mode=mode, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)


def _answered(first: Answer, second: Answer) -> Answered:
    timing, usage = second.timing, second.usage
    if usage.completion_tokens != NEW_TOKENS:
        raise RuntimeError(f"{usage.completion_tokens} tokens written instead of {NEW_TOKENS}")
    return Answered(
        first_seconds=first.timing.total,
        vision_seconds=timing.vision,
        prefill_seconds=timing.prefill,
        seconds_per_token=timing.decode / (NEW_TOKENS - 1),  # the first comes with the prefill
        prompt_tokens=usage.prompt_tokens or 0,
        vision_tokens=usage.vision_tokens,
    )


def _parameter_bytes(module: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())  # tied ones once


def measure(folder: Path, case: Case, report: Callable[[str], None] = lambda step: None) -> Measurement:
    """Load the pair of `folder` in this process and answer twice in each mode."""
    before = resident("VmRSS") or peak_resident()
    with highest("RssAnon") as anonymous:
        report("loading")
        router = Router.from_pretrained(instruct=folder / "instruct", thinking=folder / "thinking", dtype="bfloat16")
        router.load()
        after_load = peak_resident()
        modes: dict[Mode, Answered] = {}
        for mode in MODES:
            report(f"{mode}: first answer")
            first = _ask(router, mode)
            report(f"{mode}: second answer")
            modes[mode] = _answered(first, _ask(router, mode))
    pair = router.pair
    towers = [_parameter_bytes(pair[mode].model.model.visual) for mode in MODES]
    languages = sum(_parameter_bytes(pair[mode].model) for mode in MODES) - sum(towers)
    cuda = pair.instruct.device.type == "cuda"
    return Measurement(
        case=case,
        device=device_name(pair.instruct.device),
        load_seconds=pair.load_seconds,
        shared_tower=pair.shared_tower,
        held=pair.parameter_bytes(),
        needed=languages + (towers[0] if case == "equal" else sum(towers)),
        before=before,
        after_load=after_load,
        host_peak=peak_resident(),
        cuda_peak=torch.cuda.max_memory_allocated() if cuda else None,
        anonymous=anonymous(),
        modes=modes,
    )


def in_own_process(module: str, arguments: list[str], report: Callable[[str], None]) -> dict[str, Any]:
    """Run `python -m module`, which prints its steps and at last its findings as JSON. RuntimeError if it fails."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        last = ""
        for last in process.stdout or ():
            if not last.startswith("{"):
                report(last.strip())
    if process.returncode or not last.startswith("{"):
        raise RuntimeError(f"{module} {' '.join(arguments)} ended with status {process.returncode}; see above")
    found: dict[str, Any] = json.loads(last)
    return found


def measure_apart(folder: Path, case: Case, report: Callable[[str], None] = lambda step: None) -> Measurement:
    """`measure` in a fresh process, whose peak of memory is its own."""
    found = in_own_process("training.bench.measure", [str(folder), case], report)
    return Measurement(**{**found, "modes": {mode: Answered(**each) for mode, each in found["modes"].items()}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds instruct/ and thinking/")
    parser.add_argument("case", choices=CASES)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    measured = measure(options.folder, options.case, lambda step: print(step, flush=True))
    print(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
