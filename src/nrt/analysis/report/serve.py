"""Read-only server for the page of runs that still grow.

It serves browsers on this machine, or other machines that send the token.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from urllib.parse import parse_qs, quote, urlsplit

from nrt.analysis.report.data import build_report
from nrt.analysis.report.groups import TraceIndex
from nrt.analysis.report.page import render_page
from nrt.errors import NrtError
from nrt.run import Run, run_folder
from nrt.system.network import Handler, Server, is_loopback, read_token

HOST = "127.0.0.1"

TOKEN_VARIABLE = "NRT_REPORT_TOKEN"
"""Environment variable with the token. An option would show in the list of processes."""

READ_BY_REPORT = (
    "config.yaml", "environment.json", "metrics.jsonl", "traces.jsonl", "warnings.jsonl",
    "heldout", "judge", "eval", "model",
)  # fmt: skip
"""Entries of a run folder whose change makes a new version of the page."""


class ReportServer(Server):
    """Server of some runs' page at `url`. The caller runs its `serve_forever`.

    `GET /` returns the page. `GET /version` returns the latest version of the folders, which the
    page polls. With a token, both need `?token=…`, which `url` includes.
    """

    def __init__(self, page: LivePage, host: str, port: int, token: str) -> None:
        self.page = page
        source = "open the whole address that nrt report --serve printed"
        super().__init__(host, port, _Handler, token=token, token_hint=source)

    @property
    def url(self) -> str:
        query = f"?token={quote(self.token)}" if self.token else ""
        return f"{self.base_url}/{query}"


def make_server(names: Sequence[str | Path], *, host: str = HOST, port: int = 0) -> ReportServer:
    """Return a server of the runs' page at host:port (0: a free port).

    Beyond the loopback interface there is always a token: $NRT_REPORT_TOKEN, or else a fresh one.
    Raises InputError if a run cannot be read, if the address is not this machine's, if the port is
    taken, or if the token in the environment is too weak.
    """
    token = read_token(TOKEN_VARIABLE)
    if not token and not is_loopback(host):
        token = secrets.token_urlsafe()
    page = LivePage(names)
    page.html()  # raises for unreadable runs now, not at the first request
    return ReportServer(page, host, port, token)


class LivePage:
    """The page of some runs, rendered again after a file of their folders has changed."""

    def __init__(self, names: Sequence[str | Path]) -> None:
        self.names = list(names)
        self._lock = Lock()
        self._version, self._html = "", ""
        self._indexes: defaultdict[Path, TraceIndex] = defaultdict(TraceIndex)

    def version(self) -> str:
        """Return a hash that changes with the files that the report reads and the runs' states."""
        state: list[tuple[object, ...]] = []
        for name in self.names:
            folder = run_folder(name)
            files = [folder / entry for entry in READ_BY_REPORT]
            state += [(str(file), *_size_and_mtime(file)) for file in files]
            # A killed process leaves its files as they are.
            state.append((str(folder), Run(folder).state))
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]

    def html(self) -> str:
        """Return the page of the latest version."""
        with self._lock:
            version = self.version()
            if version != self._version:
                report = build_report(self.names, self._indexes)
                self._html, self._version = render_page(report, live=version), version
            return self._html


def _size_and_mtime(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


class _Handler(Handler):
    server: ReportServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        url, page = urlsplit(self.path), self.server.page
        token = parse_qs(url.query).get("token", [""])[0]
        if refusal := self.server.refusal(self.headers, token):
            self.reply(403, "text/plain", f"{refusal}\n")
            return
        self.server.admit(self.connection)
        if url.path == "/version":
            self.reply(200, "application/json", json.dumps({"version": page.version()}))
        elif url.path == "/":
            try:
                self.reply(200, "text/html", page.html())
            except NrtError as error:
                self.reply(500, "text/plain", f"{error}\n")
        else:
            self.reply(404, "text/plain", "this server has only / and /version\n")
