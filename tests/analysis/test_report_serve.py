"""The served page, with real requests."""

import http.client
import json
import re
import shutil
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

from nrt.analysis.report.serve import TOKEN_VARIABLE, LivePage, make_server
from nrt.errors import InputError
from tests.runs import write_run


@pytest.fixture
def served(tmp_path):
    """(request, run folder): request(path) → (status, text)."""
    run = write_run(tmp_path / "run")

    def request(path, method="GET", host=None):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
        connection.request(method, path, headers={"Host": host} if host else {})
        response = connection.getresponse()
        text = response.read().decode("utf-8")
        connection.close()
        return response.status, text

    with serving([run]) as server:
        yield request, run


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
    """Request by address, with its Host header, as a client on another machine does."""
    try:
        with build_opener(ProxyHandler({})).open(address, timeout=30) as response:
            return response.status
    except HTTPError as error:
        return error.code


def test_the_page_follows_the_folder(served):
    request, run = served
    version = json.loads(request("/version")[1])["version"]
    status, page = request("/")
    assert status == 200
    assert f'data-live="{version}"' in page
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 7, "loss/total": 0.125, "fresh": 1.0}\n')
    newer = json.loads(request("/version")[1])["version"]
    assert newer != version
    page = request("/")[1]
    assert f'data-live="{newer}"' in page
    assert '"fresh":' in page


def test_only_two_paths_only_get_only_this_machine(served):
    request, run = served
    assert request("/../config.yaml")[0] == 404
    assert request("/", method="POST")[0] == 501
    assert request("/", host="evil.example:80")[0] == 403
    assert request("/version", host="localhost:80")[0] == 200
    assert not (run / "report.html").exists()


def test_a_run_that_breaks_later_gives_an_error_page(served):
    request, run = served
    (run / "metrics.jsonl").write_text("nonsense\n", encoding="utf-8")
    status, text = request("/")
    assert (status, "not JSON" in text) == (500, True)


def test_a_reader_that_disconnects_causes_no_error_output(served, capfd):
    _, run = served
    with serving([run]) as server:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
                connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )  # close with a reset
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                connection.recv(1)
        assert status_of(server.url) == 200
        time.sleep(0.2)
    assert capfd.readouterr().err == ""


def test_a_taken_port_and_no_run(served, tmp_path):
    _, run = served
    with (
        make_server([run]) as other,
        pytest.raises(InputError, match="choose another with --host or --port"),
    ):
        make_server([run], port=other.server_port)
    with pytest.raises(InputError, match="is not a run"):
        make_server([tmp_path / "nothing"])
    with pytest.raises(InputError, match="choose another with --host"):
        make_server([run], host="192.0.2.1")  # reserved for documentation: no machine has it
    with pytest.raises(InputError, match="port 70000"):
        make_server([run], port=70000)


def test_beyond_this_machine_only_with_the_token(served):
    """Requests to a server that other machines can reach: no token, wrong ones, the right one."""
    _, run = served
    with serving([run], host="0.0.0.0") as server:
        (token,) = parse_qs(urlsplit(server.url).query)["token"]
        assert len(token) > 40
        at = f"http://127.0.0.1:{server.server_port}"
        for path in ("/", "/version"):
            refused = (
                "",
                "?token=",
                f"?token={token[:-1]}",
                f"?token={token}x",
                "?token=%ff%C3%A9",
                f"?other={token}",
            )
            assert {status_of(at + path + query) for query in refused} == {403}
            assert status_of(f"{at}{path}?token={token}") == 200
        assert status_of(f"{at}/config.yaml") == 403
        assert status_of(f"{at}/config.yaml?token={token}") == 404


def test_the_token_in_the_environment(served, monkeypatch):
    _, run = served
    monkeypatch.setenv(TOKEN_VARIABLE, token := "sixteen&letters?")
    with serving(
        [run]
    ) as server:  # also on the loopback interface: it keeps out other users of this machine
        assert server.url == f"http://127.0.0.1:{server.server_port}/?token={quote(token)}"
        assert status_of(server.url) == 200
        assert status_of(server.url.partition("?")[0]) == 403
    for weak in ("short", "sixteen letters?", "sechzehnzeichen…"):
        monkeypatch.setenv(TOKEN_VARIABLE, weak)
        with pytest.raises(InputError, match=f"{TOKEN_VARIABLE} is not 16 or more"):
            make_server([run])


def test_the_command_prints_an_address_that_works(served):
    """No token on the loopback interface, one elsewhere."""
    _, run = served
    for host, token in (("127.0.0.1", ""), ("0.0.0.0", r"\?token=\S+")):
        command = [
            sys.executable,
            "-u",
            "-m",
            "nrt",
            "report",
            str(run),
            "--serve",
            "--host",
            host,
            "--port",
            "0",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                match = re.fullmatch(rf"http://\S+?:(\d+)/({token}) \(Ctrl-C ends it\)\n", line)
                assert match, line
                assert status_of(f"http://127.0.0.1:{match[1]}/{match[2]}") == 200
            finally:
                process.terminate()


def test_the_page_learns_that_a_run_was_killed(tmp_path):
    """Its files stay as they are: only the holder of its lock is gone."""
    run = write_run(tmp_path / "run")
    shutil.rmtree(run / "model")
    code = "import sys, time; from pathlib import Path; from nrt.system.lock import acquire; "
    code += "lock = acquire(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(run / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        page = LivePage([run])
        before = page.version()
        assert "in progress" in page.html()
        holder.kill()
    assert page.version() != before
    assert "in progress on another machine" in page.html()
