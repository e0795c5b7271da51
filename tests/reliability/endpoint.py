"""A judge that speaks chat completions, in a process of its own; what is asked goes to a file."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.eval.judge_server import ChatHandler, completion, verdict


class Endpoint:
    """Its verdicts hang on the question alone. Every third question gets prose first."""

    def __init__(self, log: Path) -> None:
        self.log = log
        log.touch()
        listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        self.pid = os.fork()
        if self.pid == 0:
            serve(listening, log)
        listening.close()

    def asked(self) -> list[str]:
        """Questions, as `name` names them, in order; further attempts count."""
        return self.log.read_text(encoding="utf-8").split()

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def name(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def serve(listening: socket.socket, log: Path) -> None:
    """Until it is killed."""

    class Handler(ChatHandler):
        def answer(self, body: Any) -> tuple[int, dict[str, str], Any]:
            turns = body["messages"]
            question = name(turns[0]["content"])
            with log.open("a", encoding="utf-8") as file:
                file.write(question + "\n")
            number = int(question, 16)
            said = (
                "Well."
                if number % 3 == 0 and len(turns) == 1
                else verdict(number % 101 / 100, justification=question)
            )
            return 200, {}, completion(said)

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that was killed."""

    server = Server(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    server.serve_forever()
