"""Maps errors of servers and of the openai package to errors of vlroute."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vlroute.errors import EndpointError, InputError, ModeUnavailableError, VLRouteError

#: The request is invalid, and every other server would refuse it too.
_REFUSED = (400, 413, 414, 415, 422, 431)
#: A request with such a status may be retried.
_TEMPORARY = (408, 409, 425, 499)
#: Fields of an error that may contain its status, in search order.
_NAMES = ("code", "status", "status_code", "http_status", "http_code", "type")
#: Words in the `code` or `type` of an error in a stream, in search order.
_WORDS = (
    (401, "apikey|authent|unauthor"),
    (403, "permission|forbidden"),
    (404, "notfound"),
    (429, "ratelimit|quota|toomany"),
    (503, "overload|unavailable|capacity|busy"),
    (400, "badrequest|invalid|context(length|size|window)|too(large|long)|unsupported|unprocessable|policy"),
)


def status(error: Exception) -> int | None:
    """Find the HTTP status of an error.

    Many servers report errors within a stream that began with status 200; then the body of the error has the status.

    Args:
        error: An error of the openai package.

    Returns:
        The status; None if no server answered.
    """
    if isinstance(found := getattr(error, "status_code", None), int):
        return found
    body = getattr(error, "body", None)
    if body is None:
        return None
    if (number := _number(body)) is not None:
        return number
    for value in [body.get(name) for name in _NAMES] if isinstance(body, dict) else []:
        word = re.sub(r"[^a-z]", "", str(value).lower())
        for code, pattern in _WORDS:
            if re.search(pattern, word):
                return code
    return 500


def is_error(body: Mapping[str, Any]) -> bool:
    """Whether an event of a stream without choices reports an error."""
    has_message = isinstance(body.get("message"), str) and any(body.get(name) is not None for name in _NAMES)
    return body.get("object") == "error" or has_message or _number(body) is not None


def _number(body: Any) -> int | None:
    """The status that the body of an error contains as a number."""
    for value in [body.get(name) for name in _NAMES] if isinstance(body, Mapping) else []:
        if not isinstance(value, bool) and (found := re.fullmatch(r"([45]\d\d)(?:\.0+)?", str(value))):
            return int(found[1])
    return None


def is_overload(error: Exception) -> bool:
    """Whether a running server is overloaded. Status 503 does not show this: a proxy without a server sends it too."""
    in_stream = getattr(error, "status_code", None) is None
    return (found := status(error)) == 429 or (in_stream and found == 503)


def is_temporary(error: Exception) -> bool:
    """Whether the same request may succeed if it is sent again at once.

    Releases of openai before 3 raise the errors of httpx within a stream.
    """
    import httpx
    import openai

    found = status(error)
    if found is None:
        lost = isinstance(error, openai.APIConnectionError | httpx.TransportError)
        return lost and not isinstance(error, openai.APITimeoutError | httpx.TimeoutException)
    return found >= 500 or found == 429 or found in _TEMPORARY


def failure(error: Exception, name: str, begun: bool) -> VLRouteError:
    """Convert an error of the openai package.

    Args:
        error: The error.
        name: Name of the endpoint.
        begun: Whether a part of the answer was passed on.

    Returns:
        The corresponding error of vlroute.
    """
    found, message = status(error), _message(error)
    if found in _REFUSED:
        return InputError(f"{name} refuses the request: {message}")
    if found == 429:
        return ModeUnavailableError(f"{name} is overloaded", begun)
    if found is not None and 400 <= found < 500 and found not in _TEMPORARY:
        return EndpointError(f"{name} answers {found}: {message}; check key, model and address")
    import openai

    unreached = isinstance(error, openai.APIConnectionError)
    what = f"answers {found}" if found else "ended its stream early" if begun else "cannot be reached"
    if not found and not unreached and isinstance(error, ValueError):
        what = "sent something other than a stream of chat completions"
    return ModeUnavailableError(f"{name} {what}: {message}", begun)


def _message(error: Exception) -> str:
    body: Any = getattr(error, "body", None)
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail")
    elif not isinstance(body, str):
        body = None
    message = " ".join(str(body or error or type(error).__name__).split())[:300]
    return message.encode("utf-8", "replace").decode()  # a lone surrogate could not be stored or sent
