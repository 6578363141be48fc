"""API keys: who may call, and the namespace that keeps one caller's caches from another's."""

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
from vlroute.serving.settings import ServerSettings


class Keys:
    """Compares in constant time, each key with what was sent, so that nothing is learnt from how long it took."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def known(self, key: str) -> bool:
        """Whether `key` is one of them."""
        sent = _digest(key)
        return any([hmac.compare_digest(sent, digest) for digest in self._digests])  # noqa: C419 - all, at any rate

    def namespace(self, authorization: str | None) -> str:
        """Of the key in an Authorization header; "" where no key is needed. APIError 401 for a wrong one."""
        if not self._digests:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        if not self.known(key.strip()) or scheme.lower() != "bearer":
            raise APIError(
                401, "no valid API key: send it as 'Authorization: Bearer KEY'", "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        return _digest(key.strip()).hex()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What every endpoint needs; kept on `app.state.dependencies`."""

    settings: ServerSettings
    service: Service
    fetcher: Fetcher
    keys: Keys


@dataclass(frozen=True, slots=True)
class Caller:
    """One caller inside. `namespace` keeps the caches of different keys apart."""

    dependencies: Dependencies
    namespace: str


async def _enter(request: Request, authorization: Annotated[str | None, Header()] = None) -> Caller:
    dependencies: Dependencies = request.app.state.dependencies
    return Caller(dependencies, dependencies.keys.namespace(authorization))


#: APIError 401 without a valid key, where one is needed.
Entered = Annotated[Caller, Depends(_enter)]
