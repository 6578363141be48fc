"""The web page: its tabs and its settings."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from vlroute.inputs.limits import Limits
from vlroute.serving.ui.batch import add_batch
from vlroute.serving.ui.chat import add_chat
from vlroute.serving.ui.compare import add_compare
from vlroute.serving.ui.components import COLORS, FONT, FONTS, MONO_FONTS, TEXTS, Answerer, Texts
from vlroute.serving.ui.tradeoff import add_tradeoff

FOLDER = Path(__file__).parent
#: Uploaded and downloadable files are deleted after `KEPT_SECONDS`; checked every `SWEEP_SECONDS`.
KEPT_SECONDS, SWEEP_SECONDS = 24 * 3600, 3600


def build_page(answerer: Answerer, *, title: str = "vlroute") -> gr.Blocks:
    """Build the page: English at its address, Chinese at the path `zh` below it. No model is loaded.

    Pass `page_settings` when you serve it:

        gr.mount_gradio_app(app, build_page(router), "/ui", **page_settings(router.limits))
        build_page(router).launch(server_port=7860, share=False, **page_settings(router.limits))
    """
    page = gr.Blocks(title=title, analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEPT_SECONDS))
    with page:
        _lay_out(answerer, title, TEXTS["en"])
    with page.route(TEXTS["en"].other, "zh", show_in_navbar=False):
        _lay_out(answerer, title, TEXTS["zh"])
    page.queue(max_size=64, default_concurrency_limit=8, api_open=False)
    return page


def page_settings(limits: Limits) -> dict[str, Any]:
    """Arguments for `gr.mount_gradio_app` and `Blocks.launch`: theme, limit of uploads, no public endpoints."""
    return {
        "theme": _theme(),
        "css": _css(),
        "head": (FOLDER / "head.html").read_text(encoding="utf-8"),
        "max_file_size": max(limits.max_bytes, limits.max_video_bytes),
        "footer_links": [],
        "run_history": False,  # Gradio would store the questions in the browser
        "show_error": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "mcp_server": False,
    }


def _lay_out(answerer: Answerer, title: str, texts: Texts) -> None:
    price, other = gr.State(None), "zh" if texts.language == "en" else "en"
    gr.HTML(
        f'<div id="head"><h1>{escape(title)}</h1><p>{texts.tagline}</p>'
        f'<a id="language" href="{texts.other_link}" lang="{other}">{texts.other}</a></div>',
        padding=False,
    )
    with gr.Tabs(elem_id="tabs"):
        with gr.Tab(texts.chat, id="chat"):
            add_chat(answerer, texts, price)
        with gr.Tab(texts.compare, id="compare"):
            add_compare(answerer, texts, price)
        with gr.Tab(texts.batch, id="batch"):
            add_batch(answerer, texts, price)
        with gr.Tab(texts.tradeoff, id="tradeoff") as tab:
            add_tradeoff(answerer, texts, price, tab)


def _theme() -> gr.themes.Base:
    """Muted colors and system fonts; nothing is fetched from other hosts."""
    return gr.themes.Default(
        primary_hue="blue",
        secondary_hue="blue",
        neutral_hue="slate",
        font=[gr.themes.Font(name) for name in FONTS],
        font_mono=[gr.themes.Font(name) for name in MONO_FONTS],
    ).set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400")


def _css() -> str:
    """The style sheet, after the variables that depend on constants and texts."""
    names = {**COLORS, "vlroute-font": FONT}
    for language, texts in TEXTS.items():
        names |= {
            f"drop-{language}": json.dumps(texts.drop, ensure_ascii=False),
            f"notice-{language}": json.dumps(texts.notice, ensure_ascii=False),
        }
    variables = " ".join(f"--{name}: {value};" for name, value in names.items())
    sheet = (FOLDER / "page.css").read_text(encoding="utf-8")
    return f":root, .gradio-container {{ {variables} }}\n{sheet}"
