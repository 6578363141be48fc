"""Run `vlroute` with too little memory: `python -m training.chaos.failing_memory PLACE SHARE FILE serve …`.

PLACE is tower, prefill or decode; SHARE is the part of its calls that fail, from the first signal SIGUSR1 to the second
one, after which FILE contains the number of failures.
"""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vlroute.cli.app import run
from vlroute.engine.cache.prefix import PrefixCache
from vlroute.engine.local import memory, scheduler
from vlroute.engine.local.forward import Decoder

#: What torch raises on the CPU has no type of its own.
ON_CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"


def main() -> None:
    place, share, file = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    rng, fails, failures = random.Random(0), False, 0
    errors: list[Callable[[], Exception]] = [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), lambda: MemoryError(),
        lambda: RuntimeError(ON_CPU),
    ]  # fmt: skip

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal failures
            if not fails or rng.random() >= share:
                return function(*args, **more)
            if rng.random() < 0.5:  # it fails at the end, after slots have been written
                function(*args, **more)
            failures += 1
            raise rng.choice(errors)()

        return call

    def switch(*_: object) -> None:
        nonlocal fails
        fails = not fails
        if not fails:
            file.write_text(str(failures))

    match place:
        case "tower":  # neither features nor prefixes are cached, so that each picture is encoded
            vars(scheduler)["encode"] = failing(vars(scheduler)["encode"])
            memory.VISION_PART = 0.0
            PrefixCache.insert = lambda *_: None  # type: ignore[method-assign]
        case "prefill":
            vars(scheduler)["read"] = failing(vars(scheduler)["read"])
        case "decode":
            Decoder.__call__ = failing(Decoder.__call__)  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, switch)
    run(sys.argv[4:])


if __name__ == "__main__":
    main()
