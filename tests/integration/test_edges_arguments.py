"""Arguments of constructors: checked by name, type and range when a router is made, without torch."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands import command
from tests.conftest import media, task
from vlroute import DiskTier, Limits, Policy, PrefixCache, Router, Target, VisionCache, load_picture, load_video
from vlroute.engine.local import prompt as prompts
from vlroute.errors import (
    InputError,
    LimitError,
    MessageError,
    OutputError,
    SettingsError,
    UnreadableMediaError,
)
from vlroute.inputs.messages import parse

PICTURE = Image.new("RGB", (96, 96), "white")

SOME = task("ocr", "easy")
NAN, INF = float("nan"), float("inf")
pytestmark = pytest.mark.float32
#: Per argument: values that it refuses, and words of the error.
WRONG: dict[str, tuple[list[Any], str]] = {
    "device": (["gpu", "GPU:0", "cuda:x", "cuda:-1", "cpu:1", "", -1, True, 1.5, [], "meta", "tpu"], "'cuda'"),
    "dtype": (["int8", 32, "bfloat", torch.int8, "bf-16", [], "float8"], "'bfloat16'"),
    "attn_implementation": (["fast", 2, True, ["sdpa"], ""], "sdpa"),
    "quantization": (["3bit", 4, True, "", ["int8"]], "4bit"),
    "max_num_seqs": ([0, -1, 1.5, True, "8", NAN, INF, 10**30, None], "whole number"),
    "policy": (["quick", 0, 0.1, True, [], {"price": 1}], "fast, balanced, accurate, knee"),
    "captioner": (["ocr", 5, True, ""], "'instruct', 'probe'"),
    "limits": ([None, 5, {"max_images": 3}], "Limits"),
    "store": ([5, True, {}, []], "file"),
    "vision_cache": ([5, True, "256MB", {}, PrefixCache()], "VisionCache"),
    "prefix_cache": ([5, True, "256MB", {}, VisionCache()], "PrefixCache"),
    "generation": (["greedy", 5, [("do_sample", False)], {"thinking": 5}, {"thinking": {"top_p": 2}}], ""),
    "price": ([0.2], "policy=Policy"),
    "router": ([5, True, [], ""], "folder"),
    "name": ([5, True, ["a"]], "folder"),
    "temprature": ([1], "temperature"),
    "devise": (["cpu"], "device"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, one) for name, (values, _) in WRONG.items() for one in values])
def test_a_wrong_argument_is_refused_by_name_when_the_router_is_made(name: str, value: Any) -> None:
    known = name if name != "generation" else "generation|top_p"
    with pytest.raises(SettingsError, match=known) as raised:
        Router.from_pretrained(**{name: value})
    assert WRONG[name][1] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_arguments_are_checked_without_torch(tmp_path: Path) -> None:
    plain = {name: [one for one in values if isinstance(one, str | int | float | list | dict | None)]
             for name, (values, _) in WRONG.items()}  # fmt: skip
    (tmp_path / "wrong.json").write_text(json.dumps(plain))
    code = """
import json, sys
from pathlib import Path
from vlroute import Limits, Policy, Router, SettingsError, Target
for name, values in json.loads(Path(sys.argv[1]).read_text()).items():
    for value in values:
        try:
            Router.from_pretrained(**{name: value})
        except SettingsError:
            continue
        sys.exit(f"{name}={value!r}")
router = Router.from_pretrained(device="cuda:7", dtype="bf16", max_num_seqs=4, temperature=0, thinking_budget=3)
for settings in ({"thinking_budget": -1}, {"top_p": 2}, {"nonsense": 1}, {"price": -1}, {"caption": 5}):
    for use in (router.ask, router.stream, router.chat().send):
        try:
            use("How many?", **settings)
        except SettingsError:
            continue
        sys.exit(f"{settings}")
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "wrong.json")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", "fp32", torch.float32), (torch.device("cpu"), torch.bfloat16, torch.bfloat16),
        ("CPU", "bf16", torch.bfloat16), ("cpu:0", "fp16", torch.float16), ("auto", "torch.float32", torch.float32),
        (None, "auto", torch.float32), ("cpu", None, torch.float32),
    ],
    ids=str,
)  # fmt: skip
def test_spellings_of_devices_and_dtypes(device: Any, dtype: Any, expected: torch.dtype) -> None:
    if torch.cuda.is_available() and device in ("auto", None):
        pytest.skip("the default device is not the CPU here")
    with Router.from_pretrained(device=device, dtype=dtype) as router:
        assert router.pair.instruct.model.dtype == router.pair.thinking.model.dtype == expected
        assert router.pair.instruct.device == torch.device("cpu")
        assert router.ask(SOME.prompt, **media(SOME), mode="instruct").text


def test_dtype_auto_is_the_one_that_is_stored(router: Router, tmp_path: Path) -> None:
    for mode in ("instruct", "thinking"):
        model, processor = router.pair[mode].model, router.pair[mode].processor
        source = Path(router.pair[mode].source)
        for file in source.iterdir():
            (tmp_path / mode).mkdir(exist_ok=True)
            (tmp_path / mode / file.name).write_bytes(file.read_bytes())
        config = json.loads((tmp_path / mode / "config.json").read_text())
        config["dtype"] = "bfloat16"
        (tmp_path / mode / "config.json").write_text(json.dumps(config))
        assert model.dtype == torch.float32
        assert processor is not None
    with Router.from_pretrained(tmp_path, dtype="auto") as stored:
        assert stored.pair.instruct.model.dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["cuda:7", 7, torch.device("cuda", 7), "mps:3", "xpu:9"], ids=str)
def test_a_device_that_is_not_there_is_refused_when_the_pair_is_loaded(device: Any) -> None:
    router = Router.from_pretrained(device=device)
    router.decide("How many?", caption="three")
    for use in (router.load, lambda: router.ask("How many?", mode="instruct")):
        with pytest.raises(SettingsError, match=r"device '\w+:\d' does not exist on this machine; .*cpu") as raised:
            use()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("bad", [-1, 0.5, True, "1", NAN, INF, None, 10**30, [1]], ids=repr)
def test_budgets_of_caches_and_limits(bad: Any, tmp_path: Path) -> None:
    makes = [
        lambda: VisionCache(host_budget=bad), lambda: DiskTier(tmp_path, bad), lambda: Limits(max_images=bad),
        lambda: Limits(max_bytes=bad),
    ]  # fmt: skip
    if bad is not None:  # a share of the memory
        makes += [lambda: VisionCache(bad), lambda: PrefixCache(bad)]
    for make in makes:
        with pytest.raises(SettingsError, match="whole number"):
            make()
    with pytest.raises(SettingsError, match="disk"):
        VisionCache(disk=str(tmp_path))  # type: ignore[arg-type]
    assert VisionCache(np.int64(5)).budget == PrefixCache(5.0).budget == 5  # type: ignore[arg-type]
    assert VisionCache().follows_memory
    assert PrefixCache(None).follows_memory


@pytest.mark.parametrize("bad", [-1, "1", True, NAN, INF, [1], 10**400, 1j], ids=lambda value: str(value)[:9])
def test_prices_policies_and_targets(router: Router, bad: Any) -> None:
    for make in (
        lambda: Policy(price=bad), lambda: Policy(min_coverage=bad), lambda: Target(thinking_share=bad),
        lambda: Target(target_accuracy=bad), lambda: Target(max_mean_seconds=bad),
        lambda: router.ask("How many?", price=bad), lambda: router.decide("How many?", price=bad),
        lambda: router.chat().send("How many?", price=bad),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match="number"):
            make()
    with pytest.raises(SettingsError, match="preset"):
        Target(preset=bad)
    assert Policy(price=np.float32(0.5)).price == 0.5


@pytest.mark.parametrize(
    "options",
    [["--device", "gpu"], ["--device", "cuda:7"], ["--price", "nan"], ["--price", "-1"], ["--price", "x"],
     ["--policy", "quick"], ["--thinking-budget", "-1"], ["--max-new-tokens", "0"], ["--seed", str(2**70)],
     ["--mode", "slow"]],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_option_ends_the_command_with_one_line(options: list[str]) -> None:
    done = command("ask", "How many?", *options)
    assert done.returncode == 2
    assert re.search("error|invalid", done.stderr, re.IGNORECASE)


def test_wrong_types_are_refused_by_name(router: Router, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for name, call in [
        ("target", lambda: router.operating_point(Policy(price=0.1))),  # type: ignore[arg-type]
        ("target", lambda: router.operating_point(5)),  # type: ignore[arg-type]
        ("router", lambda: router.use(None)),  # type: ignore[arg-type]
        ("router", lambda: router.use("")),
        ("folder", lambda: router.resume(5)),  # type: ignore[arg-type]
        ("folder", lambda: DiskTier(5)),  # type: ignore[arg-type]
        ("system", lambda: router.chat(0)),  # type: ignore[arg-type]
        ("system", lambda: router.chat(False)),  # type: ignore[arg-type]
        ("cancel", lambda: router.ask("How many?", cancel=threading.Event)),  # type: ignore[arg-type]
        ("cancel", lambda: asyncio.run(router.aask("How many?", cancel=1))),  # type: ignore[arg-type]
        ("cancel", lambda: router.ask_many([{"prompt": "How many?", "cancel": 1}])),
        ("progress", lambda: router.ask_many([], progress=5)),  # type: ignore[arg-type]
        ("a request", lambda: router.ask_many(["How many?"])),  # type: ignore[list-item]
        ("fallback_mode", lambda: Policy(fallback_mode="x")),  # type: ignore[arg-type]
        ("fallback_mode", lambda: Policy(fallback_mode=[])),  # type: ignore[arg-type]
        ("target", Target),
        ("target", lambda: Target(thinking_share=0.5, preset="fast")),
        ("captioner", lambda: Router.from_pretrained(captioner=lambda one: None).decide("Why?", PICTURE)),  # type: ignore
        ("limits", lambda: parse("Hi", limits={})),  # type: ignore[arg-type]
        ("limits", lambda: load_picture(PICTURE, {})),  # type: ignore[arg-type]
        ("budget", lambda: load_picture(PICTURE, budget=None)),  # type: ignore[arg-type]
        ("budget", lambda: load_video([PICTURE] * 2, budget={})),  # type: ignore[arg-type]
        ("limits", lambda: load_video(b"", {})),  # type: ignore[arg-type]
        ("sampling", lambda: load_video(b"", sampling={"fps": 1})),  # type: ignore[arg-type]
    ]:  # fmt: skip
        with pytest.raises(SettingsError, match=name):
            call()
    for folder in (file, "/proc/x", "a\0b"):
        with pytest.raises(OutputError, match="folder"):
            DiskTier(folder)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"image": PICTURE}, "images="), ({"video": "a.mp4"}, "videos="), ({"system": "Hi"}, "system"),
        ({"max_pixels": 9}, "part"), ({"fps": 2}, "part"), ({"limits": {}}, "from_pretrained"),
        ({"eos_token_id": torch.tensor(5)}, "eos_token_id"), ({"eos_token_id": np.array(2)}, "eos_token_id"),
        ({"suppress_tokens": np.array(2)}, "suppress_tokens"), ({"stop": np.array("a")}, "stop"),
        ({"sequence_bias": np.array(2)}, "sequence_bias"), ({"bad_words_ids": np.array(2)}, "bad_words_ids"),
        ({"bad_words_ids": [1]}, "bad_words_ids must be a list of lists"),
        ({"bad_words_ids": [[10**7]]}, "bad_words_ids contains"),
        ({"min_new_tokens": 50, "max_new_tokens": 10}, "min_new_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),  # no address: workers must agree
)  # fmt: skip
def test_a_setting_that_cannot_be_obeyed_is_named(router: Router, options: dict[str, Any], name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        router.ask("How many?", **options)


def test_a_prompt_that_is_too_long_is_refused_without_a_warning(router: Router) -> None:
    warnings: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = warnings.append  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    try:
        with pytest.raises(LimitError, match="tokens"):
            router.ask("word " * 5000, mode="instruct")
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert not warnings


@pytest.mark.parametrize(
    "text", ["How many? " * 1_000_000, "界" * 3_000_000, "a" * 3_000_000], ids=["words", "Chinese", "one word"]
)
@pytest.mark.parametrize("mode", ["instruct", None])
def test_a_prompt_of_megabytes_is_refused_before_it_is_tokenized(
    router: Router, text: str, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it would take most of a minute."""
    characters: list[int] = []
    tokenized = prompts._tokenized  # noqa: SLF001
    monkeypatch.setattr(prompts, "_tokenized", lambda *args: characters.append(len(args[1])) or tokenized(*args))
    with pytest.raises(LimitError, match=r"characters and more than 4096 tokens; the model accepts at most 4095"):
        router.ask(text, mode=mode)
    assert sum(characters) < 200_000


def test_the_text_encoder_reads_the_beginning_of_a_long_text(router: Router) -> None:
    decision = router.decide("How many circles? " * 100_000)
    assert decision.gain == pytest.approx(router.decide("How many circles? " * 20_000).gain, abs=0.05)


def test_an_error_of_ask_many_says_which_request_it_was(router: Router) -> None:
    good = {"prompt": "Hello?", "mode": "instruct", "max_new_tokens": 2}
    for bad, kind, message in [
        ({}, MessageError, "'prompt'"),
        ({"prompt": ""}, MessageError, "empty"),
        ({"prompt": "Hello?", "mode": "fast"}, InputError, "mode"),
        ({"prompt": "Hello?", "images": "missing.png"}, UnreadableMediaError, "missing.png"),
        ({"prompt": "Hello?", "temprature": 1}, SettingsError, "temprature"),
        ({"prompt": "word " * 5000, "mode": "instruct"}, LimitError, "tokens"),
        (5, SettingsError, "a mapping of the arguments of ask"),
    ]:
        with pytest.raises(kind, match=message) as raised:
            router.ask_many([good, good, bad, good])  # type: ignore[list-item]
        assert raised.value.__notes__ == ["raised for requests[2] of ask_many"]


def test_a_captioner_may_ask_its_own_router_only_with_a_mode() -> None:
    picture, hello = media(task("hop"))["images"], {"prompt": "Hello?", "mode": "instruct", "max_new_tokens": 2}
    calls: dict[str, Callable[[], Any]] = {
        "ask": lambda: router.ask("What is it?", picture),
        "decide": lambda: router.decide("What is it?", picture),
        "ask_many": lambda: router.ask_many([hello]),
        "stream": lambda: [*router.stream(**hello)],
        "aask": lambda: asyncio.run(router.aask(**hello)),
        "chat": lambda: router.chat().send("What is it?", picture),
        "chat stream": lambda: [*router.chat().stream("What is it?", picture)],
    }
    call: Callable[[], Any]
    with Router.from_pretrained(captioner=lambda item: call()) as router:
        for call in calls.values():  # noqa: B007
            with pytest.raises(RuntimeError, match="a captioner may call its own router only with"):
                router.ask("How many?", picture)
            with pytest.raises(RuntimeError, match="a captioner may call its own router only with"):
                router.ask_many([{"prompt": "How many?", "images": picture}])

        def call() -> str:
            return router.ask("What is it?", picture, mode="instruct", max_new_tokens=4).text or "nothing"

        answers = router.ask_many([{"prompt": "How many?", "images": picture}] * 12)
        assert {answer.decision.caption for answer in answers} == {call()}


def test_settings_that_contradict_each_other_are_refused_when_the_router_is_made() -> None:
    for generation in ({"max_new_tokens": 10}, {"thinking": {"max_new_tokens": 10}}):
        with pytest.raises(SettingsError, match="min_new_tokens"):
            Router.from_pretrained(min_new_tokens=50, generation=generation)
    with pytest.raises(SettingsError, match="thinking"):
        Router.from_pretrained(generation={"thinking": 5})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attn_implementation", "flex_attention"), ("attn_implementation", "nobody/nothing"),
        ("quantization", {"a": 1}), ("quantization", {"quant_method": "gptq", "bits": 4}),
    ],
)  # fmt: skip
def test_what_this_machine_cannot_load_is_named(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with Router.from_pretrained(**{name: value}) as router, pytest.raises(SettingsError, match=name):
        router.load()
