"""Log-probabilities of answers: those of plain transformers, for each token of the answer, by every way to ask."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.conftest import media, pixel_path, task
from tests.forcing import end_id, scripted, token_ids
from tests.serving import Served, served, user
from vlroute import Router
from vlroute.engine.local import scheduler
from vlroute.engine.local.generation import Generation
from vlroute.engine.local.logprobs import TokenTexts, token_bytes
from vlroute.errors import SettingsError
from vlroute.inputs.messages import Conversation, parse
from vlroute.serving.settings import ServerSettings
from vlroute.types import MODES, Answer, AnswerDelta, Finished, Mode, TokenLogprob, ToolCalled

pytestmark = pytest.mark.float32
TASKS = [task(kind, level, seed) for seed, (kind, level) in enumerate(
    [("hop", "hard"), ("ocr", "hard"), ("math", "hard"), ("count", "easy")]
)]  # fmt: skip
SOME = TASKS[1]
HOT = {"temperature": 1.3, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.2, "seed": 3}
ASKED: dict[str, Any] = {"logprobs": True, "top_logprobs": 5}
TOOLS = [{"type": "function", "function": {"name": "tap", "parameters": {"type": "object", "properties": {}}}}]


@contextmanager
def generations() -> Iterator[list[Generation]]:
    """Collects what has ended."""
    kept, finish = list[Generation](), Generation.finish

    def keep(one: Generation) -> None:
        kept.append(one)
        finish(one)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generation, "finish", keep)
        yield kept


def generation_of(answer: Answer, kept: list[Generation]) -> Generation:
    def entries(one: Generation) -> Any:
        return tuple(one.request.on_scores.__self__.entries) if one.request.on_scores else None  # type: ignore[attr-defined]

    return next(one for one in kept if entries(one) == answer.logprobs)


def entries_of(answer: Answer) -> tuple[TokenLogprob, ...]:
    assert answer.logprobs is not None
    return answer.logprobs


def written(answer: Answer) -> bytes:
    return b"".join(one.bytes or b"" for one in entries_of(answer))


def check_text(answer: Answer) -> None:
    """What holds for an answer without tool calls, stop strings and rescue."""
    assert len(entries_of(answer)) == answer.usage.completion_tokens - answer.usage.thinking_tokens
    assert written(answer).decode("utf-8", "replace").strip() == answer.text


@torch.inference_mode()
def check_scores(
    model: Any, processor: Any, conversation: Conversation, output: list[int], answer: Answer, **options: Any
) -> None:
    """Compare with one forward pass of plain transformers over the prompt and the output."""
    inputs, ids = pixel_path(processor, conversation, **options), output[: answer.usage.completion_tokens]
    length = inputs["input_ids"].shape[1]
    more = {"input_ids": ids, "attention_mask": [1] * len(ids), "mm_token_type_ids": [0] * len(ids)}
    for name, values in more.items():
        inputs[name] = torch.cat([inputs[name], torch.tensor([values]).to(inputs[name])], dim=1)
    thought = answer.usage.thinking_tokens
    expected = model(**inputs).logits[0, length - 1 : -1].float().log_softmax(-1)[thought:]
    texts = TokenTexts(processor.tokenizer)
    for token, row, entry in zip(ids[thought:], expected, entries_of(answer), strict=True):
        assert (entry.token, entry.bytes) == texts[token]
        assert entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
        best = row.topk(5).values.tolist()
        assert [one.logprob for one in entry.top_logprobs] == pytest.approx(best, abs=1e-4)
        for one in entry.top_logprobs:  # tokens with nearly equal scores may change places
            near = ((row - one.logprob).abs() < 1e-4).nonzero()[:, 0].tolist()
            assert (one.token, one.bytes) in [texts[index] for index in near]


@pytest.mark.parametrize("family", ["pair", "hybrid"])
def test_the_same_as_plain_transformers_in_a_mixed_batch(
    family: str, plain: dict[str, Any], plain_hybrid: dict[str, Any]
) -> None:
    """Eight at a time, greedy and sampled, with penalties and forced tokens; every second request does not ask."""
    hybrid = family == "hybrid"
    router = Router.from_pretrained("pocket-hybrid" if hybrid else "pocket", max_num_seqs=8).load()
    jobs = [
        (one, mode, {**settings, **asked, "max_new_tokens": 40, "thinking_budget": 20})
        for one in TASKS for mode in MODES for settings in ({"do_sample": False}, HOT) for asked in (ASKED, {})
    ]  # fmt: skip
    with generations() as kept, ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(lambda job: router.ask(job[0].prompt, **media(job[0]), mode=job[1], **job[2]), jobs)]
    router.close()
    lengths = 0
    for (one, mode, settings), answer in zip(jobs, answers, strict=True):
        if "logprobs" not in settings:
            assert answer.logprobs is None
            continue
        check_text(answer)
        options = {"enable_thinking": mode == "thinking"} if hybrid else {}
        output = generation_of(answer, kept).sampler.output_ids
        model, processor = (plain_hybrid if hybrid else plain)[mode]
        check_scores(model, processor, parse(one.prompt, **media(one)), output, answer, **options)
        lengths += len(entries_of(answer))
    assert lengths > 50
    assert {answer.closed for answer in answers} >= {None, "budget"}


def test_only_requests_that_ask_pay(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    computed, compute = list[int](), scheduler.log_probs_of

    def counting(logits: torch.Tensor, *rest: Any) -> Any:
        computed.append(len(logits))
        return compute(logits, *rest)

    monkeypatch.setattr(scheduler, "log_probs_of", counting)
    plain = router.ask(SOME.prompt, **media(SOME), mode="thinking", max_new_tokens=60)
    assert not computed
    asked = router.ask(SOME.prompt, **media(SOME), mode="thinking", max_new_tokens=60, logprobs=True)
    assert (asked.text, asked.thinking) == (plain.text, plain.thinking)
    assert asked.usage.thinking_tokens > 3
    assert len(entries_of(asked)) <= len(computed) <= len(entries_of(asked)) + 1  # and the end token
    assert not any(one.top_logprobs for one in entries_of(asked))


@pytest.mark.parametrize("mode", MODES)
def test_pieces_of_a_stream_carry_their_entries(router: Router, mode: Mode) -> None:
    events = [*router.stream(SOME.prompt, **media(SOME), mode=mode, max_new_tokens=60, **ASKED)]
    pieces = [event for event in events if isinstance(event, AnswerDelta)]
    assert isinstance(events[-1], Finished)
    answer = events[-1].answer
    sent = [entry for piece in pieces for entry in piece.logprobs]
    assert sent == [*entries_of(answer)][: len(sent)]
    assert all(not (one.bytes or b"").strip() for one in entries_of(answer)[len(sent) :])
    for piece in pieces:
        assert piece.text.encode() in b"".join(one.bytes or b"" for one in piece.logprobs)
    assert answer == router.ask(SOME.prompt, **media(SOME), mode=mode, max_new_tokens=60, **ASKED) or answer.text


def script(router: Router, *parts: str | int) -> list[int]:
    """Token ids of texts; numbers are bytes."""
    ids: list[int] = []
    for part in parts:
        ids += (
            [router.pair.instruct.tokenizer.convert_tokens_to_ids(f"<0x{part:02X}>")]
            if isinstance(part, int)
            else (token_ids(router, part, "instruct"))
        )
    return ids


def test_characters_that_are_divided_between_tokens(router: Router) -> None:
    with scripted(router, "instruct", script(router, "a", 0xE2, 0x82, 0xAC, "b", 0xFF, "c")):
        events = [*router.stream("?", mode="instruct", logprobs=True)]
    assert isinstance(events[-1], Finished)
    answer = events[-1].answer
    assert answer.text == "a€b\ufffdc"
    assert [one.bytes for one in entries_of(answer)] == [b"a", b"\xe2", b"\x82", b"\xac", b"b", b"\xff", b"c"]
    assert [one.token for one in entries_of(answer)] == ["a", *3 * ["\ufffd"], "b", "\ufffd", "c"]
    whole = next(event for event in events if isinstance(event, AnswerDelta) and "€" in event.text)
    assert [one.bytes for one in whole.logprobs][:3] == [b"\xe2", b"\x82", b"\xac"]


def test_what_has_an_entry(router: Router) -> None:
    def ask(*parts: str | int, **settings: Any) -> Answer:
        with scripted(router, "instruct", script(router, *parts)):
            return router.ask("?", mode="instruct", logprobs=True, **settings)

    space = ask(" 7 \n")  # white space that is removed
    assert (space.text, written(space)) == ("7", b" 7 \n")
    stop = ask("one two three", stop=[" tw"])  # up to the token that completes the stop string
    assert (stop.text, written(stop)[:6]) == ("one", b"one tw")
    assert len(entries_of(stop)) == stop.usage.completion_tokens
    cut = ask("one two three", max_new_tokens=2)
    assert (cut.finish_reason, len(entries_of(cut))) == ("length", 2)
    check_text(cut)
    with scripted(router, "instruct", [*script(router, "7"), end_id(router, "instruct"), *script(router, "8")]):
        endless = router.ask("?", mode="instruct", logprobs=True, eos_token_id=-1, max_new_tokens=3)
    assert [one.bytes for one in entries_of(endless)] == [b"7", None, b"8"]  # a control token is no text
    assert (endless.text, entries_of(endless)[1].token) == ("78", router.pair.instruct.tokenizer.eos_token)


def test_a_forced_token_has_the_probability_that_the_model_gives_it(router: Router) -> None:
    """The line break after the end of the reasoning, whatever the model would write."""
    with scripted(router, "thinking", script(router, *"xxxxxxx")):
        answer = router.ask("?", mode="thinking", thinking_budget=1, max_new_tokens=12, **ASKED)
    first = entries_of(answer)[0]
    assert (answer.closed, first.bytes) == ("budget", b"\n\n")
    assert first.logprob < -1000
    assert (first.top_logprobs[0].token, first.top_logprobs[0].logprob) == ("x", pytest.approx(0, abs=1e-3))


def test_values_are_those_before_penalties_bans_and_grammars(router: Router) -> None:
    free = router.ask(SOME.prompt, **media(SOME), mode="instruct", max_new_tokens=1, **ASKED)
    first = entries_of(free)[0]
    assert sum(math.exp(one.logprob) for one in first.top_logprobs) <= 1 + 1e-6
    banned = token_ids(router, first.token, "instruct")
    changed: list[dict[str, Any]] = [
        {"suppress_tokens": banned}, {"logit_bias": {banned[0]: -100}}, {"response_format": {"choice": ["?"]}}, HOT
    ]  # fmt: skip
    for settings in changed:
        other = router.ask(SOME.prompt, **media(SOME), mode="instruct", max_new_tokens=1, **settings, **ASKED)
        assert [one.token for one in entries_of(other)[0].top_logprobs] == [one.token for one in first.top_logprobs]
        assert entries_of(other)[0].top_logprobs[0].logprob == pytest.approx(first.logprob, abs=1e-5)


def test_tool_calls(router: Router) -> None:
    text = 'so <tool_call>\n{"name": "tap", "arguments": {}}\n</tool_call>'
    with scripted(router, "instruct", token_ids(router, text, "instruct")):
        events = [*router.stream("?", tools=TOOLS, mode="instruct", logprobs=True)]
    assert isinstance(events[-1], Finished)
    answer = events[-1].answer
    assert (answer.text, answer.tool_calls[0].name, answer.finish_reason) == ("so", "tap", "tool_calls")
    assert written(answer).decode() == text
    assert [type(event) for event in events[1:]] == [AnswerDelta, ToolCalled, Finished]


def test_a_continued_answer_has_entries_for_its_own_tokens(router: Router) -> None:
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "one"}]
    with scripted(router, "instruct", script(router, " two")):
        answer = router.ask(messages, logprobs=True)
    assert (answer.text, written(answer)) == (" two", b" two")


def test_a_rescued_answer_and_one_without_tokens(router: Router) -> None:
    rescued = router.ask(SOME.prompt, **media(SOME), mode="thinking", max_new_tokens=2, **ASKED)
    assert rescued.decision.rescued  # Instruct has written the answer
    assert written(rescued).decode().strip() == rescued.text
    hard = task("math", "hard")
    empty = router.ask(hard.prompt, **media(hard), mode="thinking", max_new_tokens=5, answer_reserve=0, **ASKED)
    assert (empty.text, empty.finish_reason, empty.logprobs) == ("", "length", ())


def test_answers_as_json(router: Router) -> None:
    answer = router.ask(SOME.prompt, **media(SOME), mode="instruct", logprobs=True, top_logprobs=1)
    entries = json.loads(json.dumps(answer.as_dict()))["logprobs"]
    assert bytes(entries[0]["bytes"]).decode() == entries[0]["token"] == entries[0]["top_logprobs"][0]["token"]
    assert entries[0].keys() == {"token", "logprob", "bytes", "top_logprobs"}
    assert json.loads(json.dumps(router.ask("?", mode="instruct").as_dict()))["logprobs"] is None


def test_a_saved_conversation_keeps_them(router: Router, tmp_path: Path) -> None:
    chat = router.chat()
    with scripted(router, "instruct", script(router, "a", 0xE2, 0x82, 0xAC)):
        answer = chat.send("?", mode="instruct", **ASKED)
    plain = chat.send("?", mode="instruct")
    chat.save(tmp_path)
    assert [turn.answer.logprobs for turn in router.resume(tmp_path).history] == [answer.logprobs, plain.logprobs]
    assert (len(entries_of(answer)), plain.logprobs) == (4, None)


def test_settings_that_do_not_fit(router: Router) -> None:
    for settings in ({"top_logprobs": 3}, {"logprobs": False, "top_logprobs": 3}):
        with pytest.raises(SettingsError, match="top_logprobs=3 needs logprobs=True"):
            router.ask("?", **settings)
    with pytest.raises(SettingsError, match="top_logprobs must be a whole number from 0 to 20"):
        router.ask("?", logprobs=True, top_logprobs=21)
    always = Router.from_pretrained(logprobs=True, device=router.pair.instruct.device)
    assert len(entries_of(always.ask("?", mode="instruct", top_logprobs=20, max_new_tokens=1))[0].top_logprobs) == 20
    for one in (always, Router.from_pretrained(**ASKED, device=router.pair.instruct.device)):
        assert one.ask("?", mode="instruct", logprobs=False).logprobs is None


def test_bytes_of_a_byte_level_tokenizer() -> None:
    """Of the kind that Qwen's checkpoints have; that of the pocket models has byte fallback."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        ["naïve café, 圆形 €5", "a  b"], trainers.BpeTrainer(initial_alphabet=alphabet, vocab_size=280)
    )
    backend.add_tokens(["</think>"])
    for text in ("naïve café, 圆形 €5 \U0001f600\n\t\x00", "</think> ", *map(chr, range(0x180))):
        ids = backend.encode(text).ids
        assert b"".join(token_bytes(backend.id_to_token(i), backend.decode([i])) for i in ids) == text.encode()


# HTTP


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(ServerSettings(max_num_seqs=8)) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return server.openai()


def as_sent(answer: Answer) -> list[dict[str, Any]]:
    return [rounded(one.as_dict()) for one in entries_of(answer)]


def rounded(entry: Any) -> Any:
    """The last bits of log-probabilities depend on the batch and on the cached prefix."""
    entry["logprob"] = pytest.approx(entry["logprob"], abs=1e-4)
    entry["top_logprobs"] = [
        {**one, "logprob": pytest.approx(one["logprob"], abs=1e-4)} for one in entry["top_logprobs"]
    ]
    return entry


@pytest.mark.parametrize("mode", MODES)
def test_chat_completions(client: openai.OpenAI, server: Served, mode: Mode) -> None:
    body: dict[str, Any] = {"model": mode, "messages": [user(SOME)], "max_tokens": 60, "temperature": 0}
    expected = server.router.ask(SOME.prompt, **media(SOME), mode=mode, max_new_tokens=60, temperature=0, **ASKED)
    said = client.chat.completions.create(**body, **ASKED)
    assert said.choices[0].logprobs is not None
    assert said.choices[0].logprobs.content is not None
    assert [one.model_dump() for one in said.choices[0].logprobs.content] == as_sent(expected)
    assert said.choices[0].message.content == expected.text
    sent = list[dict[str, Any]]()
    for chunk in client.chat.completions.create(**body, **ASKED, stream=True):
        (choice,) = chunk.choices
        if choice.logprobs is not None:
            assert choice.logprobs.content
            sent += [one.model_dump() for one in choice.logprobs.content]
            assert choice.delta.content or choice.finish_reason
    assert sent == as_sent(expected)
    assert client.chat.completions.create(**body).choices[0].logprobs is None
    bare = client.chat.completions.create(**body, logprobs=True).choices[0].logprobs
    assert bare is not None
    assert [one.top_logprobs for one in bare.content or ()] == [[]] * len(as_sent(expected))


def test_entries_after_the_last_piece_come_with_the_last_chunk(client: openai.OpenAI, server: Served) -> None:
    with scripted(server.router, "instruct", script(server.router, "7 \n")):
        body: dict[str, Any] = {"model": "instruct", "messages": [{"role": "user", "content": "?"}], "logprobs": True}
        chunks = [*client.chat.completions.create(**body, stream=True)]
    ends = [chunk.choices[0] for chunk in chunks if chunk.choices[0].logprobs]
    texts = ["".join(one.token for one in (choice.logprobs and choice.logprobs.content) or ()) for choice in ends]
    assert (texts, ends[-1].finish_reason) == (["7", " \n"], "stop")


@pytest.mark.parametrize("mode", MODES)
def test_responses(client: openai.OpenAI, server: Served, mode: Mode) -> None:
    body: dict[str, Any] = {"model": mode, "input": "Add 2 and 3.", "temperature": 0, "max_output_tokens": 60}
    asked: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 5}
    expected = as_sent(server.router.ask("Add 2 and 3.", mode=mode, max_new_tokens=60, temperature=0, **ASKED))
    said = client.responses.create(**body, **asked)
    (part,) = (part for item in said.output if item.type == "message" for part in item.content)
    assert part.type == "output_text"
    assert [one.model_dump() for one in part.logprobs or ()] == expected
    assert (said.top_logprobs, said.model_extra["vlroute"]["ignored"]) == (5, [])  # type: ignore[index]
    events = [*client.responses.create(**body, **asked, stream=True)]
    deltas = [one for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
    (done,) = (event for event in events if event.type == "response.output_text.done")
    assert [one.model_dump()["token"] for one in done.logprobs] == [one["token"] for one in expected]
    assert [one.token for one in deltas] == [one.token for one in done.logprobs][: len(deltas)]
    assert events[-1].type == "response.completed"
    assert events[-1].response.output[-1].content[0].logprobs == part.logprobs  # type: ignore[union-attr]
    plain = client.responses.create(**body)
    assert [part.logprobs for item in plain.output if item.type == "message" for part in item.content] == [[]]  # type: ignore[union-attr]


@pytest.mark.parametrize(("fields", "name"), [
    ({"top_logprobs": 2}, "top_logprobs"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"), ({"logprobs": 5}, "logprobs"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias"),
])  # fmt: skip
def test_what_is_refused_names_the_field(client: openai.OpenAI, fields: dict[str, Any], name: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="instruct", messages=[{"role": "user", "content": "?"}], extra_body=fields)
    assert caught.value.status_code in (400, 422)
    assert name in caught.value.body["message"]  # type: ignore[index, call-overload]
    assert "sequence_bias" not in str(caught.value)
