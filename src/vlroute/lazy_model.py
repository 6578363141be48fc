"""The model of a router: loaded when it is first needed, closed at the end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

from vlroute.engine.local.checkpoint_files import local_folder
from vlroute.engine.local.loading import DEFAULT_NUM_SEQS
from vlroute.errors import RouterClosedError
from vlroute.hub import Source, common_name, identify, pair_name
from vlroute.inputs.video import DEFAULT_SAMPLING, FrameSampling, sampling_of
from vlroute.types import MODES, ModelIdentity

if TYPE_CHECKING:
    from vlroute.engine.protocol import Engine
    from vlroute.engine.remote.client import RemoteEngine

#: Number of threads that prepare requests for a model in this process for which no thread of the caller waits.
PREPARING_THREADS = 4


class LazyModel:
    """The checkpoints of both modes, loaded when they are first needed, or an engine that was passed in. Thread-safe.

    Args:
        instruct: Hub id or folder of the Instruct checkpoint; for an engine, a name for messages.
        thinking: The same for Thinking.
        loading: Arguments of `load_models`.
        caches: `vision_cache` and `prefix_cache` of `LocalEngine.load`.
        max_num_seqs: Maximum number of answers in each mode that are generated at the same time.
        engine: Answers instead of checkpoints that are loaded here.
        on_load: Called with this object after the model was loaded from the hub.
    """

    def __init__(
        self,
        instruct: Source,
        thinking: Source,
        *,
        loading: Mapping[str, Any],
        caches: Mapping[str, Any],
        max_num_seqs: int = DEFAULT_NUM_SEQS,
        engine: Engine | None = None,
        on_load: Callable[[LazyModel], Any] = lambda model: None,
    ) -> None:
        self.instruct, self.thinking, self.max_num_seqs = instruct, thinking, max_num_seqs
        self.loading, self.engine = loading, engine
        self.remote = cast("RemoteEngine", engine) if engine is not None and engine.remote else None
        """The engine, if it answers through endpoints."""
        self.blocks = engine is not None
        """Whether a request occupies a thread until it is answered."""
        self.closed = threading.Event()
        """Set by `close`. It cancels every unfinished answer."""
        self._caches, self._on_load = caches, on_load
        self._identity: ModelIdentity | None = None  # of the loaded model
        self._sampling: FrameSampling | None = None
        self._workers: ThreadPoolExecutor | None = None
        self._process = 0  # that of the workers
        self._lock = threading.Lock()

    @property
    def identity(self) -> ModelIdentity:
        """Name, and the fingerprint if the weights are on this machine. For endpoints, the names of their models."""
        if self.remote is not None:
            return ModelIdentity(common_name(*(self.remote.endpoints[mode].model for mode in MODES)))
        if (engine := self.engine) is None:
            return self._identity or identify(self.instruct, self.thinking)
        if self._identity is None:  # reading weights takes too long for each answer
            known = ModelIdentity(pair_name(self.instruct, self.thinking), engine.fingerprint)
            self._identity = known if known.fingerprint else identify(self.instruct, self.thinking)
        return self._identity

    def load(self) -> Engine:
        """The engine; the first call loads the checkpoints.

        Returns:
            The engine.

        Raises:
            RouterClosedError: `close` was called, perhaps while the checkpoints were loading.
            CheckpointError: A checkpoint cannot be loaded.
        """
        with self._lock:
            self.check_open()
            if self.engine is None:
                from vlroute.engine.local.engine import LocalEngine

                self.engine = LocalEngine.load(
                    self.instruct, self.thinking, self.loading, self.max_num_seqs, **self._caches
                )
                if self.closed.is_set():  # `close` does not wait for loading
                    self.close()
                    raise RouterClosedError
                if None in (local_folder(self.instruct), local_folder(self.thinking)):  # no fingerprint until now
                    self._on_load(self)
            return self.engine

    @property
    def workers(self) -> ThreadPoolExecutor:
        """Threads that run requests for which no thread of the caller waits. They are started when first used."""
        with self._lock:
            self.check_open()
            if self._workers is not None and self._process != os.getpid():  # its threads are not here
                raise RuntimeError(
                    "this process is a fork of one that has used this router; create the router in the process that "
                    "uses it, or start processes with the method 'spawn'"
                )
            if self._workers is None:
                self._process = os.getpid()
                # they prepare pictures and prompts: more threads than cores would contend for the interpreter
                threads = max(2 * self.max_num_seqs, 32) if self.blocks else PREPARING_THREADS
                self._workers = ThreadPoolExecutor(threads, thread_name_prefix="vlroute-request")
            return self._workers

    def check_open(self) -> None:
        """Raises RouterClosedError after `close`."""
        if self.closed.is_set():
            raise RouterClosedError

    def sampling(self) -> FrameSampling:
        """Frame sampling for video files.

        Returns:
            The settings of the Instruct checkpoint's processor if the checkpoint is on this machine (it is not loaded
            for this); otherwise, and for endpoints, those of Qwen3-VL.
        """
        if self._sampling is None and self.remote is None:
            self._sampling = sampling_of(self.instruct)
        return self._sampling or DEFAULT_SAMPLING

    def close(self) -> None:
        """Cancel unfinished answers and release the engine; later calls of `load` fail."""
        self.closed.set()
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.close()
        if self._workers is not None:
            self._workers.shutdown(wait=False)
