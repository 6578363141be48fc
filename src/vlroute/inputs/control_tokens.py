"""Control tokens in texts. They would end a turn, forge another one, or add a placeholder without a picture."""

from __future__ import annotations

import re

CONTROL = re.compile(r"<(\|(?:im_start|im_end|endoftext|vision_start|vision_end|vision_pad|image_pad|video_pad)\|>)")


def split_control(text: str) -> str:
    """`text` with a space in each control token, which then is ordinary text."""
    return CONTROL.sub(r"< \1", text)
