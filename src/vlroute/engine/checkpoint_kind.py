"""Checks by templates, tokenizers and processors that two checkpoints are an Instruct and a Thinking checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlroute.engine.checkpoint_files import REMEDY, CheckpointFiles, same_twice
from vlroute.engine.thinking import END_THINK, THINK
from vlroute.errors import CheckpointError
from vlroute.modes import MODES, Mode

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
    """Check that Thinking's chat template opens a thought, that Instruct's does not, and that their tokens are equal.

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


def _opens_thought(files: CheckpointFiles, processor: Any) -> bool:
    """Whether the generation prompt of the chat template leaves a thought open."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    try:
        turn, whole = (
            processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)
            for prompted in (False, True)
        )
    except Exception as error:  # errors of jinja2, and any error that the template raises
        why = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"the chat template of the {files.mode} checkpoint {files.source!r} cannot be used "
            f"({type(error).__name__}: {why}); {REMEDY}"
        ) from error
    prompt = whole.removeprefix(turn)
    if not prompt or prompt == whole or QUESTION not in turn or processor.image_token not in turn:
        raise CheckpointError(
            f"the chat template of the {files.mode} checkpoint {files.source!r} does not render a question with a "
            f"picture; {REMEDY}"
        )
    return bool(prompt.rfind(THINK) > prompt.rfind(END_THINK))


def _control_ids(files: CheckpointFiles, processor: Any, thinks: bool) -> dict[str, int]:
    """Ids of the control tokens in the tokenizer. CheckpointError if one is missing or has another id."""
    tokenizer, rows = processor.tokenizer, files.config["text_config"].get("vocab_size")
    found: dict[str, int] = {}
    for token in (*CONTROL_TOKENS, THINK, END_THINK):
        number = tokenizer.convert_tokens_to_ids(token)
        if isinstance(number, int) and tokenizer.convert_ids_to_tokens(number) == token:
            found[token] = number
    needed = {*CONTROL_TOKENS, *([THINK, END_THINK] if thinks else [])}
    name = f"the tokenizer of the {files.mode} checkpoint {files.source!r}"
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
    name = f"the {files.mode} checkpoint {files.source!r}"
    for part in ("tokenizer", "image_processor", "video_processor"):
        if getattr(processor, part, None) is None:
            raise CheckpointError(f"{name} has no {part.replace('_', ' ')}; {REMEDY}")
    for part in (processor.image_processor, processor.video_processor):
        for setting, key in PATCHES.items():
            here, there = getattr(part, setting, None), files.config["vision_config"].get(key)
            if there is not None and here != there:
                raise CheckpointError(
                    f"{name}: {type(part).__name__} has {setting} {here}, but config.json says {key} {there}; {REMEDY}"
                )
