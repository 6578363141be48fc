"""Out of memory in tower, prefill, decode and caches: one request gets an error, the others go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from training.bench.figure import Figure, Report
from training.bench.real_size import draw_picture
from vlroute import Router
from vlroute.engine.local import scheduler
from vlroute.engine.local.forward import Decoder
from vlroute.engine.local.scheduler import FIRST_SLOT
from vlroute.engine.local.slots import KVSlots
from vlroute.errors import LimitError, OutOfMemoryError

SETTINGS: dict[str, Any] = {"mode": "instruct", "do_sample": False}
#: Requests beside the one that does not fit.
OTHERS = 3
NEW_TOKENS = 24
LONG = "Which numbers do you read? " * 30
#: Free bytes that a limit leaves on the device. The requests that should go on need less, the one that fails more.
SPARE = 256 * 2**20


def raising(owner: Any, name: str, fails: Callable[..., bool]) -> Callable[[], Any]:
    """A context in which the function `name` of `owner` raises out of memory whenever `fails(*arguments)`."""

    @contextmanager
    def patched() -> Iterator[None]:
        original = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if fails(*arguments):
                raise torch.OutOfMemoryError(f"raised by the benchmark in {name}")
            return original(*arguments, **named)

        setattr(owner, name, call)
        try:
            yield
        finally:
            setattr(owner, name, original)

    return patched


def once(fails: Callable[..., bool]) -> Callable[..., bool]:
    """True only the first time that `fails` is."""
    left = [True]

    def call(*arguments: Any) -> bool:
        if left and fails(*arguments):
            left.clear()
            return True
        return False

    return call


@contextmanager
def limited() -> Iterator[None]:
    """The allocator of torch may take only `SPARE` bytes more than it has now."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + SPARE) / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault. `victim`: prompt and picture of the request that cannot be answered; None if all can be."""

    name: str
    context: Callable[[], Any]
    victim: tuple[str, Image.Image | None] | None


def faults(on_cuda: bool) -> list[Fault]:
    """What is provoked."""
    long: tuple[str, Image.Image | None] = (LONG, None)
    longer: tuple[str, Image.Image | None] = (LONG * 7, None)  # more tokens than the slots have at first
    large = ("How many circles?", draw_picture(768, 3))
    too_large = raising(scheduler, "encode", lambda *a: any(len(one.values) > 1024 for one in a[-1]))
    too_long = raising(scheduler, "read", lambda *a: any(one.cached + one.length > 512 for one in a[-1]))
    found = [
        Fault("tower, raised", too_large, large),
        Fault("prefill, raised", too_long, long),
        Fault("decode, raised once", raising(Decoder, "__call__", once(lambda _, ids, *__: len(ids) > 1)), None),
        Fault("decode, raised for more than two", raising(Decoder, "__call__", lambda _, ids, *__: len(ids) > 2), None),
        Fault("storing a prefix, raised once", raising(KVSlots, "read", once(lambda *_: True)), None),
        Fault("growing the KV slots, raised", raising(KVSlots, "resize", lambda *a: a[3] > FIRST_SLOT), longer),
    ]  # fmt: skip
    if on_cuda:
        found += [
            Fault("tower, device full", limited, ("How many circles?", draw_picture(4096, 4))),
            Fault("growing the KV slots, device full", limited, ("Which numbers do you read? " * 6000, None)),
        ]
    return found


def measure_faults(folder: Path, device: str, seconds: float, report: Report) -> None:
    """Provoke each fault while other requests run. `seconds`: how long an answer may take."""
    router: Router | None = None
    for fault in faults(device.startswith("cuda")):
        if router is None:
            router = Router.from_pretrained(
                instruct=folder / "instruct", thinking=folder / "thinking", device=device, dtype="float32"
            ).load()
            router.ask("How many circles?", draw_picture(256, 2), max_new_tokens=2, **SETTINGS)
        if not provoke(router, fault, seconds, report):
            router = None  # its thread may have ended; closing it could wait forever
    if router is not None:
        router.close()


def provoke(router: Router, fault: Fault, seconds: float, report: Report) -> bool:
    """Report the requests that were answered besides the one that cannot be; False if one was not answered."""
    router.prefixes.clear()
    requests: list[tuple[str, Image.Image | None]] = [
        (f"How many circles are in picture {i}?", draw_picture(256, 60 + i) if i == 0 else None) for i in range(OTHERS)
    ]
    with fault.context():
        outcomes = ask_all(router, [*([fault.victim] if fault.victim else []), *requests], seconds)
    victim = outcomes.pop(0) if fault.victim else None
    outcomes += ask_all(router, [("Is there a circle?", None)], seconds)  # a request after the fault
    good, total = outcomes.count("answered"), len(outcomes)
    note = [f"{good} of {total} other requests were answered"]
    if victim is not None:
        note.append(f"the request that does not fit: {victim}")
    expected = {None, OutOfMemoryError.__name__, LimitError.__name__}
    others = [one for one in outcomes if one != "answered"]
    if others:
        note.append(f"the others: {', '.join(sorted({*others}))}")
    passed = good == total and victim in expected
    report(Figure(fault.name, float(passed), "passed", 1.0, at_least=True, note="; ".join(note)))
    return good == total and victim != "no answer"


def ask_all(router: Router, requests: Sequence[tuple[str, Image.Image | None]], seconds: float) -> list[str]:
    """What became of each request: "answered", the name of an error, or "no answer" within `seconds`."""
    outcomes = ["no answer"] * len(requests)

    def ask(i: int) -> None:
        prompt, picture = requests[i]
        try:
            router.ask(
                prompt, picture, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, answer_reserve=0, **SETTINGS
            )
            outcomes[i] = "answered"
        except Exception as error:
            outcomes[i] = type(error).__name__

    threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    while any(thread.is_alive() for thread in threads) and time.monotonic() < end:
        time.sleep(0.02)
        engine = router.scheduler._thread if router.scheduler else None  # noqa: SLF001 (there is no public name)
        if engine is not None and not engine.is_alive():  # no answer can come any more
            end = min(end, time.monotonic() + 0.5)
    return outcomes
