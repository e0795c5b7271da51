"""Connections that ask for nothing, at both servers."""

import http.client
import socket
import time
from contextlib import ExitStack

import pytest

from nrt.network import MOST_WAITING, PATIENCE, Handler, Server
from tests.analysis.test_report_serve import serving
from tests.rollout.test_remote import served
from tests.runs import write_run


@pytest.fixture(params=["report", "rollout"])
def server(request, tmp_path):
    """(port, a path that answers with status 200)"""
    with ExitStack() as stack:
        if request.param == "report":
            page = stack.enter_context(serving([write_run(tmp_path / "run")]))
            yield page.server_port, "/version"
        else:
            yield int(stack.enter_context(served()).rpartition(":")[2]), "/health"


def ask(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("begun", [b"", b"GET /heal", b"GET /health HTTP/1.1\r\nHost: lo"])
def test_connections_that_wait_keep_nobody_out(server, begun, capfd):
    """A thousand and twenty-four of them, which say nothing or stop in the midst of a request."""
    port, path = server
    with ExitStack() as stack:
        for _ in range(1024):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            if begun:
                idle.sendall(begun)
        seconds = []
        for _ in range(3):
            start = time.monotonic()
            assert ask(port, path) == 200
            seconds.append(time.monotonic() - start)
        assert min(seconds) < 1, "of three, on a machine that may be busy"
    assert capfd.readouterr().err == ""


def test_few_connections_wait_at_a_time_and_not_for_ever(monkeypatch):
    """The oldest are closed in favour of new ones; the others when PATIENCE is over."""
    monkeypatch.setattr(Handler, "timeout", 0.5)
    assert PATIENCE == 10
    closed = []
    with ExitStack() as stack:
        port = int(stack.enter_context(served()).rpartition(":")[2])
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in range(MOST_WAITING + 6)]
        idle[0].settimeout(0.4)
        assert [one.recv(1) for one in idle[:6]] == [b""] * 6
        start = time.monotonic()
        closed = [one.recv(1) for one in idle[6:]]
        assert time.monotonic() - start < 5
    assert closed == [b""] * MOST_WAITING


def test_both_are_the_same_server():
    from nrt.analysis.report.serve import ReportServer
    from nrt.rollout.server import RolloutServer

    assert issubclass(ReportServer, Server)
    assert issubclass(RolloutServer, Server)
