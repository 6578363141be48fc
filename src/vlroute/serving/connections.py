"""Connections of the server: limits of the time and memory that silent, slow and many clients can cost."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from vlroute.serving.errors import APIError, Count
from vlroute.serving.settings import ServerSettings

log = logging.getLogger("vlroute")
#: Maximum size of the header of a request.
MAX_HEADER = 2**16
#: Maximum number of its fields.
MAX_FIELDS = 200
#: Maximum number of requests of a connection that wait until an earlier one is answered.
MAX_PIPELINE = 16
#: Maximum number of bytes of a response that the system keeps for a client that does not read.
SEND_BUFFER = 2**18
#: A refused client has this time to read the refusal.
REFUSAL_SECONDS = 2.0
#: Maximum number of refused connections that are open at the same time; further ones are reset.
MAX_REFUSED = 64
#: After so many bytes, other connections are read first. Otherwise uvloop reads one up to 32 times in a row.
READ_AT_ONCE = 2**14
#: Bytes of refused bodies that are read in a second, so that reading them does not delay requests.
SKIP_RATE = 25 * 2**20
_LOG_SECONDS = 10.0  # between two log lines about refused connections


def address_group(host: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 network of an IPv6 address, which one client has.

    Args:
        host: The address.

    Returns:
        A name of the group; `host` itself if it is no IP address.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


class Proxies:
    """The trusted proxies of a server, whose connections belong to many clients.

    Args:
        trusted: See `ServerSettings.forwarded_allow_ips`.
    """

    def __init__(self, trusted: Sequence[str]) -> None:
        self._all = "*" in trusted
        self._networks = [ipaddress.ip_network(one) for one in trusted if one != "*"]

    def trust(self, host: str, *, named: bool = False) -> bool:
        """Whether `host` is the address of a trusted proxy.

        Args:
            host: The address.
            named: Whether it has to be listed: `*` does not count.

        Returns:
            Whether it is.
        """
        if self._all and not named:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


class Connections:
    """The open connections of one server, and its limits.

    Args:
        settings: Settings of the server.
        most: Maximum number of connections.
        count: Called with status and code of each refusal.
    """

    def __init__(self, settings: ServerSettings, most: int, count: Count) -> None:
        self.settings, self.most, self.count = settings, most, count
        self.open = 0
        self.refused = 0
        self._proxies = Proxies(settings.forwarded_allow_ips)
        self._of_address: Counter[str] = Counter()
        # connections without a request, oldest first: those that sent no complete header, and those that had a request
        self._silent: dict[Connection, None] = {}
        self._idle: dict[Connection, None] = {}
        self._closable: dict[Connection, None] = {}  # those whose response has no end, oldest first
        self._skip_at = 0.0
        self._logged = -_LOG_SECONDS
        self._refused_since = 0

    def admit(self, new: Connection, host: str) -> bool:
        """Whether a new connection is accepted. If there are too many, another one is closed to make room.

        That is one without a request; if there is none, one whose response has no end.

        Args:
            new: The connection.
            host: Address of the client.

        Returns:
            Whether it is; then `remove` must be called at its end.
        """
        group = "" if self._proxies.trust(host) else address_group(host)
        full = bool(group) and self._of_address[group] >= self.settings.max_per_address
        if (full and not self._close_one(group)) or (self.open >= self.most and not self._close_one(None)):
            self._log_refusal(host)
            return False
        new.group = group
        self.open += 1
        self._of_address[group] += 1
        self._silent[new] = None
        return True

    def busy(self, connection: Connection) -> None:
        """The connection has a request."""
        for some in (self._silent, self._idle, self._closable):
            some.pop(connection, None)

    def idle(self, connection: Connection) -> None:
        """The connection waits for a further request."""
        self._idle[connection] = None

    def skipped(self, size: int, now: float) -> float:
        """Count a part of a refused body that was read because its client does not stop sending.

        Args:
            size: Its number of bytes.
            now: Time of the event loop in seconds.

        Returns:
            The time at which the next part of such a body may be read: `now` if no connection has a request, and
            otherwise a second from now at the latest.
        """
        if self.open == len(self._silent) + len(self._idle) + len(self._closable):
            return now
        self._skip_at = min(max(now, self._skip_at) + size / SKIP_RATE, now + 1.0)
        return self._skip_at

    def may_be_closed(self, connection: Connection) -> None:
        """Mark a connection whose response has no end. It is closed if a new connection needs its place."""
        self._closable[connection] = None

    def remove(self, connection: Connection) -> None:
        """The connection has ended."""
        self.busy(connection)
        self.open -= 1
        self._of_address[connection.group] -= 1
        if not self._of_address[connection.group]:
            del self._of_address[connection.group]

    def _close_one(self, group: str | None) -> bool:
        """Close the connection that has been without a request for the longest time, if there is one.

        Otherwise, one whose response has no end, of the address with most of them.
        """
        for waiting in (self._silent, self._idle):
            for connection in waiting:
                if group is None or connection.group == group:
                    connection.abort()
                    return True
        closable = [one for one in self._closable if group is None or one.group == group]
        if not closable:
            return False
        counts = Counter(one.visitor for one in closable)
        max(closable, key=lambda one: counts[one.visitor]).abort()  # the first of equal ones is the oldest
        return True

    def _log_refusal(self, host: str) -> None:
        self.count(503, "too_many_connections")
        self._refused_since += 1
        if time.monotonic() - self._logged >= _LOG_SECONDS:
            log.warning("%d connections refused, the last one of %s: %d are open", self._refused_since, host, self.open)
            self._logged, self._refused_since = time.monotonic(), 0


class _StopParsing(Exception):
    """Raised within the parser: nothing that follows in what was received matters."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with limits of time and size.

    A connection is closed if the header of a request does not arrive in time or is too large, if the client does not
    read its response, if it does not stop sending a body that was refused, if it sends many requests without waiting
    for responses, or if it sends no further request. How fast a body has to arrive is checked by `RequestGuard`, which
    can answer in the format of the API.

    Args:
        connections: All connections of the server.
        **options: Arguments of uvicorn.

    Attributes:
        group: What the connection counts for, see `address_group`; "" for that of a trusted proxy.
        visitor: Address of the client of a response without end.
    """

    def __init__(self, *, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self.group = self.visitor = ""
        self._all, self._settings = connections, connections.settings
        self._admitted = self._refused = self._aborted = False
        self._waits_for: str | None = "header"  # "header" or "body" while a part of a request is expected
        self._header_size = 0
        self._body: list[bytes] = []  # chunks of the body in what is being parsed
        self._stopped = False
        self._reading: asyncio.TimerHandle | None = None
        self._reading_on: asyncio.Handle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept or refuse the connection."""
        super().connection_made(transport)
        host = self.client[0] if self.client else ""
        if not self._all.admit(self, host):
            self._refuse()
            return
        self._admitted = True
        if (sock := transport.get_extra_info("socket")) is not None and self.client:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._read_within(self._settings.header_seconds, self._header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        for timer in (self._reading, self._reading_on, self._writing):
            if timer is not None:
                timer.cancel()
        if self._admitted and not self._aborted:
            self._all.remove(self)
        self._all.refused -= self._refused

    def abort(self) -> None:
        """Close the connection at once. It no longer counts."""
        self._aborted = True
        self._all.remove(self)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        if self._refused or self._aborted:
            return
        if self._waits_for is None and (self.cycle is None or self.cycle.response_complete):
            self._begin_header()
        if self._waits_for == "header":
            self._header_size += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        self._pass_body_on()
        refused = self._waits_for == "body" and self.cycle is not None and self.cycle.response_complete
        if (refused or len(data) >= READ_AT_ONCE) and not self.flow.read_paused and not self.transport.is_closing():
            self.flow.pause_reading()
            if refused:
                at = self._all.skipped(len(data), self.loop.time())
                self._reading_on = self.loop.call_at(at, self._read_on)
            else:
                self._reading_on = self.loop.call_soon(self._read_on)
        if self._waits_for == "header" and self._header_size > MAX_HEADER and not self.transport.is_closing():
            self._answer(APIError(431, f"the header has more than {MAX_HEADER} bytes", "header_too_large"))

    def _parse(self, data: bytes) -> None:
        """Call the parser, as uvicorn does, but without a line in the log for each invalid request.

        A request to upgrade to another protocol is answered like any other one (RFC 9110, section 7.8). The parser
        ends it before its body; so another parser reads its header again, without the field, and what follows.
        """
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as end:
                kept = [b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade"]
                line = b"%s %s HTTP/%s\r\n" % (
                    self.parser.get_method(), self.url, self.parser.get_http_version().encode()
                )  # fmt: skip
                data = line + b"".join(kept) + b"\r\n" + data[end.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as in uvicorn
            except httptools.HttpParserError:  # also after `_StopParsing`
                if not self._stopped:
                    self._answer(APIError(400, "the request is not valid HTTP", "invalid_http"))
                return

    def on_message_begin(self) -> None:
        """Called by the parser at the first byte of a request."""
        if self.transport.is_closing():
            self._stop()
        super().on_message_begin()
        if self._waits_for != "header":  # it follows another one at once
            self._begin_header()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser for a field of a header; or of a trailer behind a body, which has no effect."""
        if self._waits_for != "body":
            if len(self.headers) >= MAX_FIELDS:
                self._answer(APIError(431, f"the header has more than {MAX_FIELDS} fields", "header_too_large"))
                self._stop()
            super().on_header(name, value)
            return
        self._header_size += len(name) + len(value) + len(": \r\n")
        if self._header_size > MAX_HEADER:
            self.abort()
            self._stop()

    def on_headers_complete(self) -> None:
        """Called by the parser at the end of a header."""
        if self.parser.get_method() == b"CONNECT":  # what follows would not be HTTP
            self._answer(APIError(400, "the server is not a proxy: CONNECT is not supported", "invalid_http"))
            self._stop()
        if self.parser.should_upgrade():  # it is parsed again
            return
        if (refusal := self._header_refusal()) is not None:
            self._answer(refusal)
            self._stop()
        if len(self.pipeline) >= MAX_PIPELINE:
            self._all.count(400, "too_many_pipelined")
            self._reset()
            self._stop()
        self._stop_reading_timer()
        self._waits_for = "body"
        self._header_size = 0
        self._all.busy(self)
        self.scope["state"]["may_be_closed"] = partial(self._may_be_closed, self.scope)
        super().on_headers_complete()

    def _header_refusal(self) -> APIError | None:
        """The error for a header that a proxy may read in another way than this server (RFC 9112, 3.2 and 6.1)."""
        version, hosts, codings = self.parser.get_http_version(), 0, list[bytes]()
        for name, value in self.headers:
            hosts += name == b"host"
            if name == b"transfer-encoding":
                codings.append(value)
        if hosts > 1 or (not hosts and version == "1.1"):
            return APIError(400, f"a request must have one Host header, not {hosts}", "invalid_http")
        if codings and (version != "1.1" or [one.strip().lower() for one in codings] != [b"chunked"]):
            message = "the only transfer coding that is supported is chunked, in HTTP/1.1"
            return APIError(400, message, "unsupported_transfer_coding")
        return None

    def _may_be_closed(self, scope: Any) -> None:
        """Called for a response without end."""
        self.visitor = (scope.get("client") or ("",))[0]  # that of the client behind a proxy
        if not self._aborted:
            self._all.may_be_closed(self)

    def on_body(self, body: bytes) -> None:
        """Called by the parser for a part of a body, which may be a chunk of one byte."""
        if not self.cycle.response_complete:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Called by the parser at the end of a request."""
        if self.parser.should_upgrade():
            return
        self._pass_body_on()
        super().on_message_complete()
        self._waits_for = None
        self._stop_reading_timer()
        if self.cycle.response_complete:  # before the end of the body, which was refused
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
            self._all.idle(self)

    def on_response_complete(self) -> None:
        """Called at the end of a response."""
        follows = bool(self.pipeline)
        super().on_response_complete()
        if self.transport.is_closing():
            self._write_within(self._settings.write_seconds)
        elif self._waits_for == "body":  # which was refused; the client may still send it
            self._unset_keepalive_if_required()
            self._read_within(self._settings.body_seconds + self._settings.max_body / SKIP_RATE, self._close)
            self._all.idle(self)
        elif not follows and self._waits_for is None:
            self._all.idle(self)

    def pause_writing(self) -> None:
        """Called when the client does not read."""
        super().pause_writing()
        self._write_within(self._settings.write_seconds)

    def resume_writing(self) -> None:
        """Called when the client has read."""
        super().resume_writing()
        if self._writing is not None and not self.transport.is_closing():
            self._writing.cancel()
            self._writing = None

    def timeout_keep_alive_handler(self) -> None:
        """Called when no further request has arrived."""
        self._close()

    def shutdown(self) -> None:
        """Called when the server stops."""
        super().shutdown()
        if self.transport.is_closing():
            self._write_within(self._settings.write_seconds)

    def _read_on(self) -> None:
        """Continue to read, unless uvicorn waits until the application has read the body, or for a response."""
        cycle = self.cycle
        unread = cycle is not None and not cycle.response_complete and len(cycle.body) > HIGH_WATER_LIMIT
        if not unread and not self.pipeline and not self.transport.is_closing():
            self.flow.resume_reading()

    def _pass_body_on(self) -> None:
        if self._body:
            body, self._body = b"".join(self._body), []
            super().on_body(body)

    def _stop(self) -> NoReturn:
        self._stopped = True
        raise _StopParsing

    def _begin_header(self) -> None:
        self._waits_for, self._header_size = "header", 0
        self._read_within(self._settings.header_seconds, self._header_timeout)

    def _header_timeout(self) -> None:
        seconds = self._settings.header_seconds
        if self.cycle is not None and not self.cycle.response_complete:
            self._read_within(seconds, self._header_timeout)  # the response before it goes on
        elif self._header_size:
            self._answer(APIError(408, f"the header did not arrive within {seconds:g} s", "header_timeout"))
        else:
            self._close()

    def _refuse(self) -> None:
        """Send the refusal before any request, and give the client time to read it."""
        if self._all.refused >= MAX_REFUSED:
            self.transport.abort()
            return
        self._refused = True
        self._all.refused += 1
        message = "the server has too many connections; try again later"
        self._send(APIError(503, message, "too_many_connections", headers={"Retry-After": "5"}))
        if self.transport.can_write_eof():
            self.transport.write_eof()  # closing would reset the connection if the client has sent anything
        self._read_within(REFUSAL_SECONDS, self.transport.abort)

    def _answer(self, error: APIError) -> None:
        """Send an error outside of a request, and close the connection."""
        self._all.count(error.status, error.code)
        cycle, in_body = self.cycle, self._waits_for == "body"
        if cycle is not None and cycle.response_complete == in_body:
            # the error would be taken for a part of the response to this request, or to an earlier one
            self.abort()
            return
        if cycle is not None and in_body:
            if self.pipeline or cycle.response_started:
                self.abort()
                return
            cycle.disconnected = True  # the application sends no other response
            cycle.message_event.set()
        self._send(error)
        self._close()

    def _send(self, error: APIError) -> None:
        body = json.dumps(error.body()).encode()
        headers = {
            "content-type": "application/json", "content-length": str(len(body)), "connection": "close",
            **(error.headers or {}),
        }  # fmt: skip
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[error.status] + lines.encode() + b"\r\n" + body)

    def _close(self) -> None:
        """Close the connection when the client has read what was sent, or after some time."""
        if not self.transport.is_closing():
            self.transport.close()
        self._write_within(self._settings.write_seconds)

    def _read_within(self, seconds: float, then: Callable[[], Any]) -> None:
        self._stop_reading_timer()
        self._reading = self.loop.call_later(seconds, then)

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _write_within(self, seconds: float) -> None:
        if self._writing is None:
            self._writing = self.loop.call_later(seconds, self._reset)

    def _reset(self) -> None:
        """Disconnect a client that does not read, without keeping what it has not read."""
        if (sock := self.transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
