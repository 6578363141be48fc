"""FastAPI dependencies of the endpoints: the caller, who has a valid API key."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request

from vlroute.serving.errors import APIError
from vlroute.serving.fetch import Fetcher
from vlroute.serving.service import Service


class APIKeys:
    """The keys that the server accepts. Comparison takes constant time, so that its duration reveals nothing."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def is_valid(self, key: str) -> bool:
        """Whether `key` is one of the keys."""
        sent = _digest(key)
        return any([hmac.compare_digest(sent, digest) for digest in self._digests])  # noqa: C419 - compare all

    def namespace(self, authorization: str | None) -> str:
        """Namespace of the caller's caches.

        Args:
            authorization: The Authorization header.

        Returns:
            A digest of the key; "" if the server needs no key.

        Raises:
            APIError: 401 for a missing or wrong key.
        """
        if not self._digests:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        if not self.is_valid(key.strip()) or scheme.lower() != "bearer":
            raise APIError(
                401, "no valid API key: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'", "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        return _digest(key.strip()).hex()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class _Caller:
    service: Service
    fetcher: Fetcher
    namespace: str


async def _caller(
    request: Request,
    authorization: Annotated[str | None, Header()] = None,
    x_api_key: Annotated[str | None, Header()] = None,
) -> _Caller:
    state = request.app.state
    if authorization is None and x_api_key is not None:  # of Anthropic's clients
        authorization = f"Bearer {x_api_key}"
    return _Caller(state.service, state.fetcher, state.keys.namespace(authorization))


#: The sender of a request, with the namespace of its caches; status 401 without a valid key, if the server has keys.
Caller = Annotated[_Caller, Depends(_caller)]
