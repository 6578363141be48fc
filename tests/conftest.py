"""The pocket pair, loaded once for all tests that generate."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from vlroute import Router
from vlroute.pocket import Task, draw_task
from vlroute.pocket.trial import media
from vlroute.shipped import shipped

__all__ = ["ROOT", "SECONDS", "media", "task"]

ROOT = Path(__file__).resolve().parents[1]
SECONDS = tuple(float(second) for second in range(8))


@pytest.fixture(scope="session")
def router() -> Router:
    return Router.from_pretrained().load()


@pytest.fixture(scope="session")
def folders() -> dict[str, Path]:
    return {"instruct": shipped("pocket/instruct"), "thinking": shipped("pocket/thinking")}


def task(family: str, level: str = "hard", seed: int = 0, language: str = "en") -> Task:
    return draw_task(random.Random(seed), family, level, language)
