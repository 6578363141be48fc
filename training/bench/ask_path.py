"""Files and functions of vlroute that one local answer passes through.

    python -m training.bench.ask_path                    # this checkout
    python -m training.bench.ask_path --before CHECKOUT  # the figures "before" come from another checkout

A loaded pocket pair answers a question about one picture; functions that run while its modules are imported, lambdas
and comprehensions are not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any


def trace() -> dict[str, list[str]]:
    """Answer once and return the functions that were called, in the order of their first calls, by file."""
    from PIL import Image

    import vlroute

    package = os.path.dirname(vlroute.__file__)
    called: dict[str, list[str]] = {}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(package) and not code.co_name.startswith("<"):
            names = called.setdefault(os.path.relpath(code.co_filename, package), [])
            if code.co_qualname not in names:
                names.append(code.co_qualname)

    router = vlroute.Router.from_pretrained().load()
    sys.setprofile(note)
    try:
        router.ask("How many circles?", Image.new("RGB", (64, 64), "white"))
    finally:
        sys.setprofile(None)
    return called


def traced(checkout: Path) -> dict[str, list[str]]:
    """`trace` of a checkout, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, __file__, "--trace"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def main() -> None:
    if "--trace" in sys.argv:
        print(json.dumps(trace()))
        return
    from training.page import ROOT, argument_parser, figures, publish

    parser = argument_parser(__doc__)
    parser.add_argument("--before", type=Path, help="another checkout; default: keep its recorded figures")
    options = parser.parse_args()
    before = traced(options.before) if options.before else figures("ask_path", options.out)["before"]
    now = traced(ROOT)
    print(publish("ask_path", {"before": before, "now": now}, options.out).read_text("utf-8"))


if __name__ == "__main__":
    main()
