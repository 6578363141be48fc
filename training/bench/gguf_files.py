"""A Qwen3-VL or Qwen3.5 checkpoint as the two GGUF files of llama.cpp: language model and vision tower (`mmproj`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer

from training.pocket.checkpoint import PIECES

LANGUAGE, TOWER = "model.language_model.", "model.visual."
#: llama.cpp's tokenizer of Llama 3. It takes a word that is in the vocabulary as one token without applying merges, as
#: `ignore_merges` of the pocket tokenizer does, and splits the text of the drawn tasks at the same positions.
PRE_TOKENIZER = "llama-bpe"
HYBRID_PRE_TOKENIZER = "qwen35"
Tensors = dict[str, NDArray[np.float32]]


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


CHARACTERS = byte_characters()


def byte_level(text: str) -> str:
    return "".join(CHARACTERS[byte] for byte in text.encode())


def byte_level_vocabulary(file: Path, size: int) -> tuple[list[str], list[gguf.TokenType], list[str]]:
    """The vocabulary of a `tokenizer.json` with byte fallback, in byte-level form.

    The pocket tokenizer spells what is not in its vocabulary in characters, and those in bytes. Byte-level BPE reaches
    the characters from the bytes by merges; no other merges are needed, because known words need none. Tokens that the
    pocket tokenizer never gives, such as " A", get names that never match.

    Args:
        file: The `tokenizer.json`.
        size: The number of rows of the embedding; unused rows get names as well.

    Returns:
        The tokens, their types, and the merges.
    """
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    merges: dict[str, None] = {}  # in order, without repeated ones
    tokenizer, content = Tokenizer.from_file(str(file)), read_json(file)
    vocabulary: dict[str, int] = content["model"]["vocab"]
    added = {token["id"]: token for token in content["added_tokens"]}
    for text, index in vocabulary.items():
        if index in added:
            special = added[index]["special"]
            tokens[index], types[index] = text, gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
        # found before the text is split into words, which would begin with a quotation mark
        elif text in (*PIECES, '"'):
            tokens[index], types[index] = text, gguf.TokenType.USER_DEFINED
        elif text.startswith("<0x"):
            character = chr(byte := int(text[3:5], 16))
            if byte >= 128 or character not in vocabulary:  # else the token of the character is the byte's as well
                tokens[index], types[index] = CHARACTERS[byte], gguf.TokenType.NORMAL
        elif tokenizer.encode(text).ids == [index]:
            tokens[index], types[index] = byte_level(text), gguf.TokenType.NORMAL
            if len(text) == 1:
                merges |= {f"{tokens[index][:i]} {tokens[index][i]}": None for i in range(1, len(tokens[index]))}
    return tokens, types, list(merges)


def added_vocabulary(file: Path, size: int) -> tuple[list[str], list[gguf.TokenType], list[str]]:
    """The vocabulary of a byte-level `tokenizer.json` without merges, whose words are added tokens.

    Arguments and result as of `byte_level_vocabulary`.
    """
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    content = read_json(file)
    for text, index in content["model"]["vocab"].items():
        tokens[index], types[index] = text, gguf.TokenType.NORMAL
    for token in content["added_tokens"]:
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        tokens[token["id"]], types[token["id"]] = token["content"], kind
    zero = CHARACTERS[0]
    return tokens, types, [f"{zero} {zero}"]  # GGUF has no empty lists; the result is no token, so this has no effect


def hybrid_tensors(tensors: Tensors, layers: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The tensors of the language model of a Qwen3.5, under llama.cpp's names and in its form."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN35, layers)
    for full, tensor in tensors.items():
        if not full.startswith(LANGUAGE):
            continue
        name, _, kind = full.removeprefix(LANGUAGE).rpartition(".")
        if kind == "A_log":
            yield names[f"model.{name}.A_log"], -np.exp(tensor)
        elif kind == "dt_bias":
            yield f"{names[f'model.{name}.dt_proj']}.bias", tensor
        elif name.endswith("conv1d"):
            yield f"{names[f'model.{name}']}.{kind}", np.ascontiguousarray(tensor[:, 0])
        elif name.endswith("norm") and not name.endswith("linear_attn.norm"):
            yield f"{names[f'model.{name}']}.{kind}", tensor + 1  # the model multiplies by 1 + weight
        else:
            yield f"{names[f'model.{name}']}.{kind}", tensor


def language_tensors(tensors: Tensors, layers: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The tensors of the language model, under llama.cpp's names."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3VL, layers)
    for name, tensor in tensors.items():
        if name.startswith(LANGUAGE):
            yield names[f"model.{name.removeprefix(LANGUAGE).removesuffix('.weight')}"] + ".weight", tensor


def tower_tensors(tensors: Tensors, vision: dict[str, Any]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The tensors of the vision tower and its mergers, under llama.cpp's names."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, vision["depth"])
    mergers = {"merger.norm": "v.post_ln", "merger.linear_fc1": "mm.0", "merger.linear_fc2": "mm.2"}
    parts = {"norm": "norm", "linear_fc1": "fc1", "linear_fc2": "fc2"}
    for full, tensor in tensors.items():
        if not full.startswith(TOWER):
            continue
        name, _, kind = full.removeprefix(TOWER).rpartition(".")
        if name == "patch_embed.proj" and kind == "weight":
            # one convolution for each of the two frames that a patch covers
            yield "v.patch_embd.weight", np.ascontiguousarray(tensor[:, :, 0])
            yield "v.patch_embd.weight.1", np.ascontiguousarray(tensor[:, :, 1])
        elif name in mergers:
            yield f"{mergers[name]}.{kind}", tensor
        elif name.startswith("deepstack_merger_list."):
            _, index, part = name.split(".")
            layer = vision["deepstack_visual_indexes"][int(index)]
            yield f"v.deepstack.{layer}.{parts[part]}.{kind}", tensor
        else:
            yield f"{names[f'visual.{name}']}.{kind}", tensor


def write(writer: gguf.GGUFWriter, tensors: Iterator[tuple[str, NDArray[np.float32]]]) -> None:
    for name, tensor in tensors:
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_language_model(folder: Path, file: Path) -> None:
    """Write the language model of a checkpoint with its tokenizer and chat template, in float32.

    Args:
        folder: The checkpoint. Its embeddings are tied. In a hybrid, every n-th layer has full attention, and the
            others have as many key heads as value heads.
        file: The GGUF file.
    """
    config = read_json(folder / "config.json")
    text, rope = config["text_config"], config["text_config"]["rope_parameters"]
    hybrid = config["model_type"] == "qwen3_5"
    architecture = gguf.MODEL_ARCH.QWEN35 if hybrid else gguf.MODEL_ARCH.QWEN3VL
    read_vocabulary = added_vocabulary if hybrid else byte_level_vocabulary
    tokens, types, merges = read_vocabulary(folder / "tokenizer.json", text["vocab_size"])
    stop = read_json(folder / "generation_config.json")
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(folder.name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_key_length(text["head_dim"])
    writer.add_value_length(text["head_dim"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_sections([*rope["mrope_section"], 0])
    if hybrid:
        writer.add_rope_dimension_count(2 * sum(rope["mrope_section"]))
        writer.add_full_attention_interval(text["layer_types"].index("full_attention") + 1)
        writer.add_ssm_conv_kernel(text["linear_conv_kernel_dim"])
        writer.add_ssm_state_size(text["linear_key_head_dim"])
        writer.add_ssm_group_count(text["linear_num_key_heads"])
        writer.add_ssm_time_step_rank(text["linear_num_value_heads"])
        writer.add_ssm_inner_size(text["linear_num_value_heads"] * text["linear_value_head_dim"])
    else:
        writer.add_num_deepstack_layers(len(config["vision_config"]["deepstack_visual_indexes"]))
    writer.add_vocab_size(text["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(HYBRID_PRE_TOKENIZER if hybrid else PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(stop["eos_token_id"])
    writer.add_pad_token_id(stop["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text("utf-8"))
    convert = hybrid_tensors if hybrid else language_tensors
    write(writer, convert(read_tensors(folder), text["num_hidden_layers"]))


def read_tensors(folder: Path) -> Tensors:
    """The weights of a checkpoint in float32; numpy has no bfloat16."""
    return {name: one.float().numpy() for name, one in load_file(folder / "model.safetensors").items()}


def write_tower(folder: Path, file: Path) -> None:
    """Write the vision tower of a checkpoint, in float32.

    Args:
        folder: The checkpoint.
        file: The GGUF file.
    """
    config = read_json(folder / "config.json")
    vision, pictures = config["vision_config"], read_json(folder / "processor_config.json")["image_processor"]
    layers = vision.get("deepstack_visual_indexes", [])  # a Qwen3.5 has none
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.MMPROJ])
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_name(folder.name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.QWEN3VL)
    writer.add_vision_projection_dim(vision["out_hidden_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_image_size(round(vision["num_position_embeddings"] ** 0.5) * vision["patch_size"])
    writer.add_vision_min_pixels(pictures["size"]["shortest_edge"])
    writer.add_vision_max_pixels(pictures["size"]["longest_edge"])
    writer.add_vision_image_mean(pictures["image_mean"])
    writer.add_vision_image_std(pictures["image_std"])
    writer.add_vision_spatial_merge_size(vision["spatial_merge_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_block_count(vision["depth"])
    writer.add_vision_head_count(vision["num_heads"])
    writer.add_vision_attention_layernorm_eps(1e-6)  # a constant of the architecture
    writer.add_vision_use_gelu(True)
    writer.add_vision_is_deepstack_layers([layer in layers for layer in range(vision["depth"])])
    write(writer, tower_tensors(read_tensors(folder), vision))
