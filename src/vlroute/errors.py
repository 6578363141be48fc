"""Every error a caller can meet: what was wrong, what was expected, what to do."""

from __future__ import annotations


class VLRouteError(Exception):
    """Base of all errors raised on purpose by vlroute."""

    address = ""
    """Address of the endpoint that the error comes from, if it comes from one. `str` of the error ends with it."""

    @property
    def public(self) -> str:
        """The message without the address, for clients of a server and for decisions."""
        return super().__str__()

    def __str__(self) -> str:
        return f"{self.public} ({self.address})" if self.address else self.public


class MissingExtraError(VLRouteError):
    """A command needs packages that answering does not."""

    def __init__(self, error: ModuleNotFoundError, extra: str) -> None:
        super().__init__(f"{error}: this needs more than answering does; pip install 'vlroute[{extra}]'")


class InputError(VLRouteError, ValueError):
    """The request itself is at fault; sending it again unchanged cannot help."""


class UnreadableMediaError(InputError):
    """A picture or video cannot be opened or decoded: missing, truncated, of an unknown format."""


class LimitError(InputError):
    """A picture, video or request is over one of the limits in `vlroute.inputs.media.Limits`."""


class MessageError(InputError):
    """The message has the wrong shape: empty prompt, unknown role or part, nothing to answer."""


class SettingsError(InputError, TypeError):
    """A generation setting or an argument of a constructor has an unknown name, a wrong type or a value out of range.

    Raised before a model is loaded or called. It is both a `ValueError` and a `TypeError`.
    """


class CheckpointError(VLRouteError):
    """A checkpoint folder is missing, incomplete or not a Qwen3-VL model."""


class ModeUnavailableError(VLRouteError):
    """One mode cannot answer now, whatever is asked: its endpoint is down, overloaded or broke off."""

    def __init__(self, message: str, begun: bool = False) -> None:
        super().__init__(message)
        self.begun = begun
        """Whether some of the answer was handed out: then no other mode may take over."""


class EndpointError(VLRouteError):
    """An endpoint refuses on principle: wrong key, unknown model, no such address."""


class RouterClosedError(VLRouteError, RuntimeError):
    """The router was closed and cannot answer any more. Create a new one."""

    def __init__(self, message: str = "this router is closed; create a new Router") -> None:
        super().__init__(message)


class ChatBusyError(VLRouteError, RuntimeError):
    """This thread has an open stream of the chat, so a second turn would deadlock. Read or close the stream first."""


class ChatFileError(VLRouteError):
    """A saved conversation cannot be read: missing, damaged, or of another format."""


class ArtifactError(VLRouteError):
    """A router artifact cannot be used: missing, damaged, or of another schema version."""


class StoreError(VLRouteError):
    """The store cannot be opened, read or written; nothing of the call was stored."""


class OutputError(VLRouteError, OSError):
    """A file cannot be written. Raised before the work for it begins."""


class UnknownAnswerError(VLRouteError, LookupError):
    """No answer with this id is stored: the id is wrong, the answer was pruned, or there was no store."""
