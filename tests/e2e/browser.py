"""Headless Chromium on the web page, with what the tests and `shots` do there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import lacking

WIDE, NARROW = (1280, 800), (390, 844)
CHAT, COMPARE, BATCH, TRADEOFF = range(4)
LOCALES = {"en": "en-US", "zh": "zh-CN"}


_WORDS = """() => {
  const found = [];
  const own = ".message .md, .message p, .user-row img, #results tbody, #results td, .js-plotly-plot, script, style";
  for (const one of document.querySelectorAll("body *")) {
    if (one.closest(own) || !one.checkVisibility({visibilityProperty: true})) continue;
    for (const name of ["aria-label", "title", "placeholder", "alt"]) found.push(one.getAttribute(name) || "");
    for (const node of one.childNodes) if (node.nodeType === Node.TEXT_NODE) found.push(node.data);
    if (one.matches("input[role=listbox], input[readonly]")) found.push(one.value);
  }
  return found;
}"""


@contextmanager
def chromium(*arguments: str) -> Iterator[Any]:
    """Debian's Chromium; the test is skipped where it or playwright is not there. `arguments`: of its command line."""
    path = shutil.which("chromium")
    if path is None:
        lacking("needs Debian's chromium: apt-get install chromium fonts-noto-cjk")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        lacking("needs playwright: pip install playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *arguments])
        try:
            yield browser
        finally:
            browser.close()


@dataclass(slots=True)
class Visit:
    """One visitor's page. `troubles`: console errors, and requests to anywhere but the server."""

    page: Any
    troubles: list[str] = field(default_factory=list)

    def tab(self, place: int) -> None:
        self.page.get_by_role("tab").nth(place).click()

    def ask(self, box: str, prompt: str, *files: Path) -> None:
        """Write into the box with this id, and send, once an answer before has ended and the box is open again."""
        self.page.wait_for_selector(f"#{box} .submit-button")
        if files:
            self.page.set_input_files(f"#{box} input[type=file]", [str(file) for file in files])
            self.page.wait_for_selector(f"#{box} .thumbnail-item, #{box} img")
        self.page.fill(f"#{box} textarea", prompt)
        self.page.press(f"#{box} textarea", "Enter")

    def badges(self, view: str, count: int = 1) -> list[str]:
        """The lines below the answers in this view, once there are so many."""
        self.page.wait_for_function(
            "([view, count]) => document.querySelectorAll(`#${view} .badge`).length == count",
            arg=[view, count],
        )
        return [item.inner_text() for item in self.page.query_selector_all(f"#{view} .badge")]

    def open_settings(self) -> None:
        """Open the settings of the conversation.

        Gradio shows their fields, and sets their values once more in the next frame; only a program is that fast.
        """
        self.page.click("#settings button")
        self.page.wait_for_selector("#system textarea")
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        self.page.wait_for_timeout(300)

    def choose(self, dropdown: str, place: int) -> None:
        self.page.click(f"#{dropdown} input")
        self.page.get_by_role("option").nth(place).click()

    def marked(self) -> dict[str, Any]:
        """The marked point of the plot: `x` seconds, `y` accuracy."""
        self.page.wait_for_selector("#curve .js-plotly-plot .main-svg")
        found: dict[str, Any] = self.page.evaluate(
            "() => { const [one] = document.querySelector('#curve .js-plotly-plot').data.slice(-1);"
            " return {x: one.x[0], y: one.y[0]}; }"
        )
        return found

    def words(self) -> set[str]:
        """All visible texts, and the names, titles, placeholders and alternative texts of visible elements.

        Contents of conversations and of the table of results are left out.
        """
        found: list[str] = self.page.evaluate(_WORDS)
        return {text.strip() for text in found if text.strip()}

    def accessibility(self) -> list[str]:
        """Critical and serious findings of axe-core, each with its first element."""
        from axe_playwright_python.sync_playwright import Axe

        violations = Axe().run(self.page).response["violations"]
        return [
            f"{one['id']}: {node['html'][:200]} {node['any'][:1] and node['any'][0]['message']}"
            for one in violations
            if one["impact"] in ("critical", "serious")
            for node in one["nodes"][:3]
        ]

    def overflow(self) -> int:
        """Pixels by which the page is wider than the screen."""
        return int(self.page.evaluate("document.scrollingElement.scrollWidth - innerWidth"))


@contextmanager
def visiting(browser: Any, size: tuple[int, int] = WIDE, language: str = "en", **options: Any) -> Iterator[Any]:
    """A browser of its own memory that speaks `language`. `options`: of playwright's `new_context`."""
    width, height = size
    context = browser.new_context(locale=LOCALES[language], viewport={"width": width, "height": height}, **options)
    context.set_default_timeout(30_000)
    try:
        yield context
    finally:
        context.close()


@contextmanager
def visit(context: Any, url: str, language: str = "en") -> Iterator[Visit]:
    """The page in this language, once it is ready."""
    visitor = Visit(context.new_page())
    visitor.page.on("console", lambda said: _note(visitor, said.text if said.type == "error" else ""))
    visitor.page.on("pageerror", lambda error: _note(visitor, error.stack or str(error)))
    visitor.page.on("request", lambda asked: _note(visitor, "" if _own(asked.url, url) else f"asked {asked.url}"))
    try:
        visitor.page.goto(url)
        visitor.page.wait_for_url(re.compile(r"/zh\b" if language == "zh" else "."))
        visitor.page.wait_for_selector("#ask textarea")
        yield visitor
    finally:
        visitor.page.close()


def _note(visitor: Visit, trouble: str) -> None:
    if trouble:
        visitor.troubles.append(trouble)


def _own(asked: str, url: str) -> bool:
    return asked.startswith((url, "data:", "blob:"))
