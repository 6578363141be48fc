"""Qwen3.5: one checkpoint with both modes, dense or with experts.

The chat template ends with `<think>`, and for Instruct with an empty thought, so both modes share the rest of the
prompt. Thoughts of earlier turns are not rendered. Three of four layers are recurrent (Gated DeltaNet, Yang et al.,
2024). The recommended sampling is that of the small models; it could not be compared with their model cards.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from vlroute.engine.families.family import Family


def _sampling(temperature: float, top_p: float, presence_penalty: float) -> dict[str, Any]:
    return {
        "do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 20,
        "presence_penalty": presence_penalty,
    }  # fmt: skip


DENSE = Family(
    model_type="qwen3_5",
    title="Qwen3.5",
    example="Qwen/Qwen3.5-2B",
    hub_names=re.compile(r"qwen3\.[56]-[\d.]+b.*", re.IGNORECASE),
    model_class="Qwen3_5ForConditionalGeneration",
    language_model="vlroute.engine.local.language_qwen3_5:language_model",
    switch="enable_thinking",
    marker="<think>",
    recurrent=True,
    call_format="xml",
    sampling={
        ("instruct", True): _sampling(0.7, 0.8, 1.5),
        ("thinking", True): _sampling(0.6, 0.95, 0.0),
        ("instruct", False): _sampling(1.0, 1.0, 2.0),
        ("thinking", False): _sampling(1.0, 0.95, 1.5),
    },
)
MOE = replace(
    DENSE,
    model_type="qwen3_5_moe",
    title="Qwen3.5 with experts",
    example="Qwen/Qwen3.5-35B-A3B",
    hub_names=re.compile(r"qwen3\.[56]-\d+b-a\d+b.*", re.IGNORECASE),
    model_class="Qwen3_5MoeForConditionalGeneration",
)
