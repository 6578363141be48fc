"""The web page: its tabs and its settings."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from vlroute.inputs.limits import Limits
from vlroute.serving.settings import ServerSettings
from vlroute.serving.ui.batch import add_batch
from vlroute.serving.ui.chat import add_chat
from vlroute.serving.ui.compare import add_compare
from vlroute.serving.ui.components import INSTANT
from vlroute.serving.ui.examples import Example, draw_examples
from vlroute.serving.ui.learning import add_learning, is_learned
from vlroute.serving.ui.page import Answerer, Page
from vlroute.serving.ui.session import Session
from vlroute.serving.ui.texts import COLORS, FONT, FONTS, MONO_FONTS, TEXTS, Texts
from vlroute.serving.ui.tradeoff import add_tradeoff
from vlroute.temporary_folder import TemporaryFolder

FOLDER = Path(__file__).parent
#: Uploaded and downloadable files are deleted after `KEPT_SECONDS`; checked every `SWEEP_SECONDS`.
KEPT_SECONDS, SWEEP_SECONDS = 24 * 3600, 3600
MAX_EVENTS = 64  # that run or wait
MAX_SESSIONS = 500  # whose values are kept, each some hundred KiB
QUEUE_SECONDS = 0.05  # between two looks at Gradio's queue: its 1 ms costs a server without requests 3 % of a core
POLL_SECONDS = 1.0  # until the page asks again whether the models are loaded


def build_page(
    answerer: Answerer,
    *,
    title: str = "vlroute",
    settings: ServerSettings | None = None,
    state: Callable[[], str] = lambda: "ready",
    pocket: bool = False,
) -> gr.Blocks:
    """Build the page: English at its address, Chinese at the path `zh` below it. No model is loaded.

    Pass `page_settings` when you serve it:

        gr.mount_gradio_app(app, build_page(router), "/ui", **page_settings(router.limits))
        build_page(router).launch(server_port=7860, share=False, **page_settings(router.limits))

    Args:
        answerer: Who answers.
        title: The heading.
        settings: Limits of tokens and of text; by default those of `ServerSettings`.
        state: Returns whether the models are "loading", "ready", "failed" or "shutting down".
        pocket: Whether an embedded pocket model answers. The empty conversation then shows examples that it can read.

    Returns:
        The page.
    """
    page = gr.Blocks(title=title, analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEPT_SECONDS))
    examples: dict[str, tuple[Example, ...]] = {}
    if pocket:
        folder = TemporaryFolder("vlroute-examples-")
        weakref.finalize(page, folder.remove)
        examples = draw_examples(folder.path)
        gr.set_static_paths([folder.path])  # Gradio would delete copies after KEPT_SECONDS
    settings = settings or ServerSettings()
    with page:
        _lay_out(Page(answerer, settings, examples, "en"), title, state)
    with page.route(TEXTS["en"].other, "zh", show_in_navbar=False):
        _lay_out(Page(answerer, settings, examples, "zh"), title, state)
    page.state_session_capacity = MAX_SESSIONS
    page.max_threads = 2 * MAX_EVENTS  # events wait in a thread; others, such as a click on Stop, find one, too
    page.queue(max_size=MAX_EVENTS, default_concurrency_limit=None, api_open=False)
    page._queue.sleep_when_free = QUEUE_SECONDS  # noqa: SLF001 (there is no public name)
    # only then does Gradio refuse paths of any files in the place of uploads; `launch` sets it, mounting does not
    page.has_launched = True
    return page


def page_settings(limits: Limits) -> dict[str, Any]:
    """Arguments for `gr.mount_gradio_app` and `Blocks.launch`: theme, limit of uploads, no public endpoints."""
    return {
        "theme": _theme(),
        "css": _css(),
        "head": _head_html(),
        "max_file_size": max(limits.max_bytes, limits.max_video_bytes),
        "footer_links": [],
        "run_history": False,  # Gradio would store the questions in the browser
        "show_error": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "mcp_server": False,
    }


def login_settings(is_valid: Callable[[str], bool]) -> dict[str, Any]:
    """Arguments for `gr.mount_gradio_app`: a log-in with any name, and what it expects in both languages.

    Args:
        is_valid: Whether a password is right.

    Returns:
        The arguments.
    """
    lines = "".join(
        f'<span lang="{language}" style="display: block">{escape(texts.login)}</span>'
        for language, texts in TEXTS.items()
    )
    style = "<style>.auth-card, .panel { min-width: 0 !important; max-width: calc(100vw - 32px); }</style>"
    return {"auth": lambda _, key: is_valid(key), "auth_message": lines + style}


def _lay_out(page: Page, title: str, state: Callable[[], str]) -> None:
    with gr.Row(elem_id="head"):
        page.add(gr.HTML, lambda texts: {"value": _head(title, texts)}, padding=False)
        button = page.add(
            gr.Button, lambda texts: {"value": texts.other}, elem_id="language", size="sm", min_width=80, scale=0
        )
    banner = gr.HTML("", elem_id="banner", padding=False)
    with gr.Tabs(elem_id="tabs"):
        with page.add(gr.Tab, lambda texts: {"label": texts.chat}, id="chat"):
            add_chat(page)
        with page.add(gr.Tab, lambda texts: {"label": texts.compare}, id="compare"):
            add_compare(page)
        with page.add(gr.Tab, lambda texts: {"label": texts.batch}, id="batch"):
            add_batch(page)
        with page.add(gr.Tab, lambda texts: {"label": texts.tradeoff}, id="tradeoff") as tab:
            add_tradeoff(page, tab)
        if (store := page.answerer.store) is not None and (page.settings.learned or is_learned(store)):
            with page.add(gr.Tab, lambda texts: {"label": texts.learning}, id="learning") as tab:
                add_learning(page, tab, store)
    timer = gr.Timer(POLL_SECONDS)

    def poll(session: Session) -> dict[Any, Any]:
        now = state()
        return {banner: _banner(now, session.texts), timer: gr.Timer(active=now != "ready")}

    timer.tick(poll, [page.session], [banner, timer], **INSTANT)
    page.redraw([], [banner], lambda session: {banner: {"value": _banner(state(), session.texts)}})
    page.change_language_on(button)


def _head(title: str, texts: Texts) -> str:
    """Heading and tagline. page.js reads the language from here."""
    return f'<h1>{escape(title)}</h1><p data-language="{texts.language}">{escape(texts.tagline)}</p>'


def _banner(state: str, texts: Texts) -> str:
    """What the visitor should know about the server; "" if it is ready."""
    message = texts.states.get(state)
    role = "status" if state == "loading" else "alert"
    return f'<p class="banner {state.replace(" ", "-")}" role="{role}">{escape(message)}</p>' if message else ""


def _theme() -> gr.themes.Base:
    """Muted colors and system fonts; nothing is fetched from other hosts."""
    return gr.themes.Default(
        primary_hue="blue",
        secondary_hue="blue",
        neutral_hue="slate",
        font=[gr.themes.Font(name) for name in FONTS],
        font_mono=[gr.themes.Font(name) for name in MONO_FONTS],
    ).set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        color_accent="*primary_600",
        link_text_color="*primary_600",
        link_text_color_dark="*primary_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


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


def _head_html() -> str:
    """Elements of the head: the policy for contents, the icon, and page.js with the translations of Gradio's labels."""
    labels = {language: texts.gradio for language, texts in TEXTS.items()}
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    head = (FOLDER / "head.html").read_text(encoding="utf-8")
    return f"{head}<script>const VLROUTE_LABELS = {json.dumps(labels, ensure_ascii=False)};\n{script}</script>"
