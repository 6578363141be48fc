"""The log of a server process: one line for each record on stderr, as text or as JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal

from vlroute.serving.request_log import current_request_id, line_of

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def configure_logging(format: Literal["text", "json"]) -> None:
    """Write the log of this process to stderr: vlroute and uvicorn from level INFO, other packages from WARNING.

    Handlers that were added before to these loggers and to the root logger are removed.

    Args:
        format: "text" or "json".
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if format == "json" else TextFormatter())
    for name, level in (("", logging.WARNING), ("vlroute", logging.INFO), ("uvicorn", logging.INFO)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers[:] = [] if name else [handler]
    if format == "json":  # transformers has a handler of its own
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_default_handler()
        transformers_logging.enable_propagation()
        transformers_logging.disable_progress_bar()
        logging.captureWarnings(True)


class JSONFormatter(logging.Formatter):
    """One JSON object in one line of ASCII: `time`, `level`, `logger`, `message`, and more fields if there are any.

    `request_id` is the id of the request that was being answered, `exception` a traceback. The fields of a request
    take the place of its message.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line: dict[str, Any] = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        if fields := getattr(record, "fields", None):
            line |= fields
        else:
            line["message"] = record.getMessage()
            if (id := current_request_id()) is not None:
                line["request_id"] = id
        if trace := _trace(self, record):
            line["exception"] = trace
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, logger and message in one line, in which control characters are escaped.

    A traceback follows in further lines, each of which begins with blanks, so that texts of clients in it cannot look
    like a line of the log.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        message = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], record.getMessage())
        if getattr(record, "fields", None) is None and (id := current_request_id()) is not None:
            message = f"{message} {line_of({'request_id': id})}"
        lines = [f"{_time(record)} {record.levelname} {record.name}: {message}"]
        return "\n".join([*lines, *(f"    {line}" for line in _trace(self, record).splitlines())])


def _time(record: logging.LogRecord) -> str:
    """In UTC, with milliseconds, as in RFC 3339."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""
