"""`nrt judge` with a chat-completions server on this machine, and with a tiny local model."""

import hashlib
import io
import json
import os
import signal
import sys
import threading
from http.server import ThreadingHTTPServer

import pytest
from rich.console import Console

from nrt import train
from nrt.analysis.plots import dynamics_labels
from nrt.analysis.report.data import build_report
from nrt.analysis.report.figures import write_figures
from nrt.analysis.report.page import render_page
from nrt.config import build_config
from nrt.errors import InputError, Interrupted, RunError
from nrt.eval.judge import judge_runs
from nrt.eval.judge_model import open_judge
from nrt.eval.verdict import PROMPT, PROMPT_SHA256, fill_prompt, read_verdict
from nrt.run import Run, RunWriter
from nrt.run.metrics import describe
from nrt.system.environment import cache_folder
from nrt.types import Message
from tests.eval.judge_server import ChatHandler, completion, verdict
from tests.runs import HOSTILE, write_run
from tests.trainer.conftest import make_config, model_dir, pairs_file  # noqa: F401

KEY = "sk-the-secret-of-this-test"


# --- a server and runs to judge ---


class JudgeServer:
    """Server that keeps its requests. `script(body, number)` returns the reply's text, or
    (status, headers, payload).
    """

    def __init__(self, script):
        self.script, self.lock = script, threading.Lock()
        self.bodies, self.headers, self.paths = [], [], []

    def answer(self, path, headers, body):
        with self.lock:
            self.bodies.append(body)
            self.headers.append(headers)
            self.paths.append(path)
            number = len(self.bodies)
        reply = self.script(body, number)
        return reply if isinstance(reply, tuple) else (200, {}, completion(reply))

    @property
    def prompts(self):
        """First messages of the conversations, without second attempts."""
        return [
            body["messages"][0]["content"] for body in self.bodies if len(body["messages"]) == 1
        ]


def sound(body, number):
    """Return a score that depends only on the question: its number in hundredths."""
    question = body["messages"][0]["content"].partition("question ")[2].partition(" ")[0]
    return verdict(int(question) / 100)


@pytest.fixture
def serve(monkeypatch):
    """Function that starts a server: serve(script) → (url, JudgeServer)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    servers = []

    def start(script):
        recorder = JudgeServer(script)

        class Handler(ChatHandler):
            def answer(self, body):
                return recorder.answer(self.path, self.headers, body)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/v1", recorder

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NRT_CACHE", str(tmp_path / "cache"))


def row(number, trace, **fields):
    return {
        "id": f"valid.jsonl:{number}", "source": "s", "question": f"question {number} ?",
        "reference": f"answer {number}", "trace": trace, "finished": True, "length": 3,
        "logp": -1.0, "token_logp": [-1.0], "correct": True,
    } | fields  # fmt: skip


def make_run(path, steps=(0, 2), rows=4, metrics=(0, 1, 2), method="nrt-gm"):
    """Write a run whose traces name the run and the step, so that no two prompts are equal."""
    with RunWriter.create(path, build_config({"method": method, "steps": 2})) as writer:
        for step in metrics:
            writer.metrics({"step": step, "trace/length": 3.0})
        for step in steps:
            trace = f"{path.name} thinks at {step}" if method != "sft" else None
            writer.heldout(step, [row(i, trace) for i in range(rows)])
    return path


def judge(runs, url, model="grok", **settings):
    """Return (judged steps, printed text)."""
    out = io.StringIO()
    runs = runs if isinstance(runs, list) else [runs]
    judged = judge_runs(Console(file=out, width=200), runs, model=model, url=url, **settings)
    return judged, out.getvalue()


def lines(run, step):
    return [
        json.loads(line)
        for line in (run / "judge" / f"step-{step:06d}.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    ]


def summary(run):
    return json.loads((run / "judge" / "judge.json").read_text(encoding="utf-8"))


# --- the prompt and the verdict ---


def test_the_prompt_is_table_8_filled_in_one_pass():
    assert PROMPT.startswith(
        "You are verifying the *reasoning process* quality, not the final answer formatting.\n\n"
        "Score the quality"
    )
    assert PROMPT.endswith(
        "lower scores when it is self-contradictory, irrelevant, or clearly flawed."
    )
    assert PROMPT.count("```") == 6
    filled = fill_prompt(
        "{reasoning} of {problem}?",
        "it is {ground_truth} and {problem}, \\1 {score}",
        "{ground_truth}",
    )
    assert "Problem:\n\n```\n{reasoning} of {problem}?\n```\n" in filled
    assert (
        "Model reasoning trace:\n\n```\nit is {ground_truth} and {problem}, \\1 {score}\n```\n"
        in filled
    )
    assert "Ground-truth answer:\n\n```\n{ground_truth}\n```\n" in filled
    assert hashlib.sha256(PROMPT.encode()).hexdigest() == PROMPT_SHA256


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        (verdict(0.5), 0.5),
        (verdict(1), 1.0),
        (f"```json\n{verdict(0)}\n```", 0.0),
        (f"  ```\n{verdict(0.25)}```\n", 0.25),
        (verdict(0.5, confidence=3), 0.5),
        ('{"score": 0.5, "justification": "a ``` fence"}', 0.5),
        ("```JSON\n" + '{"score": 0.5, "justification": "a ```\\n fence"}' + "\n```", 0.5),
    ],
)
def test_read_verdict_accepts(reply, score):
    assert read_verdict(reply).score == score


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("", "Invalid JSON"),
        (f"Here it is: {verdict(0.5)}", "Invalid JSON"),
        (f"```\n{verdict(0.5)}\n``` as you asked", "Invalid JSON"),
        (f"```\n{verdict(0.5)}\n```\n```\n{verdict(0.6)}\n```", "Invalid JSON"),
        (verdict("0.5"), "score: Input should be a valid number"),
        (verdict(1.7), "score: Input should be less than or equal to 1"),
        (verdict(-0.1), "score: Input should be greater than or equal to 0"),
        (verdict(True), "score: Input should be a valid number"),
        (verdict(float("nan")), "score: "),
        (verdict(0.5, flags="brief"), "flags: "),
        (verdict(0.5, flags=[1]), "flags.0: "),
        ('{"score": 0.5}', "justification: Field required"),
        ("[0.5]", "Input should be an object"),
        ('{"score": 0.5, "justification": "\\ud800"}', "Invalid JSON"),
    ],
)
def test_read_verdict_rejects(reply, message):
    with pytest.raises(ValueError) as raised:
        read_verdict(reply)
    assert message in str(raised.value)


# --- a whole command ---


def test_requests_and_written_files(serve, tmp_path):
    url, server = serve(sound)
    run = make_run(tmp_path / "a", rows=40)
    judged, out = judge(run, url, samples=10, price="2,10")
    assert len(server.bodies) == 20, "10 of 40 rows at each of two steps"
    for body, headers, path in zip(server.bodies, server.headers, server.paths, strict=True):
        assert path == "/v1/chat/completions"
        assert headers["Authorization"] == f"Bearer {KEY}"
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("grok", 0.0, 1024)
        assert set(body) == {"model", "messages", "temperature", "max_tokens"}
        assert [turn["role"] for turn in body["messages"]] == ["user"]
    records = lines(run, 0)
    numbers = [int(record["id"].partition(":")[2]) for record in records]
    assert numbers == sorted(numbers), "file order, whichever thread finishes first"
    assert [record["score"] for record in records] == [number / 100 for number in numbers]
    assert [record["id"] for record in lines(run, 2)] == [record["id"] for record in records], (
        "the same questions at each step"
    )
    assert records[0] == {
        "id": f"valid.jsonl:{numbers[0]}", "source": "s", "score": numbers[0] / 100,
        "justification": "It holds.", "flags": ["brief"], "attempts": 1, "prompt_tokens": 100,
        "completion_tokens": 20, "error": None, "reply": None, "cached": False,
    }  # fmt: skip
    assert f"```\nquestion {numbers[0]} ?\n```" in server.prompts[0] + "".join(server.prompts)
    assert any("```\na thinks at 2\n```" in prompt for prompt in server.prompts)
    written = summary(run)
    assert written["judge"] == {
        "model": "grok", "server": url.removeprefix("http://").removesuffix("/v1"),
        "prompt_sha256": PROMPT_SHA256, "temperature": 0.0, "max_tokens": 1024, "seed": 0,
        "samples": 10,
    }  # fmt: skip
    first, last = written["steps"]
    mean = sum(numbers) / 1000
    assert (first["step"], last["step"], first["n"], first["failed"]) == (0, 2, 10, 0)
    assert first["quality"] == judged[0].quality == pytest.approx(mean)
    assert first["low"] < mean < first["high"]
    cost = pytest.approx(0.004)  # (1000 · 2 + 200 · 10) dollars / 1e6
    paid = {"prompt_tokens": 1000, "completion_tokens": 200, "cost": cost}
    assert {name: first[name] for name in paid} == paid == first["now"]
    assert f"{mean:.3f}" in out
    assert "Requests sent: 20. Tokens: 2,400 for $0.0080. Rows that needed no request: 0." in out
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len([file for file in files if file.parent == cache_folder() / "judge"]) == 20
    assert not any(KEY.encode() in file.read_bytes() for file in files)
    assert not list(tmp_path.rglob("*.tmp"))


def test_progress_on_a_terminal_keeps_the_table(serve, tmp_path):
    url, _ = serve(sound)
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True)
    judge_runs(console, [make_run(tmp_path / "a")], model="grok", url=url)
    assert "asking grok" in out.getvalue()
    assert "quality" in out.getvalue()


def test_seed_chooses_rows_and_larger_samples_contain_smaller_ones(serve, tmp_path):
    url, _ = serve(sound)
    run = make_run(tmp_path / "a", rows=40, steps=(2,))

    def ids(**settings):
        judged, _ = judge(run, url, **settings)
        return {request.id for request, _ in judged[0].rows}

    five, ten, other = ids(samples=5), ids(samples=10), ids(samples=10, seed=1)
    assert five < ten != other
    assert len(ids(samples=100)) == 40


def test_runs_share_their_questions(serve, tmp_path):
    url, _ = serve(sound)
    runs = [make_run(tmp_path / "a", rows=40), make_run(tmp_path / "b", rows=30)]
    judged, _ = judge(runs, url, samples=10, steps="2")
    ids_a, ids_b = ({request.id for request, _ in entry.rows} for entry in judged)
    shared = {f"valid.jsonl:{i}" for i in range(30)}
    assert ids_a & shared <= ids_b
    assert [entry.step for entry in judged] == [2, 2]


def test_second_command_costs_nothing_and_another_model_sends_requests(serve, tmp_path):
    url, server = serve(sound)
    run = make_run(tmp_path / "a")
    first, _ = judge(run, url)
    assert len(server.bodies) == 8
    again, out = judge(run, url)
    assert len(server.bodies) == 8
    assert again[0].scores == first[0].scores
    assert "Requests sent: 0. Tokens: 0. Rows that needed no request: 8." in out
    assert all(record["cached"] and record["prompt_tokens"] == 100 for record in lines(run, 0))
    assert summary(run)["steps"][0]["now"]["prompt_tokens"] == 0
    judge(run, url, model="other")
    assert len(server.bodies) == 16
    judge(run, url, model="other", max_tokens=99)
    assert len(server.bodies) == 24
    other_url, other = serve(sound)
    judge(run, other_url)
    assert len(other.bodies) == 8, "the same name on another server may be another model"


def test_damaged_cache_files_are_requested_again(serve, tmp_path):
    url, server = serve(sound)
    run = make_run(tmp_path / "a", steps=(2,))
    judge(run, url)
    files = sorted((cache_folder() / "judge").iterdir())
    for file, text in zip(files, ["", "{}", '{"flags": [], "foo": 1}', "[1]"], strict=True):
        file.write_text(text)
    judge(run, url)
    assert len(server.bodies) == 8


def test_old_leftovers_of_a_killed_judge_are_removed(serve, tmp_path):
    """Keep young ones: another process may be about to rename them."""
    url, _ = serve(sound)
    run = make_run(tmp_path / "a", steps=(2,))
    folders = cache_folder() / "judge", run / "judge"
    for folder in folders:
        folder.mkdir(parents=True)
        for name in (".old.json.0123456789abcdef.tmp", ".young.json.0123456789abcdef.tmp"):
            (folder / name).write_text("{")
        os.utime(folder / ".old.json.0123456789abcdef.tmp", (0, 0))
    judge(run, url)
    for folder in folders:
        assert [file.name for file in folder.glob(".*")] == [".young.json.0123456789abcdef.tmp"]


def test_equal_prompts_are_requested_once(serve, tmp_path):
    """Runs of one study have equal traces at step 0."""
    url, server = serve(lambda body, number: verdict(0.5))
    # Traces are the same in all four evaluations.
    runs = [write_run(tmp_path / "a", seed=0), write_run(tmp_path / "b", seed=0)]
    judged, out = judge(runs, url)
    assert len(server.bodies) == 12
    new = [sum(not outcome.cached for _, outcome in entry.rows) for entry in judged]
    assert new == [12, 0, 0, 0]
    assert "Rows that needed no request: 36." in out


def test_another_judge_replaces_and_reports_it(serve, tmp_path):
    url, _ = serve(sound)
    run = make_run(tmp_path / "a")
    judge(run, url)
    _, out = judge(run, url, model="grok", steps="2")
    assert "deleted" not in out
    assert [step["step"] for step in summary(run)["steps"]] == [0, 2], "the same judge adds steps"
    _, out = judge(run, url, model="other", steps="2")
    assert "model grok → other" in out
    assert "another judge's verdicts at steps 0, 2 are deleted" in out
    assert [step["step"] for step in summary(run)["steps"]] == [2]
    assert not (run / "judge" / "step-000000.jsonl").exists()


# --- replies without a verdict ---


def test_an_invalid_reply_is_sent_back_with_a_complaint(serve, tmp_path):
    def script(body, number):
        return verdict(1.7) if len(body["messages"]) == 1 else verdict(0.7)

    url, server = serve(script)
    run = make_run(tmp_path / "a", rows=1, steps=(2,))
    judged, _ = judge(run, url)
    assert judged[0].quality == 0.7
    first, reply, complaint = server.bodies[1]["messages"]
    assert first == server.bodies[0]["messages"][0]
    assert reply == {"role": "assistant", "content": verdict(1.7)}
    assert complaint["role"] == "user"
    assert "score: Input should be less than or equal to 1" in complaint["content"]
    assert server.bodies[1]["temperature"] == 0.0
    assert lines(run, 2)[0]["attempts"] == 2
    assert lines(run, 2)[0]["prompt_tokens"] == 200, "tokens of both attempts"


def test_a_row_without_a_verdict_is_counted_but_not_in_the_mean(serve, tmp_path):
    def script(body, number):
        question = body["messages"][0]["content"]
        return "I would say 0.5" if "question 1 ?" in question else verdict(0.5)

    url, server = serve(script)
    run = make_run(tmp_path / "a", rows=3, steps=(2,))
    judged, out = judge(run, url, retries=2)
    assert len(server.bodies) == 2 + 3
    assert (judged[0].quality, len(judged[0].scores), len(judged[0].failed)) == (0.5, 2, 1)
    record = lines(run, 2)[1]
    assert (record["score"], record["reply"], record["attempts"]) == (None, "I would say 0.5", 3)
    assert "Invalid JSON" in record["error"]
    assert "Rows without a verdict, not in the mean: 1." in out
    assert "valid.jsonl:1: Invalid JSON" in out
    assert Run(run).metrics()[-1]["judge/failed"] == pytest.approx(1 / 3)
    judge(run, url, retries=0)
    assert len(server.bodies) == 2 + 3 + 1, "failures are not cached"


def test_no_verdict_at_all_is_an_error_but_the_replies_are_written(serve, tmp_path):
    url, _ = serve(lambda body, number: "no")
    run = make_run(tmp_path / "a", rows=2, steps=(2,))
    with pytest.raises(RunError, match="no verdict at all; the first error: Invalid JSON"):
        judge(run, url, retries=0)
    assert [record["reply"] for record in lines(run, 2)] == ["no", "no"]
    assert "judge/quality" not in Run(run).metrics()[-1]
    assert Run(run).metrics()[-1]["judge/failed"] == 1


def test_a_cut_reply_is_reported_as_cut(serve, tmp_path):
    def script(body, number):
        cut = (200, {}, completion('{"score": 0.', "length"))
        return cut if len(body["messages"]) == 1 else verdict(0.2)

    url, server = serve(script)
    judged, _ = judge(make_run(tmp_path / "a", rows=1, steps=(2,)), url, max_tokens=20)
    assert judged[0].quality == 0.2
    assert "cut after 20 tokens" in server.bodies[1]["messages"][2]["content"]


@pytest.mark.parametrize("empty", [completion(None), completion("") | {"choices": []}])
def test_an_empty_reply_gets_a_complaint(serve, tmp_path, empty):
    url, server = serve(lambda body, number: (200, {}, empty) if number == 1 else verdict(0.2))
    judged, _ = judge(make_run(tmp_path / "a", rows=1, steps=(2,)), url)
    assert judged[0].quality == 0.2
    assert server.bodies[1]["messages"][1]["content"] == "(nothing)"


def test_usage_may_be_absent_and_only_the_total_may_include_thinking(serve, tmp_path):
    bare = {name: value for name, value in completion(verdict(0.5)).items() if name != "usage"}
    thinking = completion(verdict(0.5), usage=(100, 20, 400))

    def script(body, number):
        question = body["messages"][0]["content"]
        return 200, {}, bare if "question 0 ?" in question else thinking

    url, _ = serve(script)
    run = make_run(tmp_path / "a", rows=2, steps=(2,))
    judge(run, url)
    tokens = [(record["prompt_tokens"], record["completion_tokens"]) for record in lines(run, 2)]
    assert tokens == [(0, 0), (100, 300)]


def test_any_text_can_be_sent(serve, tmp_path):
    url, server = serve(lambda body, number: verdict(0.5, justification="ü🧪"))
    run = write_run(tmp_path / "a", extra=HOSTILE, groups=1)
    judge(run, url)
    assert len(server.bodies) == 12
    assert "👩‍🔬 NUL:\x00 bell:\x07 lone:? {{ 7 * 7 }}" in server.prompts[0]
    assert lines(run, 1)[0]["justification"] == "ü🧪"


# --- server errors ---


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_temporary_error_is_retried(serve, tmp_path, status):
    busy = (status, {"Retry-After": "0.01"}, {"error": {"message": "busy"}})
    url, server = serve(lambda body, number: busy if number < 3 else sound(body, 0))
    judged, _ = judge(make_run(tmp_path / "a", rows=1, steps=(2,)), url, retries=2)
    assert len(judged[0].scores) == 1
    assert len(server.bodies) == 3


def test_a_lasting_error_is_a_failed_row(serve, tmp_path):
    broken = (500, {"Retry-After": "0.01"}, {"error": {"message": f"broken: {KEY}"}})
    url, server = serve(
        lambda body, number: broken if "question 0 ?" in str(body) else sound(body, 0)
    )
    run = make_run(tmp_path / "a", rows=2, steps=(2,))
    _, out = judge(run, url, retries=1)
    assert len(server.bodies) == 1 + 2
    error = lines(run, 2)[0]["error"]
    assert "HTTP 500" in error
    assert "broken: …" in error
    assert KEY not in out


@pytest.mark.parametrize(
    "status", ["401 Unauthorized", "403 Forbidden", "404 Not Found", "405 Method Not Allowed"]
)
def test_an_error_of_all_requests_ends_the_command(serve, tmp_path, status):
    payload = {"error": {"message": f"no such key {KEY}"}}
    url, server = serve(lambda body, number: (int(status[:3]), {}, payload))
    message = rf"\(HTTP {status}\); check the key in \$OPENAI_API_KEY .* --model grok, and --url"
    with pytest.raises(InputError, match=message) as raised:
        judge(make_run(tmp_path / "a", rows=30), url, jobs=2)
    assert KEY not in str(raised.value)
    assert len(server.bodies) < 30, "no further requests"


@pytest.mark.parametrize("payload", [b"<html>hello</html>", b'"text"'])
def test_another_kind_of_server_is_reported(serve, tmp_path, payload):
    url, _ = serve(lambda body, number: (200, {"Content-Type": "text/html"}, payload))
    with pytest.raises(InputError, match="sends no chat completions"):
        judge(make_run(tmp_path / "a"), url)


def test_broken_json_from_the_server_is_a_failed_row(serve, tmp_path):
    broken = (200, {}, b'{"id": ')
    url, _ = serve(lambda body, number: broken if "question 0 ?" in str(body) else sound(body, 0))
    judged, _ = judge(make_run(tmp_path / "a", rows=2, steps=(2,)), url)
    assert "no chat completion" in str(judged[0].failed[0][1].error)


def test_no_server_at_all(tmp_path):
    with pytest.raises(RunError, match=r"127\.0\.0\.1:9 cannot be reached"):
        judge(make_run(tmp_path / "a"), "http://127.0.0.1:9/v1", retries=0)


@pytest.fixture
def interruptible():
    """Handle SIGINT, which background jobs of a shell inherit as ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def test_ctrl_c_keeps_the_verdicts(serve, tmp_path, interruptible):
    def script(body, number):
        if number == 3:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return sound(body, number)

    url, server = serve(script)
    run = make_run(tmp_path / "a", rows=20)
    with pytest.raises(Interrupted, match="repeat the command"):
        judge(run, url, jobs=2)
    kept = len(list((cache_folder() / "judge").iterdir()))
    assert 2 <= kept < 40
    assert not (run / "judge").exists()
    server.script = sound
    judge(run, url)
    assert len(server.bodies) == 40


# --- the key, and errors before the first request ---


def test_a_local_server_needs_no_key_and_another_variable_may_hold_it(serve, tmp_path, monkeypatch):
    url, server = serve(sound)
    run = make_run(tmp_path / "a", rows=1, steps=(2,))
    monkeypatch.delenv("OPENAI_API_KEY")
    judge(run, url)
    assert server.headers[0]["Authorization"] == "Bearer no-key"
    with pytest.raises(InputError, match=r"\$XAI_API_KEY is not set"):
        judge(run, url, key_env="XAI_API_KEY")
    monkeypatch.setenv("XAI_API_KEY", " another-key\n")
    judge(run, url, key_env="XAI_API_KEY", model="other")
    assert server.headers[1]["Authorization"] == "Bearer another-key"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "--url: give an address"),
        ({"url": "http://[::1"}, "--url: give an address"),
        ({"url": "http://127.0.0.1:99999"}, "--url: give an address"),
        ({"url": "http://me:secret@host/v1"}, "put the key into the environment"),
        ({"steps": "0,1"}, r"no held-out evaluation at step 1; it has \[0, 2\]"),
        ({"steps": "a"}, "--steps 'a'"),
        ({"samples": 0}, "--samples 0: give at least 1"),
        ({"jobs": 0}, "--jobs 0"),
        ({"max_tokens": 0}, "--max-tokens 0"),
        ({"retries": -1}, "--retries -1"),
        ({"price": "1"}, "--price '1'"),
        ({"price": "1,-2"}, "dollars per million"),
        ({"price": "nan,2"}, "dollars per million"),
    ],
)
def test_unusable_options_are_reported(tmp_path, monkeypatch, settings, message):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(InputError, match=message) as raised:
        judge(make_run(tmp_path / "a"), **{"url": "http://127.0.0.1:9/v1"} | settings)
    assert "secret" not in str(raised.value)


def test_runs_without_traces_are_rejected_before_the_first_request(serve, tmp_path):
    url, server = serve(sound)
    good = make_run(tmp_path / "good")
    with pytest.raises(InputError, match="no traces to judge at step 0: method sft writes none"):
        judge([good, make_run(tmp_path / "sft", method="sft")], url)
    with pytest.raises(InputError, match=r"has no held-out evaluation; train with data\.valid"):
        judge([good, make_run(tmp_path / "young", steps=())], url)
    with pytest.raises(InputError, match="is not a run"):
        judge([good, tmp_path], url)
    assert server.bodies == []


def test_a_missing_client_names_the_extra_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[judge\]'"):
        judge(make_run(tmp_path / "a"), "http://127.0.0.1:9/v1")


# --- readers of the verdicts ---


def test_the_means_are_metrics_of_their_steps(serve, tmp_path):
    url, _ = serve(lambda body, number: verdict(0.25 if "thinks at 0" in str(body) else 0.75))
    run = make_run(tmp_path / "a", metrics=(1, 2))  # step 0 has no record
    unjudged = Run(run).metrics()
    judge(run, url)
    records = Run(run).metrics()
    assert [record["step"] for record in records] == [0, 1, 2]
    assert [record.get("judge/quality") for record in records] == [0.25, None, 0.75]
    assert records[2] == unjudged[1] | {"judge/quality": 0.75}
    assert "judge/failed" not in records[2]
    assert dynamics_labels(records)["judge/quality"] == "judge: quality"
    assert '"judge/quality"' in render_page(build_report([run]))
    assert describe("judge/quality").unit == "score"
    write_figures([run], tmp_path / "drawn")
    table = (tmp_path / "drawn" / "dynamics.csv").read_text(encoding="utf-8")
    assert "nrt-gm,0,2,judge/quality,0.75" in table.splitlines()
    with RunWriter.reopen(run, 1) as writer:  # drops the evaluation at step 2
        writer.metrics({"step": 2, "trace/length": 4.0})
    assert [r.get("judge/quality") for r in Run(run).metrics()] == [0.25, None, None]


def test_the_error_names_a_damaged_summary(serve, tmp_path):
    url, _ = serve(sound)
    run = make_run(tmp_path / "a")
    judge(run, url)
    message = r"judge\.json holds what nrt does not write there .*judge again"
    for text in ("{", "[]", "{}"):
        (run / "judge" / "judge.json").write_text(text)
        with pytest.raises(InputError, match=message):
            Run(run).metrics()
        with pytest.raises(InputError, match=message):
            judge(run, url)


def test_unfinished_traces_of_a_real_run_are_judged_unchanged(serve, make_config):  # noqa: F811
    url, server = serve(lambda body, number: verdict(0.5))
    run = train(make_config(steps=2))
    judge(run.path, url)
    rows = run.heldout(2)
    assert any(not row["finished"] for row in rows)
    for row in rows:
        assert fill_prompt(row["question"], row["trace"], row["reference"]) in server.prompts
    assert [record.get("judge/quality") for record in run.metrics()] == [0.5, None, 0.5]


# --- a model on this machine ---


@pytest.fixture(scope="module")
def local_judge(tmp_path_factory, model_dir):  # noqa: F811
    """Folder of the tiny model with a context that is long enough for the prompt."""
    folder = tmp_path_factory.mktemp("judge")
    for file in model_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return folder


def test_a_tiny_model_judges_and_fails(tmp_path, local_judge):
    run = make_run(tmp_path / "a", rows=2, steps=(2,))
    with pytest.raises(RunError, match="no verdict at all"):
        judge(run, "", model=str(local_judge), max_tokens=8, retries=1)
    records = lines(run, 2)
    assert [record["attempts"] for record in records] == [2, 2]
    assert all(record["reply"] is not None and record["prompt_tokens"] > 100 for record in records)
    assert summary(run)["judge"]["server"] == "local"


def test_a_local_judge_decodes_greedily(local_judge):
    messages = (Message("user", "what is one plus two ?"),)
    with open_judge(str(local_judge), max_tokens=8) as judge:
        reply = judge.reply(messages)
        assert reply == judge.reply(messages)
        assert not reply.cut
        with open_judge(str(local_judge), max_tokens=reply.completion_tokens - 1) as brief:
            assert brief.reply(messages).cut
        identity = judge.identity
    (local_judge / "model.safetensors").touch()
    with open_judge(str(local_judge), max_tokens=8) as judge:
        assert judge.identity != identity, "other weights in the same folder are another judge"


def test_a_local_judge_with_a_verdict(tmp_path, local_judge, monkeypatch):
    """Replace the decoded text, since no tiny model writes JSON."""
    from nrt.data import Chat

    monkeypatch.setattr(Chat, "decode", lambda self, ids: verdict(0.5))
    run = make_run(tmp_path / "a", rows=2, steps=(2,))
    judged, _ = judge(run, "", model=str(local_judge), max_tokens=8)
    assert judged[0].scores == [0.5, 0.5]


def test_a_prompt_that_does_not_fit_is_a_failed_row(tmp_path, model_dir):  # noqa: F811
    run = make_run(tmp_path / "a", rows=1, steps=(2,))
    with pytest.raises(RunError, match="has a context of 64 tokens"):
        judge(run, "", model=str(model_dir), max_tokens=8)


def test_the_reply_of_a_thinking_judge_omits_its_trace(tmp_path, make_config):  # noqa: F811
    run = train(make_config(steps=1))
    config = json.loads((run.model_dir / "config.json").read_text())
    (run.model_dir / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 4096})
    )
    with open_judge(str(run.path), max_tokens=5) as judge:
        reply = judge.reply((Message("user", "what is one ?"),))
    assert reply.completion_tokens <= 5 + 1 + 5
    assert "think_end" not in reply.text
