"""Exploration: a share of the requests is answered in the other mode, with the probability in the decision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.commands import command
from vlroute import Policy, Router, SettingsError
from vlroute.files import shipped
from vlroute.store import Store

PROMPT = "How many circles?"
FEW = {"max_new_tokens": 2, "answer_reserve": 0}  # Instruct does not answer for Thinking


def test_the_other_mode_answers_the_drawn_requests(tmp_path: Path) -> None:
    with Store(tmp_path / "answers.db") as store:
        for share in (0.0, 1.0):
            with Router.from_pretrained(store=store, explore=share, policy=Policy(price=1e6)) as router:
                assert router.decide(PROMPT).mode == "instruct"  # a decision without an answer is not explored
                assert not router.decide(PROMPT).explored
                found = router.ask(PROMPT, **FEW).decision
                assert (found.mode == "thinking") == found.explored == bool(share)
                assert found.propensity == 1.0
                forced = router.ask(PROMPT, mode="instruct", **FEW).decision
                assert (forced.mode, forced.explored, forced.propensity) == ("instruct", False, 1.0)
        stored = store.recent(0.0, 10)
    assert [one.decision["explored"] for one in stored] == [False, True]
    assert [one.mode for one in stored] == ["instruct", "thinking"]


def test_the_share_is_that_of_the_draws(tmp_path: Path) -> None:
    store = tmp_path / "answers.db"
    with Router.from_pretrained(store=store, explore=0.25, policy=Policy(price=1e6)) as router:
        found = [one.decision for one in router.ask_many([{"prompt": PROMPT, **FEW} for _ in range(120)])]
    explored = sum(one.explored for one in found)
    assert 12 <= explored <= 50  # binomial: less than one in a million outside
    assert {(one.explored, one.mode, one.propensity) for one in found} == {
        (True, "thinking", 0.25), (False, "instruct", 0.75),
    }  # fmt: skip


def test_labels_without_a_shadow(tmp_path: Path) -> None:
    with Store(tmp_path / "answers.db") as store:
        with Router.from_pretrained(store=store, label_share=1.0, policy=Policy(price=1e6)) as router:
            answer = router.ask(PROMPT, **FEW)
            assert router.shadow is not None
            router.shadow.flush(60)
            assert router.shadow.stats().labels == {"stored": 1}
        (label,) = store.labels()
        assert (label.answer, label.mode, label.probability) == (answer.id, "thinking", 1.0)
        assert list(store.shadowed()) == []  # nothing else decided


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "0.1", True])
def test_the_share_is_checked(share: object) -> None:
    with pytest.raises(SettingsError, match=r"explore must be a number from 0 to 1"):
        Router.from_pretrained(explore=share)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "refused",
    [
        {"explore": 2}, {"label_share": 2}, {"max_num_seqs": 0}, {"device": 5.5}, {"memory": 5}, {"max_new_tokens": 0},
        {"vision_cache": 5}, {"limits": 5}, {"shadow": shipped("pocket/router"), "label_share": 3},
    ],
)  # fmt: skip
def test_a_refused_setting_creates_no_store(refused: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        Router.from_pretrained(store=tmp_path / "answers.db", **refused)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("refused", ["--key-file nosuch", "--learned --learned-folder nosuch", "--memory 5"])
def test_a_server_with_a_refused_setting_creates_no_store(refused: str, tmp_path: Path) -> None:
    ended = command("serve", "--port", "0", "--store", "answers.db", *refused.split(), cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert not list(tmp_path.iterdir())


def test_exploration_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="explore needs store="):
        Router.from_pretrained(explore=0.5)
    with pytest.raises(SettingsError, match="explore needs store="):
        Router.from_endpoints(("http://127.0.0.1:9/v1", "a"), ("http://127.0.0.1:9/v1", "b"), explore=0.5)
    ended = command("serve", "--explore", "0.5", "--port", "0")
    assert ended.returncode == 2
    assert "explore needs store=" in ended.stderr


def test_labels_need_a_store() -> None:
    with pytest.raises(SettingsError, match="label_share needs store="):
        Router.from_pretrained(label_share=0.1)
