"""Both servers under connections that send no complete request."""

import http.client
import socket
import time
from contextlib import ExitStack

import pytest

from nrt.system.network import IDLE_TIMEOUT, MAX_WAITING, Handler, Server
from tests.analysis.test_report_serve import serving
from tests.rollout.test_remote import served
from tests.runs import write_run


@pytest.fixture(params=["report", "rollout"])
def server(request, tmp_path):
    """Start a server; return (port, path that answers with status 200)."""
    with ExitStack() as stack:
        if request.param == "report":
            page = stack.enter_context(serving([write_run(tmp_path / "run")]))
            yield page.server_port, "/version"
        else:
            yield int(stack.enter_context(served()).rpartition(":")[2]), "/health"


def request_status(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("begun", [b"", b"GET /heal", b"GET /health HTTP/1.1\r\nHost: lo"])
def test_waiting_connections_do_not_block_others(server, begun, capfd):
    """1,024 connections send nothing, or stop in the middle of a request."""
    port, path = server
    with ExitStack() as stack:
        for _ in range(1024):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            if begun:
                idle.sendall(begun)
        seconds = []
        for _ in range(3):
            start = time.monotonic()
            assert request_status(port, path) == 200
            seconds.append(time.monotonic() - start)
        assert min(seconds) < 1, "the fastest of three, because the machine may be busy"
    assert capfd.readouterr().err == ""


def test_the_number_and_the_time_of_waiting_connections_are_limited(monkeypatch):
    """New connections close the oldest ones; the others close after IDLE_TIMEOUT."""
    monkeypatch.setattr(Handler, "timeout", 0.5)
    assert IDLE_TIMEOUT == 10
    closed = []
    with ExitStack() as stack:
        port = int(stack.enter_context(served()).rpartition(":")[2])
        idle = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            for _ in range(MAX_WAITING + 6)
        ]
        idle[0].settimeout(0.4)
        assert [connection.recv(1) for connection in idle[:6]] == [b""] * 6
        start = time.monotonic()
        closed = [connection.recv(1) for connection in idle[6:]]
        assert time.monotonic() - start < 5
    assert closed == [b""] * MAX_WAITING


def test_both_servers_share_a_base_class():
    from nrt.analysis.report.serve import ReportServer
    from nrt.rollout.server import RolloutServer

    assert issubclass(ReportServer, Server)
    assert issubclass(RolloutServer, Server)
