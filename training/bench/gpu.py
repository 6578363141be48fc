"""The engine on a GPU: parity, speed, memory and faults in minutes. `python -m training.bench.gpu` (`make bench-gpu`)

The pair has the 2B shape with random weights in bfloat16, drawn on the device. Nothing is downloaded. Takes about 9 GB
of disk and at most `--budget` seconds: parts for which no time is left are skipped, and the page says so. The page and
its figures are written after each figure, so a run that is stopped keeps what it has measured.
With --small, a tiny shape runs on a CPU in this process, which tests the script.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import statistics
import string
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from training.bench.checkpoint_2b import PairWriter, Shape
from training.bench.figure import Figure, Report
from training.bench.gpu_faults import measure_faults
from training.bench.gpu_parity import Recorder, at_once, measure_parity
from training.bench.real_size import device_name, draw_picture, peak_resident
from training.page import PAGES, POCKET, argument_parser, environment, figures, publish, step
from vlroute import Answer, Router
from vlroute.engine.local.checkpoint import default_device
from vlroute.engine.local.memory import ram
from vlroute.engine.local.tower import vision_tower
from vlroute.engine.local.vision import encode, prepare
from vlroute.inputs.messages import parse
from vlroute.types import MODES

BUDGET = 340.0
LOWEST_TRANSFORMERS = (5, 18)
TOKEN_MS, TOKENS_PER_SECOND, ANSWERS_PER_SECOND, LATER_TURN_MS = 6.0, 3500.0, 25.0, 60.0
SIDE = 448
QUESTION = "How many circles are in the picture?"
#: Greedy; the number of new tokens is fixed, because random weights never end an answer.
GREEDY: dict[str, Any] = {"mode": "instruct", "do_sample": False}
SMALL = Shape(
    tower_depth=2, tower_width=32, tower_heads=2, tower_mlp=64, deepstack=(0, 1), layers=2, width=64, heads=4,
    key_value_heads=2, head_dim=16, mlp=128, mrope=(4, 2, 2),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setup:
    """Where and how a part runs. `folder` holds `shape`, the pair that is measured, and `tiny`, that of `SMALL`."""

    folder: Path
    device: str
    small: bool

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def pick(self, full: int, small: int) -> int:
        """A number of repetitions or tokens."""
        return small if self.small else full

    @property
    def pair(self) -> Path:
        """The pair that is measured."""
        return self.folder / ("tiny" if self.small else "shape")

    def router(self, folder: Path | None = None, **options: Any) -> Router:
        """A loaded router over a pair, by default the one that is measured."""
        folder = folder or self.pair
        settings = {"device": self.device, "dtype": "float32" if self.small else "bfloat16"} | options
        return Router.from_pretrained(instruct=folder / "instruct", thinking=folder / "thinking", **settings).load()

    def synchronize(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize()


@dataclass(frozen=True, slots=True)
class Part:
    """One part. `seconds`: about how long it takes; it is stopped after twice that.

    `optional`: skipped if less time is left. `in_small`: whether `--small` runs it.
    """

    name: str
    title: str
    work: Callable[[Setup, Report], None]
    seconds: float
    optional: bool = False
    in_small: bool = True


# ---- drawn requests: nothing in them was seen before, so that no cache helps


_numbers = count(1000)
_random = random.Random(7)


def text(length: int) -> str:
    """Random words of `length` tokens: the tokenizer of the shape reads each character as a token."""
    words = "".join(_random.choice(string.ascii_lowercase + "     ") for _ in range(length))
    return f"{next(_numbers)} {words}"[:length]


def picture(side: int = SIDE) -> Image.Image:
    """A picture that was not drawn before."""
    return draw_picture(side, next(_numbers))


def ask(router: Router, prompt: str, image: Image.Image | None, tokens: int, **settings: Any) -> Answer:
    answer = router.ask(
        prompt, image, **{**GREEDY, **settings}, min_new_tokens=tokens, max_new_tokens=tokens, answer_reserve=0
    )
    if answer.usage.completion_tokens != tokens:
        raise RuntimeError(f"{answer.usage.completion_tokens} tokens generated instead of {tokens}")
    return answer


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median_and_99th(name: str, seconds: Sequence[float], target: float | None = None) -> Iterator[Figure]:
    """The median and the 99th percentile in milliseconds; the target applies to the median."""
    note = f"{len(seconds)} values, largest {1e3 * max(seconds):.1f} ms"
    yield Figure(f"{name}, median", 1e3 * statistics.median(seconds), "ms", target, note=note)
    yield Figure(f"{name}, 99th percentile", 1e3 * quantile(seconds, 0.99), "ms")


def each(measures: Sequence[tuple[str, Callable[[], None]]], report: Report) -> None:
    """Run all measures; an error of one is reported and does not end the others."""
    for name, measure in measures:
        step(name)
        try:
            measure()
        except Exception as error:
            report(Figure.of_error(name, error))


# ---- parts


def speed(setup: Setup, report: Report) -> None:
    """Load time, tokens, prefill, tower and clients on one router."""
    step("loading")
    router = setup.router()
    pair = router.pair
    report(Figure("load, one tower", pair.load_seconds, "s", note=f"one tower kept: {pair.shared_tower}"))
    report_weights(setup, router, report)
    measures = [
        ("one token at batch 1", lambda: one_token(setup, router, report)),
        ("tokens of several answers", lambda: several(setup, router, report)),
        ("later turns", lambda: later_turns(setup, router, report)),
        ("tower", lambda: tower(setup, router, report)),
        ("clients with pictures", lambda: clients(setup, router, report)),
        ("generate of transformers", lambda: plain_generate(setup, router, report)),
    ]
    each(measures, report)
    report_peak(setup, report)
    router.close()


def report_weights(setup: Setup, router: Router, report: Report) -> None:
    report(Figure("weights", router.pair.parameter_bytes() / 1e9, "GB"))
    if setup.on_cuda:
        report(Figure("allocated on the device after loading", torch.cuda.memory_allocated() / 1e9, "GB"))


def report_peak(setup: Setup, report: Report) -> None:
    if setup.on_cuda:
        report(Figure("most allocated on the device", torch.cuda.max_memory_allocated() / 1e9, "GB"))
        report(Figure("most reserved on the device", torch.cuda.max_memory_reserved() / 1e9, "GB"))
    else:
        report(Figure("most resident memory", peak_resident() / 1e9, "GB"))


def one_token(setup: Setup, router: Router, report: Report) -> None:
    """Seconds between tokens, alone. Two passes of new lengths: graphs are captured in the first one."""
    lengths = _random.sample(range(40, setup.pick(1500, 120)), setup.pick(24, 4))
    for name, target in (("first pass", None), ("second pass", TOKEN_MS)):
        own, lengths = lengths[: len(lengths) // 2] if target is None else lengths, lengths[len(lengths) // 2 :]
        with Recorder() as recorder:
            for length in own:
                ask(router, text(length), None, setup.pick(48, 6))
        for figure in median_and_99th(f"one token, batch 1, {name}", recorder.intervals(), target):
            report(figure)
    longer = setup.pick(8000, 300)
    ask(router, text(longer - 50), None, 2)  # the slots grow
    with Recorder() as recorder:
        ask(router, text(longer), None, setup.pick(48, 6))
    for figure in median_and_99th(f"one token, batch 1, after {longer:,} tokens", recorder.intervals()):
        report(figure)


def several(setup: Setup, router: Router, report: Report) -> None:
    """Tokens per second of 1, 8 and 32 answers at once, after a pass that captures the graphs."""
    tokens = setup.pick(128, 6)
    for number in batches(setup):
        for measured in (False, True):
            prompts = [text(100 + i) for i in range(number)]
            with Recorder() as recorder:
                took = seconds_of(partial(at_once, [partial(ask, router, prompt, None, tokens) for prompt in prompts]))
            if measured:
                rate = recorder.steady_rate()
                target = TOKENS_PER_SECOND if number == 32 else None
                note = f"{tokens} new tokens each, prefill included"
                report(Figure(f"{number} at once", number * tokens / took, "tokens/s", target, True, note))
                report(Figure(f"{number} at once, while all generate", rate, "tokens/s"))


def batches(setup: Setup) -> tuple[int, ...]:
    return (1, 4) if setup.small else (1, 8, 32)


def seconds_of(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def later_turns(setup: Setup, router: Router, report: Report) -> None:
    """Seconds from the call to the first token in turns 2 to 4, for long and for short new turns."""

    def conversation(low: int, high: int) -> Iterator[tuple[float, int]]:
        chat = router.chat()
        for turn in range(4):
            # the template and the block that the cache cuts off add some tokens
            words, image = text(_random.randint(low, high)), picture() if turn == 0 else None
            with Recorder() as recorder:
                began = time.perf_counter()
                usage = chat.send(words, image, **GREEDY, max_new_tokens=8, min_new_tokens=8, answer_reserve=0).usage
            if turn:
                yield recorder.first_token() - began, (usage.prompt_tokens or 0) - usage.cached_tokens

    longest = setup.pick(1240, 124)
    for _ in conversation(longest, longest):  # slots of this length are allocated, and libraries loaded
        pass
    for name, low, high in (("500 to 1300", 500, 1240), ("at most 600", 150, 540)):
        low, high = (low, high) if not setup.small else (low // 10, high // 10)
        found = [one for _ in range(setup.pick(25, 1)) for one in conversation(low, high)]
        seconds, new = [one[0] for one in found], [one[1] for one in found]
        label = f"first token of turns 2 to 4, {name} new tokens"
        median, worst = median_and_99th(label, seconds)
        report(median)
        target = LATER_TURN_MS if name == "at most 600" else None
        report(Figure(worst.name, worst.value, "ms", target, note=f"{min(new)} to {max(new)} tokens were prefilled"))


def tower(setup: Setup, router: Router, report: Report) -> None:
    """The tower on prepared pixels, and what preparing them costs."""
    checkpoint = router.pair.instruct
    run_tower = vision_tower(checkpoint.model)

    def pixels(number: int, side: int) -> Any:
        items = [parse("?", picture(side)).pictures[0] for _ in range(number)]
        return prepare(checkpoint.model, checkpoint.processor, items)

    def run(prepared: Any) -> float:
        setup.synchronize()

        def work() -> None:
            with torch.inference_mode():
                encode(checkpoint.model, run_tower, prepared)
            setup.synchronize()

        return seconds_of(work)

    side = setup.pick(SIDE, 256)
    for number in (1, 8):
        run(pixels(number, side))
        taken = [run(pixels(number, side)) for _ in range(setup.pick(10, 1))]
        name = f"{number} picture{'s' if number > 1 else ''} of {side}² in one call"
        report(
            Figure(f"tower, {name}", 1e3 * statistics.median(taken), "ms", note=f"largest {1e3 * max(taken):.1f} ms")
        )
    report(Figure("preparing the pixels of one picture", 1e3 * seconds_of(lambda: pixels(1, side)), "ms"))
    fresh = [run(pixels(1, side + 32 * i)) for i in range(1, setup.pick(5, 2))]
    note = "a size that the process has not seen before, so no attention plan is there"
    report(Figure("tower, one picture of a new size, largest", 1e3 * max(fresh), "ms", note=note))


def clients(setup: Setup, router: Router, report: Report) -> None:
    """Answers per second of concurrent clients, each with fresh pictures."""
    number, tokens, side = setup.pick(32, 4), setup.pick(64, 4), setup.pick(SIDE, 256)

    def client(requests: int, settings: dict[str, Any]) -> None:
        for _ in range(requests):
            ask(router, QUESTION, picture(side), tokens, **settings)

    for name, settings, target in (("greedy", {}, ANSWERS_PER_SECOND), ("default sampling", {"do_sample": True}, None)):
        requests = setup.pick(4, 1)
        for each_client in (1, requests):  # the first pass captures the graphs
            took = seconds_of(partial(at_once, [partial(client, each_client, settings)] * number))
        note = f"a fresh picture of {side}² and {tokens} new tokens for each answer"
        value = number * requests / took
        report(Figure(f"{number} clients, {name}", value, "answers/s", target, True, note))


@torch.inference_mode()
def plain_generate(setup: Setup, router: Router, report: Report) -> None:
    """Tokens per second of transformers' `generate` on the same model, with prompts of one length."""
    checkpoint, tokens = router.pair.instruct, setup.pick(32, 4)
    for number in batches(setup):
        length = 100 + number  # a length of its own
        ids = checkpoint.tokenizer([text(2 * length) for _ in range(number)])["input_ids"]
        inputs = torch.tensor([row[:length] for row in ids], device=checkpoint.device)

        def generate(new: int, inputs: torch.Tensor = inputs) -> None:
            checkpoint.model.generate(
                input_ids=inputs, attention_mask=torch.ones_like(inputs), do_sample=False, min_new_tokens=new,
                max_new_tokens=new,
            )  # fmt: skip
            setup.synchronize()

        generate(2)
        took = seconds_of(partial(generate, tokens))
        note = f"{tokens} new tokens each, prefill included"
        report(Figure(f"generate of transformers, batch {number}", number * tokens / took, "tokens/s", note=note))


def parity(setup: Setup, report: Report) -> None:
    """Tokens and logits of every path against plain transformers."""
    pairs = {"grouped keys": setup.folder / "tiny", "pocket": POCKET}
    measure_parity(pairs, setup.device, setup.small, report)


def faults(setup: Setup, report: Report) -> None:
    """Out of memory in each step."""
    measure_faults(setup.folder / "tiny", setup.device, setup.pick(20, 6), report)


def memory(setup: Setup, report: Report) -> None:
    """What slots, prefixes and features hold under load, against the setting `memory=`."""
    free = torch.cuda.mem_get_info()[0] - 8e9 if setup.on_cuda else ram()  # the weights of the pair take 8 GB
    # room for fewer tokens than the requests have together, so that some wait
    router = setup.router(memory=min(0.9, setup.pick(3_600_000_000, 400_000) / max(free, 4e9)))
    report_weights(setup, router, report)
    before = torch.cuda.memory_allocated() if setup.on_cuda else 0
    scheduler, number = router.scheduler, setup.pick(64, 6)
    if scheduler is None:
        raise RuntimeError("the router has no scheduler")
    allowed = scheduler.memory.kv + router.cache.budget

    def held() -> int:
        slots = sum(lane.slots.nbytes for lane in [*scheduler._lanes.values()])  # noqa: SLF001 (there is no public name)
        return int(slots + router.prefixes.stats().bytes + router.cache.stats().bytes)

    with highest_of(held) as most:
        longest, side, tokens = setup.pick(1500, 120), setup.pick(SIDE, 256), setup.pick(48, 4)
        at_once([
            partial(ask, router, text(_random.randint(60, longest)), picture(side) if i % 4 == 0 else None, tokens)
            for i in range(number)
        ])  # fmt: skip
    note = f"{number} requests at once, all answered"
    value = most[0] / 1e9
    report(Figure("KV slots, cached prefixes and features, most", value, "GB", allowed / 1e9, note=note))
    if setup.on_cuda:
        beyond = (torch.cuda.max_memory_allocated() - before) / 1e9
        note = "everything besides the weights: also activations, captured graphs and copies"
        report(Figure("allocated beyond the weights, most", beyond, "GB", allowed / 1e9, note=note))
    report_peak(setup, report)
    router.close()


@contextmanager
def highest_of(value: Callable[[], int]) -> Iterator[list[int]]:
    """Sample `value` in a thread; the list holds the largest one."""
    most, done = [value()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], value())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()
        most[0] = max(most[0], value())


def two_towers(setup: Setup, report: Report) -> None:
    """Load time and memory of a pair whose towers differ."""
    folder = setup.folder / "different"
    if not folder.exists():  # hard links: only the other tower takes space
        shutil.copytree(setup.pair, folder, copy_function=os.link)
    for part in PairWriter(folder, shape_of(setup), setup.device).write("different"):
        step(part)
    router = setup.router(folder)
    note = f"one tower kept: {router.pair.shared_tower}"
    report(Figure("load, two towers", router.pair.load_seconds, "s", note=note))
    report_weights(setup, router, report)
    each([("an answer of each mode", lambda: each_mode(setup, router))], report)
    report_peak(setup, report)
    router.close()


def each_mode(setup: Setup, router: Router) -> None:
    for mode in MODES:
        ask(router, QUESTION, picture(setup.pick(SIDE, 256)), 4, mode=mode)


def quantized(setup: Setup, report: Report, name: str, library: str, config: Callable[[], Any]) -> None:
    """Tokens per second and memory of one kind of quantization."""
    if importlib.util.find_spec(library) is None:
        report(Figure(name, None, note=f"not installed: {library}"))
        return
    step("loading")
    try:
        router = setup.router(quantization=config())
    except Exception as error:
        report(Figure.of_error(name, error))
        return
    report(Figure("load", router.pair.load_seconds, "s"))
    if setup.on_cuda:
        report(Figure("allocated on the device after loading", torch.cuda.memory_allocated() / 1e9, "GB"))
    tokens = setup.pick(48, 4)

    def rate(number: int) -> None:
        for measured in (False, True):
            prompts = [text(100 + i) for i in range(number)]
            took = seconds_of(partial(at_once, [partial(ask, router, prompt, None, tokens) for prompt in prompts]))
            if measured:
                report(
                    Figure(f"{number} at once", number * tokens / took, "tokens/s", note=f"{tokens} new tokens each")
                )

    each([(f"{number} at once", partial(rate, number)) for number in (1, batches(setup)[-1])], report)
    report_peak(setup, report)
    router.close()


def int8(setup: Setup, report: Report) -> None:
    quantized(setup, report, "int8", "torchao", lambda: "int8")


def fp8(setup: Setup, report: Report) -> None:
    def config() -> Any:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow
        from transformers import TorchAoConfig

        from vlroute.engine.local.loading import KEEP

        return TorchAoConfig(
            Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()), modules_to_not_convert=KEEP
        )

    quantized(setup, report, "FP8", "torchao", config)


def four_bits(setup: Setup, report: Report) -> None:
    quantized(setup, report, "4-bit", "bitsandbytes", lambda: "4bit")


def eight_bits(setup: Setup, report: Report) -> None:
    quantized(setup, report, "8-bit", "bitsandbytes", lambda: "8bit")


def compiled(setup: Setup, report: Report) -> None:
    """One token at batch 1 with `compile="max"`."""
    router = setup.router(compile="max")
    with Recorder() as recorder:
        first = seconds_of(lambda: ask(router, text(60), None, setup.pick(24, 4)))
    report(Figure("first answer, compiled meanwhile", first, "s"))
    recorder = Recorder()
    with recorder:
        ask(router, text(61), None, setup.pick(24, 4))
    for figure in median_and_99th("one token, batch 1", recorder.intervals()):
        report(figure)
    router.close()


#: The optional parts come last, so that they use what time is left.
PARTS = (
    Part("speed", "Speed with one tower, bfloat16", speed, 120),
    Part("parity", "Parity with plain transformers", parity, 80),
    Part("faults", "Out of memory", faults, 45),
    Part("memory", "Memory under load", memory, 30),
    Part("two_towers", "Two towers", two_towers, 25),
    Part("int8", "int8 (torchao)", int8, 30, optional=True),
    Part("fp8", "FP8 (torchao)", fp8, 30, optional=True, in_small=False),
    Part("4bit", "4-bit (bitsandbytes)", four_bits, 30, optional=True, in_small=False),
    Part("8bit", "8-bit (bitsandbytes)", eight_bits, 30, optional=True, in_small=False),
    Part("compiled", 'compile="max"', compiled, 75, optional=True, in_small=False),
)


# ---- running them


def shape_of(setup: Setup) -> Shape:
    """The shape that is measured."""
    return SMALL if setup.small else Shape()


def write_pairs(setup: Setup) -> None:
    """Write the pair that is measured and the tiny one. OSError if the disk is full."""
    for folder, shape in {setup.pair: shape_of(setup), setup.folder / "tiny": SMALL}.items():
        writer = PairWriter(folder, shape, setup.device)
        writer.prepare()
        for part in writer.write("equal"):
            step(f"writing {folder.name}, {part}")


def _child(work: Callable[[Setup, Report], None], setup: Setup, sender: Any) -> None:
    try:
        work(setup, sender.send)
        sender.send("done")
    except Exception as error:
        sender.send(Figure.of_error("the part", error))
        sender.send("failed")


def run_in_process(work: Callable[[Setup, Report], None], setup: Setup, seconds: float, report: Report) -> str:
    """Run a part in a process of its own, which is ended after `seconds`: an answer that never comes, or a broken
    device, must not concern the parts that follow.

    Args:
        work: The part.
        setup: Its setup.
        seconds: Limit of the process.
        report: Called with each figure in this process.

    Returns:
        How it ended.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, setup, sender), daemon=True)
    process.start()
    sender.close()  # so that the end of the process is seen here
    end, state = time.monotonic() + seconds, ""
    try:
        while not state:
            left = end - time.monotonic()
            if left <= 0:
                state = f"stopped after {seconds:.0f} s"
            elif receiver.poll(min(left, 1.0)):
                message = receiver.recv()
                if isinstance(message, str):
                    state = message
                else:
                    report(message)
    except EOFError:
        process.join(5)
        state = f"the process ended with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return state


def run_here(work: Callable[[Setup, Report], None], setup: Setup, report: Report) -> str:
    """Run a part in this process."""
    try:
        work(setup, report)
    except Exception as error:
        report(Figure.of_error("the part", error))
        return "failed"
    return "done"


def measure(setup: Setup, parts: Sequence[Part], budget: float, out: Path, data: dict[str, Any]) -> Path:
    """Run the parts within `budget` seconds. The page is written after each figure.

    Args:
        setup: What all parts share.
        parts: The parts in their order.
        budget: Seconds for all of them.
        out: Folder of the page.
        data: Figures of the page; the parts are added.

    Returns:
        The page.
    """
    end = time.monotonic() + budget
    for part in parts:
        left = end - time.monotonic()
        rows: list[dict[str, Any]] = []
        found: dict[str, Any] = {"title": part.title, "state": "running", "seconds": 0.0, "rows": rows}
        data["parts"][part.name] = found

        def report(figure: Figure, rows: list[dict[str, Any]] = rows) -> None:
            figure = replace(figure, note=figure.note.replace(f"{setup.folder}/", ""))
            rows.append(figure.row())
            value = "-" if figure.value is None else f"{figure.value:.4g} {figure.unit}"
            step(f"  {figure.name}: {value} {figure.note}")
            publish("gpu", data, out)

        if left < (part.seconds if part.optional else 5.0):
            found["state"] = "skipped: the time budget is used up"
            step(f"part {part.name}: {found['state']}")
            continue
        step(f"part {part.name}, {left:.0f} s left")
        began = time.monotonic()
        found["state"] = (
            run_here(part.work, setup, report)
            if setup.small
            else run_in_process(part.work, setup, min(left, 2 * part.seconds), report)
        )
        found["seconds"] = time.monotonic() - began
        publish("gpu", data, out)
    return publish("gpu", data, out)


def bounded(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows with a target, and those that failed."""
    return [row for part in data["parts"].values() for row in part["rows"] if row["met"] is not None]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--folder", type=Path, help="keep the checkpoints here, and use those that are here")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for everything (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="only these parts")
    parser.add_argument("--small", action="store_true", help="a tiny shape, to test the script")
    options = parser.parse_args()
    names = [part.name for part in PARTS if part.in_small or not options.small]
    if tuple(map(int, transformers.__version__.split(".")[:2])) < LOWEST_TRANSFORMERS:
        raise SystemExit(f"transformers {transformers.__version__} is too old: install 5.18 or newer, such as a wheel")
    device = default_device()
    if device == "cpu" and not options.small:
        raise SystemExit("there is no CUDA device; --small tests the script on a CPU")
    if options.small and options.out == PAGES:
        raise SystemExit("the figures of --small have no meaning: name another folder with --out")
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    libraries = [name for name in ("torchao", "bitsandbytes", "flash_attn") if importlib.util.find_spec(name)]
    data: dict[str, Any] = {
        "where": environment(*libraries), "device": device_name(torch.device(device)), "cuda": torch.version.cuda,
        "small": options.small, "budget": options.budget, "parts": {},
    }  # fmt: skip
    if options.only:
        earlier = figures("gpu", options.out)
        if earlier.get("device") == data["device"] and earlier["small"] == data["small"]:
            data["parts"] = earlier["parts"]  # those that are not run keep their figures
    with tempfile.TemporaryDirectory(prefix="vlroute-gpu-") as temporary:
        setup = Setup((options.folder or Path(temporary)).resolve(), device, options.small)
        try:
            write_pairs(setup)
        except OSError as error:
            raise SystemExit(str(error)) from error
        if setup.on_cuda:
            torch.cuda.empty_cache()  # the parts are other processes
        parts = [part for part in PARTS if part.name in (options.only or names)]
        page = measure(setup, parts, options.budget - (time.monotonic() - began), options.out, data)
    rows = bounded(data)
    missed = [row["name"] for row in rows if not row["met"]]
    step(f"{page}: {len(missed)} of {len(rows)} targets missed")
    for name in missed:
        step(f"  missed: {name}")


if __name__ == "__main__":
    main()
