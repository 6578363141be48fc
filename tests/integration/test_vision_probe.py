"""The vision probe: says what its records said, costs no tower run, refuses another tower and damaged files."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.artifacts import weights_of
from tests.conftest import media
from tests.recording import model_calls
from vlroute import Router
from vlroute.decision.captions import PROBE_FOLDER, VisionProbe, probe_of
from vlroute.errors import ArtifactError, InputError
from vlroute.files import shipped
from vlroute.inputs.messages import parse
from vlroute.learning.probe import STEPS, pool, train_probe
from vlroute.learning.trial import draw_evenly
from vlroute.pocket import Task
from vlroute.steps import run

TOWER = "0" * 64
GREEDY = {"do_sample": False}


def features(words: list[str], seed: int = 0, noise: float = 0.3) -> np.ndarray:
    """A direction for each word, `[n, 16]`; texts of several words add theirs."""
    rng = np.random.default_rng(seed)
    axes = dict(zip(sorted({w for t in words for w in t.split()}), np.eye(16), strict=False))
    rows = [sum(axes[word] for word in text.split()) * 3 + 5 for text in words]
    return np.asarray(rows + rng.normal(0, noise, (len(words), 16)), dtype=np.float32)


@pytest.fixture
def probe() -> VisionProbe:
    captions = ["cat", "dog", "tree"] * 40
    return train_probe(features(captions), captions, TOWER)


def test_few_captions_are_learnt_whole(probe: VisionProbe) -> None:
    fresh = ["tree", "cat", "dog", "dog"] * 10
    assert [probe.describe(row) for row in features(fresh, seed=1)] == fresh
    assert probe.whole
    assert probe.card["out of fold"] == {"same caption": 1.0}


def test_of_two_captions_each_is_said(probe: VisionProbe) -> None:
    captions = ["cat", "dog"] * 40
    two = train_probe(features(captions), captions, TOWER)
    assert [two.describe(row) for row in features(captions, seed=1)] == captions


def test_of_many_captions_the_words_are_learnt() -> None:
    words = ["cat", "dog", "tree", "house", "car", "sea", "sun"]
    rng = np.random.default_rng(0)
    captions = [" ".join(sorted(rng.permutation(words)[: rng.integers(2, 6)])) for _ in range(400)]
    probe = train_probe(features(captions), captions, TOWER)
    assert not probe.whole
    said = [probe.describe(row) for row in features(captions[:50], seed=1)]
    assert [sorted(text.split(", ")) for text in said] == [caption.split() for caption in captions[:50]]


def test_progress_is_told_as_promised() -> None:
    captions = ["cat", "dog"] * 30
    ticks: list[None] = []
    train_probe(features(captions), captions, TOWER, advance=lambda: ticks.append(None))
    assert len(ticks) == STEPS


@pytest.mark.parametrize(
    ("captions", "complaint"),
    [(["cat", "dog"] * 10, "at least 50 captioned pictures"), (["cat"] * 60, "at least two captions or words")],
)
def test_too_little_to_learn_from_is_refused(captions: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        train_probe(features(captions), captions, TOWER)


def test_saved_and_loaded_it_says_the_same(probe: VisionProbe, tmp_path: Path) -> None:
    probe.save(tmp_path)
    loaded = VisionProbe.load(tmp_path)
    assert (loaded.texts, loaded.whole, loaded.tower) == (probe.texts, probe.whole, probe.tower)
    assert loaded.card == probe.card
    np.testing.assert_array_equal(loaded.weights, probe.weights)
    np.testing.assert_array_equal(loaded.bias, probe.bias)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "router.json").read_bytes() == (tmp_path / "router.json").read_bytes()


def test_damaged_and_foreign_folders_are_refused(probe: VisionProbe, tmp_path: Path) -> None:
    probe.save(tmp_path)
    card = json.loads((tmp_path / "router.json").read_text())
    (tmp_path / "router.json").write_text(json.dumps({**card, "texts": card["texts"][:2]}))
    with pytest.raises(ArtifactError, match="vision probe"):
        VisionProbe.load(tmp_path)
    (tmp_path / "router.json").write_text(json.dumps({**card, "schema": 999}))
    with pytest.raises(ArtifactError, match="has schema 999"):
        VisionProbe.load(tmp_path)
    weights_of(tmp_path).write_bytes(b"no tensors")
    (tmp_path / "router.json").write_text(json.dumps(card))
    with pytest.raises(ArtifactError, match="is damaged"):
        VisionProbe.load(tmp_path)
    with pytest.raises(ArtifactError, match="vision probe"):
        VisionProbe.load(shipped("pocket/router"))
    with pytest.raises(ArtifactError, match="cannot read"):
        VisionProbe.load(tmp_path / "nowhere")


def test_it_is_read_without_torch() -> None:
    code = (
        "import sys\nfrom vlroute.decision.captions import probe_of\nfrom vlroute.files import shipped\n"
        "assert probe_of(shipped('pocket/router')) is not None\n"
        "assert not {'torch', 'transformers', 'sklearn', 'scipy'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The shipped probe on the shipped pair


def fresh(count: int = 36, seed: str = "probe test") -> list[Task]:
    return list(draw_evenly(count, seed))


def test_the_shipped_probe_says_what_is_there(router: Router) -> None:
    assert router.selector.probe is not None
    tasks = fresh()
    said = [router.decide(task.prompt, **media(task)).caption for task in tasks]
    assert sum(caption == task.caption for caption, task in zip(said, tasks, strict=True)) >= 0.85 * len(tasks)


@pytest.mark.parametrize("captioner", ["probe", "instruct"])
def test_captioning_runs_the_tower_once_and_the_probe_no_model(captioner: str) -> None:
    router = Router.from_pretrained(captioner=captioner).load()
    first, *others = [task.frames[0] for task in fresh() if not task.is_video][:3]
    with model_calls() as calls:
        decision = router.decide("Add the numbers.", first)
        assert calls.towers == [1]
        assert bool(calls.prompts) == (captioner == "instruct")
        router.decide("What is the total?", first)  # its caption is kept
        router.ask("Add the numbers.", first, **GREEDY)  # and so are its features
        assert calls.towers == [1]
        answer = router.ask("Add the numbers.", others, **GREEDY)  # two new ones: one run for caption and answer
        assert calls.towers == [1, 2]
    assert decision.caption
    assert answer.decision.caption is not None
    assert "; " in answer.decision.caption


def test_a_video_is_pooled_like_a_picture(router: Router) -> None:
    some = next(task for task in fresh() if task.is_video)
    sent = media(some)
    conversation = parse(some.prompt, sent.get("images"), sent.get("videos"), None, router.limits)
    (pooled,) = pool(router, conversation)
    with router.request(conversation) as request:
        (video,) = run(request.features(router.pair.instruct, conversation.videos))
        tokens = video.merged.float().cpu().numpy()
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, np.concatenate([tokens.mean(0), tokens.std(0)]), rtol=1e-4, atol=1e-5)


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """The shipped router with a probe of another tower."""
    folder = tmp_path / "strange"
    shutil.copytree(shipped("pocket/router"), folder)
    probe = VisionProbe.load(folder / PROBE_FOLDER)
    VisionProbe(probe.texts, probe.weights, probe.bias, probe.whole, TOWER).save(folder / PROBE_FOLDER)
    return folder


def test_another_towers_probe_is_refused_where_it_was_asked_for(strange: Path) -> None:
    task = fresh()[0]
    router = Router.from_pretrained(router=strange, captioner="probe").load()
    with pytest.raises(ArtifactError, match=r"another vision tower .* captioner='instruct'"):
        router.decide(task.prompt, **media(task))


def test_another_towers_probe_is_passed_over_otherwise(strange: Path, caplog: pytest.LogCaptureFixture) -> None:
    router = Router.from_pretrained(router=strange).load()
    with caplog.at_level(logging.WARNING, logger="vlroute"):
        said = [router.decide(task.prompt, **media(task)).caption for task in fresh(3)]
    instruct = Router.from_pretrained(captioner="instruct").load()
    assert said == [instruct.decide(task.prompt, **media(task)).caption for task in fresh(3)]
    assert sum("another vision tower" in message for message in caplog.messages) == 1


def test_without_a_probe_it_cannot_be_asked_for(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(shipped("pocket/router"), bare, ignore=shutil.ignore_patterns(PROBE_FOLDER))
    assert probe_of(bare) is None
    with pytest.raises(ArtifactError, match="needs a router artifact with a vision probe"):
        Router.from_pretrained(router=bare, captioner="probe")
    router = Router.from_pretrained(captioner="probe")
    with pytest.raises(ArtifactError, match="needs a router artifact with a vision probe"):
        router.use(bare)
    assert router.selector.probe is not None


def test_an_unknown_captioner_is_refused() -> None:
    with pytest.raises(ValueError, match="captioner must be 'instruct', 'probe', a callable or None"):
        Router.from_pretrained(captioner="llava")  # type: ignore[arg-type]


def test_a_new_probe_speaks_at_once(router: Router, tmp_path: Path) -> None:
    task = fresh()[0]
    changed = Router.from_pretrained().load()
    before = changed.decide(task.prompt, **media(task)).caption
    folder = tmp_path / "new"
    shutil.copytree(shipped("pocket/router"), folder)
    probe = VisionProbe.load(folder / PROBE_FOLDER)
    texts = tuple(f"new {text}" for text in probe.texts)
    VisionProbe(texts, probe.weights, probe.bias, True, probe.tower).save(folder / PROBE_FOLDER)
    changed.use(folder)
    assert changed.decide(task.prompt, **media(task)).caption == f"new {before}"


def test_the_probe_of_another_width_is_refused(probe: VisionProbe) -> None:
    with pytest.raises(ArtifactError, match=r"reads 16 pooled features, not \[8\]"):
        probe.describe(np.zeros(8, dtype=np.float32))
