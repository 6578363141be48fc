"""The models that are served, in the form of OpenAI's API or, with the header `anthropic-version`, of Anthropic's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from vlroute.serving.dependencies import Caller
from vlroute.serving.errors import MODELS_PATH, APIError, documented, is_anthropic, request_id
from vlroute.serving.request_log import current_request
from vlroute.serving.service import Service
from vlroute.types import MODES

STARTED = int(time.time())
_ACTIVE = "active"
router = APIRouter()


@router.head(MODELS_PATH, include_in_schema=False)
@router.get(MODELS_PATH, response_model=None, responses=documented(401, 421))
async def models(
    request: Request,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=1000, description="Anthropic's API only, like the next three.")] = 20,
    after_id: str | None = None,
    before_id: str | None = None,
    lifecycle: Annotated[list[str] | None, Query(alias="lifecycle[]")] = None,
) -> Response:
    """List `auto`, the two modes, and the models that are served."""
    names = _names(caller.service)
    if not is_anthropic(request.scope):
        return JSONResponse({"object": "list", "data": [_openai_model(name) for name in names]})
    if lifecycle is not None and _ACTIVE not in lifecycle:
        names = []
    page, has_more = _page(names, limit, after_id, before_id)
    return _anthropic_reply({
        "data": [_anthropic_model(name) for name in page], "has_more": has_more,
        "first_id": page[0] if page else None, "last_id": page[-1] if page else None,
    })  # fmt: skip


@router.head(f"{MODELS_PATH}/{{name:path}}", include_in_schema=False)
@router.get(f"{MODELS_PATH}/{{name:path}}", response_model=None, responses=documented(401, 404, 421))
async def model(name: str, request: Request, caller: Caller) -> Response:
    """Describe one model."""
    names = _names(caller.service)
    for known in names:
        if name.lower() == known.lower():
            if is_anthropic(request.scope):
                return _anthropic_reply(_anthropic_model(known))
            return JSONResponse(_openai_model(known))
    raise APIError(404, f"no such model here; expected {', '.join(map(repr, names))}", "model_not_found")


def _names(service: Service) -> Sequence[str]:
    return ["auto", *MODES, *service.models]


def _page(names: Sequence[str], limit: int, after: str | None, before: str | None) -> tuple[Sequence[str], bool]:
    """The part of a list after or before a name, and whether there are more names in this direction."""
    if after is not None and before is not None:
        raise APIError(400, "send after_id or before_id, not both", "contradiction", "before_id")
    for field, name in (("after_id", after), ("before_id", before)):
        if name is not None and name not in names:
            raise APIError(400, f"{field} is not the id of a model in this list: {name!r}", "invalid_value", field)
    if before is not None:
        names = names[: names.index(before)]
        return names[-limit:], len(names) > limit
    if after is not None:
        names = names[names.index(after) + 1 :]
    return names[:limit], len(names) > limit


def _openai_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "vlroute"}


def _anthropic_model(name: str) -> dict[str, Any]:
    created = datetime.fromtimestamp(STARTED, UTC).isoformat().replace("+00:00", "Z")
    return {"type": "model", "id": name, "display_name": name, "created_at": created, "lifecycle": _ACTIVE}


def _anthropic_reply(body: dict[str, Any]) -> Response:
    return JSONResponse(body, headers={"request-id": request_id(current_request().id)})
