"""The page of runs that still grow, read-only: for browsers on this machine, or elsewhere for who has the token."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from urllib.parse import parse_qs, quote, urlsplit

from nrt.analysis.report.data import build_report
from nrt.analysis.report.groups import Index
from nrt.analysis.report.page import render_page
from nrt.errors import InputError, NrtError
from nrt.network import host_of, is_loopback, token_of
from nrt.run import run_folder

HOST = "127.0.0.1"
TOKEN = "NRT_REPORT_TOKEN"
"""The environment variable that holds the token; an option would show in the list of processes."""

EVERY_ADDRESS = ("", "0.0.0.0", "::")


class ReportServer(ThreadingHTTPServer):
    """Serves the page of some runs at `url`; call its `serve_forever`.

    `GET /` is the page; `GET /version` says which state of the folders is the latest, and the page asks for it. Where there is a
    token both must be asked for with `?token=…`, as `url` has it.
    """

    def __init__(self, page: LivePage, host: str, port: int, token: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.page, self.host, self.token = page, host, token
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        host = socket.gethostname() if self.host in EVERY_ADDRESS else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/{f'?token={quote(self.token)}' if self.token else ''}"

    def refusal(self, host: str, token: str) -> str:
        """Why a request is refused that came for this host with this token; empty if it is not."""
        # Without a token, a foreign name that resolves to this machine would let any web page read ours.
        if is_loopback(self.host) and host not in (HOST, "localhost", self.host):
            return "only for this machine"
        if self.token and not hmac.compare_digest(token.encode(), self.token.encode()):
            return "only with the token: open the whole address that nrt report --serve printed"
        return ""


def make_server(names: Sequence[str | Path], *, host: str = HOST, port: int = 0) -> ReportServer:
    """A server of the runs' page at host:port (0: a free port).

    Beyond the loopback interface there is always a token: $NRT_REPORT_TOKEN, else a fresh one. Raises InputError where a run cannot
    be read, the address is not this machine's, the port is taken, or the given token is not fit to keep anyone out.
    """
    token = token_of(TOKEN)
    if not token and not is_loopback(host):
        token = secrets.token_urlsafe()
    page = LivePage(names)
    page.html()  # what cannot be read is said before anyone waits for it
    try:
        return ReportServer(page, host, port, token)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{host} port {port} cannot be served ({reason}); choose another with --host or --port") from error


class LivePage:
    """The page, rendered anew when a file of the run folders has changed."""

    def __init__(self, names: Sequence[str | Path]) -> None:
        self.names, self._lock = list(names), Lock()
        self._version, self._html = "", ""
        self._indexes: defaultdict[Path, Index] = defaultdict(Index)

    def version(self) -> str:
        """Changes when a file that the report reads was written."""
        state = [(str(file), *_stat(file)) for name in self.names for file in _files(run_folder(name))]
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]

    def html(self) -> str:
        with self._lock:
            version = self.version()
            if version != self._version:
                self._html, self._version = render_page(build_report(self.names, self._indexes), live=version), version
            return self._html


def _files(folder: Path) -> list[Path]:
    names = ("config.yaml", "environment.json", "metrics.jsonl", "traces.jsonl", "warnings.jsonl", "heldout", "judge", "eval", "model")
    return [folder / name for name in names]


def _stat(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        asked, page = urlsplit(self.path), self.server.page
        token = parse_qs(asked.query).get("token", [""])[0]
        if refusal := self.server.refusal(host_of(self.headers.get("Host", "")), token):
            self._send(403, "text/plain", f"{refusal}\n")
        elif asked.path == "/version":
            self._send(200, "application/json", json.dumps({"version": page.version()}))
        elif asked.path == "/":
            try:
                self._send(200, "text/html", page.html())
            except NrtError as error:
                self._send(500, "text/plain", f"{error}\n")
        else:
            self._send(404, "text/plain", "only / and /version are here\n")

    def _send(self, status: int, kind: str, text: str) -> None:
        body = text.encode("utf-8", errors="backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        with suppress(ConnectionError):  # a reader who reloads or leaves does not wait for the rest
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the page asks every few seconds, and its address may hold the token."""
