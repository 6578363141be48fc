"""The web page in a real browser: headless Chromium against a real server."""

from __future__ import annotations

import csv
import io
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import uvicorn
from fastapi import FastAPI

from tests.conftest import task
from tests.e2e.browser import (
    BATCH,
    CHAT,
    COMPARE,
    LOCALES,
    NARROW,
    TRADEOFF,
    Visit,
    chromium,
    visit,
    visiting,
)
from tests.serving import KEY, Served, served, until
from vlroute import Router, Target
from vlroute.errors import CheckpointError
from vlroute.serving.app import create_app, mount_page
from vlroute.serving.settings import ServerSettings
from vlroute.serving.ui.app import build_page, page_settings
from vlroute.serving.ui.texts import TEXTS
from vlroute.types import AnswerDelta, Decided, Events

SUMS, TEXT = task("math", "hard"), task("ocr", "easy")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """After `browser`: where there is none nothing is loaded."""
    store = tmp_path_factory.mktemp("store") / "answers.db"
    with served(ServerSettings(), mount_page, store=store) as one:
        yield one


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    SUMS.frames[0].save(folder / "sums.png")
    TEXT.frames[0].save(folder / "text.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def context(browser: Any) -> Iterator[Any]:
    """One for many visits: what the browser has cached loads faster."""
    with visiting(browser) as one:
        yield one


@pytest.fixture
def visitor(context: Any, server: Served) -> Iterator[Visit]:
    with visit(context, server.url) as one:
        yield one
        assert one.troubles == []


def test_two_turns_about_a_picture(visitor: Visit, files: Path) -> None:
    visitor.ask("ask", SUMS.prompt, files / "sums.png")
    [badge] = visitor.badges("talk")
    assert badge.split("\n")[0] in ("Instruct", "Thinking")
    assert "gain " in badge
    assert " s\n" in badge
    assert SUMS.answer in visitor.page.inner_text("#talk")
    visitor.ask("ask", "Read the text.")
    _, second = visitor.badges("talk", 2)
    assert "picture cached" in second
    assert "tokens reused" in second


def test_reasoning_is_in_a_fold(visitor: Visit, files: Path) -> None:
    visitor.choose("mode", 2)
    visitor.ask("ask", SUMS.prompt, files / "sums.png")
    [badge] = visitor.badges("talk")
    assert badge.startswith("Thinking")
    fold = visitor.page.get_by_role("button", name="Reasoning")
    content = visitor.page.locator("#talk .thought-group .content")
    content.wait_for(state="hidden")
    fold.click()
    content.wait_for(state="visible")
    assert SUMS.thinking in content.inner_text()


def test_thumbs_reach_the_store(visitor: Visit, server: Served, files: Path) -> None:
    store = server.router.store
    assert store is not None
    _, judged = store.count()
    visitor.ask("ask", TEXT.prompt, files / "text.png")
    visitor.badges("talk")
    visitor.page.click("#talk button[title=Like]")
    visitor.page.wait_for_selector("#ask-problem >> text=Thank you")
    assert store.count()[1] == judged + 1
    visitor.page.click("#talk button[title=Dislike]")
    visitor.page.wait_for_selector("#talk button[title=Disliked]")
    visitor.page.wait_for_selector("#talk button[title=Like]")
    until(lambda: max(store.records(), key=lambda one: one.created).outcome.correct == 0)
    assert store.count()[1] == judged + 1
    visitor.page.click("#talk button[title=Disliked]")  # the same vote again: it stays
    visitor.page.wait_for_selector("#talk button[title=Disliked]")
    visitor.ask("ask", "Read the text.")
    visitor.badges("talk", 2)
    visitor.page.wait_for_selector("#talk button[title=Like] >> nth=1")
    assert visitor.page.locator("#talk button[title=Disliked]").count() == 1
    visitor.page.click("#language")
    visitor.page.wait_for_selector("#talk button[title=已踩]")
    visitor.page.click("#language")  # the browser remembers the language
    visitor.page.wait_for_selector("#talk button[title=Disliked]")


def test_a_new_chat_forgets(visitor: Visit, files: Path) -> None:
    visitor.ask("ask", TEXT.prompt, files / "text.png")
    visitor.badges("talk")
    visitor.page.click("#new")
    visitor.badges("talk", 0)
    visitor.ask("ask", TEXT.prompt)
    [badge] = visitor.badges("talk")
    assert "picture" not in badge


def test_a_bad_picture_is_a_message_and_leaves_no_trace(visitor: Visit, files: Path) -> None:
    visitor.ask("ask", "What is this?", files / "broken.png")
    visitor.page.wait_for_selector("#ask-problem [role=alert] >> text=broken.png: bytes")
    assert visitor.page.input_value("#ask textarea") == "What is this?"
    assert visitor.page.query_selector("#talk .message") is None
    visitor.page.wait_for_selector("#ask .submit-button")


def test_both_modes_side_by_side(visitor: Visit, files: Path) -> None:
    visitor.tab(COMPARE)
    visitor.ask("ask-both", SUMS.prompt, files / "sums.png")
    assert visitor.badges("side-instruct")[0].startswith("Instruct")
    assert visitor.badges("side-thinking")[0].startswith("Thinking")
    visitor.page.wait_for_selector("#chosen p")
    line = visitor.page.inner_text("#chosen")
    assert line.startswith("Auto would have chosen Thinking: gain +")
    shown = [line, *visitor.badges("side-instruct"), *visitor.badges("side-thinking")]
    assert len(re.findall(r"gain [+-]", "".join(shown))) == 1
    assert all(re.search(r"\d\.\d\d s\n\d+ tokens\n", one) for one in shown[1:])
    assert visitor.page.is_visible("#ask-both .submit-button")


def test_a_batch_out_of_a_zip(visitor: Visit, files: Path, tmp_path: Path) -> None:
    rows = [
        (SUMS.prompt, "sums.png"), (TEXT.prompt, "deep/text.png"), (TEXT.prompt, "broken.png"),
        ("=1+1", "../../../etc/hostname"),
    ]  # fmt: skip
    with zipfile.ZipFile(tmp_path / "batch.zip", "w") as archive:
        with archive.open("table.csv", "w") as member, io.TextIOWrapper(member, "utf-8", newline="") as text:
            csv.writer(text).writerows([("prompt", "image"), *rows])
        archive.write(files / "sums.png", "sums.png")
        archive.write(files / "text.png", "deep/text.png")
        archive.write(files / "broken.png", "broken.png")
    visitor.tab(BATCH)
    visitor.page.set_input_files("#batch-files input[type=file]", tmp_path / "batch.zip")
    visitor.page.wait_for_selector("#batch-summary >> text=4 rows, 4 of them with a picture.")
    visitor.page.wait_for_selector("#batch-summary >> text=1 pictures were not uploaded")
    visitor.page.click("#run")
    visitor.page.wait_for_selector("text=Finished: 4 rows, errors: 2")
    with visitor.page.expect_download() as download:
        visitor.page.click("#download")
    data = Path(download.value.path()).read_bytes()
    got = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
    assert [row["image"] for row in got] == [image for _, image in rows]
    assert (got[0]["mode"], got[0]["answer"], got[0]["error"]) == ("thinking", SUMS.answer, "")
    assert (got[1]["answer"], got[1]["error"]) == (TEXT.answer, "")
    assert float(got[0]["gain"]) > float(got[1]["gain"])
    assert float(got[0]["seconds"]) > 0
    assert "bytes" in got[2]["error"]
    assert "was not uploaded" in got[3]["error"]
    assert got[3]["prompt"] == "'=1+1"


def test_a_batch_with_columns_of_other_names(visitor: Visit, files: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"id,what,photo,mode\n7,{TEXT.prompt},text.png,easy\n8,=2+2,,hard\n", encoding="utf-8")
    visitor.tab(BATCH)
    visitor.page.set_input_files("#batch-files input[type=file]", [table, files / "text.png"])
    visitor.page.wait_for_selector("#batch-summary .warn >> text=No column is known to hold the questions")
    visitor.page.click("#run")
    visitor.page.wait_for_selector("#batch-problem [role=alert] >> text=Columns: id, what, photo, mode")
    visitor.choose("prompt-column", 1)
    visitor.page.wait_for_selector("#batch-summary >> text=2 rows, 1 of them with a picture.")
    visitor.page.wait_for_selector("#batch-summary >> text=kept in the results: id, mode")
    visitor.page.click("#run")
    visitor.page.wait_for_selector("text=Finished: 2 rows, errors: 0")
    with visitor.page.expect_download() as download:
        visitor.page.click("#download")
    got = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_bytes().decode("utf-8-sig"))))
    assert list(got[0]) == ["id", "what", "photo", "mode", "vlroute_mode", "answer", "gain", "seconds", "error"]
    assert [(row["id"], row["mode"]) for row in got] == [("7", "easy"), ("8", "hard")]
    assert got[0]["answer"] == TEXT.answer


def test_presets_move_the_point(visitor: Visit, server: Served) -> None:
    visitor.tab(TRADEOFF)
    visitor.marked()
    curve = server.router.selector.curve()
    for name in ("Fast", "Accurate"):
        visitor.page.get_by_role("radio", name=name).check()
        visitor.page.wait_for_timeout(500)
        wanted = Target(preset=name.lower()).resolve(curve)
        assert visitor.marked()["y"] == pytest.approx(wanted.accuracy, abs=0.02)
    assert f"{curve.single_accuracies.max():.1%}" in visitor.page.inner_text(".figures .single")
    names = visitor.page.evaluate(
        "() => document.querySelector('#curve .js-plotly-plot').data.flatMap(one => [one.name, ...(one.text || [])])"
    )
    assert {"Fast", "Balanced", "Accurate", "Knee", "Better single mode"} <= set(names)


def test_the_slider_moves_the_point_and_prices_the_chat(visitor: Visit, files: Path) -> None:
    visitor.tab(TRADEOFF)
    before, said = visitor.marked(), visitor.page.inner_text("#operating-point")
    assert "calibration records" in said
    visitor.page.focus("#price input[type=range]")
    visitor.page.keyboard.press("End")
    visitor.page.wait_for_selector("text=Price 10:")
    visitor.page.wait_for_timeout(500)
    after = visitor.marked()
    assert after["x"] < before["x"]
    assert after["y"] < before["y"]
    visitor.page.check("#use-price input")
    visitor.page.wait_for_timeout(500)
    visitor.tab(CHAT)
    visitor.ask("ask", SUMS.prompt, files / "sums.png")
    assert visitor.badges("talk")[0].startswith("Instruct")


def test_chinese_by_the_browser_and_by_the_switch(browser: Any, server: Served, files: Path) -> None:
    with visiting(browser, language="zh") as context, visit(context, server.url, "zh") as one:
        assert one.page.inner_text("[role=tablist]").split() == ["对话", "对比", "批量", "权衡"]
        one.ask("ask", TEXT.prompt, files / "text.png")
        assert "增益" in one.badges("talk")[0]
        one.ask("ask", "这是什么？", files / "broken.png")
        one.page.wait_for_selector("#ask-problem >> text=broken.png：图片无法解码")
        one.page.click("#language")
        one.page.wait_for_selector("[role=tab] >> text=Compare")
        one.page.goto(server.url)  # the choice stays
        one.page.wait_for_selector("[role=tab] >> text=Compare")
        assert one.troubles == []


@pytest.mark.parametrize("language", LOCALES)
def test_nothing_is_wider_than_a_phone(browser: Any, server: Served, files: Path, language: str) -> None:
    with visiting(browser, NARROW, language) as context, visit(context, server.url, language) as one:
        assert one.page.get_by_role("tab").count() == 4  # none is left to a menu
        one.ask("ask", SUMS.prompt, files / "sums.png")
        one.badges("talk")
        for tab in (CHAT, COMPARE, BATCH, TRADEOFF):
            one.tab(tab)
            if tab == TRADEOFF:
                one.marked()
            one.page.wait_for_timeout(300)
            assert one.overflow() <= 0, tab
            assert one.accessibility() == [], tab
        assert one.troubles == []


#: Words of other languages on the Chinese page: names, file formats, and columns of tables.
FOREIGN = re.compile(
    r"vlroute|Instruct|Thinking|English|CSV|JSONL|zip|prompt|Top-p|questions?|label|KB|AVIF|BMP|DIB|GIF|JPEG(2000)?|PNG"
    r"|PPM|TGA|TIFF|WEBP|png|csv|sums|broken|--store"
)


def test_everything_is_chinese_and_accessible_in_dark_mode(browser: Any, server: Served, files: Path) -> None:
    with visiting(browser, language="zh", color_scheme="dark") as context, visit(context, server.url, "zh") as one:

        def check(place: str) -> None:
            one.page.wait_for_timeout(400)
            words = {text for text in one.words() if re.search(r"[A-Za-z]{2}", FOREIGN.sub("", text))}
            assert words == set(), place
            assert one.accessibility() == [], place

        one.page.wait_for_selector("#talk button.example")
        check("empty conversation")
        one.ask("ask", SUMS.prompt, files / "sums.png")
        one.badges("talk")
        one.open_settings()
        one.page.click("#talk button[title=赞]")
        one.page.wait_for_selector("#ask-problem >> text=谢谢")
        one.ask("ask", "这是什么？", files / "broken.png")
        one.page.wait_for_selector("#ask-problem [role=alert]")
        check("conversation")
        one.tab(COMPARE)
        one.ask("ask-both", SUMS.prompt, files / "sums.png")
        one.badges("side-thinking")
        one.page.wait_for_selector("#chosen p")
        check("comparison")
        one.tab(BATCH)
        check("empty batch")
        (files / "questions.csv").write_text("label,question\n1,读出文字。\n", encoding="utf-8")
        one.page.set_input_files("#batch-files input[type=file]", [files / "questions.csv", files / "broken.png"])
        one.page.wait_for_selector(".summary .warn")
        one.page.click("#run")
        one.page.wait_for_selector("#batch-problem >> text=没有图片")
        one.choose("image-column", 0)
        one.page.click("#run")
        one.page.wait_for_selector("#batch-status >> text=完成")
        check("batch")
        one.tab(TRADEOFF)
        one.marked()
        check("trade-off")
        assert one.troubles == []


def test_an_example_of_the_empty_conversation(visitor: Visit) -> None:
    assert "small drawings only" in visitor.page.inner_text("#talk")
    visitor.page.get_by_role("button", name="What is written here?").click()
    visitor.badges("talk")
    assert "T8KM" in visitor.page.inner_text("#talk .bot-row")
    visitor.ask("ask", "Read the text.")
    assert "picture cached" in visitor.badges("talk", 2)[1]


def test_settings_are_obeyed_and_regenerate_repeats_a_seed(visitor: Visit, files: Path) -> None:
    def thought() -> str:
        visitor.page.wait_for_selector("#talk .badge")
        content = visitor.page.locator("#talk .thought-group .content")
        if not content.is_visible():
            visitor.page.get_by_role("button", name="Reasoning").click()
            content.wait_for(state="visible")
        return content.inner_text()

    def again(seed: str) -> str:
        before = visitor.page.get_attribute("#talk .badge", "data-answer")
        visitor.page.fill("#seed input, #seed textarea", seed)
        visitor.page.wait_for_timeout(300)  # until Gradio knows the new value
        visitor.page.click("#talk button[title=Retry]")
        visitor.page.wait_for_function(
            "before => document.querySelectorAll('#talk .badge').length == 1"
            " && document.querySelector('#talk .badge').dataset.answer != before", arg=before,
        )  # fmt: skip
        return thought()

    visitor.choose("mode", 2)
    visitor.open_settings()
    for field, text in {"temperature": "2", "seed": "7", "max-tokens": "60"}.items():
        visitor.page.fill(f"#{field} input, #{field} textarea", text)
    visitor.ask("ask", SUMS.prompt, files / "sums.png")
    visitor.badges("talk")
    first = thought()
    assert int(re.search(r"(\d+) tokens", visitor.badges("talk")[0])[1]) <= 60  # type: ignore[index]
    assert again("8") != first
    assert again("7") == first
    visitor.page.fill("#temperature input, #temperature textarea", "3")
    visitor.ask("ask", "Read the text.")
    visitor.page.wait_for_selector("#settings-problem >> text=Temperature: enter a number from 0 to 2")
    assert visitor.page.input_value("#ask textarea") == "Read the text."
    assert len(visitor.badges("talk")) == 1


def test_a_finished_answer_can_be_copied(browser: Any, server: Served, files: Path) -> None:
    with (
        visiting(browser, permissions=["clipboard-read", "clipboard-write"]) as context,
        visit(context, server.url) as one,
    ):
        one.ask("ask", TEXT.prompt, files / "text.png")
        one.badges("talk")
        one.page.get_by_role("button", name="Copy the answer").click()
        one.page.get_by_role("button", name="Copied").wait_for()
        assert one.page.evaluate("navigator.clipboard.readText()") == TEXT.answer


def test_another_language_keeps_everything(visitor: Visit, files: Path, tmp_path: Path) -> None:
    page = visitor.page
    (tmp_path / "table.csv").write_text(f"prompt\n{TEXT.prompt}\n")
    visitor.choose("mode", 1)
    visitor.ask("ask", TEXT.prompt, files / "text.png")
    visitor.badges("talk")
    page.set_input_files("#ask input[type=file]", [str(files / "sums.png")])
    page.wait_for_selector("#ask .thumbnail-item")
    page.fill("#ask textarea", "And now?")
    visitor.open_settings()
    page.fill("#system textarea", "Be brief.")
    page.fill("#seed input, #seed textarea", "5")
    visitor.tab(BATCH)
    page.set_input_files("#batch-files input[type=file]", tmp_path / "table.csv")
    page.wait_for_selector("#batch-summary >> text=1 rows")
    page.click("#run")
    page.wait_for_selector("text=Finished: 1 rows")
    page.click("#language")
    page.wait_for_selector("[role=tab] >> text=批量")
    page.wait_for_selector("text=完成：共 1 行")
    assert page.url.endswith("/zh")
    assert page.evaluate("document.documentElement.lang") == "zh"
    visitor.tab(CHAT)
    [badge] = visitor.badges("talk")
    assert badge.startswith("直答")
    assert page.input_value("#mode input") == "模式：直答"
    assert page.input_value("#ask textarea") == "And now?"
    assert page.locator("#ask .thumbnail-item").count() == 1
    assert page.input_value("#system textarea") == "Be brief."
    assert page.input_value("#seed input, #seed textarea") == "5"
    page.click("#ask .submit-button")
    _, second = visitor.badges("talk", 2)
    assert "您指定了此模式" in second
    page.reload()
    page.wait_for_selector("[role=tab] >> text=批量")
    page.click("#language")
    page.wait_for_selector("[role=tab] >> text=Batch")
    assert page.url.rstrip("/") == visitor.page.url.removesuffix("/zh").rstrip("/")


def test_the_page_keeps_its_language_in_a_browser_of_another_one(visitor: Visit) -> None:
    visitor.page.evaluate("document.documentElement.lang = 'fr-FR'")  # as Gradio does
    visitor.page.wait_for_function("document.documentElement.lang === 'en'")
    visitor.tab(COMPARE)  # new elements get their labels
    visitor.page.wait_for_selector("#ask-both textarea")
    assert visitor.troubles == []


def test_the_keyboard_reaches_everything_in_order(visitor: Visit) -> None:
    visitor.page.wait_for_selector("#talk button.example")
    reached = []
    for _ in range(15):
        visitor.page.keyboard.press("Tab")
        found = visitor.page.evaluate("document.activeElement.closest('[id]')?.id")
        if found is None:
            break
        reached.append(found)
    assert list(dict.fromkeys(reached)) == ["language", "tabs", "mode", "new", "talk", "ask", "settings"]
    visitor.page.focus("#talk button.example")
    visitor.page.keyboard.press("Enter")
    visitor.badges("talk")
    assert visitor.page.get_attribute("#talk [role=log]", "aria-live") == "polite"
    assert visitor.page.get_attribute("#talk [role=log]", "aria-busy") == "false"


@pytest.mark.parametrize("fails", [False, True])
def test_the_page_says_that_the_models_load(context: Any, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    loaded, load = threading.Event(), Router.load

    def slow(self: Router) -> Router:
        assert loaded.wait(60)
        if fails:
            raise CheckpointError("/secret/folder is damaged")
        return load(self)

    monkeypatch.setattr(Router, "load", slow)
    app = mount_page(create_app(Router.from_pretrained(), ServerSettings()))
    try:
        with _running(app) as url, visit(context, url) as one:
            one.page.wait_for_selector("#banner >> text=The models are being loaded")
            one.ask("ask", "Hello")
            one.page.wait_for_selector("#ask-problem >> text=The models are being loaded")
            assert one.page.input_value("#ask textarea") == "Hello"
            loaded.set()
            if fails:
                one.page.wait_for_selector("#banner [role=alert] >> text=could not be loaded")
                one.page.press("#ask textarea", "Enter")
                one.page.wait_for_selector("#ask-problem >> text=could not be loaded")
                assert "secret" not in one.page.inner_text("body")
                assert "CheckpointError" not in one.page.inner_text("body")
            else:
                one.page.wait_for_selector("#banner .banner", state="hidden")
                one.page.press("#ask textarea", "Enter")
                one.badges("talk")
    finally:
        loaded.set()


class Recording:
    """Answers with a router, and keeps the conversations and options."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.requests: list[tuple[Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.router, name)

    def stream_turn(self, prepare: Any, options: Any) -> Events:
        self.requests.append((conversation := prepare(), options))
        return self.router.stream_turn(lambda: conversation, options)


def test_the_system_prompt_comes_first(context: Any, server: Served) -> None:
    answerer = Recording(server.router)
    with _page_alone(answerer) as url, visit(context, url) as one:
        assert one.page.locator("#talk button.example").count() == 0  # another model might not read them
        one.open_settings()
        one.page.fill("#system textarea", "Be brief.")
        one.page.fill("#top-p input, #top-p textarea", "0.5")
        for turn in (1, 2):
            one.ask("ask", "Hello")
            one.badges("talk", turn)
    conversations = [[(message.role, message.text) for message in asked.messages] for asked, _ in answerer.requests]
    assert [[role for role, _ in one] for one in conversations] == [
        ["system", "user"], ["system", "user", "assistant", "user"],
    ]  # fmt: skip
    assert conversations[0][0] == ("system", "Be brief.")
    assert answerer.requests[0][1].generation["top_p"] == 0.5


class Endless:
    """Answers for ever, until the stream is closed; keeps no store."""

    def __init__(self) -> None:
        router = Router.from_pretrained()
        self.limits, self.selector, self.store, self.decide = router.limits, router.selector, None, router.decide
        self.sampling = router.sampling
        self.closed = threading.Event()

    def stream_turn(self, prepare: Any, wish: Any) -> Events:
        try:
            yield Decided(self.selector.begin(prepare(), None, "instruct", None).decision)
            while True:
                time.sleep(0.05)
                yield AnswerDelta("on ")
        finally:
            self.closed.set()

    def feedback(self, answer_id: str, *, correct: bool | float, comment: str | None = None) -> None:
        raise AssertionError("nothing is stored")


@contextmanager
def _page_alone(answerer: Any) -> Iterator[str]:
    app = FastAPI()
    gr.mount_gradio_app(app, build_page(answerer), "/page", **page_settings(answerer.limits))
    with _running(app) as url:
        yield f"{url}/page/"


@contextmanager
def _running(app: Any) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def test_stop_ends_the_answer_and_leaves_it_out(context: Any) -> None:
    answerer = Endless()
    with _page_alone(answerer) as url, visit(context, url) as one:
        assert "Voting is off" in one.page.inner_text("body")
        one.ask("ask", "Go on.")
        one.page.wait_for_selector("text=on on on")
        assert one.page.is_disabled("#new")
        one.page.click("#ask .stop-button")
        assert "not part of the conversation" in one.badges("talk")[0]
        assert answerer.closed.wait(5)
        one.page.wait_for_selector("#ask .submit-button")
        assert one.page.query_selector("#talk button[title=Like]") is None


def test_a_visitor_who_leaves_stops_the_answer(context: Any) -> None:
    answerer = Endless()
    with _page_alone(answerer) as url:
        with visit(context, url) as one:
            one.ask("ask", "Go on.")
            one.page.wait_for_selector("text=on on on")
        assert answerer.closed.wait(10)


def test_who_logs_in_finds_nothing_of_others(browser: Any, files: Path) -> None:
    with served(ServerSettings(api_keys=(KEY,)), mount_page) as server:
        with visiting(browser, NARROW, "zh") as context:
            page = context.new_page()
            page.goto(server.url)
            for login in (TEXTS["en"].login, TEXTS["zh"].login):
                page.wait_for_selector(f"text={login}")
            assert page.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0
        for _ in range(2):
            with visiting(browser) as context:
                assert not context.request.post(f"{server.url}/login", form={"username": "ann", "password": "no"}).ok
                assert context.request.post(f"{server.url}/login", form={"username": "ann", "password": KEY}).ok
                with visit(context, server.url) as visitor:
                    visitor.ask("ask", TEXT.prompt, files / "text.png")
                    assert "picture encoded" in visitor.badges("talk")[0]
                    visitor.ask("ask", TEXT.prompt)
                    assert "picture cached" in visitor.badges("talk", 2)[1]
        assert server.router.cache.stats().encodes == 2
