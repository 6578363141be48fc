"""The web page: its tabs and its settings."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from vlroute.inputs.limits import Limits
from vlroute.serving.ui.batch import add_batch
from vlroute.serving.ui.chat import add_chat
from vlroute.serving.ui.compare import add_compare
from vlroute.serving.ui.components import Answerer
from vlroute.serving.ui.style import CSS, HEAD, theme
from vlroute.serving.ui.texts import EN, ZH, Words
from vlroute.serving.ui.tradeoff import add_tradeoff

if TYPE_CHECKING:
    pass

#: Files of uploads and downloads are deleted when so old; looked at every so many seconds.
KEPT_SECONDS, SWEEP_SECONDS = 24 * 3600, 3600


def build_page(answerer: Answerer, *, title: str = "vlroute") -> gr.Blocks:
    """English at the page's own address, Chinese below it at `zh`. Loads no model.

    To serve it, both ways with the settings of `page_settings`:

        gr.mount_gradio_app(app, build_page(router), "/ui", **page_settings(router.limits))
        build_page(router).launch(server_port=7860, share=False, **page_settings(router.limits))
    """
    page = gr.Blocks(title=title, analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEPT_SECONDS))
    with page:
        _lay_out(answerer, title, EN)
    with page.route(EN.other, "zh", show_in_navbar=False):
        _lay_out(answerer, title, ZH)
    page.queue(max_size=64, default_concurrency_limit=8, api_open=False)
    return page


def page_settings(limits: Limits) -> dict[str, Any]:
    """What `gr.mount_gradio_app` and `Blocks.launch` are to be given: looks, bounds on uploads, nothing public.

    An upload is at most as large as a video may be.
    """
    return {
        "theme": theme(),
        "css": CSS,
        "head": HEAD,
        "max_file_size": max(limits.max_bytes, limits.max_video_bytes),
        "footer_links": [],
        "run_history": False,  # Gradio would keep what was asked in the browser
        "show_error": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "mcp_server": False,
    }


def _lay_out(answerer: Answerer, title: str, words: Words) -> None:
    price = gr.State(None)
    gr.HTML(
        f'<div id="head"><h1>{escape(title)}</h1><p>{words.tagline}</p>'
        f'<a id="language" href="{words.other_link}" lang="{"zh" if words is EN else "en"}">{words.other}</a></div>',
        padding=False,
    )
    with gr.Tabs(elem_id="tabs"):
        with gr.Tab(words.chat, id="chat"):
            add_chat(answerer, words, price)
        with gr.Tab(words.compare, id="compare"):
            add_compare(answerer, words, price)
        with gr.Tab(words.batch, id="batch"):
            add_batch(answerer, words, price)
        with gr.Tab(words.tradeoff, id="tradeoff") as tab:
            add_tradeoff(answerer, words, price, tab)
