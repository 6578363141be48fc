"""Names for the quantisations that transformers offers; the tower and the output layer stay as they are."""

from __future__ import annotations

from typing import Any

# A quantised tower would change what both modes see, and gains little: most weights are the language model's.
KEEP = ["model.visual", "lm_head"]
NAMES = ("4bit", "8bit", "int8")


def quantization_config(quantization: str | Any) -> Any:
    """The transformers quantization config for one of `NAMES`; anything but a string is passed on as it is.

    Raises:
        ValueError: an unknown name.
        ImportError: the library behind the name is missing.
    """
    if not isinstance(quantization, str):
        return quantization
    if quantization not in NAMES:
        raise ValueError(
            f"unknown quantization {quantization!r}; expected one of {', '.join(NAMES)} or a transformers config"
        )
    if quantization in ("4bit", "8bit"):
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=quantization == "4bit",
            load_in_8bit=quantization == "8bit",
            llm_int8_skip_modules=KEEP,
        )
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=KEEP)
