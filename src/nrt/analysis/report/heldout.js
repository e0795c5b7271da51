"use strict";
// Before and after: one held-out question with what each run answered before training and at its last evaluation.

const ask = { place: 0, source: "", change: "", query: "" };

function drawHeldout() {
  const section = $("heldout");
  if (!report.questions.length) return section.append(note("No held-out evaluation in the folder: no questions to show."));
  const sources = [...new Set(report.questions.map((question) => question.source))].filter(Boolean).sort();
  const change = (name) => (event) => { ask[name] = event.target.value; ask.place = 0; showQuestion(); };
  section.append(
    lead(`The same held-out question before training (step 0) and at the last evaluation${several ? ", answered by each run" : ""}. Of ${report.questions_in_folder.toLocaleString("en")} questions this page holds ${report.questions.length.toLocaleString("en")}, evenly spaced.`),
    h("div", { class: "controls" },
      sources.length > 1 ? h("label", {}, "Source ", options(h("select", { change: change("source") }), [["", "all"], ...sources.map((source) => [source, visible(source)])], "")) : null,
      h("label", {}, "Verdict ", options(h("select", { id: "verdict", change: change("change") }), [["", "all"], ["won", "became right"], ["lost", "became wrong"], ["wrong", "wrong after"], ...(several ? [["differ", "runs differ"]] : [])], "")),
      h("label", { class: "grow" }, "Search ", h("input", { id: "ask-search", type: "search", placeholder: "question or reference", input: change("query") }))),
    h("div", { class: "pager" },
      h("button", { click: () => turn(-1), "aria-label": "Previous question", title: "[" }, "◀"),
      h("span", { id: "ask-place", class: "faint" }),
      h("button", { click: () => turn(1), "aria-label": "Next question", title: "]" }, "▶")),
    h("div", { id: "question", "aria-live": "polite" }));
  showQuestion();
  return undefined;
}

function asked() {
  const query = ask.query.toLowerCase();
  return report.questions.filter((question) => {
    const pairs = Object.values(question.replies);
    const fits = {
      won: ([before, after]) => before?.correct === false && after?.correct === true,
      lost: ([before, after]) => before?.correct === true && after?.correct === false,
      wrong: ([, after]) => after?.correct === false,
    }[ask.change];
    if (ask.source && question.source !== ask.source) return false;
    if (ask.change === "differ" && new Set(pairs.map(([, after]) => after?.correct)).size < 2) return false;
    if (fits && !pairs.some(fits)) return false;
    return `${question.question}\n${question.reference}`.toLowerCase().includes(query);
  });
}

function turn(by) {
  ask.place += by;
  showQuestion();
}

function showQuestion() {
  const found = asked();
  ask.place = Math.max(0, Math.min(found.length - 1, ask.place));
  $("ask-place").textContent = found.length ? `question ${ask.place + 1} of ${found.length}` : "none";
  const question = found[ask.place];
  if (!question) return $("question").replaceChildren(note("No question passes these filters."));
  const pairs = Object.entries(question.replies);
  $("question").replaceChildren(
    h("div", { class: "question" },
      h("div", {}, h("h4", {}, "Question ", h("span", { class: "faint" }, visible([question.source, question.id].filter(Boolean).join(" · ")))), prose(question.question)),
      h("div", {}, h("h4", {}, "Reference answer"), prose(question.reference))),
    ...(pairs.flatMap(([, both]) => both).some((found) => found?.tokens && found.token_logp_null) ? [scale()] : []),
    ...pairs.map(([place, [before, after]]) => {
      const one = report.runs[place];
      return h("div", { class: "replies" },
        several ? h("h4", { class: "runname" }, swatched(one.variant, one.name)) : null,
        h("div", { class: "two" }, reply("Before training", before), reply(one.evaluations.length ? `After step ${one.evaluations.at(-1)}` : "After", after)));
    }));
  return undefined;
}

function reply(title, found) {
  if (!found) return h("article", { class: "reply" }, h("h4", {}, title), note("not evaluated"));
  const verdict = (correct) => (correct === null || correct === undefined ? null : h("span", { class: `flag ${correct ? "good" : "bad"}` }, correct ? "✓ right" : "✗ wrong"));
  return h("article", { class: "reply" },
    h("header", {}, h("h4", {}, title), verdict(found.correct), found.finished === false ? h("span", { class: "flag" }, "unfinished") : null),
    found.trace === null || found.trace === undefined ? null : [h("h5", {}, "Trace"), prose(found.trace, "thought")],
    found.answer === null || found.answer === undefined ? null : [h("h5", {}, "Answer"), prose(found.answer)],
    found.answer_null ? h("details", {}, h("summary", {}, "Answer after the null trace ", verdict(found.correct_null)), prose(found.answer_null)) : null,
    referenceRow(found),
    h("p", { class: "ranks" }, `reference: ${number(found.logp)} nats per token`, found.logp_null === null ? "" : `; after the null trace ${number(found.logp_null)}`));
}

/** The reference token by token, shaded by what the trace did to each against the null trace or, without one, by how unlikely it is. */
function referenceRow(found) {
  if (!found.tokens || !found.token_logp) return null;
  const logp = nats(found.token_logp), base = found.token_logp_null && nats(found.token_logp_null);
  const describe = (i) => [
    ["token", visible(found.tokens[i])],
    ...(base ? [effectLine(logp[i] - base[i])] : []),
    [base ? "c, after this trace" : "c", number(Math.exp(logp[i]))],
    ...(base ? [["c_base, after the null trace", number(Math.exp(base[i]))]] : []),
  ];
  return [
    h("h5", {}, base ? "Reference answer, shaded by log c − log c_base" : "Reference answer; shaded: less likely"),
    tokensRow(found, (i) => (base ? effect(logp[i] - base[i]) : surprise(logp[i])), describe),
  ];
}
