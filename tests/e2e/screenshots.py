"""Screenshots of every tab in both languages, both widths, light and dark: python -m tests.e2e.screenshots FOLDER."""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

from tests.conftest import task
from tests.e2e.browser import BATCH, COMPARE, LOCALES, NARROW, TRADEOFF, WIDE, Visit, chromium, visit, visiting
from tests.serving import served
from vlroute.serving.app import mount_page
from vlroute.serving.settings import ServerSettings


def shoot(folder: Path, work: Path) -> None:
    """PNG files named by what they show, language and width; with "-full" what needs scrolling."""
    sums, text = task("math", "hard"), task("ocr", "easy")
    pictures = {"sums.png": sums, "text.png": text}
    for name, drawn in pictures.items():
        drawn.frames[0].save(work / name)
    with zipfile.ZipFile(work / "batch.zip", "w") as archive:
        rows = [f"{drawn.prompt},{name}\n" for name, drawn in pictures.items()]
        archive.writestr("questions.csv", "".join(["prompt,image\n", *rows, f"{text.prompt},broken.png\n"]))
        (work / "broken.png").write_bytes(b"no picture")
        archive.write(work / "broken.png", "broken.png")
        for name in pictures:
            archive.write(work / name, name)
    with served(ServerSettings(), mount_page, store=work / "answers.db") as server, chromium() as browser:
        for language in LOCALES:
            for size in (WIDE, NARROW):
                for scheme in ("light", "dark"):
                    with (
                        visiting(browser, size, language, color_scheme=scheme) as context,
                        visit(context, server.url, language) as visitor,
                    ):
                        _tour(visitor, folder, f"{language}-{size[0]}-{scheme}", work)


def _tour(visitor: Visit, folder: Path, suffix: str, work: Path) -> None:
    page = visitor.page

    def shot(name: str) -> None:
        page.wait_for_timeout(600)  # for what fades in
        page.screenshot(path=folder / f"{name}-{suffix}.png")
        if page.evaluate("document.scrollingElement.scrollHeight > innerHeight"):
            page.screenshot(path=folder / f"{name}-{suffix}-full.png", full_page=True)

    shot("chat-empty")
    visitor.ask("ask", task("math", "hard").prompt, work / "sums.png")
    visitor.badges("talk")
    visitor.open_settings()
    visitor.ask("ask", "?", work / "broken.png")
    page.wait_for_selector("#ask-problem [role=alert]")
    shot("chat")
    visitor.tab(COMPARE)
    visitor.ask("ask-both", task("ocr", "easy").prompt, work / "text.png")
    visitor.badges("side-thinking")
    page.wait_for_selector("#chosen")
    shot("compare")
    visitor.tab(BATCH)
    page.wait_for_selector("#batch-files")
    shot("batch-empty")
    page.set_input_files("#batch-files input[type=file]", work / "batch.zip")
    page.wait_for_timeout(800)
    page.click("#run")
    page.wait_for_selector("#download")
    shot("batch")
    visitor.tab(TRADEOFF)
    visitor.marked()
    shot("tradeoff")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        shoot(target, Path(temporary))
