"""Cut the power of the disk while processes write, and count what was acknowledged and is lost.

The disk is that of `training.chaos.faulty_disk`. Every second cut drops all that was not synchronized; the others keep
a random part of it.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from training.chaos.faulty_disk import FaultyDisk
from training.chaos.kills import IN_ONE_FOLDER, LONGEST, Component, Killed, killed
from vlroute.files import make_folder


def run(component: Component, cuts: int, seed: int = 0, advance: Callable[[], object] = lambda: None) -> Killed:
    """Cut the power `cuts` times while a process of `component` writes. RuntimeError if FUSE is missing."""
    result, rng = Killed(component.name), random.Random(f"{component.name} {seed}")
    mount = Path(tempfile.mkdtemp(prefix="vlroute-disk-"))
    try:
        with FaultyDisk(mount, seed) as disk:
            while result.kills < cuts:
                folder = mount / str(result.kills)
                make_folder(folder)
                acknowledged: list[str] = []
                for _ in range(min(IN_ONE_FOLDER, cuts - result.kills)):
                    acknowledged += killed(component.work, folder, rng.uniform(0, LONGEST))
                    disk.cut_power(partly=result.kills % 2 == 1)
                    result.kills += 1
                    advance()
                    if not result.check(component, folder, acknowledged):
                        break
                result.acknowledged += len(acknowledged)
                shutil.rmtree(folder)
    finally:
        mount.rmdir()
    return result
