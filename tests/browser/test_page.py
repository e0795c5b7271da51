"""The report in a real browser: every section, the explorer's maths against nrt.objective, hover, keyboard, hostile text."""

import io
import json
import random
import threading
import time
from urllib.parse import urlsplit

import pytest
import torch
from playwright.sync_api import Error
from rich.console import Console

from nrt.analysis.report.serve import make_server
from nrt.api.live import LiveLine
from nrt.lab.demo import run_demo
from nrt.objective import REWARDS, group_advantage, token_signal, with_weight_norm
from nrt.run import load_run
from tests.runs import HOSTILE, write_evaluation, write_large_run, write_run

pytestmark = pytest.mark.browser


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "first")


def until(page, condition, seconds=15):
    """Waits for a condition, asked from outside: the page's security policy lets nothing within it evaluate text."""
    end = time.monotonic() + seconds
    while not _holds(page, condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def _holds(page, condition):
    try:
        return page.evaluate(f"Boolean({condition})")
    except Error:  # the page is being loaded anew
        return False


def charts_drawn(page):
    """Scrolls through the page, so that every chart comes near the screen."""
    until(page, "window.Plotly")
    for y in range(0, page.evaluate("document.body.scrollHeight"), 600):
        page.evaluate(f"window.scrollTo({{top: {y}, behavior: 'instant'}})")
        page.wait_for_timeout(50)
    until(
        page, "[...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('svg'))"
    )
    return page.locator(".plot").count()


def test_every_section_of_one_run(open_page, run):
    page = open_page(run)
    assert page.title() == "first · nrt report"
    assert page.locator("main section > h2").all_inner_texts() == [
        "Summary", "Dynamics", "Token confidence", "Vocabulary", "Trace explorer", "Before and after", "Benchmarks", "Comparison",
    ]  # fmt: skip
    assert "nrt-gm" in page.inner_text("#summary .facts")
    assert "0.250" in page.inner_text("#summary table >> nth=0")  # 3 of 12 before training
    assert "2 rows are too long" in page.inner_text("#summary .callout")
    assert charts_drawn(page) == 10  # seven metrics of the panels, one other, two of confidence
    assert page.locator("#vocabulary table").count() == 2
    assert page.locator("#explorer article.trace").count() == 5
    assert page.locator("#heldout article.reply").count() == 2
    assert "Only one method" in page.inner_text("#comparison")


def test_every_section_of_a_real_miniature_run(open_page, tmp_path, monkeypatch):
    """What training itself writes, not a test's idea of it."""
    monkeypatch.setenv("NRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    console = Console(file=io.StringIO())
    run = run_demo(console, LiveLine(console), quick=True)
    page = open_page(run.path)
    assert charts_drawn(page) >= 15
    assert (
        page.locator("#summary .callout").count() == 0
    )  # nothing is missing, nothing was out of the ordinary
    assert page.locator("#summary table.scores").count() == 2
    assert page.locator("#vocabulary .words tbody tr").count() > 4
    assert page.locator("#explorer article.trace").count() == len(run.traces()[0]["traces"])
    assert page.locator("#heldout article.reply .tokens").count() == 2
    row = run.heldout(0)[0]
    assert page.locator("#heldout article.reply >> nth=0").locator(".token").all_inner_texts() == [
        token.strip() or "␣" for token in row["answer_tokens"]
    ]


def test_every_section_of_several_runs(open_page, run, tmp_path):
    page = open_page(
        write_run(tmp_path / "sft", method="sft"), run, write_run(tmp_path / "second", seed=1)
    )
    charts_drawn(page)
    assert page.locator("#summary > .scroll tbody tr").count() == 3
    assert page.locator("#heldout .replies").count() == 3
    assert "Difference from sft" in page.inner_text("#comparison")
    assert page.locator("#run option").all_inner_texts() == [
        "first",
        "second",
    ]  # sft has no traces to explore
    # The legend switches a method off in every chart.
    curves = "() => document.querySelectorAll('#dynamics .plot')[0].data.length"
    assert page.evaluate(curves) == 3
    page.locator("#dynamics .legend button", has_text="nrt-gm").click()
    until(page, f"({curves})() === 1")


def test_rewards_advantages_and_signals_are_those_of_the_package(open_page, run):
    """On the same numbers: random ones, equal ones, certain ones and very unlikely ones."""
    page, rng = open_page(run), random.Random(0)
    cases = [
        [[round(-(rng.expovariate(1) ** 3), 5) for _ in range(T)] for _ in range(K + 1)]
        for K, T in [(2, 1), (5, 7), (8, 30), (64, 3)]
    ]
    cases += [
        [[0.0, 0.0]] * 3,
        [[-1.0, -2.0]] * 4,
        [[-40.0, -0.1], [-25.0, -30.0], [-0.1, -50.0]],
        [[-1.0], [-0.5]],
    ]
    page_scores = """([rows, norm]) => SCHEMES.map((scheme) => {
        const [base, ...logp] = rows, found = scoreGroup(scheme, logp, base, norm);
        const signals = logp.map((row, k) =>
            row.map((x, i) => scheme.signal(Math.exp(x), found.weights?.[i], found.rewards[k], row.length)));
        return { id: scheme.id, ...found, signals };
    })"""
    for norm in ("length", "sum", "none"):
        for rows in cases:
            base_T, logp_KT = (
                torch.tensor(rows[0], dtype=torch.float64),
                torch.tensor(rows[1:], dtype=torch.float64),
            )
            found = page.evaluate(page_scores, [rows, norm])
            assert {scheme["id"] for scheme in found} == set(REWARDS)
            for scheme in found:
                reward = with_weight_norm(REWARDS[scheme["id"]], norm)
                R_K, R_base = reward(logp_KT, base_T), reward(base_T[None], base_T)[0]
                signal_KT = token_signal(reward, logp_KT, base_T)
                assert scheme["rewards"] == pytest.approx(R_K.tolist(), rel=1e-9)
                assert scheme["baseReward"] == pytest.approx(R_base.item(), rel=1e-9)
                assert scheme["advantages"] == pytest.approx(
                    group_advantage(R_K, R_base).tolist(), rel=1e-7, abs=1e-9
                )
                for row, expected in zip(scheme["signals"], signal_KT.tolist(), strict=True):
                    assert row == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("norm", [None, "sum"])
def test_the_scheme_switch_orders_traces_as_the_package_does(open_page, tmp_path, norm):
    run = write_run(tmp_path / "run", norm=norm, traces=8)
    page, group = open_page(run), load_run(run).traces()[0]
    logp_KT = torch.tensor([trace["answer_logp"] for trace in group["traces"]], dtype=torch.float64)
    base_T = torch.tensor(group["base_logp"], dtype=torch.float64)

    def shown():
        return [
            int(k)
            for k in page.eval_on_selector_all(
                "article.trace", "(all) => all.map((one) => one.dataset.trace)"
            )
        ]

    stored = [trace["reward"] for trace in group["traces"]]
    assert shown() == sorted(range(8), key=lambda k: -stored[k])
    orders = set()
    for scheme, reward in REWARDS.items():
        page.locator(f"#schemes button[data-scheme={scheme}]").click()
        R_K = with_weight_norm(reward, norm)(logp_KT, base_T)[shown()]
        assert bool((R_K[:-1] >= R_K[1:] - 1e-6).all()), scheme
        assert (
            page.locator("#schemes button[aria-pressed=true]").get_attribute("data-scheme")
            == scheme
        )
        orders.add(tuple(shown()))
    assert len(orders) > 1


def test_tooltips_by_pointer_and_keyboard(open_page, run):
    page, group = open_page(run), load_run(run).traces()[0]
    best = max(group["traces"], key=lambda trace: trace["reward"])
    row = page.locator("article.trace >> nth=0").locator(".tokens >> nth=1")
    row.locator(".token >> nth=2").hover()
    delta = best["answer_logp"][2] - group["base_logp"][2]
    text = page.inner_text("#tooltip")
    assert "␣is" in text or " is" in text
    assert f"{abs(delta):.3f}" in text
    assert "signal" in text  # nrt-gm is one of the schemes
    page.locator("#schemes button[data-scheme=neg-log-prob]").focus()
    page.keyboard.press("Enter")
    page.mouse.move(0, 0)
    page.locator("article.trace >> nth=0").locator(".tokens >> nth=1").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#tooltip").is_visible()
    assert page.locator(".token.current").inner_text().strip() == "answer"
    assert "weight w" in page.inner_text("#tooltip")
    page.keyboard.press("End")
    assert page.locator(".token.current").inner_text() == "<eos>"
    page.keyboard.press("Escape")
    assert page.locator("#tooltip").is_hidden()


def test_keys_walk_and_filters_hold(open_page, run):
    page = open_page(run)
    step = lambda: page.locator("#groups option:checked").inner_text().split(" ·")[0]  # noqa: E731
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert step() == "step 3"
    page.keyboard.press("k")
    assert step() == "step 2"
    page.keyboard.press("4")
    assert (
        page.locator("#schemes button[aria-pressed=true]").get_attribute("data-scheme")
        == "geometric-mean"
    )
    page.keyboard.press("/")
    page.keyboard.type("question 5")
    assert step() == "step 5"
    assert page.inner_text("#place") == "1 of 1"
    page.fill("#search", "")
    page.select_option("#source", "family0")
    assert page.locator("#groups option").count() == 3
    page.locator(".controls select").nth(2).select_option("unfinished")
    assert page.locator("article.trace").count() == 2
    assert page.locator("article.trace .flag", has_text="unfinished").count() == 2
    page.locator(".controls select").nth(2).select_option("")
    page.locator(".controls select").nth(1).select_option("beats")
    assert page.locator("article.trace .flag", has_text="does not beat").count() == 0
    page.fill("#search", "nothing has this")
    assert "No group passes" in page.inner_text("#group")
    page.reload()  # the address keeps what was chosen
    assert page.input_value("#search") == "nothing has this"


def test_before_and_after_side_by_side(open_page, run):
    page = open_page(run)
    page.select_option("#verdict", "won")
    assert page.inner_text("#ask-place") == "question 1 of 9"
    before, after = page.locator("article.reply").all_inner_texts()
    assert "wrong" in before
    assert "right" in after
    page.keyboard.press("Escape")
    page.keyboard.press("]")
    assert page.inner_text("#ask-place") == "question 2 of 9"
    page.fill("#ask-search", "held-out question 7")
    assert page.inner_text("#ask-place") == "question 1 of 1"


def test_held_out_references_are_shaded_token_by_token(open_page, run, tmp_path):
    """Against the null trace where there are traces; by their own probability for sft; by nothing where an old folder lacks them."""
    record, old = load_run(run).heldout()[0], write_run(tmp_path / "old", seed=1)
    for file in (old / "heldout").iterdir():
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        gone = ("answer_tokens", "token_logp_null")
        file.write_text(
            "".join(
                json.dumps({k: v for k, v in row.items() if k not in gone}) + "\n" for row in rows
            ),
            encoding="utf-8",
        )
    page = open_page(run, write_run(tmp_path / "sft", method="sft"), old)
    replies = page.locator("#heldout .replies")
    assert [replies.nth(i).locator(".tokens").count() for i in range(3)] == [2, 2, 0]
    after = replies.nth(0).locator(".reply >> nth=1").locator(".tokens")
    changes = [
        logp - null
        for logp, null in zip(record["token_logp"], record["token_logp_null"], strict=True)
    ]
    shades = after.locator(".token").evaluate_all("(all) => all.map((one) => one.style.background)")
    assert [
        ("up" if change > 0 else "down") in shade
        for change, shade in zip(changes, shades, strict=True)
    ] == [True] * len(changes)
    after.locator(".token >> nth=1").hover()
    assert f"{abs(changes[1]):.3f}" in page.inner_text("#tooltip")
    assert "after the null trace" in page.inner_text("#tooltip")
    page.mouse.move(0, 0)
    after.focus()
    page.keyboard.press("End")
    assert page.locator(".token.current").inner_text() == "<eos>"
    assert "entropy" in replies.nth(1).locator(".token >> nth=0").get_attribute("style")
    page.locator("#summary details > summary >> nth=2").click()
    assert "not shaded token by token" in page.inner_text("#summary details[open]")


def test_hostile_text_is_shown_as_text(open_page, tmp_path):
    run = write_run(tmp_path / "<img src=x onerror=alert(1)>", extra=HOSTILE + "long " * 20_000)
    page = open_page(run, write_run(tmp_path / "second", method="<b>rlpr</b>", extra=HOSTILE))
    charts_drawn(page)
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main b script, main section script").count() == 0
    assert (
        page.locator("script").count() == 11
    )  # the page's own, and the plotting library once it runs
    prompt = page.locator("#group .prose").first
    for part in (
        "</script><script>window.hacked = 1</script>",
        "שלום عليكم",
        "🧪👩‍🔬",
        "NUL:␀",
        "bell:␇",
        "⟨U+202E⟩override",
        "{{ 7 * 7 }}",
    ):
        assert part in prompt.inner_text()
    assert len(prompt.inner_text()) < 2000
    prompt.locator("button.more").click()
    assert len(prompt.inner_text()) > 100_000
    for place in (
        "article.trace >> nth=0",
        "article.trace .token:last-child >> nth=0",
        "#question .prose >> nth=0",
        "#question .token >> nth=-1",
    ):
        text = page.locator(place).text_content()
        assert "<script>window.hacked = 1</script>" in text
        assert "NUL:␀" in text
        assert "⟨U+202E⟩override" in text
    page.locator("#question .token >> nth=-1").hover()
    assert "<script>" in page.inner_text("#tooltip")
    page.fill("#search", "NUL:\0")
    page.fill("#ask-search", "🧪👩‍🔬 nul")
    assert page.locator("#groups option").count() == 6
    assert page.inner_text("#ask-place").startswith("question 1 of ")
    assert "<b>rlpr</b>" in page.inner_text("#dynamics .legend")
    assert page.locator("#dynamics b").count() == 0


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
)
def test_it_fits_and_follows_the_readers_theme(open_page, run, tmp_path, width, scheme):
    page = open_page(
        run,
        write_run(tmp_path / "second", seed=1),
        color_scheme=scheme,
        viewport={"width": width, "height": 844},
    )
    charts_drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    red, green, blue = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert (red + green + blue > 600) == (scheme == "light")
    page.set_viewport_size({"width": width - 40, "height": 844})
    page.wait_for_timeout(500)
    overflow = "(plot) => plot.querySelector('.svg-container').getBoundingClientRect().height - plot.getBoundingClientRect().height"
    assert (
        page.evaluate(f"Math.max(...[...document.querySelectorAll('.plot')].map({overflow}))") <= 1
    )  # charts keep to their place
    assert len(page.screenshot(path=tmp_path / "page.png", full_page=True)) > 20_000


def test_print_draws_every_chart(open_page, run):
    page = open_page(run)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(
        "[...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('svg'))"
    )
    assert page.locator("nav").is_hidden()
    assert (
        page.inner_text("#chosen") == "Ranked as trained (geometric mean)."
    )  # in place of the buttons
    assert "step 1 · family1" in page.inner_text("#group .question")
    assert len(page.pdf()) > 20_000


def test_benchmarks_of_two_runs(open_page, run, tmp_path):
    """Scores of both, and the rows: those that differ, and those whose trace did not end."""
    page = open_page(
        write_evaluation(run), write_evaluation(write_run(tmp_path / "second", seed=1), right=1)
    )
    table = page.locator("#benchmarks table >> nth=0")
    assert table.locator("thead").inner_text().strip().split("\t") == [
        "run",
        "gsm8k",
        "humaneval",
        "truthfulqa",
        "mean of nine",
    ]
    assert "66.7 ± 33.3" in table.inner_text()
    assert "33.3 %" in page.inner_text("#benchmarks table >> nth=1")  # unfinished
    page.select_option("#benchmark-verdict", "differ")
    assert page.inner_text("#row-place") == "row 1 of 1"
    assert page.locator("#row article.reply header").all_inner_texts() == [
        "Answer\nscore 1",
        "Answer\nscore 0",
    ]
    page.select_option("#benchmark-verdict", "unfinished")
    assert "unfinished" in page.inner_text("#row")
    page.select_option("#benchmark-verdict", "")
    page.select_option("#benchmark", "humaneval")
    assert page.locator("#row article.reply").count() == 6  # three of four answers of each
    assert "Answer 1 of 4" in page.inner_text("#row")
    page.select_option("#benchmark", "truthfulqa")
    assert "−1.25, −2.5" in page.inner_text("#row")
    page.click("#benchmarks .pager button >> nth=1")
    assert page.inner_text("#row-place") == "row 1 of 1"


def test_what_is_missing_is_named(open_page, tmp_path):
    run = write_run(tmp_path / "sft", method="sft")
    for file in (run / "heldout").iterdir():
        file.unlink()
    (run / "metrics.jsonl").unlink()
    page = open_page(run)
    until(page, "window.Plotly")
    assert "No held-out evaluation" in page.inner_text("#summary .callout.quiet")
    for section, text in {
        "dynamics": "No metrics", "confidence": "two held-out evaluations", "vocabulary": "No traces",
        "explorer": "No groups", "heldout": "No held-out", "benchmarks": "No evaluation",
    }.items():  # fmt: skip
        assert text in page.inner_text(f"#{section}")


def test_a_run_cut_off_while_it_wrote(open_page, run):
    """Killed in its fifth step: half a line of metrics and of traces, no model, no evaluation at the end; and no config that nrt knows."""
    for name, lines in (("metrics.jsonl", 5), ("traces.jsonl", 4)):
        kept = (run / name).read_bytes().splitlines(keepends=True)
        (run / name).write_bytes(b"".join(kept[:lines]) + kept[lines][:40])
    (run / "heldout" / "step-000006.jsonl").unlink()
    (run / "model").rmdir()
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(
        config.replace("schema_version: 1", "schema_version: 0") + "gone: 1\n", encoding="utf-8"
    )
    page = open_page(run)
    charts_drawn(page)
    missing = page.inner_text("#summary .callout.quiet")
    for named in (
        "schema version 0",
        "the run is stopped, 4 of 6 steps",
        "No held-out evaluation after step 0 yet",
    ):
        assert named in missing
    assert page.locator("#groups option").count() == 4
    assert "not evaluated" in page.inner_text("#heldout article.reply >> nth=1")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_served_page_reloads_itself(chromium, run, host):
    """On any other host than this machine's own with the token, which the page hands on when it asks for newer versions."""
    server = make_server([run], host=host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page, complaints = chromium.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(f"http://127.0.0.1:{server.server_port}/?{urlsplit(server.url).query}")
    assert "fresh" not in page.inner_text("#dynamics")
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 7, "fresh": 1.0}\n')
    until(page, "document.querySelector('#dynamics select')?.innerText.includes('fresh')")
    page.close()
    assert complaints == []
    server.shutdown()
    server.server_close()


def test_2000_steps_of_64_traces_open_in_time(open_page, tmp_path):
    page = open_page(write_large_run(tmp_path / "large"))
    assert page.locator("article.trace").count() == 8
    seconds = page.evaluate(
        "(({ loadEventEnd, startTime }) => (loadEventEnd - startTime) / 1000)(performance.getEntriesByType('navigation')[0])"
    )
    size = (tmp_path / "report.html").stat().st_size
    print(
        f"{size / 1e6:.1f} MB, {page.locator('#groups option').count()} groups, opened in {seconds:.2f} s"
    )
    assert 100 <= page.locator("#groups option").count() <= 300
    assert "of 2,000 groups" in page.inner_text("#explorer")
    assert size < 20e6
    assert 0 < seconds < 2
    until(page, "window.Plotly")
