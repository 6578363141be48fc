"""Names of models: which checkpoints and which router artifact a name stands for, and what identifies them."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from vlroute.engine.local.checkpoint_files import CheckpointFiles, is_hybrid, local_folder, pair_fingerprint, same_twice
from vlroute.engine.local.quantized import gguf_error, is_gguf_folder, refuse_gguf
from vlroute.errors import CheckpointError
from vlroute.files import shipped
from vlroute.types import MODES, ModelIdentity

log = logging.getLogger("vlroute")

#: A hub id or a folder.
Source = str | Path
#: Models on the hub for which this package contains a router artifact.
SHIPPED_ROUTERS = {"Qwen/Qwen3-VL-2B": "qwen3-vl-2b/router"}
#: The models that are part of this package, with the warning that they know little.
EMBEDDED = {
    "pocket": "using the embedded pocket pair: 2.2 M parameters, trained on small drawn pictures only; "
    'for real pictures: Router.from_pretrained("Qwen/Qwen3-VL-2B")',
    "pocket-hybrid": "using the embedded pocket hybrid: 2.2 M parameters, trained on small drawn pictures only; "
    'for real pictures: Router.from_pretrained("Qwen/Qwen3.5-2B")',
}
EXAMPLE = "a name such as 'Qwen/Qwen3-VL-2B' or 'Qwen/Qwen3.5-2B', or a folder that contains instruct/ and thinking/"
STEM = re.compile(r"(?P<stem>.+)-instruct", re.IGNORECASE)
HUB_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
QWEN = re.compile(r"qwen/qwen3-vl-(\d+b(?:-a\d+b)?)", re.IGNORECASE)
#: A name of one checkpoint of a pair: "…-Instruct", "…-Thinking-FP8".
ONE_OF_TWO = re.compile(r"(?P<stem>.+?)[-_](?:instruct|thinking)(?P<rest>[-_].+)?", re.IGNORECASE)
QUANTIZED = re.compile(
    r"(?P<stem>.+?)(?P<rest>[-_](?:fp8|fp4|nvfp4|mxfp4|awq|gptq|gguf|mlx|bnb|int4|int8|w4a16|w8a8|w8a16|[48]-?bit).*)",
    re.IGNORECASE,
)


def identify(instruct: Source, thinking: Source) -> ModelIdentity:
    """Identify a pair of checkpoints, or one with both modes.

    Args:
        instruct: Folder or hub ID of the Instruct checkpoint.
        thinking: The same for Thinking; equal to `instruct` for one checkpoint with both modes.

    Returns:
        The common name, and a fingerprint if both are folders.

    Raises:
        CheckpointError: A folder is damaged.
    """
    name, (first, second) = pair_name(instruct, thinking), (local_folder(instruct), local_folder(thinking))
    if first is None or second is None:
        return ModelIdentity(name)
    if instruct == thinking and is_hybrid(instruct):
        files = (CheckpointFiles.read(None, instruct, first),) * 2
    else:
        files = CheckpointFiles.read("instruct", instruct, first), CheckpointFiles.read("thinking", thinking, second)
    return ModelIdentity(name, pair_fingerprint(*(one.fingerprint() for one in files)))


def pair_name(instruct: Source, thinking: Source) -> str:
    """The common name of two folders or hub ids; for folders without their path."""
    return common_name(_short(instruct), _short(thinking))


def common_name(instruct: str, thinking: str) -> str:
    """The common part of "…-Instruct" and "…-Thinking", otherwise both names."""
    stem = STEM.fullmatch(instruct)
    if stem and thinking.casefold() == f"{stem['stem']}-thinking".casefold():
        return stem["stem"]
    return instruct if instruct == thinking else f"{instruct} + {thinking}"


def source_name(source: Source) -> str:
    """The name of one checkpoint without its path; the folder `NAME/instruct` has the name "NAME-instruct"."""
    folder = local_folder(source)
    if folder is None:
        return str(source)
    folder = folder.resolve()
    return f"{folder.parent.name}-{folder.name}" if folder.name in MODES else folder.name


def _short(source: Source) -> str:
    folder = local_folder(source)
    if folder is None:
        return str(source)
    folder = folder.resolve()
    return folder.parent.name if folder.name in MODES else folder.name


def resolve_pair(
    name: Source | None, instruct: Source | None, thinking: Source | None, router: Source | None
) -> tuple[Source, Source, Source | None]:
    """Find the checkpoints and the router artifact for the arguments of `Router.from_pretrained`.

    Args:
        name: Name or folder of the model. "pocket" and "pocket-hybrid" are the embedded models, unless there is a
            folder of this name. None without `instruct` is "pocket".
        instruct: Hub id or folder of the Instruct checkpoint, instead of `name`.
        thinking: The same for Thinking.
        router: Folder of a router artifact; None chooses the one that belongs to the model, if there is one.

    Returns:
        Instruct checkpoint, Thinking checkpoint, and router artifact or None. Both checkpoints are the same if one
        answers in both modes.

    Raises:
        ValueError: `name` was passed together with `instruct` or `thinking`, or only one of these two was passed.
        CheckpointError: The name does not stand for a model with both modes, a folder is missing or contains none, a
            checkpoint has the format GGUF, or the same checkpoint of a pair was passed twice.
    """
    if (instruct is None) != (thinking is None) or (name is not None and instruct is not None):
        raise ValueError("pass one name for the pair, or both instruct= and thinking=")
    for given in (name, instruct, thinking):
        if given is not None and local_folder(given) is None:
            refuse_gguf(given)
    if instruct is not None and thinking is not None:
        first, second = _two(instruct, thinking)
        folder = local_folder(first) if first == second else None
        return first, second, router if folder is None else _own_router(folder, router)
    if own := "pocket" if name is None else embedded(name):
        log.warning(EMBEDDED[own])
        name = shipped(own)
    assert name is not None
    if str(name) and (folder := local_folder(name)) is not None:
        if is_hybrid(folder):
            return folder, folder, _own_router(folder, router)
        return _pair_folder(folder, router)
    if str(name) and is_hybrid(source := str(name).rstrip("/")):
        return source, source, router
    stem = _stem(name)
    if router is None and stem in SHIPPED_ROUTERS:
        log.warning(
            "the router artifact was made from published scores, not from answers of this model; to train your own: "
            "vlroute collect, then vlroute train"
        )
        router = shipped(SHIPPED_ROUTERS[stem])
    return f"{stem}-Instruct", f"{stem}-Thinking", router


def embedded(name: Source) -> str | None:
    """The key in `EMBEDDED` of the model that `name` stands for; None if it is no embedded model."""
    key = str(name).rstrip("/")
    return key if key in EMBEDDED and local_folder(name) is None else None


def _two(instruct: Source, thinking: Source) -> tuple[Source, Source]:
    found = _checkpoint("instruct", instruct), _checkpoint("thinking", thinking)
    if found[0] == found[1] and is_hybrid(found[0]):
        return found
    if str(found[0]).casefold() == str(found[1]).casefold() and local_folder(instruct) is None:
        raise CheckpointError(same_twice(*found))
    return found


def _checkpoint(mode: str, source: Source) -> Source:
    """A folder unchanged; a hub id without a trailing slash."""
    if str(source) and local_folder(source) is not None:
        return source
    if own := embedded(source):
        if is_hybrid(folder := shipped(own)):
            return folder
        raise CheckpointError(
            f"{mode}=: {str(source)!r} is a pair; pass only its name, without instruct= and thinking="
        )
    return _hub_id(source, f"{mode}=", "a folder, or a hub id such as 'Qwen/Qwen3-VL-2B-Instruct'")


def _pair_folder(folder: Path, router: Source | None) -> tuple[Source, Source, Source | None]:
    absent = [mode for mode in ("instruct", "thinking") if local_folder(folder / mode) is None]
    if absent and is_gguf_folder(folder):
        raise gguf_error(repr(str(folder)))
    if absent and (folder / "config.json").exists():
        raise CheckpointError(
            f"{str(folder)!r} contains one checkpoint, but a pair has two; pass instruct= and thinking=, or {EXAMPLE}"
        )
    if absent:
        hides = f"; it hides the embedded model {folder.name!r}" if str(folder) in EMBEDDED else ""
        raise CheckpointError(
            f"{str(folder)!r} contains no folder {' and no folder '.join(absent)}{hides}; pass {EXAMPLE}"
        )
    return folder / "instruct", folder / "thinking", _own_router(folder, router)


def _own_router(folder: Path, router: Source | None) -> Source | None:
    """`router`, or the artifact in the folder of the model."""
    if router is None and local_folder(folder / "router") is not None:
        return folder / "router"
    return router


def _stem(name: Source) -> str:
    """The common part of the two hub ids that `name` stands for."""
    stem = str(name).rstrip("/")
    if local_folder(f"{stem}-Instruct") is not None:  # next to `…-Thinking`, as after a download into folders
        return stem
    stem = _hub_id(name, "the pair", EXAMPLE)
    if (meant := stem.lower().replace("_", "-")) in EMBEDDED:
        raise CheckpointError(f"there is no model {stem!r}; pass {meant!r} for the embedded model of this name")
    if qwen := QWEN.fullmatch(stem):
        return f"Qwen/Qwen3-VL-{qwen[1].upper()}"
    owner, slash, model = stem.rpartition("/")
    if found := ONE_OF_TWO.fullmatch(model) or QUANTIZED.fullmatch(model):
        common, rest = owner + slash + found["stem"], found["rest"] or ""
        both = f"instruct='{common}-Instruct{rest}' and thinking='{common}-Thinking{rest}'"
        whole = "" if rest else f" the pair's name {common!r}, or"
        raise CheckpointError(
            f"{stem!r} does not name a pair of checkpoints; pass{whole} {both}, or a folder that contains instruct/ "
            "and thinking/"
        )
    return stem


def _hub_id(source: Source, what: str, expected: str) -> str:
    name = str(source).rstrip("/")
    if os.path.isfile(os.path.expanduser(source)):
        raise CheckpointError(f"{what}: {str(source)!r} is a file; pass {expected}")
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(f"{what}: there is no folder {str(source)!r}; pass {expected}")
    return name
