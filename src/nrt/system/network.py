"""Common base of nrt's two HTTP servers: access checks, time-outs and a limit on connections."""

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
from urllib.parse import SplitResult, urlsplit

from nrt.errors import InputError

VALID_TOKEN = re.compile("[!-~]{16,}")

ALL_INTERFACES = ("", "0.0.0.0", "::")

MAX_WAITING = 64
"""Maximum number of connections without an accepted request; beyond it, the oldest is closed."""

IDLE_TIMEOUT = 10.0
"""Seconds that a connection may stay silent before or during a request."""


def read_token(variable: str) -> str:
    """Return the token in an environment variable; empty if it is not set.

    The token is not a command-line option, because the list of processes would show it.

    Raises InputError for a token that is too weak.
    """
    token = os.environ.get(variable, "")
    if token and not VALID_TOKEN.fullmatch(token):
        raise InputError(f"{variable} is not 16 or more visible ASCII characters; set another")
    return token


def is_loopback(host: str) -> bool:
    """Return True if only this machine can reach the address.

    A name other than localhost counts as reachable by others.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost")
    (True, True, True)
    >>> is_loopback("0.0.0.0"), is_loopback("")
    (False, False)
    """
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def parse_http_url(url: str) -> SplitResult | None:
    """Return the parts of an http(s) address; None for anything else.

    >>> parse_http_url("http://127.0.0.1:8000/v1").port
    8000
    >>> invalid = ("127.0.0.1:8000", "http://", "http://[::1", "http://host:99999")
    >>> [parse_http_url(url) for url in invalid]
    [None, None, None, None]
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError beyond 65535
    except ValueError:
        return None
    return parts if parts.scheme in ("http", "https") and parts.hostname else None


def host_name(header: str) -> str:
    """Return the name in a Host header without the port; empty if the header is not valid.

    >>> host_name("localhost:8642"), host_name("[::1]:8642"), host_name("[")
    ('localhost', '::1', '')
    """
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def refuse_credentials(setting: str, url: str) -> None:
    """Raise InputError for a URL with a user or a password, since nrt stores and prints URLs."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return
    if "@" in parts.netloc:
        raise InputError(
            f"{setting}: an address with a user or a password would be stored and shown; "
            "give it without them"
        )


class Server(ThreadingHTTPServer):
    """HTTP server that answers each connection's one request on its own thread.

    With a token, every request must contain it. Without a token, a request must name this machine
    as its host (localhost, 127.0.0.1 or `host`). A page of another site is refused in both cases.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        host: str,
        port: int,
        handler: type[BaseHTTPRequestHandler],
        *,
        token: str,
        token_hint: str,
    ) -> None:
        """Bind to host:port.

        Args:
            port: 0 means any free port.
            token: the required token; empty: none.
            token_hint: text of a refusal that tells clients how to get the token.

        Raises InputError if the address cannot be bound.
        """
        self.host, self.token, self.token_hint = host, token, token_hint
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._waiting: dict[Any, None] = {}  # sockets in order of arrival
        self._lock = Lock()
        try:
            super().__init__((host, port), handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"{host} port {port} cannot be served ({reason}); "
                "choose another with --host or --port"
            ) from error

    @property
    def base_url(self) -> str:
        """URL without a path; has this machine's name if the server listens on all interfaces."""
        host = socket.gethostname() if self.host in ALL_INTERFACES else self.host
        if ":" in host:
            host = f"[{host}]"
        return f"http://{host}:{self.server_port}"

    def refusal(self, headers: Message, token: str) -> str:
        """Return why a request with these headers and this token is refused; empty if it is not."""
        host, origin = headers.get("Host", ""), headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != host:
            return "not for pages of another site"
        if self.token:
            if hmac.compare_digest(token.encode(), self.token.encode()):
                return ""
            return f"only with the token: {self.token_hint}"
        # Otherwise a foreign name that resolves to this machine would let a page of that site send
        # requests and read the replies.
        if host_name(host) in ("127.0.0.1", "localhost", self.host):
            return ""
        return "only for this machine"

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._waiting[request] = None
            too_many = len(self._waiting) > MAX_WAITING
            oldest = next(iter(self._waiting)) if too_many else None
        if oldest:
            self.admit(oldest)
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread then reads end of file and closes it
        super().process_request(request, client_address)

    def admit(self, request: Any) -> None:
        """Stop counting a connection as waiting, since its request was accepted."""
        with self._lock:
            self._waiting.pop(request, None)

    def shutdown_request(self, request: Any) -> None:
        self.admit(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print no traceback for clients that disconnect during a request."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Base of both servers' request handlers: a time-out, and replies that are never cached."""

    timeout = IDLE_TIMEOUT
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def reply(self, status: int, kind: str, text: str) -> None:
        """Send a reply of MIME type `kind`."""
        body = text.encode("utf-8", errors="backslashreplace")
        with suppress(OSError):  # the client may have disconnected
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: clients send requests every few seconds, and a URL may contain a token."""
