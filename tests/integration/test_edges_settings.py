"""Generation settings: each is obeyed as transformers does, or refused by name before anything is generated."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from tests.conftest import media, pixel_path, task
from tests.forcing import end_id, scripted, token_ids
from tests.recording import model_calls
from tests.serving import Served, served, user
from vlroute import Router
from vlroute.engine.settings import SETTINGS, UNSUPPORTED
from vlroute.errors import SettingsError, VLRouteError
from vlroute.files import shipped
from vlroute.inputs.messages import parse
from vlroute.serving.settings import ServerSettings
from vlroute.types import MODES, Decided, Mode

pytestmark = pytest.mark.float32
#: Random requests; `make soak` asks for more.
CASES = int(os.environ.get("VLROUTE_SETTINGS_CASES", "60"))
SOME = task("hop")
HARD = task("math", "hard", 3)
VOCAB = json.loads((shipped("pocket/instruct") / "config.json").read_text("utf-8"))["text_config"]["vocab_size"]


@pytest.fixture(scope="module")
def together() -> Iterator[Router]:
    router = Router.from_pretrained(max_num_seqs=8).load()
    yield router
    router.close()


@torch.inference_mode()
def by_transformers(plain: dict[str, Any], mode: Mode, settings: dict[str, Any]) -> str:
    """What plain transformers generates if it draws with the same random numbers as seed 0, in the same way."""
    model, processor = plain[mode]
    inputs = pixel_path(processor, parse(HARD.prompt, HARD.frames[0]))
    chance = random.Random("0")

    def drawn(shares: torch.Tensor, num_samples: int) -> torch.Tensor:
        sums = shares.double().cumsum(-1)
        return torch.searchsorted(sums, chance.random() * sums[:, -1:], right=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "multinomial", drawn)
        ids = model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :].tolist()
    return bare(processor.tokenizer.decode(ids, skip_special_tokens=True))


def bare(text: str) -> str:
    return "".join(text.replace("</think>", "").split())


HOT = {"do_sample": True, "temperature": 1.3, "top_k": 0, "top_p": 1.0, "max_new_tokens": 24}
GREEDY = {"do_sample": False, "max_new_tokens": 24}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "settings",
    [
        GREEDY | {"repetition_penalty": 1.3}, GREEDY | {"no_repeat_ngram_size": 2}, GREEDY | {"min_new_tokens": 12},
        GREEDY | {"suppress_tokens": [*range(40, 60)]}, GREEDY | {"begin_suppress_tokens": [*range(30, 300)]},
        GREEDY | {"bad_words_ids": [[one] for one in range(40, 50)] + [[50, 51], [52, 53, 54]]},
        GREEDY | {"sequence_bias": {(45,): 3.0, (46, 47): -5.0, (50,): 2.0}}, GREEDY | {"eos_token_id": [2, 45, 46]},
        HOT, HOT | {"top_k": 3}, HOT | {"top_p": 0.7}, HOT | {"min_p": 0.2}, HOT | {"typical_p": 0.5},
        HOT | {"epsilon_cutoff": 0.1}, HOT | {"eta_cutoff": 0.3}, HOT | {"temperature": 0.4},
        HOT | {"top_k": 9, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9, "no_repeat_ngram_size": 3,
               "repetition_penalty": 1.1, "suppress_tokens": [44]},
    ],
    ids=lambda settings: " ".join(name for name in settings if name not in ("do_sample", "max_new_tokens")),
)  # fmt: skip
def test_each_setting_does_what_transformers_does(
    router: Router, together: Router, plain: dict[str, Any], settings: dict[str, Any], mode: Mode
) -> None:
    expected = by_transformers(plain, mode, settings)
    for one in (router, together):
        answer = one.ask(
            HARD.prompt, HARD.frames[0], mode=mode, presence_penalty=0, seed=0, answer_reserve=0, **settings
        )
        assert bare(answer.thinking + answer.text) == expected


@pytest.mark.parametrize("name", sorted(set(GenerationConfig().to_dict()) - set(SETTINGS)))
def test_every_other_setting_of_transformers_is_refused_by_name(name: str) -> None:
    if name in ("transformers_version", "_from_model_config"):
        return
    with pytest.raises(SettingsError, match=rf"{name}=.* is not supported: \w+"):
        Router.from_pretrained(**{name: "nonsense"})


@pytest.mark.parametrize(
    ("settings", "instead"),
    [
        ({"num_return_sequences": 2}, "ask several times"), ({"num_beams": 2}, "beam search"),
        ({"stop_strings": ["x"]}, "stop="), ({"max_length": 9}, "max_new_tokens"), ({"max_tokens": 9}, "max_new"),
        ({"return_dict_in_generate": True}, "leave it out"), ({"prompt_lookup_num_tokens": 3}, "assisted"),
        ({"max_time": 1.0}, "cancel="), ({"n": 3}, "ask several times"), ({"temprature": 1}, "temperature"),
        ({"stop": "now"}, "list of strings"), ({"do_sample": False, "top_p": 0.9}, "contradicts"),
        ({"do_sample": True, "temperature": 0}, "contradicts"),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, "max_new_tokens=3"),
        ({"suppress_tokens": [VOCAB]}, f"0 to {VOCAB - 1}"),
        ({"suppress_tokens": [*range(VOCAB)]}, "no token"), ({"eos_token_id": []}, "at least one"),
    ],
    ids=lambda one: str(one)[:40],
)  # fmt: skip
@pytest.mark.parametrize("where", ["alone", "together"])
def test_what_cannot_be_obeyed_is_refused_before_anything_runs(
    router: Router, together: Router, settings: dict[str, Any], instead: str, where: str
) -> None:
    one = router if where == "alone" else together
    with model_calls() as calls, pytest.raises(SettingsError, match=re.escape(instead)):
        one.ask(SOME.prompt, **media(SOME), **settings)  # no mode is forced, so a caption would be needed
    assert not calls


def test_a_dump_of_a_generation_config_is_accepted(router: Router) -> None:
    dump = GenerationConfig(do_sample=False, max_new_tokens=4, num_beams=1, temperature=1.0, top_p=1.0).to_dict()
    answer = router.ask(SOME.prompt, **media(SOME), mode="thinking", **dump)
    assert answer.usage.completion_tokens == 4
    assert Router.from_pretrained(generation=dump).generation["max_new_tokens"] == 4


def test_what_asks_for_sampling_samples_and_zero_is_greedy(router: Router) -> None:
    def said(one: Router = router, **settings: Any) -> str:
        answer = one.ask(HARD.prompt, **media(HARD), mode="thinking", max_new_tokens=30, **settings)
        return answer.thinking

    greedy = said()
    assert len({said(temperature=5, top_k=0, top_p=1.0, seed=seed) for seed in range(4)}) > 1  # a greedy pair
    assert said(do_sample=False, temperature=0) == said(temperature=0, top_p=0.5) == said(temperature=1e-9) == greedy
    assert said(top_p=1.0, top_k=0, seed=1) == greedy  # neither asks for anything
    hot = Router.from_pretrained(do_sample=True, temperature=5, top_k=0, top_p=1.0).load()
    assert len({said(hot, seed=seed) for seed in range(4)}) > 1
    assert said(hot, temperature=0) == said(hot, do_sample=False) == greedy
    cold = Router.from_pretrained(temperature=0, generation={"thinking": {"temperature": 5, "top_k": 0, "top_p": 1}})
    assert len({said(cold, seed=seed) for seed in range(4)}) > 1
    assert said(cold, seed=1, temperature=0) == greedy


def test_none_means_not_set(router: Router) -> None:
    settings = {"presence_penalty": 2.0, "frequency_penalty": None, "stop": None, "temperature": None, "seed": None}
    answer = router.ask(SOME.prompt, **media(SOME), mode="thinking", **settings, thinking_budget=None)
    assert answer.thinking == router.ask(SOME.prompt, **media(SOME), mode="thinking", presence_penalty=2.0).thinking
    limited = Router.from_pretrained(max_new_tokens=3)
    assert limited.ask(SOME.prompt, mode="thinking", max_new_tokens=None).usage.completion_tokens == 3


def test_numbers_of_other_libraries_are_numbers(router: Router) -> None:
    others = {
        "max_new_tokens": np.int64(5), "temperature": np.float32(0.5), "seed": np.uint8(3), "top_k": 20.0,
        "do_sample": np.bool_(True), "suppress_tokens": np.arange(3, 9), "thinking_budget": np.int16(2),
    }  # fmt: skip
    ours = {"max_new_tokens": 5, "temperature": 0.5, "seed": 3, "top_k": 20, "do_sample": True,
            "suppress_tokens": [3, 4, 5, 6, 7, 8], "thinking_budget": 2}  # fmt: skip
    one, other = (router.ask(SOME.prompt, mode="thinking", **given) for given in (others, ours))
    assert (one.thinking, one.text) == (other.thinking, other.text)


@pytest.mark.parametrize("bad", [-1, -(10**30), 1.5, True, float("nan"), float("inf"), "12", 10**40, [3]], ids=repr)
@pytest.mark.parametrize("way", ["ask", "stream", "chat", "chat stream", "router", "mode"])
def test_an_impossible_thinking_budget_is_refused_everywhere(router: Router, bad: Any, way: str) -> None:
    ways: dict[str, Callable[[], Any]] = {
        "ask": lambda: router.ask(SOME.prompt, **media(SOME), thinking_budget=bad),
        "stream": lambda: router.stream(SOME.prompt, **media(SOME), thinking_budget=bad),
        "chat": lambda: router.chat().send(SOME.prompt, **media(SOME), thinking_budget=bad),
        "chat stream": lambda: list(router.chat().stream(SOME.prompt, **media(SOME), thinking_budget=bad)),
        "router": lambda: Router.from_pretrained(thinking_budget=bad),
        "mode": lambda: Router.from_pretrained(generation={"thinking": {"thinking_budget": bad}}),
    }
    with model_calls() as calls, pytest.raises(SettingsError, match="thinking_budget must be a whole number"):
        ways[way]()
    assert not calls


@pytest.mark.parametrize("per_router", [True, False])
@pytest.mark.parametrize("settings", [{"thinking_budget": -1}, {"typical_p": 0.5}, {"top_p": 3}, {"nonsense": 1}])
def test_endpoints_are_not_asked_with_what_they_do_not_take(settings: dict[str, Any], per_router: bool) -> None:
    asked: list[Any] = []
    where = ("http://127.0.0.1:9/v1", "nobody")  # nothing listens there: a request would be ModeUnavailableError

    def router(**given: Any) -> Router:
        return Router.from_endpoints(where, where, captioner=lambda media: asked.append(media) or "a picture", **given)

    if per_router:
        with pytest.raises(SettingsError, match=next(iter(settings))):
            router(**settings)
    else:
        with router() as one, pytest.raises(SettingsError, match=next(iter(settings))):
            one.ask(SOME.prompt, **media(SOME), **settings)
    assert not asked


def test_a_checkpoint_may_set_what_is_not_supported(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, router: Router
) -> None:
    odd = {"num_beams": 4, "top_p": 7.5, "nonsense": True, "max_length": 9, "temperature": 0, "do_sample": True,
           "forced_eos_token_id": 2, "bad_words_ids": [[45]], "max_new_tokens": 12, "min_p": None}  # fmt: skip
    for mode in MODES:
        shutil.copytree(folders[mode], tmp_path / mode)
        (tmp_path / mode / "generation_config.json").write_text(json.dumps(odd))
    with caplog.at_level(logging.WARNING, "vlroute"):
        loaded = Router.from_pretrained(instruct=tmp_path / "instruct", thinking=tmp_path / "thinking").load()
        answers = [loaded.ask(HARD.prompt, **media(HARD), mode="thinking") for _ in range(2)]
    said = [record.message for record in caplog.records if "generation_config.json" in record.message]
    assert len(said) == len(MODES)  # once a checkpoint, not once a request
    assert all(name in said[0] for name in ("num_beams", "top_p", "nonsense", "max_length", "forced_eos_token_id"))
    assert answers[0].thinking == answers[1].thinking  # temperature 0: greedy
    expected = router.ask(HARD.prompt, **media(HARD), mode="thinking", bad_words_ids=[[45]], max_new_tokens=12)
    assert answers[0].thinking == expected.thinking


def test_bans_that_leave_nothing_end_the_answer(router: Router, together: Router) -> None:
    ends = end_id(router)
    keep = token_ids(router, "7", "instruct")[0]
    bans = {"suppress_tokens": [one for one in range(VOCAB) if one not in (keep, ends)], "no_repeat_ngram_size": 1}
    for one in (router, together):
        for draw in ({}, {"temperature": 1.0}):
            with scripted(one, "instruct", [keep] * 50):
                answer = one.ask("?", mode="instruct", max_new_tokens=20, **bans, **draw)
            assert answer.text in ("7", "")
            assert answer.usage.completion_tokens <= 1


# --- random requests ---

TEXTS = ["", "0", "0.5", "auto", "ten", "\ud800"]
#: Values that no numeric setting accepts.
WRONG: list[Any] = [
    float("nan"), float("inf"), -float("inf"), True, False, *TEXTS, [], {}, [1, "x"], (3,), b"1", object(), 10**40,
    -(10**40), 10**5000, np.float64("nan"), np.bool_(True), 1j, range, ...,
]  # fmt: skip
RIGHT: dict[str, Callable[[random.Random], Any]] = {
    "max_new_tokens": lambda r: r.choice([1, 2, 8, 12, np.int32(5), 6.0]),
    "min_new_tokens": lambda r: r.choice([0, 1]),
    "do_sample": lambda r: r.choice([True, np.bool_(True)]),
    "temperature": lambda r: r.choice([0, 0.0, 1e-12, 1e-3, 0.3, 1, 1.0, 2.5, 1000, np.float16(0.5)]),
    "top_k": lambda r: r.choice([-1, 0, 1, 5, 10_000, 2**31 - 1, np.int8(3)]),
    "top_p": lambda r: r.choice([0, 1e-9, 0.5, 0.99, 1, 1.0, np.float32(0.25)]),
    "min_p": lambda r: r.choice([0, 0.0, 1e-6, 0.3, 1.0]),
    "typical_p": lambda r: r.choice([1e-6, 0.2, 0.9, 1.0]),
    "epsilon_cutoff": lambda r: r.choice([0, 1e-4, 0.3, 0.999]),
    "eta_cutoff": lambda r: r.choice([0, 1e-4, 0.3, 0.999]),
    "seed": lambda r: r.choice([0, -(2**63), 2**64 - 1, 7, np.uint64(2**63)]),
    "presence_penalty": lambda r: r.choice([-10_000, -2, 0, 1.5, 10_000]),
    "frequency_penalty": lambda r: r.choice([-10_000, -2, 0, 1.5, 10_000]),
    "repetition_penalty": lambda r: r.choice([0.01, 0.5, 1, 1.2, 100]),
    "no_repeat_ngram_size": lambda r: r.choice([0, 1, 2, 5, 2**31 - 1]),
    "bad_words_ids": lambda r: r.choice([[], [[2]], [[r.randrange(VOCAB) for _ in range(n)] for n in (1, 1, 2, 3)]]),
    "sequence_bias": lambda r: r.choice([{}, {(5,): 2.0, (6, 7): -1}, [[[5], 10_000]], [[[8, 9], np.float32(3)]]]),
    "suppress_tokens": lambda r: r.choice([[], [2], r.sample(range(VOCAB), VOCAB - 40), range(100), np.arange(5)]),
    "begin_suppress_tokens": lambda r: r.choice([[], [2], r.sample(range(VOCAB), VOCAB // 2)]),
    "eos_token_id": lambda r: r.choice([2, [2], [2, 45], np.array([2, 7]), 45, -1]),
    "stop_token_ids": lambda r: r.choice([[], [2], [45, 46], np.array([7])]),
    "bad_words": lambda r: r.choice([[], ["7"], ("circle", "。"), ["\n", "a b"]]),
    "stop": lambda r: r.choice([[], ["x"], ("1", "。"), ["\n", "7"]]),
    "thinking_budget": lambda r: r.choice([0, 1, 5, 2**31 - 1, np.int64(3), "auto"]),
    "answer_reserve": lambda r: r.choice([0, 1, np.int64(3)]),
    "close_loops": lambda r: r.choice([True, False, np.bool_(False)]),
    "early_exit": lambda r: r.choice([1, 0.5, 1e-9, np.float32(0.99)]),
    "response_format": lambda r: r.choice([
        {"type": "text"}, {"type": "json_object"}, {"json": {"type": "array", "items": {"enum": [1, "a"]}}},
        {"choice": ["7", "eight"]}, {"regex": "[a-z]{3}( [0-9]+)*"},
    ]),
    "logit_bias": lambda r: r.choice([{}, {5: 2.0, 6: -100}, {np.int64(8): np.float32(3)}]),
    "logprobs": lambda r: r.choice([True, np.bool_(True)]),
    "top_logprobs": lambda r: r.choice([0, 1, np.int64(5), 20]),
    "pad_token_id": lambda r: r.choice([0, 2]),
    "bos_token_id": lambda r: r.choice([0, 2]),
}  # fmt: skip
#: Which of `WRONG` are right after all.
ALSO_RIGHT = dict.fromkeys(("do_sample", "close_loops", "logprobs"), (bool, np.bool_))
LISTS = {
    "bad_words", "bad_words_ids", "stop_token_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens",
    "eos_token_id", "stop", "logit_bias",
}  # fmt: skip
BEYOND: dict[str, list[Any]] = {
    "max_new_tokens": [0, -1, 2.5], "min_new_tokens": [-1, 0.1], "temperature": [-0.1, 1e9], "top_k": [-2, 0.5],
    "top_p": [-1e-9, 1.01], "min_p": [-0.1, 2], "typical_p": [0, 1.1], "epsilon_cutoff": [1, -1], "eta_cutoff": [1.0],
    "seed": [2**64, -(2**63) - 1, 0.5], "presence_penalty": [1e9], "frequency_penalty": [-1e9],
    "repetition_penalty": [0, -1, 101], "no_repeat_ngram_size": [-1], "bad_words_ids": [[[]], [3], [[-1]], [[VOCAB]]],
    "sequence_bias": [{(): 1.0}, {(5,): float("nan")}, [[5, 1.0]], {(VOCAB,): 1.0}, {5: 1.0}],
    "suppress_tokens": [[-1], [VOCAB], [1.5], ["a"], 3, range(VOCAB)], "begin_suppress_tokens": [[VOCAB], [True], 3],
    "eos_token_id": [[], -2, [VOCAB], [-1], "2"], "stop": ["x", [""], [3], {"a": 1}],
    "stop_token_ids": [[-1], [VOCAB], 3, ["a"]], "bad_words": ["x", [""], [3]], "thinking_budget": [-1, 0.5],
    "pad_token_id": [-1], "bos_token_id": ["x"], "do_sample": [0, 1, "yes"], "close_loops": [0, "no"],
    "response_format": ["json", {"type": "nonsense"}, {"choice": []}, {"regex": "a("}, {"json": {"not": {}}}],
    "logit_bias": [{(5,): 1.0}, {VOCAB: 1.0}, {5: float("nan")}, [[5, 1.0]]], "logprobs": [1, "yes", 5],
    "top_logprobs": [-1, 21, 0.5], "answer_reserve": [-1, 0.5], "early_exit": [0, -0.5, 1.1, float("nan")],
}  # fmt: skip


def a_request(chance: random.Random) -> tuple[dict[str, Any], bool]:
    """Settings, and whether they can be obeyed."""
    names = chance.sample([*SETTINGS], chance.randint(1, 6))
    settings = {name: None if chance.random() < 0.05 else RIGHT[name](chance) for name in names}
    kind = chance.choice(["right", "right", "wrong value", "out of range", "unsupported", "unknown", "contradiction"])
    if kind == "wrong value":
        name = chance.choice(names)
        numbers = [one for one in WRONG if not (name in LISTS and isinstance(one, list | tuple | dict | bytes | range))]
        numbers = [one for one in numbers if not (name == "thinking_budget" and one == "auto")]
        settings[name] = chance.choice([one for one in numbers if not isinstance(one, ALSO_RIGHT.get(name, ()))])
    elif kind == "out of range":
        settings[names[0]] = chance.choice(BEYOND[names[0]])
    elif kind == "unsupported":
        settings[chance.choice([*UNSUPPORTED])] = "something"
    elif kind == "unknown":
        settings[chance.choice(["temprature", "top-p", "Temperature", "", "max_tokenz", "mode_", "ü"])] = chance.choice(
            [None, 1]
        )
    elif kind == "contradiction":
        settings = {name: value for name, value in settings.items() if name != "temperature"}
        settings |= {"do_sample": False, chance.choice(["temperature", "top_p", "min_p"]): 0.5}
    if kind == "right" and settings.get("do_sample") and (settings.get("temperature") or 0) < 1e-3:
        kind = "contradiction" if settings.get("temperature") is not None else kind
    if kind == "right" and (settings.get("min_new_tokens") or 0) > (settings.get("max_new_tokens") or 9):
        kind = "contradiction"
    if kind == "right" and (settings.get("answer_reserve") or 0) >= (settings.get("max_new_tokens") or 12):
        kind = "contradiction"
    if kind == "right" and settings.get("top_logprobs") and not settings.get("logprobs"):
        kind = "contradiction"
    return settings, kind == "right"


@pytest.mark.parametrize("where", ["alone", "together"])
def test_random_requests_answer_or_are_refused_at_once(router: Router, together: Router, where: str) -> None:
    one = router if where == "alone" else together
    answered = 0
    for number in range(CASES):
        chance = random.Random(f"{where} {number}")
        settings, obeyed = a_request(chance)
        mode = chance.choice([*MODES, None])
        error: VLRouteError | None = None
        with model_calls() as calls:
            try:
                events = [*one.stream(SOME.prompt, SOME.frames[0], mode=mode, **{"max_new_tokens": 12} | settings)]
            except VLRouteError as caught:
                error = caught
        if error is None:
            assert obeyed, settings
            assert isinstance(events[0], Decided)
            answered += 1
        else:
            assert isinstance(error, SettingsError), settings
            assert not obeyed, (settings, error)
            assert not calls, settings
    assert CASES * 0.15 < answered < CASES * 0.5


#: Fields of a request over HTTP; the first list is obeyed, the second refused.
FIELDS: dict[str, tuple[list[Any], list[Any]]] = {
    "max_tokens": ([1, 8, None], [0, -1, 2.5, "x", 10**9, 10**40]),
    "max_completion_tokens": ([2, 12], [0, [], {}]),
    "temperature": ([0, 0.0, 1e-9, 0.7, 2], [-1, 2.1, "hot", [], 1e400]),
    "top_p": ([1e-9, 0.5, 1], [-0.1, 1.1, "x", {}]),
    "top_k": ([-1, 0, 1, 50], [-2, 1.5, "x", 10**40]),
    "min_p": ([0, 0.1, 1], [-0.1, 2, []]),
    "presence_penalty": ([-2, 0, 1.5, None], [-3, 9, "x"]),
    "frequency_penalty": ([-2, 0, 2], [3, {}]),
    "repetition_penalty": ([0.5, 1, 1.2], [0, -1, 99]),
    "seed": ([0, 7, -(2**63), 2**63 - 1], [2**64, "x", 0.5]),
    "stop": ([[], ["x"], "7", None], [[""], [3], {}, ["x"] * 17]),
    "thinking_budget": ([0, 1, 5, None], [-1, True, 0.5, "x", 10**40]),
    "response_format": ([{"type": "text"}, {"type": "json_object"}, None], [{"type": "nonsense"}, "json", 3]),
    "nonsense": ([None], [1, "x"]),
    "num_beams": ([], [2]),
    "n": ([1, 2, 8], [0, 9, 1.5, "x"]),
    "logprobs": ([True, False, None], [1, "x"]),
    "logit_bias": ([{}, {"5": 1.5}], [{"x": 1}, {"5": 101}, {str(VOCAB): 1}, [1]]),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(ServerSettings(max_num_seqs=8)) as one:
        yield one


def test_random_requests_over_http_answer_or_are_refused_at_once(server: Served) -> None:
    answered = 0
    with server.http(headers={"Content-Type": "application/json"}) as client:
        for number in range(CASES):
            chance = random.Random(f"http {number}")
            names = [name for name in chance.sample([*FIELDS], chance.randint(1, 5)) if name != "max_tokens"]
            wrong = chance.choice([*names, None, None]) if names else None
            body: dict[str, Any] = {
                "model": chance.choice(["auto", *MODES]),
                "messages": [user(SOME)],
                "max_tokens": 12,
            }
            if "max_completion_tokens" in names:
                del body["max_tokens"]
            refused = False
            for name in names:
                right, bad = FIELDS[name]
                refused = refused or name == wrong or not right
                body[name] = chance.choice(bad if name == wrong or not right else right)
            with model_calls() as calls:
                reply = client.post("/v1/chat/completions", content=json.dumps(body).encode())
            assert reply.status_code in ((400, 422) if refused else (200,)), (body, reply.text)
            assert refused == ("error" in reply.json()), body
            assert not (refused and calls), body
            answered += not refused
    assert CASES * 0.15 < answered < CASES * 0.9


def test_further_end_tokens_and_words_that_are_never_written(router: Router) -> None:
    read = task("ocr", "hard", 4)
    whole = router.ask(read.prompt, **media(read), mode="instruct").text
    assert len({*whole}) == len(whole) > 3
    third, second = token_ids(router, whole[2], "instruct"), whole[1]
    for settings in ({"stop_token_ids": third}, {"stop_token_ids": third, "eos_token_id": -1}):
        answer = router.ask(read.prompt, **media(read), mode="instruct", **settings)
        assert (answer.text, answer.finish_reason) == (whole[:2], "stop")
    without = router.ask(read.prompt, **media(read), mode="instruct", bad_words=[second]).text
    assert without[0] == whole[0]
    assert second not in without
    both = router.ask(
        read.prompt, **media(read), mode="instruct", bad_words=[second], bad_words_ids=[token_ids(router, whole[0])]
    ).text
    assert not {whole[0], second} & {*both}
    with pytest.raises(SettingsError, match="bad_words must be a list of non-empty strings"):
        router.ask(read.prompt, **media(read), bad_words=[""])
    with pytest.raises(SettingsError, match=f"stop_token_ids contains token id {VOCAB}"):
        router.ask(read.prompt, **media(read), stop_token_ids=[VOCAB])
