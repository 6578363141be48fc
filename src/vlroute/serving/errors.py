"""Errors in the shape of OpenAI's API, or of Anthropic's for its requests.

Messages contain no path and no address of this machine.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from vlroute.errors import (
    EndpointError,
    InputError,
    LimitError,
    MessageError,
    MissingExtraError,
    ModeUnavailableError,
    OutOfMemoryError,
    StoreError,
    UnknownAnswerError,
    UnreadableMediaError,
    VLRouteError,
)
from vlroute.serving.request_log import current_request

log = logging.getLogger("vlroute")
#: Counts an error by its status and code.
Count = Callable[[int, str], None]

_CODES = {LimitError: "limit_exceeded", UnreadableMediaError: "unreadable_media", MessageError: "bad_message"}
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
#: Path of Anthropic's Messages API.
ANTHROPIC_PATH = "/v1/messages"
#: Path of the models in both APIs.
MODELS_PATH = "/v1/models"
_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
#: Errors with status 503 that waiting does not end.
_LASTING = ("failed", "store_failed")


class APIError(VLRouteError):
    """An error response.

    Args:
        status: HTTP status.
        message: What is wrong, for the client.
        code: A short name that programs can compare.
        param: The field at fault, if it is one.
        headers: Headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    def body(self) -> dict[str, Any]:
        """The JSON object of the response."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {
            "message": encodable(self.message), "type": kind, "param": self.param and encodable(self.param),
            "code": self.code,
        }}  # fmt: skip

    def anthropic_body(self, request_id: str) -> dict[str, Any]:
        """The JSON object of the response in Anthropic's API.

        Args:
            request_id: Identifies the request.

        Returns:
            The object. `details` contains code and field as `error_code` and `param`.
        """
        kind = _ANTHROPIC_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        details = {"error_code": self.code, "param": self.param and encodable(self.param)}
        return {
            "type": "error",
            "error": {
                "type": "api_error" if self.code in _LASTING else kind,
                "message": encodable(self.message),
                "details": details,
            },
            "request_id": request_id,
        }


def api_error(error: BaseException) -> APIError:
    """Convert any error into one for the client. Faults of the server are logged in full.

    Args:
        error: The error that ended a request. The line of the request in the log contains its code.

    Returns:
        `error` itself if it is an APIError, otherwise one with what a client may know.
    """
    converted = known_error(error)
    current_request().failed(converted.status, converted.code)
    match error:
        case APIError() | InputError() | UnknownAnswerError():
            pass
        case MissingExtraError():
            log.error("a request needs packages that are not installed: %s", error)
        case EndpointError():
            log.error("an endpoint refuses all requests: %s", error)
        case ModeUnavailableError():
            log.error("no mode could answer: %s", error)
        case OutOfMemoryError():
            log.error("out of memory: %s", error)
        case StoreError():
            log.error("the store failed: %s", error)
        case VLRouteError():
            log.error("a request failed: %s: %s", type(error).__name__, error)
        case _:
            log.error("a request failed", exc_info=error)
    return converted


def known_error(error: BaseException) -> APIError:
    """The error for the client, without logging anything.

    Args:
        error: Any error.

    Returns:
        See `api_error`.
    """
    match error:
        case APIError():
            return error
        case UnknownAnswerError():
            return APIError(404, str(error), "answer_not_found")
        case InputError():
            code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), "bad_request")
            return APIError(400, error.public, code)
        case MissingExtraError():
            message = f"this server runs without the extra '{error.extra}', which a field of this request needs"
            return APIError(400, message, "unsupported_parameter")
        case EndpointError():
            message = "the model server does not accept the key, model name or address that this server uses"
            return APIError(502, f"{message}; see the log of this server", "endpoint_refused")
        case ModeUnavailableError():
            return APIError(503, "the model servers cannot answer now; try again later", "unavailable",
                            headers={"Retry-After": "5"})  # fmt: skip
        case OutOfMemoryError():
            return APIError(503, str(error), "out_of_memory", headers={"Retry-After": "5"})
        case StoreError():
            return APIError(503, "the store of answers cannot be used now; see the log of this server", "store_failed")
    return APIError(500, "the server failed on this request; see its log", "internal_error")


def error_response(error: BaseException, scope: Scope, count: Count = lambda status, code: None) -> JSONResponse:
    """Create the response for an error and count it.

    Args:
        error: Any error, see `api_error`.
        scope: The request, which determines the shape.
        count: Called with status and code.

    Returns:
        The response.
    """
    converted = api_error(error)
    status, body, headers = converted.status, converted.body(), converted.headers
    if is_anthropic(scope):
        id = request_id(current_request().id)
        status = 400 if status == 422 else status
        current_request().failed(status, converted.code)
        body, headers = converted.anthropic_body(id), {**(headers or {}), "request-id": id}
    count(status, converted.code)
    return JSONResponse(body, status, headers)


def is_anthropic(scope: Scope) -> bool:
    """Whether a request belongs to Anthropic's API. At the path of both APIs, the header `anthropic-version` decides.

    Args:
        scope: The request.

    Returns:
        Whether its reply has the shape of Anthropic's API.
    """
    path = route_path(scope)
    if path == MODELS_PATH or path.startswith(f"{MODELS_PATH}/"):
        return any(name == b"anthropic-version" for name, _ in scope["headers"])
    return path == ANTHROPIC_PATH or path.startswith(f"{ANTHROPIC_PATH}/")


def route_path(scope: Scope) -> str:
    """The path without the prefix of a proxy, whether the proxy passed the prefix on or not. Starlette routes by it.

    Args:
        scope: The request.

    Returns:
        The path.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and f"{path}/".startswith(f"{root}/") else path


def request_id(id: str) -> str:
    """The id of a request in the form of Anthropic's API, from that of an answer or any other one."""
    return f"req_{id}"


def add_error_handlers(app: FastAPI, count: Count) -> None:
    """Send every expected error of an application in this shape.

    Args:
        app: The application.
        count: Called with status and code of each error.
    """

    async def validation_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(invalid_body(error), request.scope, count)

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code == 400 and isinstance(error.__cause__, Exception):  # FastAPI could not parse the body
            return error_response(APIError(400, _unparsed(error.__cause__), "invalid_json"), request.scope, count)
        if error.status_code == 404:
            return error_response(no_endpoint(), request.scope, count)
        codes = {405: "method_not_allowed", 408: "body_timeout", 413: "body_too_large"}
        code = codes.get(error.status_code, "http_error")
        headers = dict(error.headers or {})
        converted = APIError(error.status_code, str(error.detail), code, headers=headers)
        return error_response(converted, request.scope, count)

    async def known_error(request: Request, error: Exception) -> JSONResponse:
        return error_response(error, request.scope, count)

    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(VLRouteError, known_error)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The argument `responses` of an endpoint that can answer with these statuses of errors."""
    return {status: {"description": "An error in OpenAI's shape."} for status in statuses}


def no_endpoint() -> APIError:
    """The error for a path that does not exist."""
    message = (
        "there is no such endpoint, or not for this method; see /openapi.json (the base URL ends with /v1 for OpenAI "
        "clients, and without it for Anthropic clients)"
    )
    return APIError(404, message, "not_found")


def _unparsed(error: Exception) -> str:
    """Why Python's JSON parser failed, other than by a syntax error."""
    match error:
        case RecursionError():
            return "the JSON body is nested too deeply"
        case UnicodeError():
            return "the body is not JSON in UTF-8"
        case ValueError():
            return f"the JSON body has an integer of more than {sys.get_int_max_str_digits()} digits"
    return "the body cannot be read as JSON"


def invalid_body(error: RequestValidationError) -> APIError:
    """One of the errors that pydantic found: the first refused field, else the first wrong value.

    Args:
        error: The errors.

    Returns:
        The error for the client.
    """
    found = error.errors()
    if found[0]["type"] == "json_invalid":
        reason, position = found[0]["ctx"]["error"], found[0]["loc"][-1]
        return APIError(400, f"the body is not valid JSON: {reason} at character {position}", "invalid_json")
    for one in found:
        if one["type"] in ("unknown_parameter", "unsupported_parameter"):
            parents = _path(one, error.body)
            name = ".".join((*parents, one["ctx"]["name"]))
            return APIError(400, (f"{'.'.join(parents)}: " if parents else "") + one["msg"], one["type"], name)
    paths = [_path(one, error.body) for one in found]
    if not paths[0]:
        return APIError(400, "the body must be a JSON object", "invalid_json")
    path = max((one for one in paths if one[:1] == paths[0][:1]), key=len)
    messages = dict.fromkeys(one["msg"] for one, its in zip(found, paths, strict=True) if its == path)
    name = ".".join(path)[:200]
    return APIError(422, f"{name}: {' or: '.join(messages)}", "invalid_value", name)


def _path(error: dict[str, Any], body: Any) -> tuple[str, ...]:
    """Location of an error in `body`, without pydantic's names for the alternatives of a union."""
    if error["loc"][0] != "body":  # a part of the address
        return tuple(map(str, error["loc"][1:]))
    path = []
    for step in error["loc"][1:]:
        if step in body if isinstance(body, dict) else isinstance(body, list) and isinstance(step, int):
            body = body[step]
        elif error["type"] != "missing" or step != error["loc"][-1]:
            continue
        path.append(str(step))
    return tuple(path)


def encodable(text: str) -> str:
    """`text` with lone surrogates replaced: a client may send them in JSON, but UTF-8 cannot encode them."""
    return text.encode("utf-8", "replace").decode()
