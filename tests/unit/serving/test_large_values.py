"""Fields with tens of thousands of values: they are refused, or accepted, in a fraction of the time of an answer."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from vlroute.serving.errors import invalid_body
from vlroute.serving.messages_request import CountTokensRequest, MessagesRequest
from vlroute.serving.responses import ResponseRequest
from vlroute.serving.schemas import ChatRequest, FeedbackRequest, Fields, PredictRequest

#: About as many as `MAX_STRUCTURE` allows.
COUNT = 39_000
VALUES: dict[str, Any] = {
    "numbers": [1] * COUNT, "lists": [[]] * COUNT, "texts": ["x"] * COUNT, "nulls": [None] * COUNT,
    "objects": [{}] * (COUNT // 2), "object of numbers": {str(at): 1 for at in range(COUNT // 2)},
    "object of lists": {str(at): [] for at in range(COUNT // 2)},
}  # fmt: skip
MESSAGES = [{"role": "user", "content": "x"}]
REQUESTS: dict[type[Fields], dict[str, Any]] = {
    ChatRequest: {"messages": MESSAGES},
    ResponseRequest: {"input": "x"},
    MessagesRequest: {"model": "auto", "max_tokens": 1, "messages": MESSAGES},
    CountTokensRequest: {"model": "auto", "messages": MESSAGES},
    PredictRequest: {"data": [None, "x"]},
    FeedbackRequest: {"id": "x", "correct": True},
}


def nested(model: type[Fields]) -> Iterator[tuple[str, ...]]:
    """Each field, and each field of the objects within."""
    for name, field in model.model_fields.items():
        yield (field.alias or name,)
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, Fields):
                yield from ((field.alias or name, *path) for path in nested(kind))
    yield ("unknown",)


@pytest.mark.parametrize("model", REQUESTS)
def test_no_field_with_many_values_takes_long(model: type[Fields]) -> None:
    slow = {}
    for path in nested(model):
        for kind, value in VALUES.items():
            inner = value
            for name in reversed(path[1:]):
                inner = {name: inner}
            body = REQUESTS[model] | {path[0]: inner}
            gc.collect(0)
            began = time.thread_time()
            try:
                model.model_validate(body)
            except ValidationError as error:
                found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
                known = invalid_body(RequestValidationError(found, body=body))
                assert known.status in (400, 422)
                assert len(known.message) < 1000
            if (seconds := time.thread_time() - began) > 0.1:
                slow[".".join(path), kind] = seconds
    assert slow == {}


@pytest.mark.parametrize(
    ("model", "field", "most", "one_more"),
    [
        (ChatRequest, "logit_bias", {str(at): 1 for at in range(300)}, {str(at): 1 for at in range(301)}),
        (ChatRequest, "bad_words", ["a" * 1000] * 5, ["a" * 1000] * 5 + ["b"]),
        (ChatRequest, "bad_words", ["a"] * 300, ["a"] * 301),
        (ResponseRequest, "metadata", {str(at): "" for at in range(16)}, {str(at): "" for at in range(17)}),
    ],
)
def test_limits_of_fields(model: type[Fields], field: str, most: Any, one_more: Any) -> None:
    model.model_validate(REQUESTS[model] | {field: most})
    with pytest.raises(ValidationError, match=r"at most|should have"):
        model.model_validate(REQUESTS[model] | {field: one_more})
    schema = model.model_json_schema()["properties"][field]["anyOf"][0]
    assert schema.get("maxProperties", schema.get("maxItems")) in (16, 300)
