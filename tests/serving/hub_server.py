"""A model hub on this machine: the requests of huggingface_hub that create a repository, commit files and tag them."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HubServer(ThreadingHTTPServer):
    """`commits` holds (message, {path: content}) of each commit, `tags` the number of commits at each tag.

    After `refuse_after` commits it answers with an error. `before_commit` is called before each, and `after_commit`
    after each, before it is answered.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories: dict[str, bool] = {}  # name → private
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.tags: dict[str, int] = {}
        self.refuse_after = 1000
        self.before_commit: Callable[[], None] = lambda: None
        self.after_commit: Callable[[], None] = lambda: None
        self.address = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class HubHandler(BaseHTTPRequestHandler):
    server: HubServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._send(*self._answer(self.path, body))

    def do_DELETE(self) -> None:
        tag = re.fullmatch(r"/api/models/\w+/\w+/tag/([\w-]+)", self.path)
        if tag and self.server.tags.pop(tag[1], None) is not None:
            self._send(200, {})
        else:
            self._send(404, {"error": f"no {self.path}"})

    def _send(self, status: int, answer: Any) -> None:
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None: ...

    def _answer(self, path: str, body: bytes) -> tuple[int, Any]:
        hub = self.server
        if path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request['organization']}/{request['name']}"
            hub.repositories[name] = (
                request.get("private") or request.get("visibility") == "private"
            )
            return 200, {"url": f"{hub.address}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        action = re.fullmatch(r"/api/models/(\w+/\w+)/(preupload|commit|tag)/(main|\d+)", path)
        if not action or action[1] not in hub.repositories:
            return 404, {"error": f"no {path}"}
        if action[2] == "preupload":
            files = json.loads(body)["files"]
            return 200, {
                "files": [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in files
                ]
            }
        if action[2] == "tag":
            tag = json.loads(body)["tag"]
            if tag in hub.tags:
                return 409, {"error": f"the tag {tag} exists"}
            hub.tags[tag] = len(hub.commits) if action[3] == "main" else int(action[3])
            return 200, {}
        hub.before_commit()
        if len(hub.commits) >= hub.refuse_after:
            return 507, {"error": "the repository is full"}
        header, *files = [json.loads(line) for line in body.splitlines()]
        contents = {
            file["value"]["path"]: base64.b64decode(file["value"]["content"]) for file in files
        }
        hub.commits.append((header["value"]["summary"], contents))
        oid = f"{len(hub.commits):040d}"
        hub.after_commit()
        return 200, {"commitUrl": f"{hub.address}/{action[1]}/commit/{oid}", "commitOid": oid}
