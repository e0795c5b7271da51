"""Chat-completions server for tests of judges."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any


def completion(text, finish="stop", usage=(100, 20, 120)):
    prompt, completed, total = usage
    return {
        "id": "1", "object": "chat.completion", "created": 1, "model": "judge",
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completed, "total_tokens": total},
    }  # fmt: skip


def verdict(score, **fields):
    return json.dumps({"score": score, "justification": "It holds.", "flags": ["brief"]} | fields)


class ChatHandler(BaseHTTPRequestHandler):
    """Reply to each request with the result of `answer`."""

    protocol_version = "HTTP/1.1"

    def answer(self, body: Any) -> tuple[int, dict[str, str], Any]:
        """Return status, further headers and payload: bytes, or an object to send as JSON."""
        raise NotImplementedError

    def do_POST(self) -> None:
        status, headers, payload = self.answer(
            json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        )
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(data))} | headers
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None: ...
