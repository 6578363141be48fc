"""Errors in the language of the page."""

from __future__ import annotations

import logging
import re
from typing import Any

from vlroute.errors import EndpointError, InputError, ModeUnavailableError, StoreError, VLRouteError
from vlroute.serving.errors import APIError
from vlroute.serving.ui.texts import TEXTS, Texts

log = logging.getLogger("vlroute")
#: Names of Python's exceptions, which some messages end with.
EXCEPTION_NAME = re.compile(r" \((?:\w+\.)*\w*(?:Error|Exception|Warning)\b[^()]*\)")


class PageError(InputError):
    """An input of the page is refused, for a reason that the page can say in each language.

    Args:
        key: A key of `problems` in texts.json.
        **values: What the text is filled with. The value `field` is a key of `fields` in texts.json.
    """

    def __init__(self, key: str, **values: Any) -> None:
        self.key, self.values = key, values
        super().__init__(self.text(TEXTS["en"]))

    def text(self, texts: Texts) -> str:
        """The message in one language."""
        values = self.values | ({"field": texts.fields[self.values["field"]]} if "field" in self.values else {})
        return str(texts.problems[self.key]).format(**values)


def kept(error: Exception) -> Exception:
    """Prepare an error for the state of a session.

    Args:
        error: The error. It is logged if its details are not for the visitor.

    Returns:
        The error, without references to the pictures in the frames that it passed.
    """
    if _is_internal(error):
        unexpected = None if isinstance(error, VLRouteError) else error
        log.error("the web page could not answer: %s", error, exc_info=unexpected)
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def error_text(error: Exception, texts: Texts) -> str:
    """The message for the visitor, without internal details and names of exceptions.

    Args:
        error: The error.
        texts: The language. A message that has no translation follows the kind of error in English.

    Returns:
        The message.
    """
    if isinstance(error, PageError):
        return error.text(texts)
    if isinstance(error, APIError) and error.code in texts.problems:
        return str(texts.problems[error.code])
    if _is_internal(error):
        return str(texts.problems["store_failed"] if isinstance(error, StoreError) else texts.failed)
    assert isinstance(error, VLRouteError)
    message = EXCEPTION_NAME.sub("", error.public)
    for pattern, template in texts.translations.items():
        if found := re.fullmatch(pattern, message, re.DOTALL):
            return str(template).format(**found.groupdict(default="")).lstrip("：")
    names = [kind.__name__ for kind in type(error).__mro__]
    head = next((texts.errors[name] for name in names if name in texts.errors), "")
    return str(head).format(message) if head else message


def _is_internal(error: Exception) -> bool:
    return not isinstance(error, VLRouteError) or isinstance(error, ModeUnavailableError | EndpointError | StoreError)
