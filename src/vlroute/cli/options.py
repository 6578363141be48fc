"""Options of several commands, and how answers are shown in the terminal."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from vlroute.engine.local.loading import CompileChoice
from vlroute.engine.settings import AUTO
from vlroute.errors import InputError
from vlroute.types import ModeChoice, Preset

if TYPE_CHECKING:
    from vlroute.decision.policy import Policy
    from vlroute.decision.target import Target
    from vlroute.types import Event

MODEL_HELP = (
    "Hub name such as Qwen/Qwen3-VL-2B, a folder, a .json file of endpoints, pocket or pocket-hybrid. Default: pocket."
)
POLICY_HELP = "A target instead of a price: fast, balanced, accurate or knee."
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="The question, in quotes.")]
ModelOption = Annotated[str | None, typer.Option("--model", help=MODEL_HELP)]
ROUTER_HELP = (
    "Folder of a router artifact, a name like qwen3-vl-2b, or one on the hub: user/name or user/name@revision."
)
RouterOption = Annotated[str | None, typer.Option("--router", metavar="ROUTER", help=ROUTER_HELP)]
Images = Annotated[list[Path] | None, typer.Option("--image", "-i", metavar="FILE", help="A picture; may be repeated.")]
Videos = Annotated[list[Path] | None, typer.Option("--video", metavar="FILE", help="A video; may be repeated.")]
System = Annotated[str | None, typer.Option(help="A system prompt.")]
Caption = Annotated[str | None, typer.Option(help="A caption of the picture, instead of the captioner's.")]
Price = Annotated[float | None, typer.Option(help="What one second of waiting is worth, in probability.")]
# the choices would be wider than the column of the help at 80 characters
Wanted = Annotated[Preset | None, typer.Option("--policy", metavar="TARGET", help=POLICY_HELP)]
Stages = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Stages to decide at, such as prompt,answer. Default: those of the artifact."),
]
Forced = Annotated[ModeChoice | None, typer.Option("--mode", help="Force a mode. Default: auto, the router decides.")]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="Maximum number of tokens, reasoning included.")]


def _budget(text: str) -> int | str:
    if text == AUTO:
        return text
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is neither a number of tokens nor {AUTO}")
    return int(text)


ThinkingBudget = Annotated[
    Any | None,
    typer.Option(parser=_budget, metavar="N|auto", help="Maximum number of reasoning tokens, or auto."),
]
AnswerReserve = Annotated[
    int | None, typer.Option(min=0, help="Number of tokens that are kept for the answer after the reasoning.")
]
Seed = Annotated[int | None, typer.Option(help="Makes the answer reproducible; may be negative.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StoreAt = Annotated[str | None, typer.Option("--store", help="File or postgresql:// URL for answers and feedback.")]
ShadowFolder = Annotated[
    str | None,
    typer.Option("--shadow", metavar="ROUTER", help="A second router that also decides, without effect on answers."),
]
LabelShare = Annotated[
    float,
    typer.Option(min=0, max=1, help="Share of requests that the other mode also answers, later. Needs --store."),
]
Explore = Annotated[
    float,
    typer.Option(min=0, max=1, help="Share of requests that the other mode answers, for vlroute learn. Needs --store."),
]
Device = Annotated[str | None, typer.Option("--device", help="cuda, cuda:1, cpu, …; by default CUDA if there is one.")]

Memory = Annotated[
    float | None,
    typer.Option(
        help="Share of the GPU memory that is free after loading, or of the RAM, for keys, values and features."
    ),
]
Compile = Annotated[
    CompileChoice | None,
    typer.Option("--compile", metavar="HOW", help="auto: CUDA graphs on a GPU; off; max: torch.compile (slow start)."),
]


def check_price(price: float | None, policy: str | None) -> None:
    """Raise an InputError if both were passed, or if the price is invalid."""
    from vlroute.pipeline import RequestOptions

    RequestOptions(price=price)
    if price is not None and policy is not None:
        raise InputError("--price and --policy exclude each other: leave one out")


def policy_of(preset: Preset | None, stages: str | None) -> Policy | Target | Preset | None:
    """The policy of the options --policy and --stages. SettingsError for an unknown stage."""
    if stages is None:
        return preset
    from vlroute.decision.policy import Policy, checked_stages
    from vlroute.decision.target import Target

    chosen = checked_stages([one.strip() for one in stages.split(",")])
    return Policy(stages=chosen) if preset is None else Target(preset=preset, stages=chosen)


def given(**settings: Any) -> dict[str, Any]:
    """The generation settings that were passed on the command line."""
    return {name: value for name, value in settings.items() if value is not None}


#: Characters that could move the cursor or change colors or the window title. A picture may make a model write them.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Screen:
    """Shows answers as plain text; control characters are replaced with �.

    Args:
        store: Where answers are stored, if they are. The id of each answer is then shown, for feedback.
    """

    def __init__(self, store: str | None = None) -> None:
        self.store = store
        self.notes = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        self._reasons = False

    def show(self, event: Event) -> None:
        """Show the next event of a stream."""
        from vlroute.types import AnswerDelta, Decided, Finished, ThinkingDelta

        match event:
            case Decided(decision):
                self.note(f"{decision.mode}: {decision.reason}")
            case ThinkingDelta(text):
                self._reasons = True
                self.notes.print(CONTROLS.sub("�", text), end="", style="dim")
            case AnswerDelta(text):
                self._end_reasoning()
                typer.echo(CONTROLS.sub("�", text), nl=False)
            case Finished(answer):
                self._end_reasoning()
                typer.echo()
                if not answer.text and answer.finish_reason != "stop":
                    self.note(str(answer))
                self.note(
                    f"{answer.finish_reason}, {answer.usage.completion_tokens} tokens, {answer.timing.total:.2f} s"
                )
                if self.store is not None and answer.finish_reason != "cancelled":
                    where = "URL" if "://" in self.store else shlex.quote(self.store)  # a URL may hold a password
                    self.note(f"vlroute feedback {answer.id} --correct --store {where}    (or --wrong)")

    def note(self, text: str) -> None:
        """Show a line on stderr."""
        self.notes.print(CONTROLS.sub("�", text), style="dim")

    def error(self, error: object) -> None:
        """Show an error in one line."""
        self._reasons = False
        line = " ".join(f"error: {error}".split())
        self.notes.print(CONTROLS.sub("�", line), style="red")

    def _end_reasoning(self) -> None:
        if self._reasons:
            self.notes.print()
        self._reasons = False
