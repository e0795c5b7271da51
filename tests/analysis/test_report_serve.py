"""The served page, by real requests."""

import http.client
import json
import threading

import pytest

from nrt.analysis.report.serve import make_server
from nrt.errors import InputError
from tests.runs import write_run


@pytest.fixture
def served(tmp_path):
    """(ask, run folder): ask(path) → (status, text)."""
    run = write_run(tmp_path / "run")
    server = make_server([run])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def ask(path, method="GET", host=None):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
        connection.request(method, path, headers={"Host": host} if host else {})
        response = connection.getresponse()
        text = response.read().decode("utf-8")
        connection.close()
        return response.status, text

    yield ask, run
    server.shutdown()
    server.server_close()
    thread.join()


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


def test_a_taken_port_and_no_run(served, tmp_path):
    _, run = served
    with make_server([run]) as other, pytest.raises(InputError, match="choose another with --port"):
        make_server([run], port=other.server_port)
    with pytest.raises(InputError, match="is not a run"):
        make_server([tmp_path / "nothing"])
