"""`vlroute chat`: a conversation in the terminal, or line by line from a pipe."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlroute.cli.options import (
    AnswerReserve,
    AsJson,
    Device,
    Forced,
    Images,
    MaxNewTokens,
    ModelOption,
    Price,
    RouterOption,
    Screen,
    Seed,
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
from vlroute.errors import InputError, VLRouteError
from vlroute.types import Mode, forced_mode

if TYPE_CHECKING:
    from vlroute.chat import Chat
    from vlroute.types import Event

HELP = """\
/image FILE …     pictures for the next question; /image alone removes them
/video FILE …     the same for videos
/mode MODE        instruct, thinking, or auto (the router decides)
/save FOLDER      save the conversation with its pictures; --resume FOLDER continues it
/help, /quit      show this list; end (also Ctrl-D)
Ctrl-C stops an answer; its question is then removed."""


@dataclass(slots=True)
class Talk:
    """A conversation in the terminal.

    Attributes:
        chat: The conversation.
        mode: Forced mode, if any.
        price: Price, if it was passed.
        as_json: Whether answers are printed as JSON.
        settings: Generation settings.
        images: Pictures for the next question.
        videos: Videos for the next question.
        screen: Shows answers.
    """

    chat: Chat
    mode: Mode | None = None
    price: float | None = None
    as_json: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    images: list[Path] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    screen: Screen = field(default_factory=Screen)

    def command(self, line: str) -> bool:
        """Run a line that begins with /. Returns whether to continue. Raises InputError for an invalid command."""
        try:
            name, *arguments = shlex.split(line)
        except ValueError as error:
            raise InputError(f"{line[:80]}: {error}") from error
        match name, arguments:
            case "/quit" | "/exit", []:
                return False
            case "/help", []:
                self.screen.notes.print(HELP)
            case "/image", []:
                self.images = []
            case "/image", _:
                self.add([Path(path).expanduser() for path in arguments])
            case "/video", []:
                self.videos = []
            case "/video", _:
                self.add_videos([Path(path).expanduser() for path in arguments])
            case "/mode", [word]:
                self.mode = forced_mode(word)
            case "/save", [folder]:
                self.screen.note(f"saved in {self.chat.save(Path(folder).expanduser())}")
            case (("/save" | "/mode"), _):
                raise InputError(f"{name} needs exactly one value; /help shows how it is used")
            case _:
                raise InputError(f"{line[:80]!r} is not a command; /help lists them")
        return True

    def add(self, paths: Sequence[Path]) -> None:
        """Add pictures for the next question. Raises InputError, and adds none, if one of them cannot be used."""
        from vlroute.inputs.media import load_picture

        for path in paths:
            load_picture(path, self.chat.pipeline.limits)
        self.images += paths

    def add_videos(self, paths: Sequence[Path]) -> None:
        """Add videos for the next question, as `add`."""
        from vlroute.inputs.media import load_video

        for path in paths:
            load_video(path, self.chat.pipeline.limits)
        self.videos += paths

    def ask(self, prompt: str) -> None:
        """Send one turn. Ctrl-C cancels it, removes it from the conversation and raises KeyboardInterrupt."""
        cancel = threading.Event()
        events = self.chat.stream(
            prompt, self.images or None, videos=self.videos or None, mode=self.mode, price=self.price, cancel=cancel,
            **self.settings,
        )  # fmt: skip
        with closing(events), _ctrl_c_sets(cancel):
            for event in events:
                if cancel.is_set():
                    raise KeyboardInterrupt
                self._show(event)
        self.images, self.videos = [], []

    def _show(self, event: Event) -> None:
        from vlroute.types import Finished

        if not self.as_json:
            self.screen.show(event)
        elif isinstance(event, Finished):
            typer.echo(json.dumps(event.answer.as_dict(), ensure_ascii=False))


@contextmanager
def _ctrl_c_sets(cancel: threading.Event) -> Iterator[None]:
    """Set `cancel` on Ctrl-C instead of raising: an exception in a destructor, for example, would be lost."""

    def stop(*_: object) -> None:
        if cancel.is_set():  # the second time
            raise KeyboardInterrupt
        cancel.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def read_lines(typed: bool) -> Iterator[str]:
    """Lines that are typed or piped. Ctrl-C at the prompt clears the line."""
    if typed:
        with suppress(ImportError):  # not on every system
            import readline  # noqa: F401 - makes input() editable, with a history
    while True:
        try:
            yield input("> " if typed else "").removeprefix("\ufeff")  # editors on Windows begin a file with it
        except EOFError:
            return
        except KeyboardInterrupt:
            if not typed:
                raise
            print(file=sys.stderr)


def converse(talk: Talk, typed: bool) -> bool:
    """Run the conversation until the end of the input or /quit. Returns whether every line succeeded."""
    fine = True
    for line in read_lines(typed):
        try:
            if line.startswith("/"):
                if not talk.command(line):
                    break
            elif line.strip():
                talk.ask(line)
        except KeyboardInterrupt:
            talk.screen.note("\nstopped; this question was removed")
            if not typed:
                raise
        except (VLRouteError, ValueError, OSError, RuntimeError) as error:  # RuntimeError: GPU out of memory
            fine = False
            talk.screen.error(error)
    return fine


def chat(
    image: Images = None,
    video: Videos = None,
    model: ModelOption = None,
    router: RouterOption = None,
    mode: Forced = None,
    price: Price = None,
    policy: Wanted = None,
    stages: Stages = None,
    system: System = None,
    max_new_tokens: MaxNewTokens = None,
    thinking_budget: ThinkingBudget = None,
    answer_reserve: AnswerReserve = None,
    seed: Seed = None,
    device: Device = None,
    store: StoreAt = None,
    resume: Annotated[Path | None, typer.Option(help="Continue a conversation that was saved here.")] = None,
    save: Annotated[Path | None, typer.Option(help="Save the conversation here at its end.")] = None,
    as_json: AsJson = False,
) -> None:
    """Have a conversation about pictures. Each question is routed.

    /help lists commands. From a pipe each line is a question; with --json each answer is a line.

    vlroute chat --image x.png

    vlroute chat --image x.png --json < questions.txt
    """
    from vlroute.router import Router

    if resume is not None and system is not None:
        raise InputError("a resumed conversation has its own system prompt; leave --system out")
    if save is not None:
        from vlroute.chat import check_chat_output

        check_chat_output(save)
    check_price(price, policy)
    settings = given(
        max_new_tokens=max_new_tokens, thinking_budget=thinking_budget, answer_reserve=answer_reserve, seed=seed
    )
    routed = Router.from_pretrained(model, router=router, policy=policy_of(policy, stages), device=device, store=store)
    started = routed.resume(resume) if resume else routed.chat(system)
    talk = Talk(started, forced_mode(mode), price, as_json, settings, screen=Screen(store))
    talk.add(image or ())
    talk.add_videos(video or ())
    routed.load()  # now, because Ctrl-C during the first answer could interrupt an import
    typed = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    if typed:
        talk.screen.note("/help lists commands; Ctrl-C stops an answer; Ctrl-D ends")
    try:
        fine = converse(talk, typed)
    finally:
        if save is not None:
            talk.chat.save(save)
    if not fine and not typed:
        raise typer.Exit(1)
