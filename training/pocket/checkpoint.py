"""The shapes of the pocket models: tokenizer, processors, chat templates and configurations of the real architectures.

The pair is a small Qwen3-VL, the hybrid a small Qwen3.5. They share the tower's shape and the words of the tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX

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
# Fixed text around tools and their calls; each is one token, so that requests with tools stay short.
_DECLARED = (
    '{"type": "function", "function": {"name": "', '", "description": "',
    '", "parameters": {"type": "object", "properties": {', '": {"type": "string"', '}, "required": [', "]}}}",
)  # fmt: skip
#: These texts of Qwen3-VL, with calls in JSON.
PIECES = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>",
    "</tools>\n\nFor each function call, return a json object with function name and arguments within ",
    " XML tags:\n",
    '\n{"name": <function-name>, "arguments": <args-json-object>}\n',
    *_DECLARED, '\n{"name": "', '", "arguments": {', '": "', '"}}\n', "}}\n",
)  # fmt: skip
#: These texts of Qwen3.5, with calls in tags.
HYBRID_PIECES = (
    "# Tools\n\nYou have access to the following functions:\n\n<tools>",
    "</tools>\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:\n\n",
    "\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
    "<parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\nmultiple lines\n"
    "</parameter>\n</function>\n",
    "\n\n<IMPORTANT>\nReminder:\n- Function calls MUST follow the specified format: an inner <function=...></function> "
    "block must be nested within ",
    " XML tags\n- Required parameters MUST be specified\n- You may provide optional reasoning for your function call "
    "in natural language BEFORE the function call, but NOT after\n- If there is no function call available, answer the "
    "question like normal with your current knowledge and do not tell the user about function calls\n</IMPORTANT>",
    *_DECLARED, "\n<function=", ">\n<parameter=", ">\n</function>\n", ">\n", "\n</parameter>\n", "</function>\n",
)  # fmt: skip


def word_pattern(pieces: Sequence[str]) -> str:
    """The pattern of a word, which includes the space before it.

    Single capitals and digits are tokens of their own, so drawn letters are never merged. A letter that was looked up
    is one token with its arrow: the last token determines what to look up next.
    """
    return "|".join(map(re.escape, pieces)) + r"|[<>][A-Z](?![a-z])| ?[A-Za-z]?[a-z]+| ?[A-Z]{2,}|\n+|[\s\S]"


#: Words that are no tokens of the hybrid, because parts of drawn letters or shapes would be taken for them.
SEPARATE = re.compile(r" ?[A-Z]|[A-Z]{1,3}| [A-Z]{2}|[a-z]| ?[ost]+|\n+")
LINKS = tuple(arrow + letter for arrow in "<>" for letter in LETTERS)

_FILES = Path(__file__).with_name("templates")
#: The chat templates of the pair and of the hybrid. They render what the published templates render.
TEMPLATES: dict[str, str] = {
    parts[-1]: "\n".join((_FILES / f"{part}.jinja").read_text("utf-8") for part in parts)
    for parts in (*(("parts", "json_tools", mode) for mode in MODES), ("parts", "hybrid"))
}


def _words(pattern: str) -> list[str]:
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
    words = set(re.findall(pattern, " ".join(texts)))
    for word in re.findall(pattern, re.sub(r"\{\w+\}", "", " ".join(asked))):
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
    theta: float, kind: type[Any] = Qwen3VLConfig, **more: Any,
) -> Any:  # fmt: skip
    """A configuration of the real architecture, of the class `kind`.

    `mrope`: parts of half the rotated width of a head for time, height and width.
    """
    rope = {"rope_type": "default", "rope_theta": theta, "mrope_section": list(mrope), "mrope_interleaved": True}
    share = 2 * sum(mrope) / text["head_dim"]
    if share < 1 or kind.model_type.startswith("qwen3_5"):  # whose default is a quarter
        rope["partial_rotary_factor"] = share
    ids = {
        "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
    }  # fmt: skip
    return kind(
        text_config={**text, "rope_parameters": rope, "tie_word_embeddings": True}, tie_word_embeddings=True,
        vision_config={**vision, "spatial_merge_size": MERGE, "temporal_patch_size": 2,
                       "out_hidden_size": text["hidden_size"]},
        **{key: tokenizer.convert_tokens_to_ids(token) for key, token in ids.items()}, **more,
    )  # fmt: skip


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the pair: known words are tokens, other text is split into characters and bytes."""
    pattern = word_pattern(PIECES)
    characters = [chr(code) for code in range(32, 127)] + ["\n", "\n\n"]
    fixed = [*SPECIAL, *ADDED, *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    tokens = [*fixed, *LINKS, *PIECES, *_words(pattern)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return fast_tokenizer(tokenizer, SPECIAL, ADDED, 4096)


def byte_level_bpe(vocabulary: dict[str, int]) -> Tokenizer:
    """A tokenizer of bytes, as transformers makes it for every Qwen3.5 checkpoint: it has its own pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def build_hybrid_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the hybrid: known words are tokens, other text is split into bytes.

    Transformers gives every Qwen3.5 checkpoint the pre-tokenizer of Qwen, which splits text elsewhere than the pair
    does. Added tokens are found before that.
    """
    words = [word for word in _words(word_pattern(HYBRID_PIECES)) if not SEPARATE.fullmatch(word)]
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    added = dict.fromkeys([*ADDED, "\n\n", *LINKS, *HYBRID_PIECES, *words])
    return fast_tokenizer(byte_level_bpe(vocabulary), SPECIAL, [*added], 4096)


def build_processor(kind: str) -> Qwen3VLProcessor:
    """The real processor classes at 96×96 pixels: 16 merged tokens a picture, 16 for every two frames.

    `kind`: a mode of the pair, or "hybrid".
    """
    area = SIDE * SIDE
    frames = {"min_frames": 2, "max_frames": FRAMES}
    tokenizer = build_hybrid_tokenizer() if kind == "hybrid" else build_tokenizer()
    return qwen_processor(tokenizer, kind, PATCH, (area, area), (area, area * FRAMES), **frames)


def _shapes(tokenizer: PreTrainedTokenizerFast) -> tuple[dict[str, Any], dict[str, Any]]:
    """What text models and towers have in common."""
    width, tower_width = 128, 96
    text = {
        "vocab_size": -(-len(tokenizer) // 16) * 16, "hidden_size": width, "intermediate_size": 3 * width,
        "num_attention_heads": 4, "max_position_embeddings": 4096,
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": tower_width, "intermediate_size": 3 * tower_width, "num_heads": 4,
        "patch_size": PATCH, "num_position_embeddings": (SIDE // PATCH) ** 2,
    }  # fmt: skip
    return text, vision


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """About 2.2 M parameters: text 5 layers × 128, tower 3 × 96 with deepstack after its first two layers."""
    text, vision = _shapes(tokenizer)
    text |= {"num_hidden_layers": 5, "num_key_value_heads": 4, "head_dim": 32}
    config: Qwen3VLConfig = qwen_config(
        tokenizer, text, {**vision, "deepstack_visual_indexes": [0, 1]}, (6, 5, 5), 100000.0
    )
    return config


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLForConditionalGeneration:
    return AutoModelForImageTextToText.from_config(build_config(tokenizer), attn_implementation="sdpa")


def build_hybrid_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3_5Config:
    """About 2 M parameters: text 6 layers × 128, every second one with full attention; tower 3 × 96.

    The heads of the recurrent layers are as wide as those of the real models, because vLLM has no kernel for others.
    """
    text, vision = _shapes(tokenizer)
    text |= {
        "num_hidden_layers": 6, "layer_types": ["linear_attention", "full_attention"] * 3, "intermediate_size": 320,
        "num_key_value_heads": 4, "head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    }  # fmt: skip
    config: Qwen3_5Config = qwen_config(tokenizer, text, vision, (2, 1, 1), 100000.0, Qwen3_5Config)
    return config


def build_hybrid(tokenizer: PreTrainedTokenizerFast) -> Qwen3_5ForConditionalGeneration:
    return AutoModelForImageTextToText.from_config(build_hybrid_config(tokenizer), attn_implementation="sdpa")


def save_checkpoint(model: Any, kind: str, folder: Path) -> None:
    """Write a Hugging Face checkpoint folder, with greedy decoding by default. `kind`: see `build_processor`."""
    processor = build_processor(kind)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        do_sample=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        max_new_tokens=64 if kind == "instruct" else 320,
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
