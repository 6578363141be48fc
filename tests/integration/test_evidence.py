"""Evidence and trials: what a mode has shown of its answer, and answers that end or go on because of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.conftest import DEVICE, PICTURES, forget, pixel_path, task
from tests.integration.test_scheduler import Start, answering, ask, in_use, make
from tests.recording import held, model_calls
from tests.serving import until
from tests.tiny import write_tiny
from vlroute import Router
from vlroute.engine.local import scheduler as scheduling
from vlroute.engine.local.engine import LocalEngine
from vlroute.engine.local.sampling import token_scores
from vlroute.engine.local.scheduler import Scheduler
from vlroute.engine.protocol import TOP_TOKENS, Evidence, Reply, Trial
from vlroute.inputs.messages import Conversation, parse
from vlroute.steps import run
from vlroute.types import MODES, Channel, Mode

__all__ = ["ask", "make"]
pytestmark = pytest.mark.float32
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 40}
SIX: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": -1}
HOP = task("hop")
QUESTION = parse(HOP.prompt, HOP.frames[0])
MANY = [parse(f"How many {what}?", PICTURES[i % 4]) for i, what in enumerate(
    ["circles", "squares", "letters", "large numbers", "buttons", "lamps", "arrows on the left", "dots"])]  # fmt: skip


@dataclass(slots=True)
class Judge:
    """Gives `verdicts` in order and keeps the evidence; None when there are no more."""

    verdicts: list[bool | None] = field(default_factory=list)
    seen: list[Evidence] = field(default_factory=list)

    def __call__(self, evidence: Evidence) -> bool | None:
        self.seen.append(evidence)
        return self.verdicts.pop(0) if self.verdicts else None

    def trial(self, **options: Any) -> Trial:
        return Trial(self, **options)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    with Router.from_pretrained(write_tiny("qwen3_5", tmp_path_factory.mktemp("hybrid"))) as router:
        yield router.load()


@pytest.fixture(scope="module", params=["pair", "hybrid"])
def any_router(request: pytest.FixtureRequest, router: Router) -> Router:
    return router if request.param == "pair" else request.getfixturevalue("hybrid")


@cache
def _plain(source: str) -> tuple[Any, Any]:
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32).to(DEVICE).eval()
    return model, AutoProcessor.from_pretrained(source)


@torch.inference_mode()
def expected(router: Router, conversation: Conversation, ids: list[int]) -> tuple[torch.Tensor, list[float]]:
    """The last hidden state of the prompt, and the log-probability of each of `ids`, by plain transformers."""
    checkpoint = router.pair.instruct
    model, processor = _plain(str(checkpoint.source))
    inputs = pixel_path(processor, conversation, **checkpoint.template_options)
    prompt = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids], device=DEVICE)], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(ids)))
    out = model(**inputs, output_hidden_states=True)
    state = out.hidden_states[-1][0, prompt - 1]
    # the last entry is the input of lm_head
    torch.testing.assert_close(model.lm_head(state), out.logits[0, prompt - 1])
    log_probs = out.logits[0, prompt - 1 : -1].float().log_softmax(-1)
    return state.cpu(), [float(row[token]) for row, token in zip(log_probs, ids, strict=True)]


def shown(engine: LocalEngine, conversation: Conversation, settings: dict[str, Any] = SIX) -> tuple[Reply, Evidence]:
    """An answer, and all that it has shown."""
    judge = Judge()
    reply = run(answering(engine, conversation, "instruct", settings, trial=judge.trial(state=True, answer=True)))
    assert [len(one.log_probs) for one in judge.seen] == [0, reply.completion_tokens]
    assert judge.seen[0].state is not None
    return reply, judge.seen[-1]


def assert_equal(one: Evidence, other: Evidence) -> None:
    np.testing.assert_allclose(one.state, other.state, atol=1e-4)  # type: ignore[arg-type]
    np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4)
    np.testing.assert_allclose(one.entropies, other.entropies, atol=1e-4)
    assert one.complete == other.complete


# evidence


def test_evidence_is_what_plain_transformers_computes(any_router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh, behind a cached prefix, and with a prompt that is read in chunks."""
    generated, finish = [], scheduling.Generation.finish

    def keep(one: Any) -> None:
        generated.append(one.sampler.output_ids)
        finish(one)

    monkeypatch.setattr(scheduling.Generation, "finish", keep)
    forget(any_router)
    fresh = shown(any_router._local, QUESTION)
    state, log_probs = expected(any_router, QUESTION, generated[0])
    cached = shown(any_router._local, QUESTION)
    monkeypatch.setattr(scheduling, "CHUNK", 16)
    monkeypatch.setattr(scheduling, "CHUNK_ALONE", 16)
    forget(any_router)
    with model_calls() as calls:
        chunked = shown(any_router._local, QUESTION)
    assert len(calls.prompts) > 2
    assert cached[0].cached_tokens > 0
    for reply, evidence in (fresh, cached, chunked):
        assert evidence.state is not None
        assert (evidence.state.dtype, evidence.complete) == (np.float32, False)
        np.testing.assert_allclose(evidence.state, state, atol=1e-4)
        np.testing.assert_allclose(evidence.log_probs, log_probs, atol=1e-4)
        assert len(evidence.entropies) == reply.completion_tokens == 6


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 0.2, "top_k": 3, "seed": 3},
        {"do_sample": False, "presence_penalty": 2.0, "repetition_penalty": 1.5},
    ],
    ids=["temperature", "penalties"],
)
def test_settings_change_the_tokens_but_not_their_probabilities(
    router: Router, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, finish = list[int](), scheduling.Generation.finish

    def keep(one: Any) -> None:
        ids.extend(one.sampler.output_ids)
        finish(one)

    monkeypatch.setattr(scheduling.Generation, "finish", keep)
    _, evidence = shown(router._local, QUESTION, SIX | settings)
    np.testing.assert_allclose(evidence.log_probs, expected(router, QUESTION, ids)[1], atol=1e-4)


def test_a_batch_changes_no_evidence(any_router: Router) -> None:
    engine, alone = any_router._local, []
    for one in MANY:
        engine.prefixes.clear()  # the features stay, so that all answers are queued at once below
        alone.append(shown(engine, one)[1])
    engine.prefixes.clear()
    with held(engine) as release, ThreadPoolExecutor(len(MANY)) as pool, model_calls() as calls:
        futures = [pool.submit(shown, engine, one) for one in MANY]
        until(lambda: engine.scheduler._new.qsize() == len(MANY))
        release.set()
        together = [one.result(60)[1] for one in futures]
    assert max(calls.steps) > 4
    for one, other in zip(together, alone, strict=True):
        assert_equal(one, other)


def test_entropy_of_the_most_probable_tokens_and_the_rest() -> None:
    logits = torch.zeros(3, 32)
    logits[1, 4], logits[2, :TOP_TOKENS] = 200.0, 100.0  # one certain token; five, without a rest
    scores = token_scores(logits, [1, 4, 5])
    rest = 1 - TOP_TOKENS / 32
    uniform = TOP_TOKENS / 32 * np.log(32) - rest * np.log(rest)
    torch.testing.assert_close(scores[:, 1], torch.tensor([uniform, 0.0, np.log(5)]).float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores[:, 0], torch.tensor([-np.log(32), 0.0, -100 - np.log(5)]).float())
    assert token_scores(logits.bfloat16(), [1, 4, 5]).dtype == torch.float32


def test_the_end_token_is_no_part_of_the_evidence(router: Router) -> None:
    reply, evidence = shown(router._local, QUESTION, GREEDY)
    assert (reply.finish_reason, evidence.complete) == ("stop", True)
    stop = reply.text[-1]
    cut, evidence = shown(router._local, QUESTION, GREEDY | {"stop": [stop]})
    assert (cut.finish_reason, evidence.complete, cut.text) == ("stop", True, reply.text[: reply.text.index(stop)])


# trials


@dataclass(slots=True)
class Outcome:
    """An answer with a trial: its pieces, and the text of the answer without a trial."""

    reply: Reply
    pieces: list[tuple[Channel, str]]
    whole: Reply
    read: list[int]
    steps: int


@pytest.fixture
def tried(any_router: Router) -> Callable[..., Outcome]:
    def answered(trial: Trial, settings: dict[str, Any] = GREEDY) -> Outcome:
        engine = any_router._local
        whole = run(answering(engine, QUESTION, "instruct", settings))
        forget(any_router)
        pieces: list[tuple[Channel, str]] = []
        with model_calls() as calls:
            reply = run(
                answering(engine, QUESTION, "instruct", settings, lambda *piece: pieces.append(piece), trial=trial)
            )
        read = [sum(one.length for one in chunks) for chunks in calls.prompts]
        assert not any(lane.running or lane.waiting for lane in engine.scheduler._lanes.values())
        return Outcome(reply, pieces, whole, read, len(calls.steps))

    return answered


def test_an_answer_that_ends_at_the_prompt(any_router: Router, tried: Callable[..., Outcome]) -> None:
    """Nothing is generated, and the prompt is in the cache: a hybrid's Thinking reads only what follows it."""
    judge = Judge([False])
    outcome = tried(judge.trial(state=True, answer=True))
    reply = outcome.reply
    assert (reply.finish_reason, reply.text, reply.completion_tokens, outcome.pieces) == ("cancelled", "", 0, [])
    assert (len(judge.seen), sum(outcome.read), outcome.steps) == (1, reply.prompt_tokens, 0)
    mode: Mode = "thinking" if any_router._local.shared_prompt else "instruct"
    with model_calls() as calls:
        second = run(answering(any_router._local, QUESTION, mode, GREEDY | {"answer_reserve": 0}))
    read = sum(one.length for chunks in calls.prompts for one in chunks)
    assert read == second.prompt_tokens - second.cached_tokens
    assert 0 < read <= 24 < second.prompt_tokens


@pytest.mark.parametrize("verdicts", [[True], [None, True], [None, None]])
def test_text_is_passed_on_once_and_in_order(tried: Callable[..., Outcome], verdicts: list[Any]) -> None:
    judge = Judge([*verdicts])
    outcome = tried(judge.trial(state=True, answer=True))
    assert (outcome.reply.text, outcome.reply.finish_reason) == (outcome.whole.text, outcome.whole.finish_reason)
    assert "".join(text for _, text in outcome.pieces) == outcome.whole.text
    assert len(judge.seen) == len(verdicts)


@pytest.mark.parametrize("state", [False, True])
def test_text_is_held_back_until_the_answer_has_ended(router: Router, state: bool) -> None:
    """Also for a trial of the answer alone; the judge sees no piece before it decides."""
    pieces: list[str] = []
    seen: list[Evidence] = []

    def judge(evidence: Evidence) -> bool | None:
        assert not pieces
        seen.append(evidence)
        return True if evidence.complete else None

    trial = Trial(judge, state=state, answer=True)
    reply = run(
        answering(router._local, QUESTION, "instruct", GREEDY, lambda _, piece: pieces.append(piece), trial=trial)
    )
    assert "".join(pieces) == reply.text != ""
    assert len(seen) == 1 + state
    assert all(one.state is not None for one in seen)


def test_the_text_of_a_complete_answer_can_be_dropped(tried: Callable[..., Outcome]) -> None:
    judge = Judge([None, False])
    outcome = tried(judge.trial(state=True, answer=True))
    assert (outcome.reply.finish_reason, outcome.pieces) == ("cancelled", [])
    assert outcome.reply.text == outcome.whole.text
    assert judge.seen[1].complete == (outcome.whole.finish_reason == "stop")


def test_a_trial_of_the_state_alone_is_decided_at_the_prompt(tried: Callable[..., Outcome]) -> None:
    judge = Judge()
    outcome = tried(judge.trial(state=True))
    assert outcome.reply.text == "".join(text for _, text in outcome.pieces) == outcome.whole.text
    assert [one.log_probs for one in judge.seen] == [()]


def test_a_trial_of_nothing_holds_nothing_back(tried: Callable[..., Outcome]) -> None:
    judge = Judge([False])
    outcome = tried(judge.trial())
    assert outcome.reply.text == "".join(text for _, text in outcome.pieces) == outcome.whole.text
    assert not judge.seen


@pytest.mark.parametrize("verdict", [True, None, False, np.False_])
def test_no_seconds_decide_at_the_first_token(tried: Callable[..., Outcome], verdict: Any) -> None:
    judge = Judge([verdict, False])
    outcome = tried(judge.trial(answer=True, seconds=0))
    assert [len(one.log_probs) for one in judge.seen] == [1]
    assert not judge.seen[0].complete
    if verdict is None or verdict:
        assert outcome.reply.text == "".join(text for _, text in outcome.pieces) == outcome.whole.text
    else:
        assert (outcome.reply.finish_reason, outcome.reply.completion_tokens, outcome.pieces) == ("cancelled", 1, [])
        assert outcome.steps == 0


@pytest.mark.parametrize("state", [True, False], ids=["state", "answer"])
def test_a_judge_that_raises_ends_its_answer_only(router: Router, make: Any, ask: Start, state: bool) -> None:
    engine, pieces = make(), list[Any]()

    def judge(evidence: Evidence) -> bool:
        raise ZeroDivisionError("the judge failed")

    others = [ask(engine, one, "instruct", SIX) for one in MANY[:3]]
    trial = Trial(judge, state=state, answer=not state)
    failing = ask(engine, QUESTION, "instruct", GREEDY, lambda *piece: pieces.append(piece), trial=trial)
    with pytest.raises(ZeroDivisionError, match="the judge failed"):
        failing.result(60)
    assert all(one.result(60).completion_tokens == 6 for one in others)
    assert not pieces
    assert run(answering(engine, QUESTION, "instruct", SIX)).completion_tokens == 6


def test_cancelling_an_undecided_answer(make: Any, ask: Start) -> None:
    """The judge is not asked, and the pieces are the text of the reply."""
    engine, cancel, pieces, judge = make(), threading.Event(), list[str](), Judge()
    endless = SIX | {"max_new_tokens": 3000}
    trial = judge.trial(answer=True)
    future: Future[Reply] = ask(
        engine, QUESTION, "instruct", endless, lambda _, one: pieces.append(one), cancel, trial=trial
    )
    until(lambda: any(len(one.scores) > 5 for lane in [*engine.scheduler._lanes.values()] for one in lane.running))
    cancel.set()
    reply = future.result(60)
    assert (reply.finish_reason, judge.seen) == ("cancelled", [])
    assert "".join(pieces) == reply.text


def test_preempted_answers_are_judged_once(make: Any, ask: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, interrupted, real = make(tokens=700), list[int](), Scheduler._preempt
    settings = SIX | {"max_new_tokens": 100}
    expected = [shown(make(), one, settings) for one in MANY[:4]]

    def counted(scheduler: Scheduler) -> None:
        interrupted.append(1)
        real(scheduler)

    monkeypatch.setattr(Scheduler, "_preempt", counted)
    judges = [Judge() for _ in expected]
    futures = [
        ask(engine, one, mode, settings, trial=judge.trial(state=True, answer=True) if mode == "instruct" else None)
        for one, judge in zip(MANY, judges, strict=False)
        for mode in MODES
    ]
    replies = [one.result(60) for one in futures][::2]
    assert interrupted
    for reply, judge, (alone, evidence) in zip(replies, judges, expected, strict=True):
        assert reply.text == alone.text
        assert [len(one.log_probs) for one in judge.seen] == [0, 100]
        assert_equal(judge.seen[-1], evidence)


def test_a_decided_answer_frees_its_slot_for_the_next(make: Any, ask: Start) -> None:
    engine = make(max_num_seqs=1)
    judges = [Judge([False]) for _ in MANY]
    futures = [
        ask(engine, one, "instruct", GREEDY, trial=judge.trial(state=True))
        for one, judge in zip(MANY, judges, strict=True)
    ]
    assert {one.result(60).finish_reason for one in futures} == {"cancelled"}
    assert in_use(engine) == (0, 0)


def test_no_synchronization_before_the_trial_is_decided(make: Any, ask: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, synchronized, tolist, judge = make(), list[int](), torch.Tensor.tolist, Judge()

    def counted(tensor: torch.Tensor) -> Any:
        if threading.current_thread().name == "vlroute-engine":
            synchronized.append(1)
        return tolist(tensor)

    run(answering(engine, QUESTION, "instruct", SIX))
    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    run(answering(engine, QUESTION, "instruct", SIX, trial=judge.trial(answer=True)))
    assert len(synchronized) == 6 + 1
    assert len(judge.seen[0].log_probs) == 6


def test_what_the_engines_offer(router: Router, hybrid: Router) -> None:
    assert [one._local.stages for one in (router, hybrid)] == [("prefill", "answer")] * 2
    assert [one._local.shared_prompt for one in (router, hybrid)] == [False, True]
