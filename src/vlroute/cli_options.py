"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlroute.errors import InputError
from vlroute.modes import ModeChoice

if TYPE_CHECKING:
    from vlroute.decision.target import Preset
else:
    try:
        from vlroute.decision.target import Preset
    except ImportError:  # numpy is missing or broken: `vlroute doctor` must start all the same, to say so
        Preset = str

PAIR_HELP = "Hub name such as Qwen/Qwen3-VL-2B, or a folder with instruct/ and thinking/. Default: the pocket pair."
POLICY_HELP = "What to aim for, instead of a price: fast, balanced, accurate or knee."
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="The question, in one pair of quotes.")]
Pair = Annotated[str | None, typer.Option("--pair", help=PAIR_HELP)]
RouterFolder = Annotated[Path | None, typer.Option("--router", help="Folder of a trained router artefact.")]
Images = Annotated[list[Path] | None, typer.Option("--image", "-i", metavar="FILE", help="A picture; may be repeated.")]
Videos = Annotated[list[Path] | None, typer.Option("--video", metavar="FILE", help="A video; may be repeated.")]
System = Annotated[str | None, typer.Option(help="A system prompt.")]
Caption = Annotated[str | None, typer.Option(help="What is in the picture, instead of the captioner's words.")]
Price = Annotated[float | None, typer.Option(help="What one second of waiting is worth, in probability.")]
# a metavar of its own: all four words are wider than the column at 80 characters
Wanted = Annotated[Preset | None, typer.Option("--policy", metavar="AIM", help=POLICY_HELP)]
Forced = Annotated[ModeChoice | None, typer.Option("--mode", help="Force a mode. Default: auto, the router decides.")]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="Maximum number of tokens, reasoning included.")]
ThinkingBudget = Annotated[int | None, typer.Option(min=0, help="Maximum number of reasoning tokens.")]
Seed = Annotated[int | None, typer.Option(help="Makes the answer reproducible; may be negative.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StoreAt = Annotated[str | None, typer.Option("--store", help="File or postgresql:// URL for answers and feedback.")]
Device = Annotated[str | None, typer.Option("--device", help="cuda, cuda:1, cpu, …; by default CUDA if there is one.")]


def check_price(price: float | None, policy: str | None) -> None:
    """InputError if both are given or if the price is invalid."""
    from vlroute.answering import Wish

    Wish(price=price)
    if price is not None and policy is not None:
        raise InputError("price and policy are both given, but a policy sets its own price: leave one out")


def given(**settings: int | None) -> dict[str, int]:
    """The generation settings that are set on the command line."""
    return {name: value for name, value in settings.items() if value is not None}
