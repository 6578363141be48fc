"""GUI tasks that are solved with tools: a map of screens, a goal, and the tools `tap` and `read`.

The picture shows which button is on which screen, as in the task "gui". In tasks of one to four steps, the next goal is
at most two taps away: the current screen has the button of the goal, or the button of the screen that has it. So each
step needs only one look-up in the map.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vlroute.pocket.canvas import Glyph, Style, plain_style
from vlroute.pocket.tasks import LANGUAGES, draw_buttons, draw_screens, path_to


def _tool(name: str, description: str, *strings: str) -> dict[str, Any]:
    parameters: dict[str, Any] = {"type": "object", "properties": {key: {"type": "string"} for key in strings}}
    if strings:
        parameters["required"] = list(strings)
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


#: The tools, as `tools` of a chat request or of `apply_chat_template`.
TOOLS = [_tool("tap", "Tap a button of this screen.", "button"), _tool("read", "Read the number on this screen.")]

SCREEN_WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "here": {
        "en": (
            "What does this screen show?",
            "Read this screen.",
            "You are on screen {start}. Which number does it show?",
        ),
        "zh": ("这个屏幕显示什么？", "读出当前屏幕的数字。", "现在在屏幕{start}，上面显示什么数字？"),
    },
    "open": {
        "en": (
            "You are on screen {start}. Open {goal} and read it.",
            "From {start}, go to {goal} and tell me its number.",
            "You are on {start}. What does screen {goal} show?",
        ),
        "zh": (
            "现在在屏幕{start}，打开{goal}并读出数字。",
            "从{start}进入{goal}，上面显示什么？",
            "你在{start}，屏幕{goal}显示什么数字？",
        ),
    },
    "both": {
        "en": (
            "You are on screen {start}. Read {first}, then open {goal} and read it.",
            "From {start}, open {first} and read it, then do the same with {goal}.",
            "You are on {start}. What do screens {first} and {goal} show?",
        ),
        "zh": (
            "现在在屏幕{start}，先读出{first}的数字，再打开{goal}并读出数字。",
            "从{start}进入{first}读数，然后进入{goal}读数。",
            "你在{start}，屏幕{first}和{goal}分别显示什么数字？",
        ),
    },
}

#: Number of taps to the goal and key of `SCREEN_WORDINGS`, by difficulty. "3 taps" has four steps as well, but the
#: first one needs two look-ups in the map.
DIFFICULTIES = {
    "1 step": (0, "here"),
    "2 steps": (1, "open"),
    "3 steps": (2, "open"),
    "4 steps": (2, "both"),
    "3 taps": (3, "open"),
}


@dataclass(frozen=True)
class ScreenTask:
    """One picture with a goal, the steps that reach the goal, and the answer.

    Attributes:
        difficulty: A key of `DIFFICULTIES`.
        language: "en" or "zh".
        prompt: The goal.
        picture: The map: each button with the screen that it is on.
        glyphs: The glyphs of the picture, in the form of `Task.glyphs`.
        start: The screen at the start.
        screens: Each drawn screen and its buttons as a string: "ABCD" is screen A with the buttons B, C and D.
        codes: The two-digit number on each screen, drawn or not.
        steps: Name and arguments of the expected tool calls.
        answer: The exact answer, after the last step.
        thoughts: Targets of the Thinking model before `</think>`: one for each step and one for the answer.
    """

    difficulty: str
    language: str
    prompt: str
    picture: Image.Image
    glyphs: tuple[tuple[Glyph, ...], ...]
    start: str
    screens: tuple[str, ...]
    codes: dict[str, str]
    steps: tuple[tuple[str, dict[str, str]], ...]
    answer: str
    thoughts: tuple[str, ...]


class App:
    """The app that the tools of one task operate.

    Args:
        task: The task.

    Attributes:
        screen: The current screen.
    """

    def __init__(self, task: ScreenTask) -> None:
        self.screen = task.start
        self._buttons = {screen[0]: screen[1:] for screen in task.screens}
        self._codes = task.codes

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run one tool call.

        Args:
            name: The tool.
            arguments: Its arguments.

        Returns:
            The new screen, the number that was read, or an error message.
        """
        if name == "read":
            return self._codes[self.screen]
        if name != "tap":
            return f"no tool {name}"
        button = arguments.get("button")
        if button not in tuple(self._buttons.get(self.screen, "")):
            return f"no button {button} here"
        self.screen = str(button)
        return f"screen {button}"


def _solution(route: list[str], targets: list[str]) -> tuple[list[tuple[str, dict[str, str]]], list[str]]:
    """Steps that follow `route` from its first screen and read each of `targets` on it, and a thought for each step.

    Before a tap the thought leads from the target back to the current screen, as in the task "gui".
    """
    steps: list[tuple[str, dict[str, str]]] = []
    thoughts, here = [], 0
    for target in targets:
        end = route.index(target)
        for i in range(here, end):
            steps.append(("tap", {"button": route[i + 1]}))
            thoughts.append("<".join(reversed(route[i : end + 1])))
        steps.append(("read", {}))
        thoughts.append("read")
        here = end
    return steps, thoughts


def draw_screen_task(
    rng: random.Random,
    steps: int | None = None,
    language: str | None = None,
    style: Style | None = None,
    deep: bool = False,
) -> ScreenTask:
    """Draw one task. The same state of `rng` gives the same task.

    Args:
        rng: Source of randomness.
        steps: Number of tool calls, 1 to 4; by default drawn uniformly, like the language.
        language: Language of the goal.
        style: Font and colors; by default those of the shipped drawings.
        deep: Draw a harder task, with a goal three taps away; `steps` is ignored.

    Returns:
        The task.

    Raises:
        KeyError: If the number of steps or the language is unknown.
    """
    steps = rng.randint(1, 4) if steps is None else steps
    difficulty = "3 taps" if deep else f"{steps} step{'' if steps == 1 else 's'}"
    taps, kind = DIFFICULTIES[difficulty]
    language = language or rng.choice(LANGUAGES)
    screens = draw_screens(rng, rng.randint(max(taps, 1), 4))
    names = sorted(set("".join(screens)))
    # the start may be any screen with a goal at this distance, so that the picture alone does not determine it
    route = rng.choice([path[taps::-1] for path in (path_to(screens, name) for name in names) if len(path) > taps])
    targets = route[1:] if kind == "both" else route[-1:]
    codes = {name: str(code) for name, code in zip(names, rng.sample(range(10, 100), len(names)), strict=True)}
    calls, thoughts = _solution(route, targets)
    answer = " ".join(codes[target] for target in targets)
    rng.shuffle(screens)
    canvas = draw_buttons(rng, screens, style or plain_style(rng))
    wording = rng.choice(SCREEN_WORDINGS[kind][language])
    return ScreenTask(
        difficulty, language, wording.format(start=route[0], first=targets[0], goal=route[-1]),
        canvas.image, (tuple(canvas.glyphs),), route[0], tuple(screens), codes,
        steps=tuple(calls), answer=answer, thoughts=(*thoughts, answer),
    )  # fmt: skip


def opening(task: ScreenTask) -> list[dict[str, Any]]:
    """The messages before the first step.

    Args:
        task: The task.

    Returns:
        One user message with the picture and the goal.
    """
    return [
        {"role": "user", "content": [{"type": "image", "image": task.picture}, {"type": "text", "text": task.prompt}]}
    ]


def conversation(
    task: ScreenTask, upto: int, mode: str, keep_thoughts: bool = True
) -> tuple[list[dict[str, Any]], str]:
    """The messages before a step, and the text that the model should write next.

    Args:
        task: The task.
        upto: Number of steps that are done; if all are done, the text is the answer.
        mode: "instruct" or "thinking".
        keep_thoughts: Whether past steps of the Thinking model keep their thoughts (`reasoning_content`). Clients often
            drop them, and steps of the Instruct model have none.

    Returns:
        The messages in the form that Qwen's chat templates take, and the text.
    """
    messages, app = opening(task), App(task)
    for (name, arguments), thought in zip(task.steps[:upto], task.thoughts, strict=False):
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        answer: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
        if mode == "thinking" and keep_thoughts:
            answer["reasoning_content"] = thought
        messages += [answer, {"role": "tool", "content": app.call(name, arguments)}]
    target = task.answer
    if upto < len(task.steps):
        name, arguments = task.steps[upto]
        target = f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
    return messages, target if mode == "instruct" else f"{task.thoughts[upto]}\n</think>\n\n{target}"
