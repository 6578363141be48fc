"""API keys: those of the settings, and those of a key file, which have names and limits."""

from __future__ import annotations

import difflib
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import threading
import tomllib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers

from vlroute.errors import InputError, SettingsError
from vlroute.fair_share import Flow
from vlroute.serving.errors import APIError
from vlroute.serving.settings import MIN_KEY_LENGTH, is_sendable

log = logging.getLogger("vlroute")
#: Least and most weight of a key.
WEIGHTS = 0.01, 100.0
RELOAD_SECONDS = 1.0  # between two checks of the key file
#: Maximum size of a key file in bytes: some ten thousand keys.
MAX_FILE = 4 * 2**20
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """Limits of one key; None: no limit.

    Attributes:
        requests_per_minute: Maximum number of requests in any 60 seconds.
        concurrent_requests: Maximum number of requests at the same time.
        tokens_per_day: Number of tokens, of prompts and answers, after which requests are refused until midnight UTC.
    """

    requests_per_minute: int | None = None
    concurrent_requests: int | None = None
    tokens_per_day: int | None = None


@dataclass(frozen=True, slots=True)
class APIKey:
    """One accepted key.

    Attributes:
        name: Its name, for logs and counts.
        digest: SHA-256 of the key.
        limits: Its limits.
        weight: Its part of the server relative to the other keys that have requests.
    """

    name: str
    digest: bytes
    limits: KeyLimits = KeyLimits()
    weight: float = 1.0

    @property
    def namespace(self) -> str:
        """Namespace of the caches of requests with this key."""
        return self.digest.hex()

    @property
    def login(self) -> str:
        """The user name that Gradio stores for a log-in with this key. It changes when the key is replaced."""
        return f"{self.name}:{self.digest.hex()[:16]}"

    @property
    def flow(self) -> Flow:
        """The requests with this key, which share its part of the server."""
        return Flow(self.name, self.weight)


class APIKeys:
    """The keys that the server accepts. Thread-safe.

    Comparison takes constant time, so that its duration reveals nothing. The key file is read again when it has
    changed, in a thread of its own, because its file system may not answer. A file that cannot be read leaves the
    previous keys in force, and the error is logged.

    Args:
        keys: Keys without limits. They are named after the beginning of their digests.
        file: A key file, see `read_key_file`.
        counts_tokens: Whether tokens are counted, so that limits of tokens are possible.

    Raises:
        InputError: The file cannot be used.
    """

    def __init__(self, keys: Sequence[str], file: Path | None = None, counts_tokens: bool = True) -> None:
        digests = dict.fromkeys(_digest(key) for key in keys)
        self._settings = tuple(APIKey(f"key-{digest.hex()[:8]}", digest) for digest in digests)
        self._counts_tokens, self._keys = counts_tokens, self._settings
        if file is not None:
            version = _version(file)
            self._keys = self._read(file)
            watch = (weakref.ref(self), file, version)
            threading.Thread(target=_watch, args=watch, name="vlroute-keys", daemon=True).start()
        self.required = bool(keys) or file is not None
        """Whether requests need a key. A key file without keys refuses all requests."""

    def find(self, key: str) -> APIKey | None:
        """The accepted key that is equal to `key`."""
        sent, found = _digest(key), None
        for one in self._keys:  # compares all
            if hmac.compare_digest(sent, one.digest):
                found = one
        return found

    def logged_in(self, login: str) -> APIKey | None:
        """The key of a log-in, see `APIKey.login`; None if it was removed or replaced."""
        name = key_name(login)
        return next((one for one in self._keys if one.name == name and one.login == login), None)

    def of(self, authorization: str | None) -> APIKey | None:
        """The key of a request.

        Args:
            authorization: The Authorization header.

        Returns:
            The key; None if the server needs no key.

        Raises:
            APIError: 401 for a missing or wrong key.
        """
        if not self.required:
            return None
        scheme, _, sent = (authorization or "").partition(" ")
        key = self.find(sent.strip())
        if key is None or scheme.lower() != "bearer":
            raise no_valid_key()
        return key

    def reload(self, file: Path) -> None:
        """Read the key file again. If this fails, the error is logged.

        Args:
            file: The file.
        """
        try:
            self._keys = self._read(file)
            log.info("the key file was read again: %d keys", len(self._keys))
        except ValueError as error:  # InputError, and Python's own for a number of thousands of digits
            log.error("the previous keys stay in force: %s", error)

    def _read(self, file: Path) -> tuple[APIKey, ...]:
        keys = (*self._settings, *read_key_file(file))
        for one in keys:
            if one.limits.tokens_per_day is not None and not self._counts_tokens:
                raise SettingsError(f"{file}: {one.name}: tokens_per_day needs a store for the counts; pass --store")
            if sum(other.digest == one.digest for other in keys) > 1:
                raise SettingsError(f"{file}: {one.name}: this key has another name as well")
        return keys


def session_namespace(session: str, login: str) -> str:
    """Namespace of the caches of a visitor of the page: each session has its own.

    Args:
        session: Identifies the session; the browser chooses it.
        login: See `APIKey.login`.

    Returns:
        The namespace.
    """
    return f"page {session} {login}"


def session_login(namespace: str) -> str | None:
    """The `APIKey.login` that a `session_namespace` contains; None for another namespace."""
    return namespace.rpartition(" ")[2] if namespace.startswith("page ") else None


def session_key_name(namespace: str) -> str | None:
    """The name of the key in a `session_namespace`; None for another namespace."""
    login = session_login(namespace)
    return None if login is None else key_name(login)


def key_name(login: str) -> str:
    """The name of the key in an `APIKey.login`."""
    return login.partition(":")[0]


def authorization_of(headers: Headers) -> str | None:
    """The value of the Authorization header. If there is only `x-api-key`, its key in that form.

    Args:
        headers: The headers of the request.

    Returns:
        The value; None if the request has neither header.
    """
    if (authorization := headers.get("authorization")) is None and (key := headers.get("x-api-key")) is not None:
        return f"Bearer {key}"  # of Anthropic's clients
    return authorization


def no_valid_key() -> APIError:
    """The error for a missing or wrong key."""
    return APIError(
        401, "no valid API key: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'", "invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )  # fmt: skip


def new_key(name: str) -> tuple[str, str]:
    """Make a key.

    Args:
        name: Its name.

    Returns:
        The key, and its entry in a key file.

    Raises:
        SettingsError: The name has characters that names must not have.
    """
    _check_name(name, name)
    key = secrets.token_hex(32)
    limits = "\n".join(f"# {one.name} = …" for one in fields(KeyLimits))
    table = name if "." not in name else f'"{name}"'
    return key, f'[{table}]\nkey = "sha256:{_digest(key).hex()}"\n{limits}\n# weight = 1\n'


def read_key_file(file: Path) -> tuple[APIKey, ...]:
    """Read a key file, and warn if other users of the machine can read it.

    It is a TOML file with a table for each key, which is the name of the key. `key` is the key, or `sha256:` and its
    digest in hexadecimal digits; `weight` is that of `APIKey`; the other fields are those of `KeyLimits`.

    Args:
        file: The file.

    Returns:
        The keys.

    Raises:
        InputError: The file does not exist, is no regular file, is too large, is not TOML, or has a wrong field.
            Messages contain no keys.
    """
    try:
        found = tomllib.loads(_content(file))
    except RecursionError:
        raise InputError(f"{file} is not valid TOML: it is nested too deeply") from None
    except FileNotFoundError:
        raise InputError(f"key file not found: {file}") from None
    except InputError:  # of `_content`
        raise
    except ValueError as error:  # also for a number of thousands of digits
        raise InputError(f"{file} is not valid TOML: {error}") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    return tuple(_read_key(name, entry, f"{file}: {name}") for name, entry in found.items())


def _content(file: Path) -> str:
    """The text of a key file. Raises InputError or OSError."""
    # without O_NONBLOCK, opening a named pipe waits until something writes to it
    with open(file, "rb", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NONBLOCK", 0))) as stream:
        state = os.fstat(stream.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise InputError(
                f"{file} is a pipe or device, which cannot be read again when the keys change; pass a regular file"
            )
        if os.name == "posix" and state.st_mode & stat.S_IROTH:
            log.warning("other users of this machine can read the key file: chmod o= %s", file)
        content = stream.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise InputError(f"{file} is too large for a key file: it has more than {MAX_FILE} bytes")
    return content.decode("utf-8-sig")


def _watch(keys: weakref.ref[APIKeys], file: Path, version: tuple[int, int, int] | None) -> None:
    """Read the key file again whenever it has changed since `version`, until nothing refers to `keys`."""
    pause = threading.Event()
    while not pause.wait(RELOAD_SECONDS):  # time.sleep can fail under libfaketime, and this thread must not end
        if (current := keys()) is None:
            return
        if (latest := _version(file)) != version:
            version = latest
            current.reload(file)
        del current  # it would be kept while this thread sleeps


def _read_key(name: str, entry: Any, place: str) -> APIKey:
    if not isinstance(entry, dict):
        raise SettingsError(f"{place} must be a table: [{name}], and below it key = …")
    _check_name(name, place)
    known = [one.name for one in fields(KeyLimits)]
    limits: dict[str, int] = {}
    weight = entry.get("weight", 1.0)
    if type(weight) not in (int, float) or not WEIGHTS[0] <= weight <= WEIGHTS[1]:
        raise SettingsError(f"{place}: weight must be a number from {WEIGHTS[0]:g} to {WEIGHTS[1]:g}, not {weight!r}")
    for field, value in entry.items():
        if field in ("key", "weight"):
            continue
        if field not in known:
            close = difflib.get_close_matches(field.replace("-", "_"), ["weight", *known], 1)
            meant = f" (did you mean {close[0]}?)" if close else ""
            raise SettingsError(f"{place}: unknown field {field}{meant}; known: key, weight, {', '.join(known)}")
        if type(value) is not int or value < 1:
            raise SettingsError(f"{place}: {field} must be a whole number above 0, not {value!r}")
        limits[field] = value
    key = entry.get("key")
    if not isinstance(key, str):
        raise SettingsError(f"{place}: key is missing; expected a key, or sha256: and its digest")
    if key.lower().startswith("sha256:"):
        digest = _DIGEST.fullmatch(key.lower())
        if digest is None:
            raise SettingsError(f"{place}: key must have 64 hexadecimal digits after sha256:")
        return APIKey(name, bytes.fromhex(digest[1]), KeyLimits(**limits), float(weight))
    if len(key) < MIN_KEY_LENGTH:
        raise SettingsError(
            f"{place}: a key must have at least {MIN_KEY_LENGTH} characters; make one: vlroute key NAME"
        )
    if not is_sendable(key):
        raise SettingsError(f"{place}: clients cannot send this key; use ASCII characters, without spaces at its ends")
    return APIKey(name, _digest(key), KeyLimits(**limits), float(weight))


def _check_name(name: str, place: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise SettingsError(f"{place!r}: the name of a key must be 1 to 64 letters, digits, '.', '_' or '-'")


def _version(file: Path) -> tuple[int, int, int] | None:
    """Changes when the file is written or replaced; None if it is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
