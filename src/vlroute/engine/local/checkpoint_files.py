"""Checks and fingerprints checkpoint folders by their files only. Imports neither torch nor transformers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlroute.checks import shown
from vlroute.engine.families import FAMILIES, Family, family_of_hub_id, known_families
from vlroute.engine.local.quantized import check_quantization, gguf_error, is_gguf_folder, quantization_of
from vlroute.engine.local.reasoning import END_THINK, THINK
from vlroute.errors import CheckpointError
from vlroute.types import MODES, Mode

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
#: Of each group, one alternative must exist; an alternative is a set of files.
REQUIRED: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("config.json",),),
    (("tokenizer.json",), ("vocab.json", "merges.txt")),
    (("tokenizer_config.json",),),
    (("processor_config.json",), ("preprocessor_config.json",)),
    ((WEIGHTS,), (INDEX,)),
)
#: Other JSON files that transformers reads; they may be absent, but not damaged.
OPTIONAL_JSON = (
    "generation_config.json", "video_preprocessor_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json",
)  # fmt: skip
#: Settings that define the size of a text model.
SIZE_KEYS = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size",
)  # fmt: skip
#: Numbers of layers in the configuration, and the layers in the names of the tensors.
LAYERS = {
    ("text_config", "num_hidden_layers"): re.compile(r"language_model\.layers\.(\d+)\."),
    ("vision_config", "depth"): re.compile(r"visual\.blocks\.(\d+)\."),
}
REMEDY = "copy or download the checkpoint again"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format
SAMPLE = 4096  # bytes read at the start, in the middle and at the end of a tensor for the fingerprint


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Location of one tensor: `size` bytes of `file` from `start`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """One checkpoint folder whose files exist and can be read. Create it with `read`."""

    mode: Mode | None
    source: str
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorPlace]

    @classmethod
    def read(cls, mode: Mode | None, source: str | Path, folder: Path, *, weights: bool = True) -> CheckpointFiles:
        """Check the files of a folder; only the headers of the weights are read.

        Args:
            mode: the mode of the checkpoint; None for a checkpoint that answers in both.
            source: the name given by the user, for error messages.
            folder: the local folder.
            weights: False skips the weights, for a checkpoint whose weights are not downloaded yet.

        Returns:
            The checked files.

        Raises:
            CheckpointError: a file is missing or damaged, or belongs to another type of model.
        """
        reader = _Reader(_name(mode, source), folder)
        reader.require_files(weights)
        config = reader.json_object("config.json")
        family = FAMILIES.get(str(config.get("model_type")))
        if family is None:
            raise CheckpointError(
                f"{reader.name} is of model type {config.get('model_type')!r}; expected one of {known_families()}"
            )
        if family.hybrid and mode is not None:
            raise CheckpointError(
                f"{reader.name} is of the family {family.title}, whose checkpoints answer in both modes; pass it as "
                "name, without instruct= and thinking="
            )
        if not family.hybrid and mode is None:
            raise CheckpointError(
                f"{reader.name} is of the family {family.title}, which has a checkpoint for each mode; pass both "
                "with instruct= and thinking=, or the name of the pair"
            )
        for part in ("text_config", "vision_config"):
            if not isinstance(config.get(part), dict):
                raise CheckpointError(f"{reader.name}: config.json has no {part}; {REMEDY}")
        tensors = reader.tensors() if weights else {}
        _check_layers(reader.name, config, tensors)
        return cls(mode, str(source), folder, config, tensors)

    @property
    def name(self) -> str:
        """The checkpoint in error messages."""
        return _name(self.mode, self.source)

    @property
    def family(self) -> Family:
        """The family of the model."""
        return FAMILIES[self.config["model_type"]]

    @property
    def size(self) -> dict[str, Any]:
        """Layers, widths and vocabulary of the text model."""
        return {key: self.config["text_config"].get(key) for key in SIZE_KEYS}

    @property
    def quantization(self) -> dict[str, Any] | None:
        """How the checkpoint is quantized; None if it is not."""
        return quantization_of(self.config)

    def fingerprint(self) -> str:
        """SHA-256 (64 hex characters) that identifies these weights.

        It covers the name, dtype and shape of every tensor and up to three samples of its bytes (`SAMPLE` bytes each),
        so it takes only milliseconds. It does not depend on how the weights are divided into files.
        """
        digest = hashlib.sha256()
        for name, place in sorted(self.tensors.items()):
            digest.update(json.dumps([name, place.dtype, list(place.shape)]).encode())
            try:
                with place.file.open("rb") as file:
                    for start in sorted({0, max(0, (place.size - SAMPLE) // 2), max(0, place.size - SAMPLE)}):
                        file.seek(place.start + start)
                        digest.update(file.read(min(SAMPLE, place.size)))
            except OSError as error:
                raise CheckpointError(f"cannot read {place.file.name} of {self.source!r}: {error}; {REMEDY}") from error
        return digest.hexdigest()


def _check_layers(name: str, config: Mapping[str, Any], tensors: Iterable[str]) -> None:
    """Compare the numbers of layers. Transformers would create as many as config.json says, until memory runs out."""
    for (part, key), pattern in LAYERS.items():
        layers = {match[1] for tensor in tensors if (match := pattern.search(tensor))}
        count = config[part].get(key, len(layers))
        if layers and count != len(layers):
            raise CheckpointError(
                f"{name}: {part}.{key} in config.json is {shown(count)}, but the weights have {len(layers)} layers; "
                f"{REMEDY}"
            )


def _name(mode: Mode | None, source: str | Path) -> str:
    return f"the {mode} checkpoint {str(source)!r}" if mode else f"the checkpoint {str(source)!r}"


def local_folder(source: str | Path) -> Path | None:
    """The local folder that `source` names; None if there is no such folder (for example for a hub id)."""
    folder = Path(os.path.expanduser(source))
    try:
        return folder if folder.is_dir() else None
    except OSError as error:
        raise CheckpointError(f"cannot open the folder {str(source)!r}: {error.strerror}") from error


def is_hybrid(source: str | Path) -> bool:
    """Whether a checkpoint answers in both modes.

    Args:
        source: folder or hub id; of a hub id that was not downloaded yet, only the name can tell.

    Returns:
        Whether it does; False if that is not known.

    Raises:
        CheckpointError: config.json of the folder is damaged.
    """
    folder = local_folder(source)
    if folder is None:
        folder = _cached_folder(str(source))
    if folder is None:
        family = family_of_hub_id(str(source))
    elif not (folder / "config.json").exists():
        return False
    else:
        config = _Reader(_name(None, source), folder).json_object("config.json")
        family = FAMILIES.get(str(config.get("model_type")))
    return family is not None and family.hybrid


def _cached_folder(hub_id: str) -> Path | None:
    """The folder of the hub cache that holds config.json of a checkpoint; None if there is none."""
    from huggingface_hub import try_to_load_from_cache  # slow to import, and a decision does not need it
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(hub_id, "config.json")
    except HFValidationError:  # not a hub id
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def check_folders(instruct: str | Path, thinking: str | Path, quantization: Any = None) -> None:
    """Check the files of local checkpoints before anything is loaded.

    Args:
        instruct: folder or hub id of the Instruct checkpoint; hub ids are not checked.
        thinking: folder or hub id of the Thinking checkpoint; equal to `instruct` for one checkpoint with both modes.
        quantization: the loading option.

    Raises:
        CheckpointError: a file is missing or damaged, a model has another type, a package for a quantized checkpoint is
            missing, or the two checkpoints have different sizes or are the same.
        SettingsError: `quantization` was passed for a quantized checkpoint.
    """
    if instruct == thinking and is_hybrid(instruct):
        if (folder := local_folder(instruct)) is not None:
            files = CheckpointFiles.read(None, instruct, folder)
            check_quantization(files.name, files.config, quantization)
        return
    sources: dict[Mode, str | Path] = {"instruct": instruct, "thinking": thinking}
    found = [
        CheckpointFiles.read(mode, source, folder)
        for mode, source in sources.items()
        if (folder := local_folder(source)) is not None
    ]
    for files in found:
        check_quantization(files.name, files.config, quantization)
    if len(found) == len(sources):
        check_sizes(*found)
        check_distinct(*found)


def check_sizes(instruct: CheckpointFiles, thinking: CheckpointFiles) -> None:
    """CheckpointError if the families or the sizes differ."""
    if instruct.family is not thinking.family:
        types = " and ".join(repr(one.family.model_type) for one in (instruct, thinking))
        raise CheckpointError(
            f"{instruct.source!r} and {thinking.source!r} are of different model types, {types}; pass the Instruct and "
            "the Thinking checkpoint of one model"
        )
    if instruct.size != thinking.size:
        differing = [key for key in SIZE_KEYS if instruct.size[key] != thinking.size[key]]
        here, there = (", ".join(f"{key} {one.size[key]}" for key in differing) for one in (instruct, thinking))
        raise CheckpointError(
            f"the two checkpoints are of different sizes: {instruct.source!r} has {here}; {thinking.source!r} has "
            f"{there}. Pass the Instruct and the Thinking checkpoint of one size"
        )


def check_distinct(instruct: CheckpointFiles, thinking: CheckpointFiles) -> None:
    """CheckpointError if both have the same weights."""
    if instruct.folder.resolve() == thinking.folder.resolve() or instruct.fingerprint() == thinking.fingerprint():
        raise CheckpointError(same_twice(instruct.source, thinking.source))


def same_twice(instruct: str | Path, thinking: str | Path) -> str:
    """The message if one checkpoint was given for both modes."""
    return (
        f"instruct {str(instruct)!r} and thinking {str(thinking)!r} are the same checkpoint; pass the Instruct "
        "checkpoint for one and the Thinking checkpoint for the other"
    )


def pair_fingerprint(instruct: str, thinking: str) -> str:
    """One fingerprint for both checkpoints, from the fingerprints of each."""
    return hashlib.sha256(f"{instruct} {thinking}".encode()).hexdigest()


class _Reader:
    """Reads the files of one folder; raises a CheckpointError that says what is wrong with them."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder

    def require_files(self, weights: bool) -> None:
        for group in REQUIRED if weights else REQUIRED[:-1]:
            if not any(all(self._is_there(file) for file in files) for files in group):
                if is_gguf_folder(self.folder):
                    raise gguf_error(self.name)
                wanted = " or ".join(" with ".join(files) for files in group)
                raise CheckpointError(f"{self.name} has no {wanted}; {REMEDY}")
        for file in sorted({file for group in REQUIRED[:-1] for files in group for file in files} | {*OPTIONAL_JSON}):
            if file.endswith(".json") and os.path.lexists(self.folder / file):
                self.json_object(file)

    def json_object(self, file: str) -> dict[str, Any]:
        data = self._bytes(file)
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.name}: {file} is not valid JSON ({error}); {REMEDY}") from error
        if not isinstance(value, dict):
            found = type(value).__name__
            raise CheckpointError(f"{self.name}: {file} contains a JSON {found}, expected an object; {REMEDY}")
        return value

    def tensors(self) -> dict[str, TensorPlace]:
        """All tensors by name, from the files that transformers would read."""
        if self._is_there(WEIGHTS):
            return dict(self._header(WEIGHTS))
        where = self.json_object(INDEX).get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(f, str) and Path(f).name == f for f in where.values()):
            raise CheckpointError(f"{self.name}: {INDEX} does not map tensors to files in the folder; {REMEDY}")
        shards = sorted(set(where.values()))
        if absent := [shard for shard in shards if not self._is_there(shard)]:
            count = f"{len(absent)} of {len(shards)} weight files are missing"
            raise CheckpointError(f"{self.name}: {count}, the first is {absent[0]}; {REMEDY}")
        found = {name: place for shard in shards for name, place in self._header(shard)}
        if lacking := sorted(where.keys() - found.keys()):
            raise CheckpointError(
                f"{self.name}: {len(lacking)} tensors of {INDEX} are in no file, the first is {lacking[0]!r}; {REMEDY}"
            )
        return found

    def _header(self, file: str) -> Iterator[tuple[str, TensorPlace]]:
        """The tensors of one safetensors file, whose length must match its header."""
        path = self.folder / file
        try:
            actual = path.stat().st_size
            with path.open("rb") as stream:
                start = stream.read(len(LFS_POINTER))
                self._refuse_pointer(file, start)
                length: int = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else MAX_HEADER + 1
                stream.seek(8)
                header = json.loads(stream.read(length)) if length <= min(MAX_HEADER, actual) else None
            places = {}
            for name, one in header.items() if isinstance(header, dict) else ():
                if name != "__metadata__":
                    begin, end = one["data_offsets"]
                    if not 0 <= begin <= end:
                        raise ValueError(f"{name!r} lies at {begin} to {end}")
                    shape = tuple(one["shape"])
                    places[name] = TensorPlace(path, str(one["dtype"]), shape, 8 + length + begin, end - begin)
            expected = max((place.start + place.size for place in places.values()), default=0)
        except OSError as error:
            raise CheckpointError(f"{self.name}: cannot read {file} ({error.strerror}); {REMEDY}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{self.name}: {file} is not a safetensors file ({error}); {REMEDY}") from error
        if not places:
            raise CheckpointError(f"{self.name}: {file} is not a safetensors file, or contains no tensor; {REMEDY}")
        if actual != expected:
            raise CheckpointError(f"{self.name}: {file} has {actual} bytes instead of {expected}; {REMEDY}")
        yield from places.items()

    def _is_there(self, file: str) -> bool:
        try:
            return (self.folder / file).is_file()
        except OSError as error:
            raise CheckpointError(
                f"{self.name}: cannot read {file} ({error.strerror}); check its permissions"
            ) from error

    def _bytes(self, file: str) -> bytes:
        try:
            data = (self.folder / file).read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{self.name}: cannot read {file} ({error.strerror}); check its permissions, or {REMEDY}"
            ) from error
        self._refuse_pointer(file, data)
        return data

    def _refuse_pointer(self, file: str, data: bytes) -> None:
        if data.startswith(LFS_POINTER):
            raise CheckpointError(
                f"{self.name}: {file} is a Git LFS pointer instead of the file; run `git lfs pull` in the folder, or "
                "download the checkpoint again"
            )


#: Tokens of the chat template, with the key of their id in config.json, if there is one.
CONTROL_TOKENS = {
    "<|im_start|>": None, "<|im_end|>": None, "<|vision_start|>": "vision_start_token_id",
    "<|vision_end|>": "vision_end_token_id", "<|image_pad|>": "image_token_id", "<|video_pad|>": "video_token_id",
}  # fmt: skip
#: Settings that must be equal in processors and vision tower: name in the processor, name in config.json.
PATCHES = {
    "patch_size": "patch_size", "merge_size": "spatial_merge_size", "temporal_patch_size": "temporal_patch_size",
}  # fmt: skip
QUESTION = "vlroute asks"


def check_kinds(files: Mapping[Mode, CheckpointFiles], processors: Mapping[Mode, Any]) -> None:
    """Check that one checkpoint is an Instruct and the other a Thinking model with the same tokens.

    The chat template of a Thinking model opens a thought.

    Args:
        files: the checked files of both checkpoints.
        processors: their loaded processors.

    Raises:
        CheckpointError: the checkpoints are swapped or of the same kind, or a tokenizer, template or processor does not
            match its model.
    """
    for mode in MODES:
        _check_processor(files[mode], processors[mode])
    opens = {mode: _opens_thought(files[mode], processors[mode]) for mode in MODES}
    ids = {mode: _control_ids(files[mode], processors[mode], opens[mode]) for mode in MODES}
    instruct, thinking = files["instruct"].source, files["thinking"].source
    if files["instruct"].folder.resolve() == files["thinking"].folder.resolve():
        raise CheckpointError(same_twice(instruct, thinking))
    if opens["instruct"] and not opens["thinking"]:
        raise CheckpointError(
            f"the two checkpoints are swapped: {instruct!r}, given as instruct, is a Thinking checkpoint (its chat "
            f"template opens {THINK}), and {thinking!r}, given as thinking, is an Instruct checkpoint. Swap the two"
        )
    if opens["instruct"] or not opens["thinking"]:
        both, does, mode = (
            ("Thinking", "open", "instruct") if opens["instruct"] else ("Instruct", "do not open", "thinking")
        )
        raise CheckpointError(
            f"both checkpoints, {instruct!r} and {thinking!r}, are {both} checkpoints (their chat templates {does} "
            f"{THINK}); pass the {mode.capitalize()} checkpoint of this size as {mode}"
        )
    shared = ids["instruct"].keys() & ids["thinking"].keys()
    if different := sorted(token for token in shared if ids["instruct"][token] != ids["thinking"][token]):
        raise CheckpointError(
            f"the tokenizers of {instruct!r} and {thinking!r} have different ids for {', '.join(different)}; pass two "
            "checkpoints of one model family"
        )


def check_switch(files: CheckpointFiles, processor: Any) -> dict[Mode, list[int]]:
    """Check that the chat template of a checkpoint with both modes opens a thought for Thinking only.

    Args:
        files: the checked files.
        processor: the loaded processor.

    Returns:
        For each mode, the token ids of the prompt from the marker on, which choose the mode.

    Raises:
        CheckpointError: the tokenizer, the template or the processor does not match the model.
    """
    _check_processor(files, processor)
    _control_ids(files, processor, thinks=True)
    family, ids = files.family, dict[Mode, list[int]]()
    for mode in MODES:
        prompt = _generation_prompt(files, processor, **{str(family.switch): mode == "thinking"})
        if (prompt.rfind(THINK) > prompt.rfind(END_THINK)) != (mode == "thinking") or str(family.marker) not in prompt:
            raise CheckpointError(
                f"the chat template of {files.name} has no {family.switch} as that of {family.example!r}; {REMEDY}"
            )
        marker = prompt[prompt.rindex(str(family.marker)) :]
        ids[mode] = processor.tokenizer(marker, add_special_tokens=False)["input_ids"]
    return ids


def _opens_thought(files: CheckpointFiles, processor: Any) -> bool:
    """Whether the generation prompt of the chat template leaves a thought open."""
    prompt = _generation_prompt(files, processor)
    return prompt.rfind(THINK) > prompt.rfind(END_THINK)


def _generation_prompt(files: CheckpointFiles, processor: Any, **options: bool) -> str:
    """What the chat template writes after the last message."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    try:
        turn, whole = (
            processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted, **options)
            for prompted in (False, True)
        )
    except Exception as error:  # errors of jinja2, and any error that the template raises
        why = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"the chat template of {files.name} cannot be used ({type(error).__name__}: {why}); {REMEDY}"
        ) from error
    prompt = str(whole.removeprefix(turn))
    if not prompt or prompt == whole or QUESTION not in turn or processor.image_token not in turn:
        raise CheckpointError(f"the chat template of {files.name} does not render a question with a picture; {REMEDY}")
    return prompt


def _control_ids(files: CheckpointFiles, processor: Any, thinks: bool) -> dict[str, int]:
    """Ids of the control tokens in the tokenizer. CheckpointError if one is missing or has another id."""
    tokenizer, rows = processor.tokenizer, files.config["text_config"].get("vocab_size")
    found: dict[str, int] = {}
    for token in (*CONTROL_TOKENS, THINK, END_THINK):
        number = tokenizer.convert_tokens_to_ids(token)
        if isinstance(number, int) and tokenizer.convert_ids_to_tokens(number) == token:
            found[token] = number
    needed = {*CONTROL_TOKENS, *([THINK, END_THINK] if thinks else [])}
    name = f"the tokenizer of {files.name}"
    if lacking := sorted(needed - found.keys()):
        raise CheckpointError(f"{name} lacks {', '.join(lacking)}; {REMEDY}")
    for token, key in CONTROL_TOKENS.items():
        if key is not None and files.config.get(key, found[token]) != found[token]:
            raise CheckpointError(
                f"{name} has {token} at {found[token]}, but config.json says {key} {files.config[key]}; {REMEDY}"
            )
    if isinstance(rows, int) and len(tokenizer) > rows:
        raise CheckpointError(f"{name} has {len(tokenizer)} tokens, but the model has only {rows}; {REMEDY}")
    return found


def _check_processor(files: CheckpointFiles, processor: Any) -> None:
    name = files.name
    for part in ("tokenizer", "image_processor", "video_processor"):
        if getattr(processor, part, None) is None:
            raise CheckpointError(f"{name} has no {part.replace('_', ' ')}; {REMEDY}")
    if not isinstance(longest := processor.tokenizer.model_max_length, int | float):  # compared with each prompt
        raise CheckpointError(f"the tokenizer of {name} has model_max_length {shown(longest)}, not a number; {REMEDY}")
    for part in (processor.image_processor, processor.video_processor):
        for setting, key in PATCHES.items():
            here, there = getattr(part, setting, None), files.config["vision_config"].get(key)
            if there is not None and here != there:
                raise CheckpointError(
                    f"{name}: {type(part).__name__} has {setting} {here}, but config.json says {key} {there}; {REMEDY}"
                )
