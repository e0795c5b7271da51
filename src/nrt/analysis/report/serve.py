"""The page of runs that still grow, for a browser on this machine: read-only, and on the loopback interface only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from nrt.analysis.report.data import build_report
from nrt.analysis.report.page import render_page
from nrt.errors import InputError, NrtError
from nrt.run import run_folder

HOST = "127.0.0.1"


def make_server(names: Sequence[str | Path], *, port: int = 0) -> ThreadingHTTPServer:
    """A server of the runs' page at http://127.0.0.1:port/ (0: a free port); call its `serve_forever`.

    `GET /version` says which state of the folders is the latest, and the page asks for it. Raises InputError where a run cannot be
    read, or the port is taken.
    """
    page = LivePage(names)
    page.html()  # what cannot be read is said before anyone waits for it
    try:
        return ThreadingHTTPServer((HOST, port), _handler(page))
    except OSError as error:
        raise InputError(f"port {port} cannot be served ({error.strerror}); choose another with --port") from error


class LivePage:
    """The page, rendered anew when a file of the run folders has changed."""

    def __init__(self, names: Sequence[str | Path]) -> None:
        self.names, self._lock = list(names), Lock()
        self._version, self._html = "", ""

    def version(self) -> str:
        """Changes when a file that the report reads was written."""
        state = [(str(file), *_stat(file)) for name in self.names for file in _files(run_folder(name))]
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]

    def html(self) -> str:
        with self._lock:
            version = self.version()
            if version != self._version:
                self._html, self._version = render_page(build_report(self.names), live=version), version
            return self._html


def _files(folder: Path) -> list[Path]:
    names = ("config.yaml", "environment.json", "metrics.jsonl", "traces.jsonl", "warnings.jsonl", "heldout", "model")
    return [folder / name for name in names]


def _stat(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _handler(page: LivePage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            if host not in (HOST, "localhost"):  # a foreign name that resolves to this machine would let any web page read ours
                self._send(403, "text/plain", "only for this machine\n")
            elif self.path == "/version":
                self._send(200, "application/json", json.dumps({"version": page.version()}))
            elif self.path == "/":
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
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet: the page asks every few seconds."""

    return Handler
