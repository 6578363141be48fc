"""The pocket pair's shape: tokenizer, processors, chat templates and configuration of the real architecture."""

from __future__ import annotations

import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from vlroute.pocket.canvas import LETTERS, SIDE
from vlroute.pocket.tasks import (
    CAPTION_PROMPT,
    FRAMES,
    LINKS_PROMPT,
    NUMBER_WORDS,
    SHAPE_NAMES,
    TALLY_PROMPT,
    TRANSCRIPT_PROMPT,
    WORDINGS,
)

PATCH, MERGE = 12, 2
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
THINK = ("<think>", "</think>")
NOUNS = (
    "number",
    "shape",
    "character",
    "arrow",
    "screen",
    "letter",
    "tap",
    "lamp",
    "triangle",
    "picture",
    "video",
)
# A word keeps the space before it, capitals and digits stand alone, so that drawn letters are never merged. A letter
# that was looked up is one token with its arrow: what to look up next stands in the last token, not the one before.
WORD = r"[<>][A-Z](?![a-z])| ?[A-Za-z]?[a-z]+|\n+|[\s\S]"
LINKS = tuple(arrow + letter for arrow in "<>" for letter in LETTERS)

TURNS = """{%- macro parts(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + parts(message.content) + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\nGENERATION' }}{%- endif -%}
"""
TEMPLATES = {
    "instruct": TURNS.replace("GENERATION", ""),
    "thinking": TURNS.replace("GENERATION", "<think>\\n"),
}


def _words() -> list[str]:
    texts = [CAPTION_PROMPT, TRANSCRIPT_PROMPT, TALLY_PROMPT, LINKS_PROMPT, "system user assistant seconds"]
    texts += [" ".join(NUMBER_WORDS)]
    texts += [wording for languages in WORDINGS.values() for some in languages.values() for wording in some]
    texts += [name for names in SHAPE_NAMES.values() for name in names.values()]
    texts += [f"{noun} {noun}s a video of" for noun in NOUNS]
    words = {word for text in texts for word in re.findall(WORD, re.sub(r"\{\w+\}", "", text))}
    return sorted(words | {f" {word}" for word in words if word[:1].isalpha() and word.isascii()})


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Known words whole, other text by characters, unknown characters by bytes: nothing is ever lost."""
    characters = [chr(code) for code in range(32, 127)] + ["\n", "\n\n"]
    tokens = [*SPECIAL, *THINK, *(f"<0x{byte:02X}>" for byte in range(256)), *characters, *LINKS, *_words()]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens(list(THINK))  # as in the real checkpoints, not special: decoding shows them
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", model_max_length=4096,
        extra_special_tokens=list(SPECIAL[1:2] + SPECIAL[3:]), clean_up_tokenization_spaces=False,
    )  # fmt: skip


def build_processor(mode: str) -> Qwen3VLProcessor:
    """The real processor classes at 96×96 pixels: 16 merged tokens a picture, 16 for every two frames."""
    halves = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": PATCH, "merge_size": MERGE}
    area = SIDE * SIDE
    images = Qwen2VLImageProcessor(size={"shortest_edge": area, "longest_edge": area}, **halves)
    videos = Qwen3VLVideoProcessor(
        size={"shortest_edge": area, "longest_edge": area * FRAMES}, min_frames=2, max_frames=FRAMES,
        cap_pixels_per_frame=False, **halves,
    )  # fmt: skip
    return Qwen3VLProcessor(
        image_processor=images,
        video_processor=videos,
        tokenizer=build_tokenizer(),
        chat_template=TEMPLATES[mode],
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """About 1.9 M parameters: text 4 layers × 128, tower 3 × 96 with deepstack after its first two layers."""
    width, tower_width, depth = 128, 96, 3
    rope = {
        "rope_type": "default",
        "rope_theta": 100000.0,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    }
    text = {
        "vocab_size": -(-len(tokenizer) // 16) * 16, "hidden_size": width, "intermediate_size": 3 * width,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
        "max_position_embeddings": 4096, "rope_parameters": rope, "tie_word_embeddings": True,
    }  # fmt: skip
    vision = {
        "depth": depth, "hidden_size": tower_width, "intermediate_size": 3 * tower_width, "num_heads": 4,
        "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2, "out_hidden_size": width,
        "num_position_embeddings": (SIDE // PATCH) ** 2, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    ids = {
        "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
    }  # fmt: skip
    return Qwen3VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True,
        **{key: tokenizer.convert_tokens_to_ids(token) for key, token in ids.items()},
    )  # fmt: skip


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLForConditionalGeneration:
    return Qwen3VLForConditionalGeneration._from_config(build_config(tokenizer), attn_implementation="sdpa")


def save_checkpoint(model: Qwen3VLForConditionalGeneration, mode: str, folder: Path) -> None:
    """Write an ordinary Hugging Face checkpoint folder. Greedy by default: a small model gains nothing by dice."""
    processor = build_processor(mode)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        do_sample=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        max_new_tokens=160 if mode == "thinking" else 48,
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
