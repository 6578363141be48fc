"""The `vlroute` command: its subcommands and exit codes."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler
from typer.core import TyperCommand

from vlroute import __version__
from vlroute.cli.chat import chat
from vlroute.cli.doctor import doctor
from vlroute.cli.key import key
from vlroute.cli.learn import collect, curves, evaluate, export, feedback, learn, probe, train
from vlroute.cli.options import (
    AnswerReserve,
    AsJson,
    Caption,
    Device,
    Forced,
    Images,
    MaxNewTokens,
    ModelOption,
    Price,
    Prompt,
    RouterOption,
    Screen,
    Seed,
    ShadowFolder,
    Stages,
    StoreAt,
    System,
    ThinkingBudget,
    Videos,
    Wanted,
    check_price,
    given,
    policy_of,
)
from vlroute.cli.push import push
from vlroute.cli.serve import cluster, serve, show_settings, ui
from vlroute.errors import VLRouteError

app = typer.Typer(
    help="Adaptive router for Qwen3-VL: Instruct answers at once, Thinking reasons first."
    '\n\nvlroute ask "How many circles?" --image x.png'
    "\n\nvlroute COMMAND --help shows more examples; vlroute doctor reports what is missing.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 success; 1 something failed, or problems were found; 2 the input is invalid.",
)


#: Options for a file or folder. An empty name would mean the current folder.
_NAMES = {
    "--answers", "--cache", "--config", "--encoder", "--folder", "--from", "--image", "-i", "--key-file",
    "--learned-folder", "--oof", "--out", "--model", "--records", "--resume", "--router", "--save", "--shadow",
    "--store", "--video",
}  # fmt: skip


class _Command(TyperCommand):
    """A command that rejects options such as `--out ""`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for before, text in pairwise(["", *args]):
            name, equals, value = (before, "=", text) if before in _NAMES else text.partition("=")
            if name in _NAMES and equals and not value:
                raise typer.BadParameter(f"{name} must not be empty: pass a file or folder")
        return super().parse_args(ctx, args)


#: Name of the handler that writes the log to the terminal.
TERMINAL = "vlroute terminal"


def _log_to_terminal() -> None:
    log = logging.getLogger("vlroute")
    for former in [one for one in log.handlers if one.name == TERMINAL]:  # a second command in the same process
        log.removeHandler(former)
    handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False, markup=False)
    handler.set_name(TERMINAL)
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def _quiet_others() -> None:
    """Hide warnings of other packages, which users of this command cannot act on. `python -W` shows them."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # for child processes
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # no line for each retry
        logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)  # packages for GPUs
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vlroute {__version__}")
        raise typer.Exit


@app.callback()
def main(  # noqa: D103 (typer would show a docstring as help)
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    _log_to_terminal()


def ask(
    prompt: Prompt,
    image: Images = None,
    video: Videos = None,
    system: System = None,
    model: ModelOption = None,
    router: RouterOption = None,
    mode: Forced = None,
    caption: Caption = None,
    price: Price = None,
    policy: Wanted = None,
    stages: Stages = None,
    max_new_tokens: MaxNewTokens = None,
    thinking_budget: ThinkingBudget = None,
    answer_reserve: AnswerReserve = None,
    seed: Seed = None,
    device: Device = None,
    store: StoreAt = None,
    shadow: ShadowFolder = None,
    as_json: AsJson = False,
) -> None:
    """Ask one question about pictures; the router decides which mode answers.

    vlroute ask "How many circles?" --image x.png

    vlroute ask "What changed?" -i before.png -i after.png --mode thinking --json
    """
    from vlroute.router import Router

    check_price(price, policy)
    wanted: dict[str, Any] = {
        "videos": video, "history": _history(system), "mode": mode, "caption": caption, "price": price,
        **given(
            max_new_tokens=max_new_tokens, thinking_budget=thinking_budget, answer_reserve=answer_reserve, seed=seed
        ),
    }  # fmt: skip
    with Router.from_pretrained(
        model, router=router, policy=policy_of(policy, stages), device=device, store=store, shadow=shadow
    ) as routed:
        if as_json:
            typer.echo(json.dumps(routed.ask(prompt, image, **wanted).as_dict(), ensure_ascii=False, indent=2))
            return
        screen = Screen(store)
        with closing(routed.stream(prompt, image, **wanted)) as events:
            for event in events:
                screen.show(event)


def route(
    prompt: Prompt,
    image: Images = None,
    video: Videos = None,
    system: System = None,
    model: ModelOption = None,
    router: RouterOption = None,
    caption: Caption = None,
    price: Price = None,
    policy: Wanted = None,
    stages: Stages = None,
    as_json: AsJson = False,
) -> None:
    """Decide which mode should answer, and why, without answering. Loads no model.

    vlroute route "Add the numbers." --caption "three numbers"
    """
    from vlroute.router import Router

    check_price(price, policy)
    routed = Router.from_pretrained(model, router=router, policy=policy_of(policy, stages))
    decision = routed.decide(prompt, image, videos=video, history=_history(system), caption=caption, price=price)
    if as_json:
        typer.echo(json.dumps(decision.as_dict(), ensure_ascii=False, indent=2))
    else:
        later = ", ".join(decision.later_stages)
        typer.echo(
            f"{decision.mode}: {decision.reason}" + (f" (later stages may change this: {later})" if later else "")
        )


def _history(system: str | None) -> list[dict[str, str]] | None:
    return [{"role": "system", "content": system}] if system else None


def demo(
    model: ModelOption = None,
    router: RouterOption = None,
    pictures: Annotated[int, typer.Option(min=1, help="Number of pictures.")] = 72,
    show: Annotated[int, typer.Option(min=0, help="Number of pictures to show in full.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of the pictures.")] = 0,
) -> None:
    """Draw new pictures, let both modes answer, and show the results with and without routing.

    Also shows one question that only Thinking answers correctly, and one that only Instruct does.

    vlroute demo --seed 7

    vlroute demo --model pocket-hybrid

    vlroute demo --model Qwen/Qwen3-VL-2B --router my-router
    """
    from vlroute.cli.demo import run_demo
    from vlroute.hub import embedded
    from vlroute.router import Router

    console = Console()
    bare = model is not None and embedded(model) is None
    run_demo(Router.from_pretrained(model, router=router), pictures, show, seed, bare, console)
    if model is None:
        line = "The same with the 2B pair (downloads about 9 GB):  vlroute demo --model Qwen/Qwen3-VL-2B"
        console.print(line, soft_wrap=True)


#: The commands in the order of the help, by panel.
PANELS: dict[str, dict[str, Callable[..., Any]]] = {
    "Look": {"demo": demo, "doctor": doctor},
    "Answer": {
        "ask": ask, "chat": chat, "route": route, "serve": serve, "ui": ui, "cluster": cluster,
        "config": show_settings, "key": key,
    },
    "Learn": {
        "collect": collect, "train": train, "probe": probe, "eval": evaluate, "curves": curves, "feedback": feedback,
        "export": export, "learn": learn, "push": push,
    },
}  # fmt: skip
for panel, commands in PANELS.items():
    for name, command in commands.items():
        app.command(name, cls=_Command, rich_help_panel=panel)(command)


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Errors that vlroute raises on purpose end with one line and exit code 2. Missing packages and errors of the file
    system end with one line and exit code 1. Other errors end with a traceback. SIGTERM ends with exit code 143
    (servers: 0), after locks and temporary files were removed.

    Args:
        arguments: By default the arguments of the process.
    """
    _quiet_others()
    with _sigterm_exits():
        try:
            app(arguments, prog_name="vlroute")
        except OSError as error:  # OutputError as well
            _end(str(error), 1)
        except (VLRouteError, ValueError) as error:
            _end(str(error), 2)
        except ImportError as error:
            _end(f"{error}; vlroute doctor reports what is missing", 1)


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """Let SIGTERM raise SystemExit, so that locks and temporary files are removed. Servers replace the handler."""
    here = threading.current_thread() is threading.main_thread()  # other threads cannot set handlers
    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _exit:  # the handler of a server stays until the process ends
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _end(why: str, status: int) -> None:
    Console(stderr=True, soft_wrap=True).print(f"error: {why}", style="red", markup=False)
    raise SystemExit(status) from None
