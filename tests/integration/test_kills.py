"""Processes that are killed while they write: what was there before, or what was acknowledged, is still there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.artifacts import weights_of
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.files import shipped

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

SAVE = """
import sys
from vlroute.decision.classifier import ComplexityClassifier
one, other = (ComplexityClassifier.load(folder) for folder in sys.argv[2:])
other.heads.bias[:] += 1
print("ready", flush=True)
while True:
    for classifier in (other, one):
        classifier.save(sys.argv[1])
"""


def test_an_artifact_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """A process saves two artifacts in turn and is killed at random points. Readers never fail meanwhile."""
    rng, source, folder = random.Random(0), shipped("pocket/router"), tmp_path / "router"
    first = ComplexityClassifier.load(source)
    first.save(folder)
    biases = {first.heads.bias.tobytes(), (first.heads.bias + 1).tobytes()}
    seen = set()
    for _ in range(5):
        arguments = [sys.executable, "-c", SAVE, str(folder), str(source), str(source)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            end = time.monotonic() + rng.uniform(0, 0.4)
            while time.monotonic() < end:
                seen.add(ComplexityClassifier.load(folder).heads.bias.tobytes())
            process.send_signal(signal.SIGKILL)
        seen.add(ComplexityClassifier.load(folder).heads.bias.tobytes())
    assert seen == biases
    (folder / "router.json.1.part").touch()
    first.save(folder)  # removes weights without a card, and drafts
    weights_of(folder)
    assert not [*folder.glob("*.part"), *folder.glob("*.lock")]
