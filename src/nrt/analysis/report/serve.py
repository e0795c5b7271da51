"""The page of runs that still grow, read-only: for browsers on this machine, or elsewhere for who has the token."""

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
from nrt.analysis.report.groups import Index
from nrt.analysis.report.page import render_page
from nrt.errors import NrtError
from nrt.network import Handler, Server, is_loopback, token_of
from nrt.run import run_folder

HOST = "127.0.0.1"
TOKEN = "NRT_REPORT_TOKEN"
"""The environment variable that holds the token; an option would show in the list of processes."""


class ReportServer(Server):
    """Serves the page of some runs at `url`; call its `serve_forever`.

    `GET /` is the page; `GET /version` says which state of the folders is the latest, and the page asks for it. Where there is a
    token both must be asked for with `?token=…`, as `url` has it.
    """

    def __init__(self, page: LivePage, host: str, port: int, token: str) -> None:
        self.page = page
        where = "open the whole address that nrt report --serve printed"
        super().__init__(host, port, _Handler, token=token, token_from=where)

    @property
    def url(self) -> str:
        return f"{self.root}/{f'?token={quote(self.token)}' if self.token else ''}"


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
    return ReportServer(page, host, port, token)


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


class _Handler(Handler):
    server: ReportServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        asked, page = urlsplit(self.path), self.server.page
        token = parse_qs(asked.query).get("token", [""])[0]
        if refusal := self.server.refusal(self.headers, token):
            self.reply(403, "text/plain", f"{refusal}\n")
            return
        self.server.admit(self.connection)
        if asked.path == "/version":
            self.reply(200, "application/json", json.dumps({"version": page.version()}))
        elif asked.path == "/":
            try:
                self.reply(200, "text/html", page.html())
            except NrtError as error:
                self.reply(500, "text/plain", f"{error}\n")
        else:
            self.reply(404, "text/plain", "only / and /version are here\n")
