"""`nrt judge` against a real server on this machine that speaks chat completions, and against a tiny model."""

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
from nrt.analysis.plots import dynamics_panels
from nrt.analysis.report.data import build_report
from nrt.analysis.report.figures import write_figures
from nrt.analysis.report.page import render_page
from nrt.config import build_config
from nrt.environment import cache_folder
from nrt.errors import InputError, RunError
from nrt.eval.judge import Interrupted, judge_runs
from nrt.eval.judge_client import open_judge
from nrt.eval.judge_verdict import PROMPT, PROMPT_SHA256, fill, read_verdict
from nrt.metrics import describe
from nrt.run import Run, RunWriter
from tests.eval.judge_server import Chat, completion, verdict
from tests.runs import HOSTILE, write_run
from tests.training.conftest import make_config, model_dir, pairs_file  # noqa: F401

KEY = "sk-the-secret-of-this-test"


# --- a server and runs to judge --------------------------------------------------------------------------------------


class Served:
    """A judge: `script(body, number)` gives the text of a reply, or (status, headers, payload); requests are kept."""

    def __init__(self, script):
        self.script, self.bodies, self.headers, self.paths, self.lock = script, [], [], [], threading.Lock()

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
        """What was asked first, without the turns of a second attempt."""
        return [body["messages"][0]["content"] for body in self.bodies if len(body["messages"]) == 1]


def sound(body, number):
    """A score that only the question decides: its number as hundredths."""
    question = body["messages"][0]["content"].partition("question ")[2].partition(" ")[0]
    return verdict(int(question) / 100)


@pytest.fixture
def serve(monkeypatch):
    """serve(script) → (url, Served)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    servers = []

    def start(script):
        served = Served(script)

        class Handler(Chat):
            def answer(self, body):
                return served.answer(self.path, self.headers, body)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/v1", served

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NRT_CACHE", str(tmp_path / "cache"))


def row(number, trace, **fields):
    return {"id": f"valid.jsonl:{number}", "source": "s", "question": f"question {number} ?", "reference": f"answer {number}",
            "trace": trace, "finished": True, "length": 3, "logp": -1.0, "token_logp": [-1.0], "correct": True} | fields  # fmt: skip


def make_run(path, steps=(0, 2), rows=4, metrics=(0, 1, 2), method="nrt-gm"):
    """Held-out rows whose trace tells run and step, so that no two prompts are the same."""
    with RunWriter.create(path, build_config({"method": method, "steps": 2})) as writer:
        for step in metrics:
            writer.metrics({"step": step, "trace/length": 3.0})
        for step in steps:
            writer.heldout(step, [row(i, f"{path.name} thinks at {step}" if method != "sft" else None) for i in range(rows)])
    return path


def judge(runs, url, model="grok", **settings):
    """→ (what was judged, what was printed)."""
    out = io.StringIO()
    runs = runs if isinstance(runs, list) else [runs]
    judged = judge_runs(Console(file=out, width=200), runs, model=model, url=url, **settings)
    return judged, out.getvalue()


def lines(run, step):
    return [json.loads(line) for line in (run / "judge" / f"step-{step:06d}.jsonl").read_text(encoding="utf-8").splitlines()]


def summary(run):
    return json.loads((run / "judge" / "judge.json").read_text(encoding="utf-8"))


# --- the prompt and the verdict --------------------------------------------------------------------------------------


def test_the_prompt_is_table_8_filled_in_one_pass():
    assert PROMPT.startswith("You are verifying the *reasoning process* quality, not the final answer formatting.\n\nScore the quality")
    assert PROMPT.endswith("lower scores when it is self-contradictory, irrelevant, or clearly flawed.")
    assert PROMPT.count("```") == 6
    filled = fill("{reasoning} of {problem}?", "it is {ground_truth} and {problem}, \\1 {score}", "{ground_truth}")
    assert "Problem:\n\n```\n{reasoning} of {problem}?\n```\n" in filled
    assert "Model reasoning trace:\n\n```\nit is {ground_truth} and {problem}, \\1 {score}\n```\n" in filled
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
def test_replies_that_are_verdicts(reply, score):
    assert read_verdict(reply).score == score


@pytest.mark.parametrize(
    ("reply", "said"),
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
def test_replies_that_are_none(reply, said):
    with pytest.raises(ValueError) as raised:
        read_verdict(reply)
    assert said in str(raised.value)


# --- a whole command -------------------------------------------------------------------------------------------------


def test_what_is_sent_and_what_is_written(serve, tmp_path):
    url, served = serve(sound)
    run = make_run(tmp_path / "a", rows=40)
    judged, out = judge(run, url, samples=10, price="2,10")
    assert len(served.bodies) == 20, "N of 40 rows at each of two steps"
    for body, headers, path in zip(served.bodies, served.headers, served.paths, strict=True):
        assert path == "/v1/chat/completions"
        assert headers["Authorization"] == f"Bearer {KEY}"
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("grok", 0.0, 1024)
        assert set(body) == {"model", "messages", "temperature", "max_tokens"}
        assert [turn["role"] for turn in body["messages"]] == ["user"]
    records = lines(run, 0)
    numbers = [int(record["id"].partition(":")[2]) for record in records]
    assert numbers == sorted(numbers), "the order of the file, whichever thread came first"
    assert [record["score"] for record in records] == [number / 100 for number in numbers]
    assert [record["id"] for record in lines(run, 2)] == [record["id"] for record in records], "the same questions at each step"
    assert records[0] == {
        "id": f"valid.jsonl:{numbers[0]}", "source": "s", "score": numbers[0] / 100, "justification": "It holds.", "flags": ["brief"],
        "attempts": 1, "prompt_tokens": 100, "completion_tokens": 20, "error": None, "reply": None, "cached": False,
    }  # fmt: skip
    assert f"```\nquestion {numbers[0]} ?\n```" in served.prompts[0] + "".join(served.prompts)
    assert any("```\na thinks at 2\n```" in prompt for prompt in served.prompts)
    found = summary(run)
    assert found["judge"] == {
        "model": "grok", "server": url.removeprefix("http://").removesuffix("/v1"), "prompt_sha256": PROMPT_SHA256, "temperature": 0.0,
        "max_tokens": 1024, "seed": 0, "samples": 10,
    }  # fmt: skip
    first, last = found["steps"]
    mean = sum(numbers) / 1000
    assert (first["step"], last["step"], first["n"], first["failed"]) == (0, 2, 10, 0)
    assert first["quality"] == judged[0].quality == pytest.approx(mean)
    assert first["low"] < mean < first["high"]
    paid = {"prompt_tokens": 1000, "completion_tokens": 200, "cost": pytest.approx(0.004)}  # 1000 · 2 + 200 · 10, of a million
    assert {name: first[name] for name in paid} == paid == first["now"]
    assert f"{mean:.3f}" in out
    assert "Asked now: 20 requests, 2,400 tokens, $0.0080; 0 rows were known." in out
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len([file for file in files if file.parent == cache_folder() / "judge"]) == 20
    assert not any(KEY.encode() in file.read_bytes() for file in files)
    assert not list(tmp_path.rglob("*.tmp"))


def test_progress_on_a_terminal_leaves_the_table_alone(serve, tmp_path):
    url, _ = serve(sound)
    out = io.StringIO()
    judge_runs(Console(file=out, width=120, force_terminal=True), [make_run(tmp_path / "a")], model="grok", url=url)
    assert "asking grok" in out.getvalue()
    assert "quality" in out.getvalue()


def test_other_seeds_choose_others_and_more_samples_add_to_the_fewer(serve, tmp_path):
    url, _ = serve(sound)
    run = make_run(tmp_path / "a", rows=40, steps=(2,))

    def ids(**settings):
        return {row.id for row in judge(run, url, **settings)[0][0].asked}

    five, ten, other = ids(samples=5), ids(samples=10), ids(samples=10, seed=1)
    assert five < ten != other
    assert len(ids(samples=100)) == 40


def test_runs_are_judged_by_the_same_questions(serve, tmp_path):
    url, _ = serve(sound)
    runs = [make_run(tmp_path / "a", rows=40), make_run(tmp_path / "b", rows=30)]
    judged, _ = judge(runs, url, samples=10, steps="2")
    a, b = ({row.id for row in one.asked} for one in judged)
    there = {f"valid.jsonl:{i}" for i in range(30)}
    assert a & there <= b
    assert [one.step for one in judged] == [2, 2]


def test_second_time_costs_nothing_and_another_model_asks_again(serve, tmp_path):
    url, served = serve(sound)
    run = make_run(tmp_path / "a")
    first, _ = judge(run, url)
    assert len(served.bodies) == 8
    again, out = judge(run, url)
    assert len(served.bodies) == 8
    assert again[0].scores == first[0].scores
    assert "Asked now: 0 requests, 0 tokens; 8 rows were known." in out
    assert all(record["cached"] and record["prompt_tokens"] == 100 for record in lines(run, 0))
    assert summary(run)["steps"][0]["now"]["prompt_tokens"] == 0
    judge(run, url, model="other")
    assert len(served.bodies) == 16
    judge(run, url, model="other", max_tokens=99)
    assert len(served.bodies) == 24
    other_url, other = serve(sound)
    judge(run, other_url)
    assert len(other.bodies) == 8, "the same name on another server may be another model"


def test_a_broken_cache_is_asked_again(serve, tmp_path):
    url, served = serve(sound)
    run = make_run(tmp_path / "a", steps=(2,))
    judge(run, url)
    for file, text in zip(sorted((cache_folder() / "judge").iterdir()), ["", "{}", '{"flags": [], "foo": 1}', "[1]"], strict=True):
        file.write_text(text)
    judge(run, url)
    assert len(served.bodies) == 8


def test_what_a_killed_judge_left_is_removed_when_it_is_old(serve, tmp_path):
    """Younger, another process may be about to name it."""
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


def test_one_prompt_of_several_rows_is_asked_once(serve, tmp_path):
    """Step 0 of all runs of a study."""
    url, served = serve(lambda body, number: verdict(0.5))
    runs = [write_run(tmp_path / "a", seed=0), write_run(tmp_path / "b", seed=0)]  # traces are the same in all four evaluations
    judged, out = judge(runs, url)
    assert len(served.bodies) == 12
    assert [sum(not outcome.cached for outcome in one.outcomes) for one in judged] == [12, 0, 0, 0]
    assert "36 rows were known" in out


def test_another_judge_replaces_and_says_so(serve, tmp_path):
    url, _ = serve(sound)
    run = make_run(tmp_path / "a")
    judge(run, url)
    _, out = judge(run, url, model="grok", steps="2")
    assert "replaced" not in out
    assert [step["step"] for step in summary(run)["steps"]] == [0, 2], "the same judge adds to what is there"
    _, out = judge(run, url, model="other", steps="2")
    assert "model grok → other" in out
    assert "gone are those of steps 0, 2" in out
    assert [step["step"] for step in summary(run)["steps"]] == [2]
    assert not (run / "judge" / "step-000000.jsonl").exists()


# --- replies that are no verdicts ------------------------------------------------------------------------------------


def test_a_malformed_reply_goes_back_with_the_complaint(serve, tmp_path):
    def script(body, number):
        return verdict(1.7) if len(body["messages"]) == 1 else verdict(0.7)

    url, served = serve(script)
    run = make_run(tmp_path / "a", rows=1, steps=(2,))
    judged, _ = judge(run, url)
    assert judged[0].quality == 0.7
    first, reply, complaint = served.bodies[1]["messages"]
    assert first == served.bodies[0]["messages"][0]
    assert reply == {"role": "assistant", "content": verdict(1.7)}
    assert complaint["role"] == "user"
    assert "score: Input should be less than or equal to 1" in complaint["content"]
    assert served.bodies[1]["temperature"] == 0.0
    assert lines(run, 2)[0]["attempts"] == 2
    assert lines(run, 2)[0]["prompt_tokens"] == 200, "of all attempts"


def test_a_row_that_never_gets_a_verdict_is_counted_and_left_out(serve, tmp_path):
    def script(body, number):
        return "I would say 0.5" if "question 1 ?" in body["messages"][0]["content"] else verdict(0.5)

    url, served = serve(script)
    run = make_run(tmp_path / "a", rows=3, steps=(2,))
    judged, out = judge(run, url, retries=2)
    assert len(served.bodies) == 2 + 3
    assert (judged[0].quality, len(judged[0].scores), len(judged[0].failed)) == (0.5, 2, 1)
    record = lines(run, 2)[1]
    assert (record["score"], record["reply"], record["attempts"]) == (None, "I would say 0.5", 3)
    assert "Invalid JSON" in record["error"]
    assert "Rows without a verdict, in no mean: 1." in out
    assert "valid.jsonl:1: Invalid JSON" in out
    assert Run(run).metrics()[-1]["judge/failed"] == pytest.approx(1 / 3)
    judge(run, url, retries=0)
    assert len(served.bodies) == 2 + 3 + 1, "a failure is not kept: it is asked again"


def test_no_verdict_at_all_is_an_error_but_stands_in_the_folder(serve, tmp_path):
    url, _ = serve(lambda body, number: "no")
    run = make_run(tmp_path / "a", rows=2, steps=(2,))
    with pytest.raises(RunError, match="no verdict at all; the first fault: Invalid JSON"):
        judge(run, url, retries=0)
    assert [record["reply"] for record in lines(run, 2)] == ["no", "no"]
    assert "judge/quality" not in Run(run).metrics()[-1]
    assert Run(run).metrics()[-1]["judge/failed"] == 1


def test_a_cut_reply_is_said_to_be_cut(serve, tmp_path):
    def script(body, number):
        return (200, {}, completion('{"score": 0.', "length")) if len(body["messages"]) == 1 else verdict(0.2)

    url, served = serve(script)
    judged, _ = judge(make_run(tmp_path / "a", rows=1, steps=(2,)), url, max_tokens=20)
    assert judged[0].quality == 0.2
    assert "cut after 20 tokens" in served.bodies[1]["messages"][2]["content"]


@pytest.mark.parametrize("empty", [completion(None), completion("") | {"choices": []}])
def test_an_empty_reply_is_complained_of(serve, tmp_path, empty):
    url, served = serve(lambda body, number: (200, {}, empty) if number == 1 else verdict(0.2))
    judged, _ = judge(make_run(tmp_path / "a", rows=1, steps=(2,)), url)
    assert judged[0].quality == 0.2
    assert served.bodies[1]["messages"][1]["content"] == "(nothing)"


def test_usage_may_be_absent_and_thinking_may_stand_in_the_total_alone(serve, tmp_path):
    bare = {name: value for name, value in completion(verdict(0.5)).items() if name != "usage"}
    thinking = completion(verdict(0.5), usage=(100, 20, 400))
    url, _ = serve(lambda body, number: (200, {}, bare if "question 0 ?" in body["messages"][0]["content"] else thinking))
    run = make_run(tmp_path / "a", rows=2, steps=(2,))
    judge(run, url)
    assert [(r["prompt_tokens"], r["completion_tokens"]) for r in lines(run, 2)] == [(0, 0), (100, 300)]


def test_any_text_can_be_sent(serve, tmp_path):
    url, served = serve(lambda body, number: verdict(0.5, justification="ü🧪"))
    run = write_run(tmp_path / "a", extra=HOSTILE, groups=1)
    judge(run, url)
    assert len(served.bodies) == 12
    assert "👩‍🔬 NUL:\x00 bell:\x07 lone:? {{ 7 * 7 }}" in served.prompts[0]
    assert lines(run, 1)[0]["justification"] == "ü🧪"


# --- a server in trouble ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_error_that_passes_is_waited_for(serve, tmp_path, status):
    url, served = serve(
        lambda body, number: (status, {"Retry-After": "0.01"}, {"error": {"message": "busy"}}) if number < 3 else sound(body, 0)
    )
    judged, _ = judge(make_run(tmp_path / "a", rows=1, steps=(2,)), url, retries=2)
    assert len(judged[0].scores) == 1
    assert len(served.bodies) == 3


def test_an_error_that_stays_is_a_failed_row(serve, tmp_path):
    def script(body, number):
        return (500, {"Retry-After": "0.01"}, {"error": {"message": f"broken: {KEY}"}}) if "question 0 ?" in str(body) else sound(body, 0)

    url, served = serve(script)
    run = make_run(tmp_path / "a", rows=2, steps=(2,))
    _, out = judge(run, url, retries=1)
    assert len(served.bodies) == 1 + 2
    error = lines(run, 2)[0]["error"]
    assert "HTTP 500" in error
    assert "broken: …" in error
    assert KEY not in out


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, r"refuses the key in \$OPENAI_API_KEY"), (403, "does not allow"), (404, "knows no model grok"), (405, "--url ends before")],
)
def test_an_error_of_all_requests_ends_it(serve, tmp_path, status, said):
    url, served = serve(lambda body, number: (status, {}, {"error": {"message": f"no such key {KEY}"}}))
    with pytest.raises(InputError, match=said) as raised:
        judge(make_run(tmp_path / "a", rows=30), url, jobs=2)
    assert KEY not in str(raised.value)
    assert len(served.bodies) < 30, "the rest was not asked"


@pytest.mark.parametrize("payload", [b"<html>hello</html>", b'"text"'])
def test_what_is_no_chat_server_is_said(serve, tmp_path, payload):
    url, _ = serve(lambda body, number: (200, {"Content-Type": "text/html"}, payload))
    with pytest.raises(InputError, match="no chat-completions server"):
        judge(make_run(tmp_path / "a"), url)


def test_broken_json_from_the_server_is_a_failed_row(serve, tmp_path):
    url, _ = serve(lambda body, number: (200, {}, b'{"id": ') if "question 0 ?" in str(body) else sound(body, 0))
    judged, _ = judge(make_run(tmp_path / "a", rows=2, steps=(2,)), url)
    assert "no chat completion" in str(judged[0].failed[0][1].error)


def test_no_server_at_all(tmp_path):
    with pytest.raises(RunError, match=r"127\.0\.0\.1:9 cannot be reached"):
        judge(make_run(tmp_path / "a"), "http://127.0.0.1:9/v1", retries=0)


@pytest.fixture
def interruptible():
    """A shell's background jobs inherit SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_keeps_what_was_said(serve, tmp_path, interruptible):
    def script(body, number):
        if number == 3:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return sound(body, number)

    url, served = serve(script)
    run = make_run(tmp_path / "a", rows=20)
    with pytest.raises(Interrupted, match="the same command goes on"):
        judge(run, url, jobs=2)
    kept = len(list((cache_folder() / "judge").iterdir()))
    assert 2 <= kept < 40
    assert not (run / "judge").exists()
    served.script = sound
    judge(run, url)
    assert len(served.bodies) == 40


# --- the key, and what is refused before anything is asked -----------------------------------------------------------


def test_a_local_server_needs_no_key_and_another_variable_may_hold_it(serve, tmp_path, monkeypatch):
    url, served = serve(sound)
    run = make_run(tmp_path / "a", rows=1, steps=(2,))
    monkeypatch.delenv("OPENAI_API_KEY")
    judge(run, url)
    assert served.headers[0]["Authorization"] == "Bearer none"
    with pytest.raises(InputError, match=r"\$XAI_API_KEY is not set"):
        judge(run, url, key_env="XAI_API_KEY")
    monkeypatch.setenv("XAI_API_KEY", " another-key\n")
    judge(run, url, key_env="XAI_API_KEY", model="other")
    assert served.headers[1]["Authorization"] == "Bearer another-key"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "127.0.0.1:8000"}, "is no address"),
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
def test_what_cannot_be_used_is_said(tmp_path, monkeypatch, settings, said):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(InputError, match=said) as raised:
        judge(make_run(tmp_path / "a"), **{"url": "http://127.0.0.1:9/v1"} | settings)
    assert "secret" not in str(raised.value)


def test_runs_without_traces_are_refused_before_anything_is_asked(serve, tmp_path):
    url, served = serve(sound)
    good = make_run(tmp_path / "good")
    with pytest.raises(InputError, match="no traces to judge at step 0: method sft writes none"):
        judge([good, make_run(tmp_path / "sft", method="sft")], url)
    with pytest.raises(InputError, match=r"no held-out evaluation, so no traces to judge; train with data\.valid"):
        judge([good, make_run(tmp_path / "young", steps=())], url)
    with pytest.raises(InputError, match="is not a run"):
        judge([good, tmp_path], url)
    assert served.bodies == []


def test_without_the_client_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"pip install 'native-reasoning\[judge\]'"):
        judge(make_run(tmp_path / "a"), "http://127.0.0.1:9/v1")


# --- what reads it ---------------------------------------------------------------------------------------------------


def test_the_means_are_metrics_of_their_steps(serve, tmp_path):
    url, _ = serve(lambda body, number: verdict(0.25 if "thinks at 0" in str(body) else 0.75))
    run = make_run(tmp_path / "a", metrics=(1, 2))  # no record of step 0
    before = Run(run).metrics()
    judge(run, url)
    records = Run(run).metrics()
    assert [(r["step"], r.get("judge/quality")) for r in records] == [(0, 0.25), (1, None), (2, 0.75)]
    assert records[2] == before[1] | {"judge/quality": 0.75}
    assert "judge/failed" not in records[2]
    assert dynamics_panels(records)["judge/quality"] == "judge: quality"
    assert '"judge/quality"' in render_page(build_report([run]))
    assert describe("judge/quality").unit == "score"
    write_figures([run], tmp_path / "drawn")
    assert "nrt-gm,0,2,judge/quality,0.75" in (tmp_path / "drawn" / "dynamics.csv").read_text(encoding="utf-8").splitlines()
    with RunWriter.reopen(run, 1) as writer:  # the evaluation at step 2 is cut off, and its verdicts with it
        writer.metrics({"step": 2, "trace/length": 4.0})
    assert [r.get("judge/quality") for r in Run(run).metrics()] == [0.25, None, None]


def test_a_broken_summary_is_named(serve, tmp_path):
    url, _ = serve(sound)
    run = make_run(tmp_path / "a")
    judge(run, url)
    for text in ("{", "[]", "{}"):
        (run / "judge" / "judge.json").write_text(text)
        with pytest.raises(InputError, match=r"judge\.json holds what nrt does not write there .*judge again"):
            Run(run).metrics()
        with pytest.raises(InputError, match=r"judge\.json holds what nrt does not write there .*judge again"):
            judge(run, url)


def test_a_real_run_is_judged_unfinished_traces_as_they_are(serve, make_config):  # noqa: F811
    url, served = serve(lambda body, number: verdict(0.5))
    run = train(make_config(steps=2))
    judge(run.path, url)
    rows = run.heldout(2)
    assert any(not row["finished"] for row in rows)
    for row in rows:
        assert fill(row["question"], row["trace"], row["reference"]) in served.prompts
    assert [record.get("judge/quality") for record in run.metrics()] == [0.5, None, 0.5]


# --- a model on this machine -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local_judge(tmp_path_factory, model_dir):  # noqa: F811
    """The tiny model with room for the prompt."""
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


def test_a_local_judge_says_what_is_likeliest(local_judge):
    turns = [{"role": "user", "content": "what is one plus two ?"}]
    with open_judge(str(local_judge), max_tokens=8) as judge:
        said = judge.say(turns)
        assert said == judge.say(turns)
        assert not said.cut
        with open_judge(str(local_judge), max_tokens=said.completion_tokens - 1) as brief:
            assert brief.say(turns).cut
        identity = judge.identity
    (local_judge / "model.safetensors").touch()
    with open_judge(str(local_judge), max_tokens=8) as judge:
        assert judge.identity != identity, "other weights in the same folder are another judge"


def test_a_local_judge_with_a_verdict(tmp_path, local_judge, monkeypatch):
    """Its words come from a script: no tiny model writes JSON."""
    from nrt.data import Chat

    monkeypatch.setattr(Chat, "decode", lambda self, ids: verdict(0.5))
    run = make_run(tmp_path / "a", rows=2, steps=(2,))
    judged, _ = judge(run, "", model=str(local_judge), max_tokens=8)
    assert judged[0].scores == [0.5, 0.5]


def test_a_prompt_that_does_not_fit_is_a_failed_row(tmp_path, model_dir):  # noqa: F811
    run = make_run(tmp_path / "a", rows=1, steps=(2,))
    with pytest.raises(RunError, match="has a context of 64 tokens"):
        judge(run, "", model=str(model_dir), max_tokens=8)


def test_a_judge_that_thinks_has_its_trace_left_out(tmp_path, make_config):  # noqa: F811
    run = train(make_config(steps=1))
    config = json.loads((run.model_dir / "config.json").read_text())
    (run.model_dir / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    with open_judge(str(run.path), max_tokens=5) as judge:
        said = judge.say([{"role": "user", "content": "what is one ?"}])
    assert said.completion_tokens <= 5 + 1 + 5
    assert "think_end" not in said.text
