"""Memory and seconds of the pair at the 2B shape, also beside transformers: `python -m training.bench.real_size`

The checkpoints have random weights of the real sizes in bfloat16: memory and seconds are those of the real ones, the
answers have no meaning. Each case runs in a fresh process: a pair with equal towers, one with different ones, and a
checkpoint with both modes, of the shape of Qwen3.5-0.8B. Takes about 11 GB of disk; with --folder the checkpoints are
kept and used again. --hybrid measures that case alone and keeps the committed figures of the others.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image, ImageDraw
from transformers import LogitsProcessor

from training.bench.checkpoint_2b import CASES, PairWriter, Shape
from training.bench.checkpoint_hybrid import HybridWriter
from training.bench.checkpoint_hybrid import Shape as HybridShape
from training.page import argument_parser, environment, figures, in_own_process, publish, step
from vlroute import Answer, Mode, Router
from vlroute.types import MODES, other

PROMPT = "How many circles are in the picture?"
SIDE = 448
NEW_TOKENS = 16
SPARE = 1.15  # allowed peak memory, relative to the weights
SAMPLING_SECONDS = 0.02
BESIDE_SIDE, BESIDE_ROUNDS = 224, 5
SECOND_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class ModeSeconds:
    """Seconds of one mode. `first_seconds`: of its first answer; all else: of its second, with all weights read."""

    first_seconds: float
    vision_seconds: float
    prefill_seconds: float
    seconds_per_token: float
    prompt_tokens: int
    vision_tokens: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """One case in a process of its own; all sizes in bytes.

    `case`: "equal", "different" or "hybrid". `needed`: parameters of the language models and of one tower or two.
    `before`: resident before anything is loaded. `peak`: highest resident size since the start of the process, mapped
    weight files included; on CUDA the highest allocation there. `anonymous`: highest resident size that no file backs,
    sampled; None if unknown.
    """

    case: str
    device: str
    load_seconds: float
    shared_tower: bool
    held: int
    needed: int
    before: int
    after_load: int
    peak: int
    on_cuda: bool
    anonymous: int | None
    modes: dict[Mode, ModeSeconds]

    @property
    def met(self) -> bool:
        return self.peak <= self.needed * SPARE


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
    """Bytes of `field` (VmRSS, VmHWM, RssAnon) of this process's status; None where the system has no such file."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(sizes[0]) * 1024 if sizes else None


def peak_resident() -> int:
    """Peak of this process: VmHWM rather than `ru_maxrss`, which Linux inherits from the parent process."""
    if (peak := resident("VmHWM")) is not None:
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def highest(field: str) -> Iterator[Callable[[], int | None]]:
    """Sample `field` in a thread; the yielded function returns the highest value so far."""
    seen = [resident(field)]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLING_SECONDS):
            seen[0] = max(seen[0] or 0, resident(field) or 0)

    thread = threading.Thread(target=watch, daemon=True)
    if seen[0] is not None:
        thread.start()
    try:
        yield lambda: seen[0]
    finally:
        done.set()
        if thread.ident:
            thread.join()


def mode_seconds(router: Router, mode: Mode) -> ModeSeconds:
    """Answer the same question twice, each time as if the picture were new."""

    def ask() -> Answer:
        router.forget()
        return router.ask(
            PROMPT, draw_picture(), mode=mode, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, answer_reserve=0
        )

    step(f"{mode}: first answer")
    first = ask().timing.total
    step(f"{mode}: second answer")
    second = ask()
    timing, usage = second.timing, second.usage
    if usage.completion_tokens != NEW_TOKENS:
        raise RuntimeError(f"{usage.completion_tokens} tokens generated instead of {NEW_TOKENS}")
    per_token = timing.decode / (NEW_TOKENS - 1)  # the first token comes with the prefill
    return ModeSeconds(first, timing.vision, timing.prefill, per_token, usage.prompt_tokens or 0, usage.vision_tokens)


def measure(folder: Path, case: str) -> Measurement:
    """Load the models of `folder` in this process and answer twice in each mode."""

    def parameter_bytes(module: Any) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())  # tied ones once

    before = resident("VmRSS") or peak_resident()
    with highest("RssAnon") as anonymous:
        step(f"loading: {case}")
        router = Router.from_pretrained(folder, dtype="bfloat16").load()
        after_load = peak_resident()
        modes = {mode: mode_seconds(router, mode) for mode in MODES}
    pair = router.pair
    models = {id(pair[mode].model): pair[mode].model for mode in MODES}.values()
    towers = [parameter_bytes(model.model.visual) for model in models]
    languages = sum(map(parameter_bytes, models)) - sum(towers)
    device = pair.instruct.device
    on_cuda = device.type == "cuda"
    return Measurement(
        case, device_name(device), pair.load_seconds, pair.shared_tower, held=pair.parameter_bytes(),
        needed=languages + (sum(towers) if case == "different" else towers[0]), before=before, after_load=after_load,
        peak=torch.cuda.max_memory_allocated() if on_cuda else peak_resident(), on_cuda=on_cuda, anonymous=anonymous(),
        modes=modes,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Beside:
    """One round of the same request to `Router.ask` and to `generate` of transformers, in turn, in one process.

    `first`: seconds until the first token, from picture and text on. `tokens`: tokens per second after it.
    """

    first: float
    first_transformers: float
    tokens: float
    tokens_transformers: float


class _Clock(LogitsProcessor):
    """Notes the time at which the scores of each token are there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.times.append(time.perf_counter())
        return scores


def measure_beside(folder: Path, rounds: int) -> list[Beside]:
    """Instruct of the pair in `folder` beside transformers, which runs the same weights. Each picture is new."""
    router = Router.from_pretrained(
        instruct=folder / "instruct", thinking=folder / "thinking", dtype="bfloat16", do_sample=False
    ).load()
    checkpoint = router.pair.instruct
    model, processor = checkpoint.model, checkpoint.processor
    length: dict[str, Any] = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}

    def by_router(picture: Image.Image) -> tuple[float, float]:
        timing = router.ask(PROMPT, picture, mode="instruct", **length).timing
        return timing.total - timing.decode, (NEW_TOKENS - 1) / timing.decode

    def by_transformers(picture: Image.Image) -> tuple[float, float]:
        began, clock = time.perf_counter(), _Clock()
        text = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        inputs = processor(text=[text], images=[picture], return_tensors="pt").to(model.device)
        with torch.inference_mode():
            model.generate(**inputs, **length, do_sample=False, logits_processor=[clock])
        return clock.times[0] - began, (NEW_TOKENS - 1) / (clock.times[-1] - clock.times[0])

    found = []
    for number in range(rounds + 1):
        step(f"beside transformers: {f'round {number} of {rounds}' if number else 'warming up'}")
        order = [by_router, by_transformers][:: 1 if number % 2 else -1]
        measured = {one: one(draw_picture(BESIDE_SIDE, 200 + number)) for one in order}
        (first, tokens), (first_other, tokens_other) = measured[by_router], measured[by_transformers]
        found.append(Beside(first, first_other, tokens, tokens_other))
    return found[1:]


@dataclass(frozen=True, slots=True)
class SecondMode:
    """Seconds until the first token of one conversation: fresh, and then in the other mode of the same checkpoint.

    `tokens`: of the prompt of `mode`, which is fresh. `read`: tokens that the other mode read.
    """

    mode: Mode
    tokens: int
    fresh: float
    read: int
    second: float


def measure_second_mode(folder: Path, rounds: int) -> list[SecondMode]:
    """A conversation of about 1 000 tokens with a picture, in both modes of a hybrid; each round has a new picture."""
    found = []
    with Router.from_pretrained(
        folder, dtype="bfloat16", do_sample=False, max_new_tokens=1, answer_reserve=0
    ).load() as router:
        for number in range(rounds):
            step(f"second mode: round {number + 1} of {rounds}")
            picture, text = draw_picture(number=300 + number), f"{PROMPT} {'All shapes count. ' * 43}"
            mode = MODES[number % len(MODES)]
            first, second = (router.ask(text, picture, mode=one) for one in (mode, other(mode)))
            tokens, seconds = (
                first.usage.prompt_tokens or 0,
                [one.timing.total - one.timing.decode for one in (first, second)],
            )
            read = (second.usage.prompt_tokens or 0) - second.usage.cached_tokens
            found.append(SecondMode(mode, tokens, seconds[0], read, seconds[1]))
    return found


def page_data(
    measurements: list[Measurement],
    shape: Shape,
    where: str,
    beside: Sequence[Beside] = (),
    hybrid: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The figures of the page. `hybrid`: as returned by `hybrid_data`."""
    settings = {"side": SIDE, "new_tokens": NEW_TOKENS, "spare": SPARE, "sampling_ms": 1000 * SAMPLING_SECONDS}
    cases = [{**asdict(one), "bound": one.needed * SPARE, "met": one.met} for one in measurements]
    return {"where": where, "shape": asdict(shape), **settings, "cases": cases, "beside": _compared(beside),
            "hybrid": dict(hybrid or {})}  # fmt: skip


def hybrid_data(measurement: Measurement, rounds: Sequence[SecondMode], where: str) -> dict[str, Any]:
    """The figures of the checkpoint with both modes."""
    shares = [one.second / one.fresh for one in rounds]
    spread = {"median": median(shares), "low": min(shares), "high": max(shares)}
    return {
        "where": where, "shape": asdict(HybridShape()), "case": asdict(measurement),
        "rounds": [asdict(one) for one in rounds], "share": spread,
    }  # fmt: skip


def measure_hybrid(folder: Path) -> dict[str, Any]:
    """Write the checkpoint with both modes and measure it."""
    where, writer = environment(), HybridWriter(folder / "hybrid", HybridShape())
    step("writing the checkpoint with both modes")
    writer.write()
    measurement = in_own_process(measure, writer.folder, "hybrid")
    return hybrid_data(measurement, in_own_process(measure_second_mode, writer.folder, SECOND_ROUNDS), where)


def _compared(rounds: Sequence[Beside]) -> dict[str, Any]:
    """Medians of both, and how many times as fast the router is; empty without rounds."""
    if not rounds:
        return {}
    values = {
        "time to the first token, s": [(one.first, one.first_transformers) for one in rounds],
        "tokens per second after it": [(one.tokens, one.tokens_transformers) for one in rounds],
    }
    rows = []
    for name, pairs in values.items():
        factors = [theirs / own if name.endswith(", s") else own / theirs for own, theirs in pairs]
        own, theirs = (median(side) for side in zip(*pairs, strict=True))
        rows.append({"name": name, "own": own, "transformers": theirs, "factor": median(factors), "low": min(factors),
                     "high": max(factors)})  # fmt: skip
    return {"side": BESIDE_SIDE, "rounds": len(rounds), "rows": rows}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--folder", type=Path, help="keep the checkpoints here, and use those that are here")
    parser.add_argument("--hybrid", action="store_true", help="measure only the checkpoint with both modes")
    options = parser.parse_args()
    where, shape, found = environment(), Shape(), []
    with tempfile.TemporaryDirectory(prefix="vlroute-2b-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        if options.hybrid:
            page = publish("real_size", {**figures("real_size"), "hybrid": measure_hybrid(folder)}, options.out)
            print(page)
            return
        writer = PairWriter(folder, shape)
        try:
            writer.prepare()
        except OSError as error:
            raise SystemExit(str(error)) from error
        for case in CASES:
            for part in writer.write(case):
                step(f"writing {part}")
            found.append(in_own_process(measure, writer.folder, case))
        beside = in_own_process(measure_beside, writer.folder, BESIDE_ROUNDS)
        hybrid = measure_hybrid(folder)
    page = publish("real_size", page_data(found, shape, where, beside, hybrid), options.out)
    if not all(one.met for one in found):
        raise SystemExit(f"memory exceeds its bound, see {page}")


if __name__ == "__main__":
    main()
