"""`POST /api/predict`: a picture in base64, a prompt and a model's name, as simple pages for Qwen3-VL send them."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from vlroute.answering import Wish
from vlroute.messages import Conversation, parse
from vlroute.serving.door import Entered
from vlroute.serving.errors import APIError
from vlroute.serving.streams import whole
from vlroute.serving.wire import Fields, mode_of


class PredictRequest(Fields):
    """`data`: a picture (base64, a data URI, or null), the prompt, and optionally a model's name."""

    harmless = frozenset({"fn_index", "session_hash", "event_data"})  # sent by Gradio's pages
    data: list[str | None] = Field(min_length=2, max_length=3)


predictions = APIRouter()


@predictions.post("/api/predict")
async def predict(asked: PredictRequest, request: Request, entry: Entered) -> dict[str, Any]:
    """Answer one question about one picture."""
    arrived = time.perf_counter()
    picture, prompt, model = (*asked.data, None)[:3]
    wish = Wish(mode=mode_of(model or "auto"), namespace=entry.namespace)
    if prompt is None:
        raise APIError(400, "data must be [picture in base64 or null, prompt, model]", "bad_message", "data")

    def prepare() -> Conversation:
        uri = picture if not picture or picture[:5].lower() == "data:" else f"data:image/png;base64,{picture}"
        return parse(prompt, uri or None, limits=entry.door.service.limits)

    answer, _ = await whole(entry.door.service.start(prepare, wish, arrived, deltas=False), request)
    return {
        "data": [answer.text],
        "duration": answer.timing.total,
        "vlroute": {"id": answer.id, "thinking": answer.thinking, "decision": answer.decision.as_dict()},
    }
