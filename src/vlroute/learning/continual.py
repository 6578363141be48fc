"""Continual learning: ratings in a store become better router artifacts while requests are answered."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess  # nosec B404
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from vlroute.checks import refused
from vlroute.decision.captions import PROBE_FOLDER
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.errors import InputError, SettingsError, VLRouteError
from vlroute.exit import end_at_exit
from vlroute.files import make_folder
from vlroute.learned import Action, LearningEvent, LearningHistory
from vlroute.learning.comparison import Rule
from vlroute.learning.learning_step import Job
from vlroute.router import Router
from vlroute.sharing import router_folder
from vlroute.store import Store

log = logging.getLogger("vlroute.learning")
#: Maximum number of ratings of one API key that count.
MOST_PER_KEY = 50
#: Ending of the folder for artifacts beside the file of a store.
FOLDER_ENDING = ".routers"
#: Beginning of the name of the folder with the artifact with which learning began. The rest of the name is part of the
#: names of all candidates, so that learners on several stores can share the folder for artifacts.
BASE = "base"
#: Seconds after which a training process is ended.
STEP_SECONDS = 3600.0


class ContinualLearner:
    """Trains router artifacts on the ratings in a store, and puts better ones in use.

    Each step runs in a process of its own at low priority. It corrects the first artifact with all ratings, and
    compares the result with the artifact in use on held-out recent ratings, at equal seconds. The new artifact is used
    only if the difference in accuracy has an estimate above 0 and a lower 95 % limit above -0.5 points, and is worth
    the difference in seconds at the present price. Every step is logged and stored, see `history`. The learner can be
    killed at any time.

    One learner at a time works on a store, until `close`. `start` lets it run in a thread.

    Args:
        router: The router that uses the artifacts, or the artifact to begin with: a folder, or "user/name@revision" on
            the hub. Servers with the same store use the artifacts, too (`vlroute serve --learned`). If learning has
            begun before, it goes on with the artifact that was in use last; then None is enough.
        store: The store of the answers, its file, or its URL.
        every: Time between two steps.
        folder: Folder for the artifacts. Default: `answers.db.routers` for a store in the file `answers.db`.
        most_per_key: Maximum number of ratings of one API key that count, the latest ones. Ratings without a key are
            not limited.
        trust_encoder: See `Router.from_pretrained`.

    Raises:
        SettingsError: An argument is invalid, or a store that is no file needs `folder`.
        InputError: The router has no artifact.
        ArtifactError: The artifact cannot be read.
        OutputError: Another learner works on the store.
        StoreError: The store cannot be used.
    """

    def __init__(
        self,
        router: Router | str | Path | None,
        store: Store | str | Path,
        *,
        every: timedelta = timedelta(hours=1),
        folder: str | Path | None = None,
        most_per_key: int = MOST_PER_KEY,
        trust_encoder: str | None = None,
    ) -> None:
        if not isinstance(every, timedelta) or every <= timedelta(0):
            raise refused("every", every, "a timedelta above 0")
        if not isinstance(most_per_key, int) or most_per_key < 1:
            raise refused("most_per_key", most_per_key, "a whole number above 0")
        self.every, self._most_per_key, self._trust = every, most_per_key, trust_encoder
        self._router = router if isinstance(router, Router) else None
        self._used: Path | None = None  # by the router
        self._stop = threading.Event()
        self._stepping = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        with ExitStack() as held:
            if isinstance(store, Store):
                self.store = store
            else:
                self.store = held.enter_context(Store(store, create=False))
            self.folder = default_folder(self.store) if folder is None else Path(folder)
            self._history = LearningHistory(self.store)
            held.enter_context(self.store.lock("learner"))
            make_folder(self.folder, private=True)
            if self._history.latest() is None:
                first = self._copy_first(router).absolute()
                fingerprint = ComplexityClassifier.load(first, trust_encoder).fingerprint
                _logged(self._history.add(LearningEvent("started", str(first), fingerprint)))
            (self._first,) = self._history.events(None, "started")
            self._remove_unused()
            self._follow()
            self._held = held.pop_all()

    def _copy_first(self, router: Router | str | Path | None) -> Path:
        """Copy the artifact with which learning begins, so that later changes of its folder have no effect."""
        out = self.folder / f"{BASE}-{time.time_ns():016x}"
        if isinstance(router, Router):
            classifier, probe = router.selector.classifier, router.selector.probe
            if classifier is not None:
                classifier.save(out)
                if probe is not None:
                    probe.save(out / PROBE_FOLDER)
                return out
        elif router is not None:
            first = router_folder(router)
            ComplexityClassifier.load(first, self._trust).save(out)
            _copy_probe(first, out)
            return out
        raise InputError(
            "learning begins with a router artifact, and there is none: train one (vlroute collect, then vlroute "
            "train) and pass it as router= or --router"
        )

    def _follow(self) -> Path:
        """Let the router use the artifact in use, which another process may have rolled back; returns its folder."""
        used = Path(self._latest().artifact)
        if self._router is not None and used != self._used:
            self._router.use(used, trust_encoder=self._trust)
            self._used = used
        return used

    def _latest(self) -> LearningEvent:
        latest = self._history.latest()
        assert latest is not None  # the first one is added when the learner is created
        return latest

    @property
    def history(self) -> list[LearningEvent]:
        """All events, the latest one first. Raises StoreError."""
        return self._history.events()

    @property
    def in_use(self) -> Path:
        """Folder of the artifact in use. Raises StoreError."""
        return Path(self._latest().artifact)

    def step(self) -> LearningEvent:
        """Run one step now and wait for it.

        Returns:
            What was done: "waited", "kept", "swapped" or "failed".

        Raises:
            ArtifactError: The artifact in use cannot be read.
            StoreError: The store cannot be used.
        """
        with self._stepping:
            used = self._follow()
            out = self.folder / f"{self._prefix}{time.time_ns():016x}"
            rule = None if self._router is None else asdict(Rule.of(self._router.selector.policy))
            job = Job(
                self.store.url, self._first.artifact, str(used), str(out), self._most_per_key, self._seen(), rule,
                self._trust,
            )  # fmt: skip
            try:
                found = self._run(job)
            except (OSError, ValueError) as error:
                return self._add("failed", {"error": str(error)})
            better, details = found["better"], found["details"]
            if not better:
                return self._add("waited" if better is None else "kept", details)
            try:
                _copy_probe(used, out)
                fingerprint = ComplexityClassifier.load(out, self._trust).fingerprint
            except (VLRouteError, OSError) as error:
                return self._add("failed", {**details, "error": str(error)})
            swapped = LearningEvent("swapped", str(out.absolute()), fingerprint, details)
            if (added := self._history.add(swapped, after=str(used))) is None:
                return self._add("kept", {**details, "error": "the artifact in use was rolled back meanwhile"})
            self._follow()
            return _logged(added)

    @property
    def _prefix(self) -> str:
        """Prefix of the names of candidate folders."""
        return f"learned{Path(self._first.artifact).name.removeprefix(BASE)}-"

    def _seen(self) -> int:
        """Number of ratings in the store at the last candidate."""
        last = self._history.events(1, "kept", "swapped")
        return int(last[0].details["given"]) if last else 0

    def _run(self, job: Job) -> dict[str, Any]:
        """The result of the job, from a process of its own. OSError if it fails or is ended."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        # no argument comes from outside
        self._process = subprocess.Popen(  # nosec B603
            [sys.executable, "-P", "-m", "vlroute.learning.learning_step"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        try:
            if self._stop.is_set():
                self._process.kill()
            out, err = self._process.communicate(json.dumps(asdict(job)), STEP_SECONDS)
        except subprocess.TimeoutExpired:
            raise OSError(f"the training process was ended after {STEP_SECONDS:g} s") from None
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        if self._process.returncode != 0:
            why = err.strip().splitlines()[-1:] or [f"exit code {self._process.returncode}"]
            raise OSError(f"the training process failed: {why[0]}")
        if not out.strip():
            raise OSError("the training process ended without a result")
        result: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return result

    def rollback(self) -> LearningEvent:
        """Go back to the previous artifact, also in the router of this learner, see `roll_back`."""
        with self._stepping:
            event = roll_back(self.store, trust_encoder=self._trust)
            self._follow()
            return event

    def _add(self, action: Action, details: dict[str, Any]) -> LearningEvent:
        """Add an event that leaves the artifact in use as it is, also if another process has just changed it."""
        added = None
        while added is None:
            latest = self._latest()
            event = LearningEvent(action, latest.artifact, latest.fingerprint, details)
            added = self._history.add(event, after=latest.artifact)
        self._follow()
        return _logged(added)

    def _remove_unused(self) -> None:
        """Remove the candidates that a killed learner has left."""
        known = {Path(one.artifact).name for one in self._history.events(None, "swapped")}
        candidate = re.compile(re.escape(self._prefix) + r"[0-9a-f]{16}")
        for one in self.folder.iterdir():
            if one.name not in known and candidate.fullmatch(one.name):
                shutil.rmtree(one, ignore_errors=True)

    def run(self) -> None:
        """Run a step after each `every`, until `close` is called in another thread. Errors of the store are logged."""
        while not self._stop.is_set():
            try:
                self.step()
            except VLRouteError as error:
                log.error("the learner could not work: %s", error)
            self._stop.wait(self.every.total_seconds())

    def start(self) -> ContinualLearner:
        """Run in a thread until `close`.

        Returns:
            This learner.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self.run, name="vlroute-learn", daemon=True)
            end_at_exit(self._thread, self._end)
            self._thread.start()
        return self

    def _end(self) -> None:
        """Stop, and end a training process."""
        self._stop.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()

    def close(self) -> None:
        """End a step that is running, and let another learner work on the store. The router stays open."""
        self._end()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._held.close()

    def __enter__(self) -> ContinualLearner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def roll_back(store: Store, *, trust_encoder: str | None = None) -> LearningEvent:
    """Go back to the artifact that was in use before the current one. Each further call goes back one more.

    A learner may be running: it goes on from the earlier artifact, after the next new ratings.

    Args:
        store: The store.
        trust_encoder: See `Router.from_pretrained`.

    Returns:
        The event.

    Raises:
        InputError: There is no earlier artifact, or the learner has just put another one in use.
        ArtifactError: The earlier artifact cannot be used. Nothing is changed.
        StoreError: The store cannot be used.
    """
    history = LearningHistory(store)
    changes = history.events(None, "started", "swapped", "rolled back")
    if not changes:
        raise InputError("nothing was learned on this store yet: start vlroute learn first")
    used = changes[0].artifact
    for event, before in pairwise(changes):
        if event.action == "swapped" and event.artifact == used:
            fingerprint = ComplexityClassifier.load(before.artifact, trust_encoder).fingerprint
            added = history.add(LearningEvent("rolled back", before.artifact, fingerprint), after=used)
            if added is None:
                raise InputError(
                    "the learner has put another artifact in use meanwhile: look at --history and try again"
                )
            return _logged(added)
    raise InputError(f"{used} is the artifact with which learning began: there is no earlier one")


def default_folder(store: Store) -> Path:
    """The folder for artifacts beside the file of a store. SettingsError if the store is no file."""
    if store.file is None:
        raise SettingsError("a store that is no file needs a folder for the artifacts: pass folder= or --folder")
    return store.file.with_name(store.file.name + FOLDER_ENDING).absolute()


def summary(event: LearningEvent) -> str:
    """An event in one line.

    Args:
        event: The event.

    Returns:
        What was done and why.
    """
    details = event.details
    parts: list[str] = [event.action]
    if "ratings" in details:
        parts.append(f"{details['ratings']} ratings")
    if (found := details.get("comparison")) is not None:
        difference, low = 100 * found["difference"], 100 * found["low"]
        parts.append(f"{difference:+.1f} points at equal seconds (at least {low:+.1f}, 95 %)")
    if "error" in details:
        parts.append(details["error"])
    return f"learner: {', '.join(parts)}; in use: {event.artifact} ({event.fingerprint})"


def _logged(event: LearningEvent) -> LearningEvent:
    level = logging.ERROR if event.action == "failed" else logging.INFO
    log.log(level, "%s", summary(event), extra={"fields": {"event": "learner", **event.as_dict()}})
    return event


def _copy_probe(source: Path, out: Path) -> None:
    """Copy the vision probe of an artifact, if it has one."""
    if (source / PROBE_FOLDER).is_dir():
        shutil.copytree(source / PROBE_FOLDER, out / PROBE_FOLDER, dirs_exist_ok=True)
