"""All public errors. Messages say what is wrong, what is expected and what to do."""

from __future__ import annotations

from typing import Any


class VLRouteError(Exception):
    """Base of all errors that vlroute raises on purpose."""

    address = ""
    """Address of the endpoint that the error comes from, if any. It is appended to the message."""

    @property
    def public(self) -> str:
        """The message without the address, for clients of a server and for decisions."""
        return super().__str__()

    def __str__(self) -> str:
        return f"{self.public} ({self.address})" if self.address else self.public


class MissingExtraError(VLRouteError):
    """A feature needs packages that are not installed.

    Args:
        error: The import that failed.
        extra: The extra of vlroute that installs the packages.
    """

    def __init__(self, error: ModuleNotFoundError, extra: str) -> None:
        super().__init__(f"{error}: this feature needs more packages; pip install 'vlroute[{extra}]'")
        self.error, self.extra = error, extra

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes."""
        return MissingExtraError, (self.error, self.extra)


class InputError(VLRouteError, ValueError):
    """The request is invalid. Sending it again unchanged fails again."""


class UnreadableMediaError(InputError):
    """A picture or video cannot be opened or decoded: it is missing, truncated or of an unknown format."""


class LimitError(InputError):
    """A picture, video or request exceeds one of the `Limits`."""


class MessageError(InputError):
    """A message has the wrong form: the prompt is empty, a role or part is unknown, or there is nothing to answer."""


class SettingsError(InputError, TypeError):
    """A generation setting or an argument of a constructor has an unknown name, a wrong type or a value out of range.

    Raised before a model is loaded or called. It is both a `ValueError` and a `TypeError`.
    """


class CheckpointError(VLRouteError):
    """A checkpoint folder is missing, incomplete or of an unknown model family."""


class ModeUnavailableError(VLRouteError):
    """One mode cannot answer any request at present: its endpoint is down, overloaded or closed the connection.

    Args:
        message: What happened.
        begun: Whether a part of the answer was passed on, so that the other mode cannot replace it.
    """

    def __init__(self, message: str, begun: bool = False) -> None:
        super().__init__(message)
        self.begun = begun


class EndpointError(VLRouteError):
    """An endpoint refuses all requests: the key, the model or the address is wrong."""


class OutOfMemoryError(VLRouteError, RuntimeError):
    """The memory of the device is not enough for a request. Other requests, and the next ones, are answered."""


class RouterClosedError(VLRouteError, RuntimeError):
    """The router was closed and cannot answer any more.

    Args:
        message: What to do.
    """

    def __init__(self, message: str = "this router is closed; create a new Router") -> None:
        super().__init__(message)


class ChatBusyError(VLRouteError, RuntimeError):
    """A new turn would deadlock, because this thread has an open stream of the same chat. Read or close it first."""


class ChatFileError(VLRouteError):
    """A saved conversation cannot be read: it is missing, damaged or of another format."""


class ArtifactError(VLRouteError):
    """A router artifact cannot be used: it is missing, damaged or of another schema version."""


class HubError(VLRouteError):
    """The hub refuses a request: the repository or revision does not exist, or the token does not permit it."""


class HubUnavailableError(HubError, OSError):
    """The hub cannot be reached or fails, and the files are not in the local cache. A later try may succeed."""


class StoreError(VLRouteError):
    """The store cannot be opened, read or written. Nothing was stored by the call."""


class OutputError(VLRouteError, OSError):
    """A file cannot be written. It is raised before the work for the file begins."""


class UnknownAnswerError(VLRouteError, LookupError):
    """No answer with this id is stored: the id is wrong, the answer was pruned, or the router had no store."""
