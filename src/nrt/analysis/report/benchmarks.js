"use strict";
// Benchmarks: scores of each run, and rows with trace, answer and verdict.

const bench = { place: 0, name: "", verdict: "" };

function drawBenchmarks() {
  const section = $("benchmarks");
  const runs = Object.entries(report.evaluated);
  if (!runs.length) return section.append(note("No evaluation in the folder."));
  const names = [...new Set(runs.flatMap(([, found]) => found.scores.map((score) => score.benchmark)))];
  const nine = runs.some(([, found]) => found.mean_of_nine !== null);
  const cells = (found) => names.map((name) => benchmarkScore(found.scores.find((score) => score.benchmark === name)));
  section.append(
    lead("Percent, with the standard error over rows."),
    table(["run", ...names, ...(nine ? ["mean of nine"] : [])], runs.map(([place, found]) => {
      const run = report.runs[place];
      return [swatched(run.variant, run.name), ...cells(found), ...(nine ? [found.mean_of_nine === null ? "–" : fixed(100 * found.mean_of_nine, 1)] : [])];
    }), "scores"),
    h("h3", {}, "Thinking"),
    table(["run", "benchmark", "rows", "trace, tokens", "unfinished", "answer, tokens", "cut"], runs.flatMap(([place, found]) => found.scores.map((score) =>
      [visible(report.runs[place].name), score.benchmark, score.rows.toLocaleString("en"), score.trace_tokens === null ? "–" : fixed(score.trace_tokens, 0), score.trace_tokens === null ? "–" : share(score.unfinished), fixed(score.answer_tokens, 0), share(score.cut)])), "scores"),
    h("h3", {}, "Rows"),
    lead(`Of ${report.benchmark_rows_in_folder.toLocaleString("en")} rows this page holds ${report.benchmark_rows.length.toLocaleString("en")}, evenly spaced within each benchmark.`),
    h("div", { class: "controls" },
      h("label", {}, "Benchmark ", options(h("select", { id: "benchmark", change: (event) => pickRow({ name: event.target.value }) }), [["", "all"], ...names.map((name) => [name, name])], "")),
      h("label", {}, "Verdict ", options(h("select", { id: "benchmark-verdict", change: (event) => pickRow({ verdict: event.target.value }) }), [["", "all"], ["right", "right"], ["wrong", "wrong"], ["unfinished", "trace unfinished"], ...(runs.length > 1 ? [["differ", "runs differ"]] : [])], ""))),
    h("div", { class: "pager" },
      h("button", { click: () => pickRow({ place: bench.place - 1 }), "aria-label": "Previous row" }, "◀"),
      h("span", { id: "row-place", class: "faint" }),
      h("button", { click: () => pickRow({ place: bench.place + 1 }), "aria-label": "Next row" }, "▶")),
    h("div", { id: "row", "aria-live": "polite" }));
  showRow();
  return undefined;
}

const share = (value) => `${fixed(100 * value, 1)} %`;

function benchmarkScore(score) {
  if (!score) return h("span", { class: "faint" }, "–");
  return h("span", { class: "interval" }, fixed(100 * score.score, 1), score.stderr === null ? "" : h("small", {}, ` ± ${fixed(100 * score.stderr, 1)}`));
}

function pickRow(change) {
  Object.assign(bench, { place: 0 }, change);
  showRow();
}

function rowsShown() {
  return report.benchmark_rows.filter((row) => {
    const replies = Object.values(row.replies);
    const fits = {
      right: () => replies.some((reply) => reply.score >= 0.5),
      wrong: () => replies.some((reply) => reply.score < 0.5),
      unfinished: () => replies.some((reply) => reply.said.some((said) => !said.finished)),
      differ: () => new Set(replies.map((reply) => reply.score)).size > 1,
    }[bench.verdict];
    return (!bench.name || row.benchmark === bench.name) && (!fits || fits());
  });
}

function showRow() {
  const found = rowsShown();
  bench.place = Math.max(0, Math.min(found.length - 1, bench.place));
  $("row-place").textContent = found.length ? `row ${bench.place + 1} of ${found.length}` : "none";
  const row = found[bench.place];
  if (!row) return $("row").replaceChildren(note("No row passes these filters."));
  $("row").replaceChildren(
    h("div", { class: "question" },
      h("div", {}, h("h4", {}, "Question ", h("span", { class: "faint" }, visible([row.benchmark, row.group, row.id].join(" · ")))), prose(row.question)),
      h("div", {}, h("h4", {}, "Target"), prose(row.target))),
    ...Object.entries(row.replies).map(([place, reply]) => {
      const run = report.runs[place];
      return h("div", { class: "replies" }, several ? h("h4", { class: "runname" }, swatched(run.variant, run.name)) : null, h("div", { class: "two" }, reply.said.map((said, i) => benchmarkReply(reply, said, i))));
    }));
  return undefined;
}

function benchmarkReply(reply, said, i) {
  const verdict = h("span", { class: `flag ${reply.score >= 0.5 ? "good" : "bad"}` }, `score ${number(reply.score, 3)}`);
  return h("article", { class: "reply" },
    h("header", {}, h("h4", {}, reply.said_in_folder > 1 ? `Answer ${i + 1} of ${reply.said_in_folder}` : "Answer"), i ? null : verdict, said.finished ? null : h("span", { class: "flag" }, "unfinished")),
    said.trace === null ? null : [h("h5", {}, "Trace"), prose(said.trace, "thought")],
    said.logps.length ? [h("h5", {}, "Log-likelihood of each choice, nats"), prose(said.logps.map((logp) => number(logp)).join(", "))] : [h("h5", {}, "Answer"), prose(said.answer)],
    i || reply.extracted === null ? null : [h("h5", {}, "Taken as"), prose(reply.extracted)]);
}
