"use strict";
// Benchmarks: scores of each run, and rows with trace, answer and verdict.

const rowState = { position: 0, benchmark: "", verdict: "" }; // what the reader has chosen

function drawBenchmarks() {
  const section = $("benchmarks");
  const runs = Object.entries(report.evaluated);
  if (!runs.length) return section.append(note("No evaluation in the folder."));
  const names = [...new Set(runs.flatMap(([, evaluated]) => evaluated.scores.map((score) => score.benchmark)))];
  const showMean = runs.some(([, evaluated]) => evaluated.mean_of_nine !== null);
  const cells = (evaluated) => names.map((name) => benchmarkScore(evaluated.scores.find((score) => score.benchmark === name)));
  const meanCell = (evaluated) => (evaluated.mean_of_nine === null ? "–" : fixed(100 * evaluated.mean_of_nine, 1));
  section.append(
    lead("Percent, with the standard error over rows."),
    table(["run", ...names, ...(showMean ? ["mean of nine"] : [])], runs.map(([runIndex, evaluated]) => {
      const run = report.runs[runIndex];
      return [swatched(run.variant, run.name), ...cells(evaluated), ...(showMean ? [meanCell(evaluated)] : [])];
    }), "scores"),
    h("h3", {}, "Thinking"),
    table(["run", "benchmark", "rows", "trace, tokens", "unfinished", "answer, tokens", "cut"], runs.flatMap(([runIndex, evaluated]) => evaluated.scores.map((score) =>
      [visible(report.runs[runIndex].name), score.benchmark, score.rows.toLocaleString("en"), score.trace_tokens === null ? "–" : fixed(score.trace_tokens, 0), score.trace_tokens === null ? "–" : share(score.unfinished), fixed(score.answer_tokens, 0), share(score.cut)])), "scores"),
    h("h3", {}, "Rows"),
    lead(`This page holds ${report.benchmark_rows.length.toLocaleString("en")} of ${report.benchmark_rows_in_folder.toLocaleString("en")} rows, evenly spaced within each benchmark.`),
    h("div", { class: "controls" },
      h("label", {}, "Benchmark ", options(h("select", { id: "benchmark", change: (event) => pickRow({ benchmark: event.target.value }) }), [["", "all"], ...names.map((name) => [name, name])], "")),
      h("label", {}, "Verdict ", options(h("select", { id: "benchmark-verdict", change: (event) => pickRow({ verdict: event.target.value }) }), [["", "all"], ["right", "right"], ["wrong", "wrong"], ["unfinished", "trace unfinished"], ...(runs.length > 1 ? [["differ", "runs differ"]] : [])], ""))),
    h("div", { class: "pager" },
      h("button", { click: () => pickRow({ position: rowState.position - 1 }), "aria-label": "Previous row" }, "◀"),
      h("span", { id: "row-place", class: "faint" }),
      h("button", { click: () => pickRow({ position: rowState.position + 1 }), "aria-label": "Next row" }, "▶")),
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
  Object.assign(rowState, { position: 0 }, change);
  showRow();
}

function filteredRows() {
  return report.benchmark_rows.filter((row) => {
    const replies = Object.values(row.replies);
    const matches = {
      right: () => replies.some((reply) => reply.score >= 0.5),
      wrong: () => replies.some((reply) => reply.score < 0.5),
      unfinished: () => replies.some((reply) => reply.answers.some((answer) => !answer.finished)),
      differ: () => new Set(replies.map((reply) => reply.score)).size > 1,
    }[rowState.verdict];
    return (!rowState.benchmark || row.benchmark === rowState.benchmark) && (!matches || matches());
  });
}

function showRow() {
  const rows = filteredRows();
  rowState.position = Math.max(0, Math.min(rows.length - 1, rowState.position));
  $("row-place").textContent = rows.length ? `row ${rowState.position + 1} of ${rows.length}` : "none";
  const row = rows[rowState.position];
  if (!row) return $("row").replaceChildren(note("No row passes these filters."));
  $("row").replaceChildren(
    h("div", { class: "question" },
      h("div", {}, h("h4", {}, "Question ", h("span", { class: "faint" }, visible([row.benchmark, row.group, row.id].join(" · ")))), prose(row.question)),
      h("div", {}, h("h4", {}, "Target"), prose(row.target))),
    ...Object.entries(row.replies).map(([runIndex, reply]) => {
      const run = report.runs[runIndex];
      return h("div", { class: "replies" }, several ? h("h4", { class: "runname" }, swatched(run.variant, run.name)) : null, h("div", { class: "two" }, reply.answers.map((answer, i) => benchmarkReply(reply, answer, i))));
    }));
  return undefined;
}

function benchmarkReply(reply, answer, i) {
  const verdict = h("span", { class: `flag ${reply.score >= 0.5 ? "good" : "bad"}` }, `score ${number(reply.score, 3)}`);
  return h("article", { class: "reply" },
    h("header", {}, h("h4", {}, reply.answers_in_folder > 1 ? `Answer ${i + 1} of ${reply.answers_in_folder}` : "Answer"), i ? null : verdict, answer.finished ? null : h("span", { class: "flag" }, "unfinished")),
    answer.trace === null ? null : [h("h5", {}, "Trace"), prose(answer.trace, "thought")],
    answer.logps.length ? [h("h5", {}, "Log-likelihood of each choice, nats"), prose(answer.logps.map((logp) => number(logp)).join(", "))] : [h("h5", {}, "Answer"), prose(answer.answer)],
    i || reply.extracted === null ? null : [h("h5", {}, "Extracted answer"), prose(reply.extracted)]);
}
