"""The pair in this process, with its caches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlroute.engine.batching import Batching
from vlroute.engine.generate import generate
from vlroute.engine.pair import Pair, load_pair
from vlroute.engine.prefix_cache import PrefixCache
from vlroute.engine.request import Request
from vlroute.engine.vision_cache import VisionCache
from vlroute.messages import Conversation


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """A loaded pair; `batching` writes several answers at the same time. Thread-safe."""

    pair: Pair
    vision: VisionCache
    prefixes: PrefixCache
    batching: Batching | None = None

    @classmethod
    def load(
        cls,
        instruct: str | Path,
        thinking: str | Path,
        loading: Mapping[str, Any],
        rows: int = 1,
        vision_cache: VisionCache | None = None,
        prefix_cache: PrefixCache | None = None,
    ) -> LocalEngine:
        """With caches of the usual budgets where none are given. `loading` and errors as of `load_pair`."""
        pair = load_pair(instruct, thinking, **loading)
        batching = Batching(rows) if rows > 1 else None
        return cls(pair, vision_cache or VisionCache(), prefix_cache or PrefixCache(), batching)

    def request(self, conversation: Conversation, in_turns: bool = False, namespace: str = "") -> Request:
        write = self.batching.generate if self.batching else generate
        return Request(self.pair, conversation, self.vision, self.prefixes if in_turns else None, namespace, write)

    def close(self) -> None:
        """Cancel what is being written in shared rows."""
        if self.batching is not None:
            self.batching.close()
