"""The `vlroute` command."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from vlroute.cli_learning import collect, curves, evaluate, export, feedback, probe, train
from vlroute.decision.target import Preset
from vlroute.errors import VLRouteError
from vlroute.modes import Mode

app = typer.Typer(
    help="Adaptive router for Qwen3-VL: Instruct answers at once, Thinking reasons first.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
PAIR_HELP = "Hub name such as Qwen/Qwen3-VL-2B, or a folder with instruct/ and thinking/. Default: the pocket pair."
Pair = Annotated[str | None, typer.Option("--pair", help=PAIR_HELP)]
RouterFolder = Annotated[Path | None, typer.Option("--router", help="Folder of a trained router artefact.")]
Images = Annotated[list[Path] | None, typer.Option("--image", "-i", help="A picture file; may be repeated.")]
Caption = Annotated[str | None, typer.Option(help="What is in the picture, instead of the captioner's words.")]
Price = Annotated[float | None, typer.Option(help="What one second of waiting is worth, in probability.")]
Wanted = Annotated[Preset | None, typer.Option("--policy", help="What to aim for, instead of a price.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _log_to_terminal() -> None:
    handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False, markup=False)
    logging.getLogger("vlroute").addHandler(handler)
    logging.getLogger("vlroute").setLevel(logging.INFO)
    # with torchao installed, importing transformers prints warnings that no user of this command can act on
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)


@app.callback()
def main() -> None:
    _log_to_terminal()


@app.command()
def demo(
    pair: Pair = None,
    router: RouterFolder = None,
    pictures: Annotated[int, typer.Option(min=1, help="How many fresh pictures.")] = 72,
    show: Annotated[int, typer.Option(min=0, help="How many of them to show in full.")] = 12,
    seed: Annotated[int, typer.Option(help="Another seed draws other pictures.")] = 0,
) -> None:
    """Watch the router work: fresh pictures, both modes, and what routing makes of them.

    vlroute demo --seed 7

    vlroute demo --pair Qwen/Qwen3-VL-2B --router my-router
    """
    from vlroute.demo import run_demo
    from vlroute.router import Router

    console = Console()
    run_demo(Router.from_pretrained(pair, router=router), pictures, show, seed, pair is not None, console)
    if pair is None:
        line = "The same on the real pair (downloads about 9 GB):  vlroute demo --pair Qwen/Qwen3-VL-2B"
        console.print(line, soft_wrap=True)


@app.command()
def ask(
    prompt: str,
    image: Images = None,
    pair: Pair = None,
    router: RouterFolder = None,
    mode: Annotated[Mode | None, typer.Option(help="Force a mode instead of deciding.")] = None,
    caption: Caption = None,
    price: Price = None,
    policy: Wanted = None,
    as_json: AsJson = False,
) -> None:
    """Ask one question about pictures; the router decides which mode answers.

    vlroute ask "How many circles?" --image x.png
    """
    from vlroute.answer import AnswerDelta, Decided, Finished, ThinkingDelta
    from vlroute.router import Router

    routed = Router.from_pretrained(pair, router=router, policy=policy)
    if as_json:
        answer = routed.ask(prompt, image, mode=mode, caption=caption, price=price)
        typer.echo(json.dumps(answer.as_dict(), ensure_ascii=False, indent=2))
        return
    notes, out = Console(stderr=True), Console(soft_wrap=True, highlight=False, markup=False)
    for event in routed.stream(prompt, image, mode=mode, caption=caption, price=price):
        if isinstance(event, Decided):
            notes.print(f"{event.decision.mode}: {event.decision.reason}", style="dim", markup=False)
        elif isinstance(event, ThinkingDelta):
            notes.print(event.text, end="", style="dim", markup=False, highlight=False)
        elif isinstance(event, AnswerDelta):
            out.print(event.text, end="")
        elif isinstance(event, Finished):
            out.print()
            notes.print(f"{event.answer.finish_reason}, {event.answer.timing.total:.2f} s", style="dim")


@app.command()
def route(
    prompt: str,
    image: Images = None,
    pair: Pair = None,
    router: RouterFolder = None,
    caption: Caption = None,
    price: Price = None,
    policy: Wanted = None,
    as_json: AsJson = False,
) -> None:
    """Decide only: which mode should answer, and why. Loads no model.

    vlroute route "Add the numbers." --caption "three numbers"
    """
    from vlroute.router import Router

    routed = Router.from_pretrained(pair, router=router, policy=policy)
    decision = routed.decide(prompt, image, caption=caption, price=price)
    if as_json:
        typer.echo(json.dumps(decision.as_dict(), ensure_ascii=False, indent=2))
    else:
        typer.echo(f"{decision.mode}: {decision.reason}")


app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)(collect)
app.command("eval")(evaluate)
for command in (probe, train, curves, feedback, export):
    app.command()(command)


def run() -> None:
    """Entry point: errors made on purpose end in one line and exit code 2, all else in a traceback."""
    try:
        app()
    except (VLRouteError, ValueError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False)
        raise SystemExit(2) from None
