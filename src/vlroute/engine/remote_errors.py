"""What an error of a server, or of the openai package, means for a caller."""

from __future__ import annotations

import re
from typing import Any

from vlroute.errors import EndpointError, InputError, ModeUnavailable, VLRouteError

#: The request is at fault, and another server would refuse it, too.
_REFUSED = (400, 413, 414, 415, 422, 431)
#: Such a request may be sent again.
_TEMPORARY = (408, 409, 425, 499)
#: Words in the `code` or `type` of an error in a stream, in the order in which they are looked for.
_WORDS = (
    (401, "apikey|authent|unauthor"),
    (403, "permission|forbidden"),
    (404, "notfound"),
    (429, "ratelimit|quota|toomany"),
    (503, "overload|unavailable|capacity|busy"),
    (400, "badrequest|invalid|context(length|size|window)|too(large|long)|unsupported|unprocessable|policy"),
)


def status(error: Exception) -> int | None:
    """The HTTP status of an error, or the one its body names: many servers report errors within a stream that began
    with 200. None if no server answered."""
    if isinstance(found := getattr(error, "status_code", None), int):
        return found
    body = getattr(error, "body", None)
    if body is None:
        return None
    values = [body.get(name) for name in ("code", "status", "type")] if isinstance(body, dict) else []
    for value in values:
        if not isinstance(value, bool) and re.fullmatch(r"[45]\d\d", str(value)):
            return int(str(value))
    for value in values:
        word = re.sub(r"[^a-z]", "", str(value).lower())
        for code, pattern in _WORDS:
            if re.search(pattern, word):
                return code
    return 500


def is_overload(error: Exception) -> bool:
    """Whether a server that is up has too much to do. HTTP status 503 may also come from a proxy without a server."""
    in_stream = getattr(error, "status_code", None) is None
    return (found := status(error)) == 429 or (in_stream and found == 503)


def is_temporary(error: Exception) -> bool:
    """Whether the same request may succeed if it is sent again at once."""
    import openai

    found = status(error)
    if found is None:
        return isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError)
    return found >= 500 or found == 429 or found in _TEMPORARY


def failure(error: Exception, name: str, begun: bool) -> VLRouteError:
    """What an error of the openai package means for a caller.

    Args:
        error: the error.
        name: of the endpoint.
        begun: whether some of the answer was handed out.
    """
    found, said = status(error), _said(error)
    if found in _REFUSED:
        return InputError(f"{name} refuses the request: {said}")
    if found == 429:
        return ModeUnavailable(f"{name} has too much to do", begun)
    if found is not None and 400 <= found < 500 and found not in _TEMPORARY:
        return EndpointError(f"{name} answers {found}: {said}; check key, model and address")
    what = f"answers {found}" if found else "broke off" if begun else "cannot be reached"
    return ModeUnavailable(f"{name} {what}: {said}", begun)


def _said(error: Exception) -> str:
    body: Any = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else body if isinstance(body, str) else None
    return " ".join(str(message or error or type(error).__name__).split())[:300]
