"""The router as application code uses it: decide, ask, stream."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import media, task
from tests.recording import model_calls
from vlroute import Policy, Router
from vlroute.errors import ArtifactError, InputError
from vlroute.inputs.media import Picture, Video
from vlroute.types import MODES, AnswerDelta, Decided, Finished, ThinkingDelta

SOME = task("math", "hard")


def test_deciding_stays_light() -> None:
    code = (
        "import sys, vlroute\n"
        "slow = {'torch', 'transformers', 'sklearn', 'sentence_transformers', 'huggingface_hub'}\n"
        "def heavy(): return slow & set(sys.modules)\n"
        "assert not heavy(), heavy()\n"
        "router = vlroute.Router.from_pretrained()\n"
        "decision = router.decide('Add the numbers.', caption='three numbers')\n"
        "from PIL import Image\n"
        "seen = router.decide('Add the numbers.', images=Image.new('RGB', (9, 9)))\n"
        "assert not heavy(), heavy()\n"
        "print(decision.mode, seen.reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("thinking")
    assert "from the prompt alone" in done.stdout
    assert done.stderr.count("embedded pocket pair") == 1
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_picture_decides_where_the_prompt_cannot(router: Router) -> None:
    one, many = task("math", "easy"), task("math", "hard", seed=2)
    # both modes read one number rightly: at this price a gain of some thousandths is not worth the wait
    decisions = [router.decide("Add the numbers.", **media(some), price=1.0) for some in (one, many)]
    assert [decision.mode for decision in decisions] == ["instruct", "thinking"]
    assert decisions[0].caption != decisions[1].caption
    for decision in decisions:
        assert decision.gain == decision.p_thinking - decision.p_instruct
        assert (decision.mode == "thinking") == (decision.gain > decision.threshold)


def test_a_given_caption_stands_in_for_the_captioner(router: Router) -> None:
    decision = router.decide("Add the numbers.", **media(SOME), caption="one number", price=1.0)
    assert decision.caption == "one number"
    assert decision.mode == "instruct"


def test_price_moves_the_threshold(router: Router) -> None:
    dear = router.decide("Add the numbers.", caption="three numbers", price=1e6)
    free = router.decide("Add the numbers.", caption="three numbers", price=0.0)
    assert (dear.mode, free.mode) == ("instruct", "thinking")
    assert Router.from_pretrained(policy=Policy(price=1e6)).decide("Add.", caption="three numbers").mode == "instruct"


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_can_be_forced(router: Router, mode: str) -> None:
    answer = router.ask(SOME.prompt, **media(SOME), mode=mode)
    assert answer.decision.mode == mode
    assert answer.decision.forced
    assert bool(answer.thinking) == (mode == "thinking")
    with pytest.raises(ValueError, match="mode must be"):
        router.ask(SOME.prompt, **media(SOME), mode="fast")


def test_usage_and_timing_add_up(router: Router) -> None:
    answer = router.ask(SOME.prompt, **media(SOME), mode="thinking")
    tokenizer = router.pair.thinking.tokenizer
    assert answer.usage.vision_tokens == 16
    assert answer.usage.completion_tokens > answer.usage.thinking_tokens > 0
    written = tokenizer(f"{answer.thinking}\n</think>\n\n{answer.text}", add_special_tokens=False)["input_ids"]
    assert answer.usage.completion_tokens == len(written)
    steps = answer.timing
    parts = steps.caption + steps.decide + steps.vision + steps.queue + steps.prefill + steps.decode
    assert parts <= steps.total < parts + 0.1


def test_the_captioner_runs_once_a_picture(folders: dict[str, Path]) -> None:
    seen: list[Picture | Video] = []

    def captioner(picture: Picture | Video) -> str:
        seen.append(picture)
        return "three numbers"

    router = Router.from_pretrained(captioner=captioner)
    for _ in range(2):
        assert router.decide(SOME.prompt, **media(SOME)).caption == "three numbers"
    both = router.decide("Compare.", images=[SOME.frames[0], task("ocr").frames[0]])
    assert both.caption == "three numbers; three numbers"
    assert len(seen) == 2


def test_one_tower_run_serves_caption_and_answer(router: Router) -> None:
    with model_calls() as calls:
        fresh = task("hop", seed=991)
        answer = router.ask(fresh.prompt, **media(fresh))
    assert answer.decision.caption
    assert calls.towers == [1]


@pytest.mark.parametrize("kind", ["hop", "ocr", "video"])
@pytest.mark.parametrize("mode", MODES)
def test_stream_tells_what_ask_gives(router: Router, kind: str, mode: str) -> None:
    some = task(kind)
    whole = router.ask(some.prompt, **media(some), mode=mode)
    events = list(router.stream(some.prompt, **media(some), mode=mode))
    assert isinstance(events[0], Decided)
    assert isinstance(events[-1], Finished)
    thinking = "".join(event.text for event in events if isinstance(event, ThinkingDelta))
    answer = "".join(event.text for event in events if isinstance(event, AnswerDelta))
    assert (thinking, answer) == (whole.thinking, whole.text)
    finished = events[-1].answer
    assert finished.usage.encoded == 0  # the first way had the picture encoded
    usage = replace(whole.usage, encoded=0, cached_tokens=finished.usage.cached_tokens)  # and the prompt read
    assert (finished.text, finished.thinking, finished.usage) == (whole.text, whole.thinking, usage)
    kinds = [type(event) for event in events[1:-1]]
    assert kinds == sorted(kinds, key=[ThinkingDelta, AnswerDelta].index)


def test_closing_a_stream_cancels(router: Router) -> None:
    cancel = threading.Event()
    stream = router.stream(SOME.prompt, **media(SOME), mode="thinking", cancel=cancel)
    next(stream), next(stream)
    stream.close()
    assert not cancel.is_set()  # other requests may use it too
    assert not [thread for thread in threading.enumerate() if thread.name == "vlroute-stream"]


def test_errors_reach_the_reader_of_a_stream(router: Router) -> None:
    with pytest.raises(TypeError, match="nonsense"):
        list(router.stream(SOME.prompt, **media(SOME), mode="instruct", nonsense=1))
    with pytest.raises(InputError):
        router.stream("")


def test_settings_per_router_and_per_mode(folders: dict[str, Path]) -> None:
    router = Router(**folders, generation={"max_new_tokens": 3, "thinking": {"max_new_tokens": 5, "answer_reserve": 0}})
    used = [router.ask(SOME.prompt, **media(SOME), mode=mode).usage.completion_tokens for mode in MODES]
    assert used[0] <= 3
    assert used[1] == 5
    assert router.ask(SOME.prompt, **media(SOME), mode="thinking", max_new_tokens=4).usage.completion_tokens == 4
    assert Router.from_pretrained(max_new_tokens=8).ask(SOME.prompt, **media(SOME), mode="thinking").thinking


def test_without_an_artifact_the_decision_says_so(folders: dict[str, Path]) -> None:
    decision = Router(**folders).decide(SOME.prompt, caption="three numbers")
    assert decision.mode == "instruct"
    assert not decision.forced
    assert "no router artifact" in decision.reason


def test_names_of_pairs() -> None:
    real = Router.from_pretrained("Qwen/Qwen3-VL-2B")
    assert (real.instruct, real.thinking) == ("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-2B-Thinking")
    with pytest.raises(ValueError, match="both instruct= and thinking="):
        Router.from_pretrained(instruct="x")
    with pytest.raises(ValueError, match="one name"):
        Router.from_pretrained("y", instruct="x", thinking="z")


def test_a_router_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        Router.from_pretrained("Qwen/Qwen3-VL-2B", router=tmp_path)


def test_history_and_openai_messages(router: Router) -> None:
    some = task("ocr", "easy")
    direct = router.ask(some.prompt, **media(some), mode="instruct")
    parts = [{"type": "image", "image": some.frames[0]}, {"type": "text", "text": some.prompt}]
    listed = router.ask([{"role": "user", "content": parts}], mode="instruct")
    assert listed.text == direct.text == some.answer
    history = [{"role": "user", "content": parts}, {"role": "assistant", "content": direct.text}]
    later = router.ask(some.prompt, history=history, mode="instruct")
    assert later.usage.vision_tokens == 16
    assert later.usage.prompt_tokens > direct.usage.prompt_tokens
