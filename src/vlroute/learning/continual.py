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

from vlroute.checks import Whole, refused
from vlroute.decision.captions import PROBE_FOLDER, VisionProbe, probe_of
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.errors import InputError, SettingsError, VLRouteError
from vlroute.exit import end_at_exit
from vlroute.files import check_outputs, make_folder
from vlroute.learned import BASE, LEARNED, Action, LearningEvent, LearningHistory, base_name, folder_beside
from vlroute.learning.comparison import Rule
from vlroute.learning.learning_step import Job
from vlroute.router import Router
from vlroute.sharing import router_folder
from vlroute.store import Store

log = logging.getLogger("vlroute.learning")
#: Maximum number of ratings of one API key that count.
MOST_PER_KEY = 50
_MOST_PER_KEY = Whole(1)
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

    If learning has begun before, it goes on with the artifact that was in use last, which the router then uses. Until
    `close`, the learner sets the artifact of the router: after a call of `Router.use` with another one, steps raise an
    InputError and change nothing.

    Args:
        router: The router that uses the artifacts, or the artifact to begin with: a folder, or "user/name@revision" on
            the hub. Servers with the same store use the artifacts, too (`vlroute serve --learned`). If learning has
            begun before, None is enough, and an artifact that does not belong to this learning is refused.
        store: The store of the answers, its file, or its URL.
        every: Time between two steps.
        folder: Folder for the artifacts. Default: `answers.db.routers` for a store in the file `answers.db`. Earlier
            artifacts are found there too if they have been moved.
        most_per_key: Maximum number of ratings of one API key that count, the latest ones. Ratings without a key are
            not limited.
        trust_encoder: See `Router.from_pretrained`.
        restart: Begin again with the artifact of `router`, and correct it with all ratings in the store. `rollback`
            goes back to the artifact that was in use before.

    Raises:
        SettingsError: An argument is invalid, or a store that is no file needs `folder`.
        InputError: The router has no artifact, or one that does not belong to this learning.
        ArtifactError: The artifact cannot be read.
        OutputError: Another learner works on the store, or the folder cannot be written to.
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
        restart: bool = False,
    ) -> None:
        if not isinstance(router, Router | str | Path | None):
            raise refused("router", router, "a Router, the folder of a router artifact, or 'user/name' on the hub")
        if not isinstance(store, Store | str | Path):
            raise refused(
                "store", store, "a vlroute.Store, a file or a postgresql:// URL",
                "a router has a store if it was created with store='answers.db'",
            )  # fmt: skip
        if not isinstance(every, timedelta) or every <= timedelta(0):
            raise refused("every", every, "a timedelta above 0")
        if not isinstance(folder, str | Path | None):
            raise refused("folder", folder, "a folder")
        if not isinstance(restart, bool):
            raise refused("restart", restart, "True or False")
        self.every, self._trust = every, trust_encoder
        self._most_per_key = _MOST_PER_KEY.read("most_per_key", most_per_key)
        self._router = router if isinstance(router, Router) else None
        self._in_router = _fingerprint(self._router)  # of the artifact that the router should have
        self._stop = threading.Event()
        self._stepping = threading.RLock()  # a signal handler may call `close` in the thread of a step
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        with ExitStack() as held:
            if isinstance(store, Store):
                self.store = store
            else:
                self.store = held.enter_context(Store(store, create=False))
            given = folder_beside(self.store) if folder is None else Path(folder).absolute()
            if given is None:
                raise SettingsError("a store that is not a file needs an artifact folder: pass folder= or --folder")
            self.folder = given
            held.enter_context(self.store.lock("learner"))
            check_outputs(self.folder / BASE)
            # a new folder is created after all checks: an empty one would be in the way of artifacts to be moved there
            has_artifacts = folder is not None and self.folder.is_dir()
            self._history = LearningHistory(self.store, self.folder if has_artifacts else None)
            if restart or self._history.latest() is None:
                first = self._copy_first(router, restart)
                fingerprint = ComplexityClassifier.load(first, trust_encoder).fingerprint
                _logged(self._history.add(LearningEvent("started", str(first), fingerprint)))
            else:
                self._refuse_another(router)
                self._latest().check_artifact()
                make_folder(self.folder, private=True)
            self._remove_unused()
            self._follow()
            self._held = held.pop_all()

    def _copy_first(self, router: Router | str | Path | None, restart: bool) -> Path:
        """Copy the artifact with which learning begins, so that later changes of its folder have no effect."""
        probe: VisionProbe | None
        if isinstance(router, Router):
            classifier, probe = router.selector.classifier, router.selector.probe
        elif router is not None:
            folder = router_folder(router)
            classifier, probe = ComplexityClassifier.load(folder, self._trust), probe_of(folder)
        else:
            classifier, probe = None, None
        if classifier is None:
            if restart:
                raise InputError(
                    "restart=True or --restart needs the router artifact with which learning begins again: pass it as "
                    "router= or --router"
                )
            raise InputError(
                "learning begins with a router artifact, and there is none: train one (vlroute collect, then vlroute "
                "train) and pass it as router= or --router"
            )
        make_folder(self.folder, private=True)
        out = self.folder / f"{BASE}-{_number()}"
        classifier.save(out)
        if probe is not None:
            probe.save(out / PROBE_FOLDER)
        return out

    def _refuse_another(self, router: Router | str | Path | None) -> None:
        """Raise an InputError if `router` has an artifact that does not belong to the present learning."""
        if isinstance(router, Router):
            classifier = router.selector.classifier
        else:
            classifier = None if router is None else ComplexityClassifier.load(router_folder(router), self._trust)
        if classifier is None or classifier.fingerprint in self._history.fingerprints():
            return
        latest = self._latest()
        raise InputError(
            f"learning on this store began with the artifact {self._base_of(latest).fingerprint}, not with the given "
            f"one ({classifier.fingerprint}). To begin again with the given one, pass restart=True or --restart; to go "
            f"on with {latest.fingerprint}, which is in use, pass no artifact or {latest.artifact}"
        )

    def _follow(self) -> LearningEvent:
        """Put the artifact of the history into the router: another process may have rolled back. Returns its event.

        An artifact that the caller has put in the router stays, see `_refuse_replaced`.
        """
        latest, router = self._latest(), self._router
        latest.check_artifact()
        if router is not None:
            now = _fingerprint(router)
            if now == latest.fingerprint:
                self._in_router = now  # the caller may have put it there
            elif now == self._in_router:
                self._use(latest)
        return latest

    def _refuse_replaced(self, latest: LearningEvent) -> None:
        """Raise an InputError if the caller has put another artifact in the router than the one of `latest`."""
        if self._router is not None and (now := _fingerprint(self._router)) not in (
            self._in_router,
            latest.fingerprint,
        ):
            raise InputError(
                f"Router.use was called with another artifact ({now}) than the learner has put in use "
                f"({latest.fingerprint}): to go on with the latter, call router.use(learner.in_use); to go on with "
                "the former, close this learner and create one with restart=True"
            )

    def _use(self, event: LearningEvent) -> None:
        """Let the router use the artifact of an event."""
        if self._router is not None:
            self._router.use(event.artifact, trust_encoder=self._trust)
            self._in_router = _fingerprint(self._router)

    def _check_open(self) -> None:
        if self._stop.is_set():
            raise InputError("this learner is closed: create a new ContinualLearner")

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
            InputError: The learner was closed, or the router got another artifact from `Router.use`, perhaps during the
                step, which then has changed nothing.
            ArtifactError: The artifact in use is not there.
            StoreError: The store cannot be used.
        """
        with self._stepping:
            self._check_open()
            before = self._follow()
            self._refuse_replaced(before)
            used, base = Path(before.artifact), self._base_of(before)
            out = self.folder / f"{_prefix(base)}{_number()}"
            rule = None if self._router is None else asdict(Rule.of(self._router.selector.policy))
            job = Job(
                self.store.url, base.artifact, str(used), str(out), self._most_per_key, self._seen(), rule, self._trust,
                None if self._router is None else _model_of(self._router),
            )  # fmt: skip
            try:
                found = self._run(job)
            except (OSError, ValueError) as error:
                self._check_open()  # `close` has ended the process
                return self._add("failed", {"error": str(error)})
            better, details = found["better"], found["details"]
            if not better:
                return self._add("waited" if better is None else "kept", details)
            try:
                _copy_probe(used, out)
                fingerprint = ComplexityClassifier.load(out, self._trust).fingerprint
            except (VLRouteError, OSError) as error:
                return self._add("failed", {**details, "error": str(error)})
            swapped = LearningEvent("swapped", str(out), fingerprint, details)
            self._refuse_replaced(before)  # the training took minutes
            if (added := self._history.add(swapped, after=before)) is None:
                return self._add("kept", {**details, "error": "the artifact in use was rolled back meanwhile"})
            _logged(added)
            self._follow()
            return added

    def _base_of(self, event: LearningEvent) -> LearningEvent:
        """The event with which the learning of an artifact began."""
        name = base_name(event.artifact)
        return next(one for one in self._history.events(None, "started") if Path(one.artifact).name == name)

    def _seen(self) -> int:
        """Number of ratings that the store had when this learning tried its last candidate."""
        last = self._history.events(1, "started", "kept", "swapped")
        return int(last[0].details.get("given", 0))

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
                shutil.rmtree(job.out, ignore_errors=True)  # an unfinished artifact
        if self._process.returncode != 0:
            why = err.strip().splitlines()[-1:] or [f"exit code {self._process.returncode}"]
            raise OSError(f"the training process failed: {why[0]}")
        if not out.strip():
            raise OSError("the training process ended without a result")
        result: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return result

    def rollback(self) -> LearningEvent:
        """Go back to the previous artifact, also in the router of this learner, see `roll_back`.

        Returns:
            The event.

        Raises:
            InputError: The learner was closed, or there is no earlier artifact. Other errors: see `roll_back`.
        """
        with self._stepping:
            self._check_open()
            event = roll_back(self.store, self.folder, trust_encoder=self._trust)
            self._use(event)
            return event

    def _add(self, action: Action, details: dict[str, Any]) -> LearningEvent:
        """Add an event that leaves the artifact in use as it is, also if another process has just changed it."""
        added = None
        while added is None:
            latest = self._latest()
            self._refuse_replaced(latest)
            event = LearningEvent(action, latest.artifact, latest.fingerprint, details)
            added = self._history.add(event, after=latest)
        _logged(added)
        self._follow()
        return added

    def _remove_unused(self) -> None:
        """Remove the candidates that a killed learner has left."""
        known = {Path(one.artifact).name for one in self._history.events(None, "swapped")}
        prefixes = "|".join(re.escape(_prefix(one)) for one in self._history.events(None, "started"))
        candidate = re.compile(f"({prefixes})[0-9a-f]{{16}}")
        for one in self.folder.iterdir():
            if one.name not in known and candidate.fullmatch(one.name):
                shutil.rmtree(one, ignore_errors=True)

    def run(self) -> None:
        """Run a step after each `every`, until `close` is called in another thread. Errors of a step are logged.

        Raises:
            InputError: The learner was closed before.
        """
        self._check_open()
        self._step_until_closed()

    def _step_until_closed(self) -> None:
        while not self._stop.is_set():
            try:
                self.step()
            except VLRouteError as error:
                if not self._stop.is_set():
                    log.error("the learner could not work: %s", error)
            self._stop.wait(min(self.every.total_seconds(), threading.TIMEOUT_MAX))

    def start(self) -> ContinualLearner:
        """Run in a thread until `close`.

        Returns:
            This learner.

        Raises:
            InputError: The learner was closed.
        """
        self._check_open()
        if self._thread is None:
            self._thread = threading.Thread(target=self._step_until_closed, name="vlroute-learn", daemon=True)
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
        with self._stepping:  # a step in another thread of the caller needs the lock of the store until it has ended
            self._held.close()

    def __enter__(self) -> ContinualLearner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def roll_back(store: Store, folder: str | Path | None = None, *, trust_encoder: str | None = None) -> LearningEvent:
    """Go back to the artifact that was in use before the current one. Each further call goes back one more.

    A learner may be running: it goes on from the earlier artifact, after the next new ratings. A restart is undone
    likewise.

    Args:
        store: The store.
        folder: See `ContinualLearner`.
        trust_encoder: See `Router.from_pretrained`.

    Returns:
        The event.

    Raises:
        InputError: There is no earlier artifact, the learner has just put another one in use, or `folder` does not
            exist.
        ArtifactError: The earlier artifact cannot be used. Nothing is changed.
        StoreError: The store cannot be used.
    """
    history = LearningHistory(store, None if folder is None else Path(folder))
    changes = history.events(None, "started", "swapped", "rolled back")
    if not changes:
        raise InputError("nothing was learned on this store yet: start vlroute learn first")
    used = changes[0].artifact
    for event, before in pairwise(changes):
        if event.action != "rolled back" and event.artifact == used:
            before.check_artifact()
            fingerprint = ComplexityClassifier.load(before.artifact, trust_encoder).fingerprint
            added = None
            while added is None:
                latest = history.latest()
                if latest is None or latest.artifact != used:
                    raise InputError(
                        "the learner has put another artifact in use meanwhile: look at --history and try again"
                    )
                added = history.add(LearningEvent("rolled back", before.artifact, fingerprint), after=latest)
            return _logged(added)
    raise InputError(f"{used} is the artifact with which learning began: there is no earlier one")


def _fingerprint(router: Router | None) -> str:
    """Fingerprint of the artifact of a router; empty without one."""
    classifier = None if router is None else router.selector.classifier
    return "" if classifier is None else classifier.fingerprint


def _model_of(router: Router) -> dict[str, Any] | None:
    """The model of a router, for a job; None if its checkpoints are not here yet, whose fingerprint answers have."""
    identity = router.identity
    return identity.as_card() if identity.fingerprint or router.remote is not None else None


def _prefix(base: LearningEvent) -> str:
    """Prefix of the names of the artifacts that are learned from that of the event, see `BASE`."""
    return f"{LEARNED}{Path(base.artifact).name.removeprefix(BASE)}-"


def _number() -> str:
    """A number for the name of an artifact; later ones are higher."""
    return f"{time.time_ns():016x}"


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
    for sentence in event.details.get("warnings", ()):
        log.warning("learner: %s", sentence)
    return event


def _copy_probe(source: Path, out: Path) -> None:
    """Copy the vision probe of an artifact, if it has one."""
    if (source / PROBE_FOLDER).is_dir():
        shutil.copytree(source / PROBE_FOLDER, out / PROBE_FOLDER, dirs_exist_ok=True)
