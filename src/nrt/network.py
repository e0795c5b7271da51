"""What nrt's two servers have in common: who may ask, how long a connection may wait, and how many there may be."""

from __future__ import annotations

import hmac
import os
import re
import socket
import sys
from contextlib import suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from nrt.errors import InputError

GOOD_TOKEN = re.compile("[!-~]{16,}")

EVERY_ADDRESS = ("", "0.0.0.0", "::")

MOST_WAITING = 64
"""Connections that have not yet asked for anything they may have. One more, and the oldest of them is closed."""

PATIENCE = 10.0
"""Seconds that a connection may be silent in the midst of a request, or before it."""


def token_of(variable: str) -> str:
    """The token in an environment variable (an option would show in the list of processes); empty where there is none.

    Raises InputError for one that is not fit to keep anyone out.
    """
    token = os.environ.get(variable, "")
    if token and not GOOD_TOKEN.fullmatch(token):
        raise InputError(f"{variable} is not 16 or more visible ASCII characters; set another")
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. A name other than localhost counts as one that others can.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0"), is_loopback("")
    (True, True, True, False, False)
    """
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(header: str) -> str:
    """The name in a Host header, without the port; empty where it is none.

    >>> host_of("localhost:8642"), host_of("[::1]:8642"), host_of("[")
    ('localhost', '::1', '')
    """
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def refuse_credentials(setting: str, url: str) -> None:
    """Raises InputError for an address with a user or a password: it would be stored, and shown."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return
    if "@" in parts.netloc:
        raise InputError(f"{setting}: an address with a user or a password would be stored and shown; give it without them")


class Server(ThreadingHTTPServer):
    """Answers each connection's one request on a thread of its own.

    Without a token, requests are answered that were sent on this machine, to it by name or number, and not by a page of another site.
    With a token, every request must bring it. Raises InputError where host:port (0: a free one) cannot be served.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler], *, token: str, token_from: str) -> None:
        """`token_from` says, in a refusal, where those who ask get the token."""
        self.host, self.token, self.token_from = host, token, token_from
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._waiting: dict[Any, None] = {}  # sockets, in the order in which they came
        self._lock = Lock()
        try:
            super().__init__((host, port), handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{host} port {port} cannot be served ({reason}); choose another with --host or --port") from error

    @property
    def root(self) -> str:
        """The address, without a path; with this machine's name where all interfaces are served."""
        host = socket.gethostname() if self.host in EVERY_ADDRESS else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}"

    def refusal(self, headers: Message, token: str) -> str:
        """Why a request with these headers and this token is refused; empty if it is not."""
        host, origin = headers.get("Host", ""), headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != host:
            return "not for pages of another site"
        if self.token:
            return "" if hmac.compare_digest(token.encode(), self.token.encode()) else f"only with the token: {self.token_from}"
        # A foreign name that resolves to this machine would let a page of that site ask, and read.
        return "" if host_of(host) in ("127.0.0.1", "localhost", self.host) else "only for this machine"

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._waiting[request] = None
            oldest = next(iter(self._waiting)) if len(self._waiting) > MOST_WAITING else None
        if oldest:
            self.admit(oldest)
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread then reads its end, and closes it
        super().process_request(request, client_address)

    def admit(self, request: Any) -> None:
        """Count a connection no longer among those that have not asked for anything they may have."""
        with self._lock:
            self._waiting.pop(request, None)

    def shutdown_request(self, request: Any) -> None:
        self.admit(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that leave in the midst of a request."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """What both servers do with a connection: time-outs, and replies that nobody may keep."""

    timeout = PATIENCE
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def reply(self, status: int, kind: str, text: str) -> None:
        body = text.encode("utf-8", errors="backslashreplace")
        with suppress(OSError):  # who reloads or leaves does not wait for the rest
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: pages and trainers ask every few seconds, and an address may hold a token."""
