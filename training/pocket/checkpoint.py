"""The pocket pair's shape: tokenizer, processors, chat templates and configuration of the real architecture."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from training.pocket.text import REPLIES, REQUESTS, SYSTEM_PROMPTS, WORDS
from vlroute.pocket.canvas import LETTERS, SIDE
from vlroute.pocket.screens import SCREEN_WORDINGS, TOOLS
from vlroute.pocket.tasks import (
    AGAIN,
    ASIDES,
    CAPTION_PROMPT,
    FRAMES,
    LINKS_PROMPT,
    NUMBER_WORDS,
    ORDINALS,
    SHAPE_NAMES,
    TALLY_PROMPT,
    TRANSCRIPT_PROMPT,
    UNKNOWN,
    UNKNOWN_CAPTION,
    WHICH,
    WORDINGS,
)
from vlroute.types import MODES

PATCH, MERGE = 12, 2
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
ADDED = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
NOUNS = ["number", "shape", "character", "arrow", "screen", "letter", "tap", "lamp", "triangle", "picture", "video"]
#: Fixed text around tools and their calls; each is one token, so that requests with tools stay short.
PIECES = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>",
    "</tools>\n\nFor each function call, return a json object with function name and arguments within ",
    " XML tags:\n",
    '\n{"name": <function-name>, "arguments": <args-json-object>}\n',
    '{"type": "function", "function": {"name": "', '", "description": "',
    '", "parameters": {"type": "object", "properties": {', '": {"type": "string"', '}, "required": [', "]}}}",
    '\n{"name": "', '", "arguments": {', '": "', '"}}\n', "}}\n",
)  # fmt: skip
# A word includes the space before it. Single capitals and digits are tokens of their own, so drawn letters are never
# merged. A letter that was looked up is one token with its arrow: the last token determines what to look up next.
WORD = "|".join(map(re.escape, PIECES)) + r"|[<>][A-Z](?![a-z])| ?[A-Za-z]?[a-z]+| ?[A-Z]{2,}|\n+|[\s\S]"
LINKS = tuple(arrow + letter for arrow in "<>" for letter in LETTERS)

_FILES = Path(__file__).with_name("templates")
#: The chat template of each mode. It renders what the published template of the real checkpoint renders.
TEMPLATES: dict[str, str] = {
    mode: "\n".join((_FILES / f"{name}.jinja").read_text("utf-8") for name in ("common", mode)) for mode in MODES
}


def _words() -> list[str]:
    """Words of questions in every case that users type, and of the other fixed texts as they are written."""
    asked = [text for question in WORDINGS.values() for texts in question.values() for text in texts]
    asked += [text for question in SCREEN_WORDINGS.values() for texts in question.values() for text in texts]
    asked += [name for names in SHAPE_NAMES.values() for name in names.values()]
    asked += [request for requests in REQUESTS.values() for request in requests.values()]
    asked += [which for some in WHICH.values() for which in some] + [n for names in ORDINALS.values() for n in names]
    texts = [CAPTION_PROMPT, TRANSCRIPT_PROMPT, TALLY_PROMPT, LINKS_PROMPT, UNKNOWN_CAPTION, AGAIN, *UNKNOWN.values()]
    texts += [" ".join(NUMBER_WORDS), " ".join(WORDS), json.dumps(TOOLS), *SYSTEM_PROMPTS]
    texts += [text for reply in REPLIES.values() for text in reply.values()]
    texts += [aside for asides in ASIDES.values() for aside in asides]
    texts += [f"{noun} {noun}s a video of" for noun in NOUNS] + ["system user assistant seconds screen no button here"]
    words = set(re.findall(WORD, " ".join(texts)))
    for word in re.findall(WORD, re.sub(r"\{\w+\}", "", " ".join(asked))):
        words |= {word, word.lower(), word.upper(), word.capitalize()}
    words = {word.strip(" ") for word in words} - {""}
    return sorted(words | {f" {word}" for word in words if word[:1].isalpha() and word.isascii()})


def fast_tokenizer(tokenizer: Tokenizer, special: Sequence[str], added: Sequence[str], length: int) -> Any:
    """Add tokens and wrap `tokenizer`. `added` are not special in the real checkpoints either: decoding shows them."""
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens(list(added))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", model_max_length=length,
        extra_special_tokens=[special[1], *special[3:]], clean_up_tokenization_spaces=False,
    )  # fmt: skip


def qwen_processor(
    tokenizer: PreTrainedTokenizerFast, mode: str, patch: int, image: tuple[int, int], video: tuple[int, int],
    **sampling: int,
) -> Qwen3VLProcessor:  # fmt: skip
    """The real processors with the chat template of `mode`. `image`, `video`: smallest and largest number of pixels."""
    common = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": patch, "merge_size": MERGE}
    sizes = [dict(zip(("shortest_edge", "longest_edge"), pixels, strict=True)) for pixels in (image, video)]
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=sizes[0], **common),
        video_processor=Qwen3VLVideoProcessor(size=sizes[1], cap_pixels_per_frame=False, **sampling, **common),
        tokenizer=tokenizer, chat_template=TEMPLATES[mode],
    )  # fmt: skip


def qwen_config(
    tokenizer: PreTrainedTokenizerFast, text: dict[str, Any], vision: dict[str, Any], mrope: Sequence[int],
    theta: float, **more: Any,
) -> Qwen3VLConfig:  # fmt: skip
    """A configuration of the real architecture. `mrope`: parts of half a head for time, height and width."""
    rope = {"rope_type": "default", "rope_theta": theta, "mrope_section": list(mrope), "mrope_interleaved": True}
    ids = {
        "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
    }  # fmt: skip
    return Qwen3VLConfig(
        text_config={**text, "rope_parameters": rope, "tie_word_embeddings": True}, tie_word_embeddings=True,
        vision_config={**vision, "spatial_merge_size": MERGE, "temporal_patch_size": 2,
                       "out_hidden_size": text["hidden_size"]},
        **{key: tokenizer.convert_tokens_to_ids(token) for key, token in ids.items()}, **more,
    )  # fmt: skip


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Known words are tokens, other text is split into characters, unknown characters into bytes."""
    characters = [chr(code) for code in range(32, 127)] + ["\n", "\n\n"]
    tokens = [*SPECIAL, *ADDED, *(f"<0x{byte:02X}>" for byte in range(256)), *characters, *LINKS, *PIECES, *_words()]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return fast_tokenizer(tokenizer, SPECIAL, ADDED, 4096)


def build_processor(mode: str) -> Qwen3VLProcessor:
    """The real processor classes at 96×96 pixels: 16 merged tokens a picture, 16 for every two frames."""
    area = SIDE * SIDE
    frames = {"min_frames": 2, "max_frames": FRAMES}
    return qwen_processor(build_tokenizer(), mode, PATCH, (area, area), (area, area * FRAMES), **frames)


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """About 2.2 M parameters: text 5 layers × 128, tower 3 × 96 with deepstack after its first two layers."""
    width, tower_width = 128, 96
    text = {
        "vocab_size": -(-len(tokenizer) // 16) * 16, "hidden_size": width, "intermediate_size": 3 * width,
        "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
        "max_position_embeddings": 4096,
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": tower_width, "intermediate_size": 3 * tower_width, "num_heads": 4,
        "patch_size": PATCH, "num_position_embeddings": (SIDE // PATCH) ** 2, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    return qwen_config(tokenizer, text, vision, (6, 5, 5), 100000.0)


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLForConditionalGeneration:
    return AutoModelForImageTextToText.from_config(build_config(tokenizer), attn_implementation="sdpa")


def save_checkpoint(model: Qwen3VLForConditionalGeneration, mode: str, folder: Path) -> None:
    """Write a Hugging Face checkpoint folder, with greedy decoding by default."""
    processor = build_processor(mode)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        do_sample=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        max_new_tokens=320 if mode == "thinking" else 64,
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
