"""Targets and presets of a router, and a new artifact while it runs."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from tests.artifacts import weights_of
from tests.synthetic_records import draw_records
from vlroute import Policy, Router, Target
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.errors import ArtifactError
from vlroute.learning.fit import fit_classifier
from vlroute.learning.train import train_router
from vlroute.records import write_records

PAIR = {"instruct": "nowhere/instruct", "thinking": "nowhere/thinking"}  # deciding never opens a checkpoint


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("targets")
    write_records(folder / "records.jsonl", draw_records(600)[1])
    train_router(
        [folder / "records.jsonl"], folder / "router", folds=3, seeds=1, together="record",
        console=Console(file=io.StringIO()),
    )  # fmt: skip
    return folder / "router"


def test_presets_spend_more_for_more(artifact: Path) -> None:
    routers = {
        name: Router.from_pretrained(**PAIR, router=artifact, policy=name) for name in ("fast", "balanced", "accurate")
    }
    fast, balanced, accurate = (router.operating_point() for router in routers.values())
    assert fast.mean_seconds < balanced.mean_seconds < accurate.mean_seconds
    assert fast.accuracy < balanced.accuracy <= accurate.accuracy + 0.01
    assert fast.price > balanced.price > accurate.price == 0
    assert routers["fast"].selector.policy.price == fast.price
    asked = {"prompt": "What is the total?", "caption": "two numbers"}
    assert [routers[name].decide(**asked).mode for name in ("fast", "accurate")] == ["instruct", "thinking"]
    assert routers["fast"].operating_point("knee").mean_seconds <= accurate.mean_seconds


def test_targets_are_met_on_the_calibration_records(artifact: Path) -> None:
    def operating_point(**target: float) -> object:
        return Router.from_pretrained(**PAIR, router=artifact, policy=Target(**target)).operating_point()

    assert operating_point(thinking_share=0.3).thinking_share == pytest.approx(0.3, abs=0.05)
    assert operating_point(target_accuracy=0.75).accuracy >= 0.75
    assert operating_point(max_mean_seconds=0.9).mean_seconds <= 0.9


def test_a_target_follows_the_pace_of_the_machine(artifact: Path) -> None:
    router = Router.from_pretrained(**PAIR, router=artifact, policy=Target(max_mean_seconds=0.9))
    before = router.operating_point()
    for _ in range(65):  # thinking takes three times as long now
        router.selector.observe("thinking", 100, 0.3, 6.0, 50)
    after = router.operating_point()
    assert after.price != before.price
    assert after.thinking_share < before.thinking_share
    assert after.mean_seconds <= 0.9


def test_without_calibration_records_a_target_is_refused(tmp_path: Path) -> None:
    classifier = fit_classifier(draw_records(100)[1])
    classifier.save(tmp_path)
    assert Router.from_pretrained(**PAIR, router=tmp_path, policy=Policy(price=0.2)).selector.policy.price == 0.2
    for bare in ({"router": tmp_path}, {}):
        with pytest.raises(ArtifactError, match="calibration set"):
            Router.from_pretrained(**PAIR, **bare, policy="knee")
        with pytest.raises(ArtifactError, match="calibration set"):
            Router.from_pretrained(**PAIR, **bare).operating_point()


def test_another_artifact_while_requests_are_decided(artifact: Path, tmp_path: Path) -> None:
    router = Router.from_pretrained(**PAIR, router=artifact, policy="balanced")
    asked = {"prompt": "What is the total?", "caption": "four numbers"}
    old = router.decide(**asked)
    other = ComplexityClassifier.load(artifact)
    other.heads.bias[:2] += (1.0, -1.0)  # Instruct is better here than it was there
    other.save(tmp_path / "new")
    new = Router.from_pretrained(**PAIR, router=tmp_path / "new", policy="balanced").decide(**asked)
    assert new.gain < old.gain - 0.1
    seen: set[tuple[float, float]] = set()
    done = threading.Event()

    def decide() -> None:
        while not done.is_set():
            decision = router.decide(**asked)
            seen.add((decision.gain, decision.threshold))

    threads = [threading.Thread(target=decide) for _ in range(4)]
    for thread in threads:
        thread.start()
    for folder in (tmp_path / "new", artifact) * 5:
        router.use(folder)
    done.set()
    for thread in threads:
        thread.join()
    router.use(tmp_path / "new")
    assert router.decide(**asked) == new
    assert seen <= {(one.gain, one.threshold) for one in (old, new)}


def test_a_damaged_artifact_changes_nothing(artifact: Path, tmp_path: Path) -> None:
    router = Router.from_pretrained(**PAIR, router=artifact)
    before = router.decide("What is the total?", caption="four numbers")
    ComplexityClassifier.load(artifact).save(tmp_path)
    weights = weights_of(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="damaged"):
        router.use(tmp_path)
    assert router.decide("What is the total?", caption="four numbers") == before
