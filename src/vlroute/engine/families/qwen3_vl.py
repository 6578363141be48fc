"""Qwen3-VL: an Instruct and a Thinking checkpoint of each size, dense or with experts."""

from __future__ import annotations

import re
from dataclasses import replace

from vlroute.engine.families.family import Family

DENSE = Family(
    model_type="qwen3_vl",
    title="Qwen3-VL",
    example="Qwen/Qwen3-VL-2B-Instruct",
    hub_names=re.compile(r"qwen3-vl-\d+b.*", re.IGNORECASE),
    model_class="Qwen3VLForConditionalGeneration",
    language_model="vlroute.engine.local.language:language_model",
)
MOE = replace(
    DENSE,
    model_type="qwen3_vl_moe",
    title="Qwen3-VL with experts",
    example="Qwen/Qwen3-VL-30B-A3B-Instruct",
    hub_names=re.compile(r"qwen3-vl-\d+b-a\d+b.*", re.IGNORECASE),
    model_class="Qwen3VLMoeForConditionalGeneration",
)
