"""Cache of vision features across turns, requests and modes: each distinct tower encodes each picture once.

A key covers everything that the features depend on: the checkpoint's `vision_key` (tower weights, processor settings,
dtype, …), the digest of the item (kind, size, every pixel, the times of video frames) and the namespace of the tenant.
Names given by the caller are not part of it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Protocol

import torch

from vlroute.checks import BYTES, refused
from vlroute.engine.cache.disk import DiskTier
from vlroute.engine.cache.features import VisionFeatures
from vlroute.inputs.media import Picture, Video
from vlroute.steps import Steps, wait

MiB = 2**20
Grid = tuple[int, int, int]
MAX_GRIDS = 2**16  # maximum number of items whose grid is kept; three numbers each


class VisionEncoder(Protocol):
    """What the cache needs of a checkpoint; see `engine.local.checkpoint.Checkpoint`."""

    @property
    def vision_key(self) -> str:
        """Hash of everything that determines the bits of the features."""
        ...

    @property
    def grid_key(self) -> str:
        """Hash of everything that determines the number of tokens."""
        ...

    @property
    def merge_size(self) -> int:
        """Side of a merged token in patches."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        ...

    def encode(self, items: Sequence[Picture | Video]) -> tuple[list[Grid], Future[list[VisionFeatures]]]:
        """Prepare pixels and submit them to the tower. Returns the grids and the future features."""
        ...


def feature_key(of: str, item: Picture | Video, namespace: str = "") -> str:
    """Cache key of an item, 64 hex characters. `of`: `vision_key` or `grid_key` of an encoder."""
    key = _begun(namespace, of, "picture" if isinstance(item, Picture) else "video").copy()
    key.update(item.digest.encode())
    return key.hexdigest()


@lru_cache(maxsize=1024)
def _begun(namespace: str, of: str, kind: str) -> hashlib._Hash:
    """Hash state of the parts of a key that do not depend on the item."""
    framed = "".join(f"{len(part.encode())}:{part}" for part in ("vlroute features 1", namespace, of, kind))
    return hashlib.sha256(framed.encode())


def _fits(features: VisionFeatures, encoder: VisionEncoder) -> bool:
    """Whether the number of rows equals the number of placeholder tokens in the prompt."""
    return features.fits(encoder.merge_size)


@dataclass(frozen=True, slots=True)
class Lease:
    """Features that stay in memory until `release` is called."""

    features: list[VisionFeatures]
    release: Callable[[], None]


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Statistics of a `VisionCache` since it was created, in items.

    Attributes:
        hits: found in the cache, `host_hits` and `disk_hits` included.
        waits: being encoded for another request when requested.
        encodes: encoded by a tower.
        host_hits: found in main memory.
        disk_hits: found on disk.
        evictions: removed to stay within the budget.
        uncached: not stored, because entries in use left no room.
        items: items now in the first tier.
        bytes: size of these items in bytes.
        host_bytes: size of the items in main memory in bytes.
    """

    hits: int = 0
    waits: int = 0
    encodes: int = 0
    host_hits: int = 0
    disk_hits: int = 0
    evictions: int = 0
    uncached: int = 0
    items: int = 0
    bytes: int = 0
    host_bytes: int = 0


class VisionCache:
    """LRU cache of vision features with a fixed budget in bytes. Thread-safe.

    Entries in use are not evicted; an item for which they leave no room is encoded but not stored. Requests that miss
    the same item share one encoding. The first tier is on the device of the model. Two more tiers are optional: main
    memory (useful if the model is on a GPU) and a disk tier, which survives the process.
    """

    def __init__(self, budget: int | None = None, host_budget: int = 0, disk: DiskTier | None = None) -> None:
        """Create an empty cache.

        Args:
            budget: maximum size of the first tier in bytes; 0 keeps features only during a request. None: a share of
                the device's memory, see `memory=` of `Router.from_pretrained`.
            host_budget: maximum size of the tier in main memory in bytes; 0 turns it off.
            disk: the disk tier, if any.

        Raises:
            SettingsError: a budget is not a whole number of at least 0, or `disk` is not a `DiskTier`.
        """
        #: Whether the budget follows the memory of the device.
        self.follows_memory = budget is None
        self.budget = 256 * MiB if budget is None else BYTES.read("budget (bytes)", budget)
        self.host_budget = BYTES.read("host_budget (bytes)", host_budget)
        if not isinstance(disk, DiskTier | None):
            raise refused("disk", disk, "a DiskTier or None")
        self.disk = disk
        self._kept: OrderedDict[str, VisionFeatures] = OrderedDict()
        self._host: OrderedDict[str, VisionFeatures] = OrderedDict()
        self._grids: OrderedDict[str, Grid] = OrderedDict()
        self._pins: dict[str, int] = {}
        self._making: dict[str, Future[VisionFeatures]] = {}
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._bytes = self._host_bytes = 0

    def stats(self) -> CacheStats:
        """Statistics since the cache was created."""
        with self._lock:
            return CacheStats(**self._counts, items=len(self._kept), bytes=self._bytes, host_bytes=self._host_bytes)

    def clear(self) -> None:
        """Remove all entries from memory that no request uses; the disk tier is unchanged."""
        with self._lock:
            for key in [key for key in self._kept if key not in self._pins]:
                self._bytes -= _nbytes(self._kept.pop(key))
            self._host.clear()
            self._host_bytes = 0

    def grids(self, encoder: VisionEncoder, items: Sequence[Picture | Video], namespace: str = "") -> list[Grid | None]:
        """Grid (t, h, w) in patches of each item whose grid is known; None for the others."""
        keys = [feature_key(encoder.grid_key, item, namespace) for item in items]
        with self._lock:
            return [self._grids.get(key) for key in keys]

    def lease(
        self,
        encoder: VisionEncoder,
        items: Sequence[Picture | Video],
        namespace: str = "",
        encoded: set[str] | None = None,
    ) -> Steps[Lease]:
        """Find or encode items. Waits for a tower, and for other requests that encode the same items.

        Args:
            encoder: Encodes what is not in the cache.
            items: Pictures and videos.
            namespace: Separates tenants.
            encoded: Receives the digests of the items that the tower encoded.

        Returns:
            The features in order. They stay in memory until `Lease.release`.
        """
        keys = [feature_key(encoder.vision_key, item, namespace) for item in items]
        wanted = dict(zip(keys, items, strict=True))
        with self._lock:
            for key in wanted:
                self._pins[key] = self._pins.get(key, 0) + 1
        try:
            found = yield from self._find(encoder, wanted, namespace, set() if encoded is None else encoded)
        except BaseException:
            self._unpin(wanted)
            raise
        features = [found[key] for key in keys]
        self._remember_grids(encoder, items, [one.grid for one in features], namespace)
        return Lease(features, partial(self._unpin, wanted))

    def _unpin(self, keys: Iterable[str]) -> None:
        with self._lock:
            for key in keys:
                self._pins[key] -= 1
                if not self._pins[key]:
                    del self._pins[key]

    def _remember_grids(
        self, encoder: VisionEncoder, items: Iterable[Picture | Video], grids: Sequence[Grid], namespace: str
    ) -> None:
        keys = [feature_key(encoder.grid_key, item, namespace) for item in items]
        with self._lock:
            self._grids.update(zip(keys, grids, strict=True))
            while len(self._grids) > MAX_GRIDS:
                self._grids.popitem(last=False)

    def _find(
        self, encoder: VisionEncoder, wanted: dict[str, Picture | Video], namespace: str, encoded: set[str]
    ) -> Steps[dict[str, VisionFeatures]]:
        found: dict[str, VisionFeatures] = {}
        while len(found) < len(wanted):
            mine: dict[str, Future[VisionFeatures]] = {}
            others: dict[str, Future[VisionFeatures]] = {}
            with self._lock:
                for key in wanted.keys() - found.keys():
                    if key in self._making:
                        others[key] = self._making[key]
                    elif (kept := self._remembered(key, encoder)) is not None:
                        found[key] = kept
                    else:
                        mine[key] = self._making[key] = Future()
            if mine:
                items = {key: wanted[key] for key in wanted if key in mine}
                found.update((yield from self._make(encoder, items, mine, namespace, encoded)))
            for key, future in others.items():
                if not future.done():
                    yield future
                if future.exception() is None:  # if the other request failed, the next pass of this loop tries again
                    found[key] = future.result()
                    self._count(waits=1)
        return found

    def _remembered(self, key: str, encoder: VisionEncoder) -> VisionFeatures | None:
        """Look up the first tier; the caller holds the lock."""
        if (kept := self._kept.get(key)) is None:
            return None
        if not _fits(kept, encoder):
            self._bytes -= _nbytes(self._kept.pop(key))
            return None
        self._kept.move_to_end(key)
        self._counts["hits"] += 1
        return kept

    def _make(
        self,
        encoder: VisionEncoder,
        items: dict[str, Picture | Video],
        futures: dict[str, Future[VisionFeatures]],
        namespace: str,
        encoded: set[str],
    ) -> Steps[dict[str, VisionFeatures]]:
        """Load items from the other tiers or encode them. Others get the result, or try again after an error."""
        try:
            made = self._from_host(encoder, list(items))
            made.update(self._from_disk(encoder, [key for key in items if key not in made]))
            new = {key: item for key, item in items.items() if key not in made}
            made.update((yield from self._encoded(encoder, new, namespace)))
            encoded.update(item.digest for item in new.values())
            with self._lock:
                for key, features in made.items():
                    self._keep(key, features)
        except BaseException as error:
            self._settle(futures)
            for future in futures.values():
                future.set_exception(error)
            raise
        self._settle(futures)
        for key, future in futures.items():
            future.set_result(made[key])
        return made

    def _settle(self, keys: Iterable[str]) -> None:
        with self._lock:
            for key in keys:
                del self._making[key]

    def _from_host(self, encoder: VisionEncoder, keys: Sequence[str]) -> dict[str, VisionFeatures]:
        with self._lock:
            found = {key: self._host[key] for key in keys if key in self._host}
            for key in found:
                self._host.move_to_end(key)
        fitting = {key: features for key, features in found.items() if _fits(features, encoder)}
        self._count(hits=len(fitting), host_hits=len(fitting))
        return {key: features.to(encoder.device) for key, features in fitting.items()}

    def _from_disk(self, encoder: VisionEncoder, keys: Sequence[str]) -> dict[str, VisionFeatures]:
        if self.disk is None:
            return {}
        found = {key: self.disk.get(key) for key in keys}
        read = {key: features for key, features in found.items() if features and _fits(features, encoder)}
        self._count(hits=len(read), disk_hits=len(read))
        return {key: features.to(encoder.device) for key, features in read.items()}

    def _encoded(
        self, encoder: VisionEncoder, items: dict[str, Picture | Video], namespace: str
    ) -> Steps[dict[str, VisionFeatures]]:
        if not items:
            return {}
        grids, encoding = encoder.encode([*items.values()])
        self._remember_grids(encoder, items.values(), grids, namespace)  # prompts are built before the tower has run
        features = yield from wait(encoding)
        self._count(encodes=len(items))
        fresh = dict(zip(items, features, strict=True))
        if self.disk is not None:
            for key, one in fresh.items():
                self.disk.put(key, one)
        return fresh

    def _keep(self, key: str, features: VisionFeatures) -> None:
        """Evict and store; an item for which entries in use leave no room is not stored. The caller holds the lock."""
        in_use = sum(_nbytes(self._kept[pinned]) for pinned in self._pins if pinned in self._kept)
        if _nbytes(features) > self.budget - in_use:
            self._counts["uncached"] += 1
            return
        if (behind := self._host.pop(key, None)) is not None:
            self._host_bytes -= _nbytes(behind)
        while self._bytes + _nbytes(features) > self.budget:  # least recently used first
            self._evict(next(old for old in self._kept if old not in self._pins))
        self._kept[key] = features
        self._bytes += _nbytes(features)

    def _evict(self, key: str) -> None:
        features = self._kept.pop(key)
        self._bytes -= _nbytes(features)
        self._counts["evictions"] += 1
        if _nbytes(features) <= self.host_budget:
            self._host[key] = features.to(torch.device("cpu"))
            self._host_bytes += _nbytes(features)
        while self._host_bytes > self.host_budget:
            _, dropped = self._host.popitem(last=False)
            self._host_bytes -= _nbytes(dropped)

    def _count(self, **counts: int) -> None:
        with self._lock:
            self._counts.update(counts)


def _nbytes(features: VisionFeatures) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (features.merged, *features.deepstack))
