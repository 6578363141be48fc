"""Comparison with other servers: converted checkpoints, replies, ratios, and the page."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from training.bench.peer_servers import LLAMA, OLD, OURS, VERSIONS, Environment, PeerServer
from training.bench.peers import WORKLOADS, count_tokens, fresh_questions, ratios, read_reply, spread
from training.bench.servers import draw_pictures, free_port, started
from training.page import POCKET, render

from vlroute.types import MODES

#: How llama.cpp splits text for its tokenizer of Llama 3.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
MEASURED = {
    "latency": {OURS: [0.010, 0.020, 0.010], LLAMA: [0.005, 0.030, 0.020], OLD: [0.020, 0.020, 0.020]},
    "fresh_pictures": {OURS: [100.0, 120.0, 110.0], LLAMA: [200.0, 100.0, 220.0]},
}
DIFFERENT = {"mode": "thinking", "prompt": "Add.", "ours": ["1", "2", "stop"], "theirs": ["1", "3", "stop"]}


def figures() -> dict[str, Any]:
    names = {name: one for name, one in WORKLOADS.items() if name in MEASURED}
    return {
        "where": "here.", "rounds": 3, "requests": 96, "few": 24, "sequences": 16, "busy": [1.0, 0.0, 7.0],
        "peers": {name: VERSIONS[name] for name in (LLAMA, OLD)},
        "equal": {
            LLAMA: {"equal": 119, "asked": 120, "different": [DIFFERENT]},
            OLD: {"equal": 120, "asked": 120, "different": []},
        },
        "titles": {name: [one.title, one.unit] for name, one in names.items()}, "measured": MEASURED,
        "values": {name: {peer: spread(all_) for peer, all_ in one.items()} for name, one in MEASURED.items()},
        "ratios": ratios(MEASURED), "alone": [0.01, 0.01, 0.02], "beside": [0.03, 0.02, 0.04],
        "slower": [3.0, 2.0, 4.0], "ask": 0.012, "overhead": 0.003,
    }  # fmt: skip


def test_ratios_say_how_many_times_as_fast_we_are_in_each_round() -> None:
    assert ratios(MEASURED) == {
        "latency": {LLAMA: pytest.approx([1.5, 0.5, 2.0]), OLD: pytest.approx([2.0, 1.0, 2.0])},
        "fresh_pictures": {LLAMA: pytest.approx([0.5, 0.5, 1.2])},
    }


def test_the_page_is_bold_where_a_peer_is_faster_and_lists_different_answers() -> None:
    data = figures()
    page = render("peers.md", data=data, **data)
    assert "|  | llama.cpp | vlroute fa2ec45 |\n| --- | ---: | ---: |\n" in page
    assert "| 1 client, fresh pictures | 1.50 (0.50 – 2.00) | 2.00 (1.00 – 2.00) |\n" in page
    assert "| 16 clients, fresh pictures | **0.50** (0.50 – 1.20) | – |\n" in page
    assert "| 1 client, fresh pictures | ms | 10.0 | 20.0 | 20.0 |\n" in page
    assert "| 16 clients, fresh pictures | answers/s | 110.0 | 200.0 | – |\n" in page
    assert "| llama.cpp | **119 of 120** |\n| vlroute fa2ec45 | 120 of 120 |\n" in page
    assert 'llama.cpp, thinking, "Add.": ["1", "3", "stop"] and not ["1", "2", "stop"].\n' in page
    assert "| times as slow as alone | 3.00 | 2.00 – 4.00 |" in page
    assert "takes 3.00 ms more than `Router.ask`" in page
    assert json.loads(json.dumps(data)) == data  # the page is written again from its file


@pytest.mark.parametrize(
    "message",
    [
        {"content": "4", "reasoning_content": "2+2", "reasoning": "2+2"},
        {"content": "\n\n4", "reasoning": "2+2\n"},
        {"content": "2+2\n</think>\n\n4"},
        {"content": "<think>\n2+2\n</think>\n\n4", "reasoning_content": None},
    ],
)
def test_replies_of_all_servers_are_read_alike(message: dict[str, Any]) -> None:
    body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
    reply = read_reply(body, "thinking", 0.5)
    assert reply.compared == ("2+2", "4", "stop")
    assert count_tokens([reply, reply]) == 8


def test_text_without_a_tag_is_reasoning_in_thinking_only() -> None:
    body = json.dumps({"choices": [{"message": {"content": "2+2"}, "finish_reason": "length"}]}).encode()
    assert read_reply(body, "thinking", 0.5).compared == ("2+2", "", "length")
    assert read_reply(body, "instruct", 0.5).compared == ("", "2+2", "length")


def test_questions_about_one_picture_are_different() -> None:
    picture = draw_pictures(1, "x")[0].frames[0]
    conversations = fresh_questions(picture, 100, random.Random(1))
    pictures, questions = zip(*(messages[0]["content"] for messages in conversations), strict=True)
    assert len({json.dumps(one) for one in pictures}) == 1
    assert len({one["text"] for one in questions}) == 100


def wait_until_stopped(pid: int, stopped: bool) -> None:
    """Signals take effect a moment later on a busy machine."""
    until = time.monotonic() + 10
    while (psutil.Process(pid).status() == psutil.STATUS_STOPPED) != stopped:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_server_is_stopped_resumed_and_ended() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with started([sys.executable, "-m", "http.server", str(port)], url, "a server") as process:
        server = PeerServer("a server", dict.fromkeys(MODES, url), {mode: mode for mode in MODES}, (process.pid,))
        server.stop()
        wait_until_stopped(process.pid, True)
        with server.resumed():
            wait_until_stopped(process.pid, False)
    assert process.poll() is not None  # although it was stopped


def test_an_environment_that_is_there_is_used_again(tmp_path: Path) -> None:
    one = Environment("one", ("package==1",))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "made").write_text(repr(one), encoding="utf-8")
    assert one.python(tmp_path) == str(tmp_path / "one" / "bin" / "python")


def test_converted_checkpoints_have_the_same_tensors(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from training.bench.gguf_files import write_language_model, write_tower

    write_language_model(POCKET / "instruct", tmp_path / "language")
    write_tower(POCKET / "instruct", tmp_path / "tower")
    found = {
        tensor.name: np.asarray(tensor.data) for name in ("language", "tower")
        for tensor in gguf.GGUFReader(tmp_path / name).tensors
    }  # fmt: skip
    frames = [found.pop("v.patch_embd.weight"), found.pop("v.patch_embd.weight.1")]
    found["v.patch_embd"] = np.stack(frames, axis=2)
    wanted = load_file(POCKET / "instruct" / "model.safetensors")
    assert sorted((one.shape, one.tobytes()) for one in found.values()) == sorted(
        (one.shape, one.tobytes()) for one in wanted.values()
    )
    assert np.array_equal(found["blk.3.ffn_down.weight"], wanted["model.language_model.layers.3.mlp.down_proj.weight"])
    assert np.array_equal(
        found["v.deepstack.1.fc1.bias"], wanted["model.visual.deepstack_merger_list.1.linear_fc1.bias"]
    )


def test_the_byte_level_tokenizer_gives_the_tokens_of_the_pair() -> None:
    pytest.importorskip("gguf")
    from training.bench.gguf_files import byte_level_vocabulary

    file = POCKET / "instruct" / "tokenizer.json"
    tokens, _, merges = byte_level_vocabulary(file, 1392)
    assert len(set(tokens)) == len(tokens) == 1392
    pairs = [tuple(merge.split(" ")) for merge in merges]
    partial = {left + right for left, right in pairs} - set(tokens)  # llama.cpp needs no ids for them
    ids = {token: i for i, token in enumerate([*tokens, *sorted(partial)])}
    theirs = Tokenizer(models.BPE(ids, pairs, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    theirs.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    ours = Tokenizer.from_file(str(file))
    for prompt in {task.prompt for task in draw_pictures(2000, "tokens")}:
        assert theirs.encode(prompt).ids == ours.encode(prompt).ids
