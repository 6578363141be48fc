"""The web page in a real browser: headless Chromium against a real server."""

from __future__ import annotations

import csv
import io
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
from tests.serving import KEY, Served, served
from vlroute import Router
from vlroute.serving.app import mount_page
from vlroute.serving.settings import ServerSettings
from vlroute.serving.ui.app import build_page, page_settings
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
    visitor.page.wait_for_selector("text=Thank you")
    assert store.count()[1] == judged + 1
    visitor.page.click("#talk button[title=Dislike]")
    visitor.page.wait_for_timeout(500)
    assert store.count()[1] == judged + 1
    assert max(store.records(), key=lambda one: one.created).outcome.correct == 0


def test_a_new_chat_forgets(visitor: Visit, files: Path) -> None:
    visitor.ask("ask", TEXT.prompt, files / "text.png")
    visitor.badges("talk")
    visitor.page.click("#new")
    visitor.badges("talk", 0)
    visitor.ask("ask", TEXT.prompt)
    [badge] = visitor.badges("talk")
    assert "picture" not in badge


def test_a_bad_picture_is_a_notice_and_leaves_no_trace(visitor: Visit, files: Path) -> None:
    visitor.ask("ask", "What is this?", files / "broken.png")
    visitor.page.wait_for_selector("text=broken.png: bytes")
    assert visitor.page.input_value("#ask textarea") == "What is this?"
    assert visitor.page.query_selector("#talk .message") is None
    visitor.page.wait_for_selector("#ask .submit-button")


def test_both_modes_side_by_side(visitor: Visit, files: Path) -> None:
    visitor.tab(COMPARE)
    visitor.ask("ask-both", SUMS.prompt, files / "sums.png")
    assert visitor.badges("side-instruct")[0].startswith("Instruct")
    assert visitor.badges("side-thinking")[0].startswith("Thinking")
    visitor.page.wait_for_selector("text=Auto would have chosen Thinking")
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
    visitor.page.wait_for_selector("#batch-files >> text=batch")
    visitor.page.wait_for_timeout(500)
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
        one.page.wait_for_selector("text=图片或视频无法读取")
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
        assert one.troubles == []


class Endless:
    """Answers for ever, until the stream is closed; keeps no store."""

    def __init__(self) -> None:
        router = Router.from_pretrained()
        self.limits, self.selector, self.store, self.decide = router.limits, router.selector, None, router.decide
        self.sampling = router.sampling
        self.closed = threading.Event()

    def stream_turn(self, conversation: Any, wish: Any) -> Events:
        try:
            yield Decided(self.selector.begin(conversation, None, "instruct", None).decision)
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
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/page/"
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
