"""The served page, by real requests."""

import http.client
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.parse import parse_qs, quote, urlsplit
from urllib.request import ProxyHandler, build_opener

import pytest

from nrt.analysis.report.serve import TOKEN, make_server
from nrt.errors import InputError
from tests.runs import write_run


@pytest.fixture
def served(tmp_path):
    """(ask, run folder): ask(path) → (status, text)."""
    run = write_run(tmp_path / "run")

    def ask(path, method="GET", host=None):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
        connection.request(method, path, headers={"Host": host} if host else {})
        response = connection.getresponse()
        text = response.read().decode("utf-8")
        connection.close()
        return response.status, text

    with serving([run]) as server:
        yield ask, run


@contextmanager
def serving(runs, **options):
    server = make_server(runs, **options)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def status_of(address):
    """Asked as a client on another machine would ask: by address, with the Host header that goes with it."""
    try:
        with build_opener(ProxyHandler({})).open(address, timeout=30) as response:
            return response.status
    except HTTPError as error:
        return error.code


def test_the_page_follows_the_folder(served):
    ask, run = served
    version = json.loads(ask("/version")[1])["version"]
    status, page = ask("/")
    assert status == 200
    assert f'data-live="{version}"' in page
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 7, "loss/total": 0.125, "fresh": 1.0}\n')
    newer = json.loads(ask("/version")[1])["version"]
    assert newer != version
    page = ask("/")[1]
    assert f'data-live="{newer}"' in page
    assert '"fresh":' in page


def test_only_two_addresses_only_reading_only_this_machine(served):
    ask, run = served
    assert ask("/../config.yaml")[0] == 404
    assert ask("/", method="POST")[0] == 501
    assert ask("/", host="evil.example:80")[0] == 403
    assert ask("/version", host="localhost:80")[0] == 200
    assert not (run / "report.html").exists()


def test_a_run_that_breaks_later_is_said_so(served):
    ask, run = served
    (run / "metrics.jsonl").write_text("nonsense\n", encoding="utf-8")
    status, text = ask("/")
    assert (status, "not JSON" in text) == (500, True)


def test_a_reader_who_leaves_is_not_complained_about(served, capfd):
    _, run = served
    with serving([run]) as server:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed at once, by a reset
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                connection.recv(1)
        assert status_of(server.url) == 200
        time.sleep(0.2)
    assert capfd.readouterr().err == ""


def test_a_taken_port_and_no_run(served, tmp_path):
    _, run = served
    with make_server([run]) as other, pytest.raises(InputError, match="choose another with --host or --port"):
        make_server([run], port=other.server_port)
    with pytest.raises(InputError, match="is not a run"):
        make_server([tmp_path / "nothing"])
    with pytest.raises(InputError, match="choose another with --host"):
        make_server([run], host="192.0.2.1")  # kept for documentation: no machine has it
    with pytest.raises(InputError, match="port 70000"):
        make_server([run], port=70000)


def test_beyond_this_machine_only_with_the_token(served):
    """Every address of a server that others can reach, without the token, with wrong ones and with the right one."""
    _, run = served
    with serving([run], host="0.0.0.0") as server:
        (token,) = parse_qs(urlsplit(server.url).query)["token"]
        assert len(token) > 40
        at = f"http://127.0.0.1:{server.server_port}"
        for path in ("/", "/version"):
            refused = ("", "?token=", f"?token={token[:-1]}", f"?token={token}x", "?token=%ff%C3%A9", f"?other={token}")
            assert {status_of(at + path + query) for query in refused} == {403}
            assert status_of(f"{at}{path}?token={token}") == 200
        assert status_of(f"{at}/config.yaml") == 403
        assert status_of(f"{at}/config.yaml?token={token}") == 404


def test_the_token_of_the_environment(served, monkeypatch):
    _, run = served
    monkeypatch.setenv(TOKEN, token := "sixteen&letters?")
    with serving([run]) as server:  # on the loopback interface too: other users of this machine are kept out
        assert server.url == f"http://127.0.0.1:{server.server_port}/?token={quote(token)}"
        assert status_of(server.url) == 200
        assert status_of(server.url.partition("?")[0]) == 403
    for unfit in ("short", "sixteen letters?", "sechzehnzeichen…"):
        monkeypatch.setenv(TOKEN, unfit)
        with pytest.raises(InputError, match=f"{TOKEN} is not 16 or more"):
            make_server([run])


def test_the_command_prints_an_address_that_works(served):
    """No token on the loopback interface, one elsewhere."""
    _, run = served
    for host, token in (("127.0.0.1", ""), ("0.0.0.0", r"\?token=\S+")):
        command = [sys.executable, "-u", "-m", "nrt", "report", str(run), "--serve", "--host", host, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                found = re.fullmatch(rf"http://\S+?:(\d+)/({token}) \(Ctrl-C ends it\)\n", line)
                assert found, line
                assert status_of(f"http://127.0.0.1:{found[1]}/{found[2]}") == 200
            finally:
                process.terminate()
