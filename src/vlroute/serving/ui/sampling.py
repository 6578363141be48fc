"""The section with the system prompt and the sampling settings of a conversation."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vlroute.serving.ui.page import Page
from vlroute.serving.ui.problems import PageError
from vlroute.serving.ui.texts import Texts

MAX_SEED = 2**31 - 1


def add_sampling(page: Page) -> list[Any]:
    """Add the section, collapsed, to the current Blocks.

    Args:
        page: The page.

    Returns:
        The inputs in the order of the arguments of `read_sampling`. An empty one means the setting of the model.
    """
    most = page.settings.max_tokens

    def number(name: str, range: str) -> gr.Textbox:
        """An input that may be empty. It is checked when it is used: the error of `gr.Number` would be in English."""

        def words(texts: Texts) -> dict[str, Any]:
            return {"label": f"{texts.fields[name]} ({range})", "placeholder": texts.model_default}

        field: gr.Textbox = page.add(
            gr.Textbox, words, value="", elem_id=name.replace("_", "-"), min_width=150, max_lines=1
        )
        return field

    with page.add(gr.Accordion, lambda texts: {"label": texts.settings}, open=False, elem_id="settings"):
        system = page.add(
            gr.Textbox, lambda texts: {"label": texts.fields["system"], "placeholder": texts.system_help}, value="",
            lines=2, max_lines=6, elem_id="system",
        )  # fmt: skip
        ranges = {"temperature": "0–2", "top_p": "0–1", "max_tokens": f"1–{most}", "seed": f"0–{MAX_SEED}"}
        with gr.Row(elem_classes="numbers"):
            numbers = [number(name, range) for name, range in ranges.items()]
    return [system, *numbers]


def read_sampling(
    temperature: str, top_p: str, max_tokens: str, seed: str, *, max_tokens_limit: int
) -> dict[str, float | int]:
    """Read the numbers that the visitor entered.

    Args:
        temperature: Text of the input, as the others; "" for the setting of the model.
        top_p: As above.
        max_tokens: As above.
        seed: As above.
        max_tokens_limit: The server's limit of tokens.

    Returns:
        Generation settings.

    Raises:
        PageError: A text is no number, or out of range.
    """
    given = {
        "temperature": _number("temperature", temperature, 0, 2),
        "top_p": _number("top_p", top_p, 0, 1, above=True),
        "max_new_tokens": _number("max_tokens", max_tokens, 1, max_tokens_limit, whole=True),
        "seed": _number("seed", seed, 0, MAX_SEED, whole=True),
    }
    read = {name: value for name, value in given.items() if value is not None}
    if read.get("temperature") == 0 and "top_p" in read:
        raise PageError("greedy_top_p")
    return read


def _number(
    field: str, text: str, low: float, high: float, *, above: bool = False, whole: bool = False
) -> float | int | None:
    if not text.strip():
        return None
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = None
    if value is None or not (low < value if above else low <= value) or not value <= high:
        raise PageError("whole_number" if whole else "number", field=field, low=low, high=high)
    return value
