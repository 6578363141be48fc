"""Identifies the pair of an answer, a record or a router artefact."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlroute.engine.checkpoint_files import CheckpointFiles, local_folder, pair_fingerprint
from vlroute.modes import MODES

STEM = re.compile(r"(?P<stem>.+)-instruct", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PairIdentity:
    """Name of a pair and, if its weights are on this machine, the fingerprint of both checkpoints.

    `name`: the hub name ("Qwen/Qwen3-VL-2B") or the name of a folder, without its path.
    `fingerprint`: see `CheckpointFiles.fingerprint`.
    """

    name: str
    fingerprint: str | None = None

    def differs(self, other: PairIdentity) -> bool:
        """Whether the pairs certainly differ: by fingerprint, else by hub name. Folder names are not compared."""
        if self.fingerprint and other.fingerprint:
            return self.fingerprint != other.fingerprint
        return "/" in self.name and "/" in other.name and self.name.casefold() != other.name.casefold()

    def __str__(self) -> str:
        return f"{self.name} (fingerprint {self.fingerprint[:12]}…)" if self.fingerprint else self.name

    def as_card(self) -> dict[str, Any]:
        """The entry in the card of a router artefact."""
        return {"name": self.name, "fingerprint": self.fingerprint}

    @classmethod
    def from_card(cls, card: Any) -> PairIdentity | None:
        """The inverse of `as_card`; None if the artefact has no entry. ValueError for any other value."""
        if card is None:
            return None
        if not isinstance(card, Mapping) or not isinstance(card.get("name"), str):
            raise ValueError("'pair' needs a name")
        fingerprint = card.get("fingerprint")
        if not isinstance(fingerprint, str | None):
            raise ValueError("the fingerprint of 'pair' must be a string or null")
        return cls(card["name"], fingerprint)


def identify(instruct: str | Path, thinking: str | Path) -> PairIdentity:
    """The pair of two folders or hub ids; folders are fingerprinted. CheckpointError for a damaged folder."""
    name, (first, second) = pair_name(instruct, thinking), (local_folder(instruct), local_folder(thinking))
    if first is None or second is None:
        return PairIdentity(name)
    files = CheckpointFiles.read("instruct", instruct, first), CheckpointFiles.read("thinking", thinking, second)
    return PairIdentity(name, pair_fingerprint(*(one.fingerprint() for one in files)))


def pair_name(instruct: str | Path, thinking: str | Path) -> str:
    """The name of the pair of two folders or hub ids; of folders without their path."""
    return common_name(_short(instruct), _short(thinking))


def common_name(instruct: str, thinking: str) -> str:
    """The common part of "…-Instruct" and "…-Thinking", else both names."""
    stem = STEM.fullmatch(instruct)
    if stem and thinking.casefold() == f"{stem['stem']}-thinking".casefold():
        return stem["stem"]
    return instruct if instruct == thinking else f"{instruct} + {thinking}"


def _short(source: str | Path) -> str:
    folder = local_folder(source)
    if folder is None:
        return str(source)
    folder = folder.resolve()
    return folder.parent.name if folder.name in MODES else folder.name
