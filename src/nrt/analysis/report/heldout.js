"use strict";
// Before and after: one held-out question with each run's answers before training and at its last
// evaluation.

const questionState = { position: 0, source: "", change: "", query: "" }; // what the reader has chosen

function drawHeldout() {
  const section = $("heldout");
  if (!report.questions.length) return section.append(note("No held-out evaluation in the folder: no questions to show."));
  const sources = [...new Set(report.questions.map((question) => question.source))].filter(Boolean).sort();
  const change = (name) => (event) => { questionState[name] = event.target.value; questionState.position = 0; showQuestion(); };
  section.append(
    lead(`The same held-out question before training (step 0) and at the last evaluation${several ? ", answered by each run" : ""}. This page holds ${report.questions.length.toLocaleString("en")} of ${report.questions_in_folder.toLocaleString("en")} questions, evenly spaced.`),
    h("div", { class: "controls" },
      sources.length > 1 ? h("label", {}, "Source ", options(h("select", { change: change("source") }), [["", "all"], ...sources.map((source) => [source, visible(source)])], "")) : null,
      h("label", {}, "Verdict ", options(h("select", { id: "verdict", change: change("change") }), [["", "all"], ["won", "became right"], ["lost", "became wrong"], ["wrong", "wrong after"], ...(several ? [["differ", "runs differ"]] : [])], "")),
      h("label", { class: "grow" }, "Search ", h("input", { id: "ask-search", type: "search", placeholder: "question or reference", input: change("query") }))),
    h("div", { class: "pager" },
      h("button", { click: () => moveQuestion(-1), "aria-label": "Previous question", title: "[" }, "◀"),
      h("span", { id: "ask-place", class: "faint" }),
      h("button", { click: () => moveQuestion(1), "aria-label": "Next question", title: "]" }, "▶")),
    h("div", { id: "question", "aria-live": "polite" }));
  showQuestion();
  return undefined;
}

function filteredQuestions() {
  const query = questionState.query.toLowerCase();
  return report.questions.filter((question) => {
    const pairs = Object.values(question.replies);
    const matches = {
      won: ([before, after]) => before?.correct === false && after?.correct === true,
      lost: ([before, after]) => before?.correct === true && after?.correct === false,
      wrong: ([, after]) => after?.correct === false,
    }[questionState.change];
    if (questionState.source && question.source !== questionState.source) return false;
    if (questionState.change === "differ" && new Set(pairs.map(([, after]) => after?.correct)).size < 2) return false;
    if (matches && !pairs.some(matches)) return false;
    return `${question.question}\n${question.reference}`.toLowerCase().includes(query);
  });
}

function moveQuestion(by) {
  questionState.position += by;
  showQuestion();
}

function showQuestion() {
  const questions = filteredQuestions();
  questionState.position = Math.max(0, Math.min(questions.length - 1, questionState.position));
  $("ask-place").textContent = questions.length ? `question ${questionState.position + 1} of ${questions.length}` : "none";
  const question = questions[questionState.position];
  if (!question) return $("question").replaceChildren(note("No question passes these filters."));
  const pairs = Object.entries(question.replies);
  $("question").replaceChildren(
    h("div", { class: "question" },
      h("div", {}, h("h4", {}, "Question ", h("span", { class: "faint" }, visible([question.source, question.id].filter(Boolean).join(" · ")))), prose(question.question)),
      h("div", {}, h("h4", {}, "Reference answer"), prose(question.reference))),
    ...(pairs.flatMap(([, replies]) => replies).some((reply) => reply?.tokens && reply.token_logp_null) ? [colourScale()] : []),
    ...pairs.map(([runIndex, [before, after]]) => {
      const run = report.runs[runIndex];
      return h("div", { class: "replies" },
        several ? h("h4", { class: "runname" }, swatched(run.variant, run.name)) : null,
        h("div", { class: "two" }, replyCard("Before training", before), replyCard(run.evaluations.length ? `After step ${run.evaluations.at(-1)}` : "After", after)));
    }));
  return undefined;
}

function replyCard(title, reply) {
  if (!reply) return h("article", { class: "reply" }, h("h4", {}, title), note("not evaluated"));
  const verdict = (correct) => (correct === null || correct === undefined ? null : h("span", { class: `flag ${correct ? "good" : "bad"}` }, correct ? "✓ right" : "✗ wrong"));
  return h("article", { class: "reply" },
    h("header", {}, h("h4", {}, title), verdict(reply.correct), reply.finished === false ? h("span", { class: "flag" }, "unfinished") : null),
    reply.trace === null || reply.trace === undefined ? null : [h("h5", {}, "Trace"), prose(reply.trace, "thought")],
    reply.answer === null || reply.answer === undefined ? null : [h("h5", {}, "Answer"), prose(reply.answer)],
    reply.answer_null ? h("details", {}, h("summary", {}, "Answer after the null trace ", verdict(reply.correct_null)), prose(reply.answer_null)) : null,
    referenceRow(reply),
    h("p", { class: "ranks" }, `reference: ${number(reply.logp)} nats per token`, reply.logp_null === null ? "" : `; after the null trace ${number(reply.logp_null)}`));
}

/**
 * Returns the reference token by token, shaded by the trace's effect on each against the null trace
 * or, without a null trace, by how unlikely it is.
 */
function referenceRow(reply) {
  if (!reply.tokens || !reply.token_logp) return null;
  const logp = nats(reply.token_logp), base = reply.token_logp_null && nats(reply.token_logp_null);
  const describe = (i) => [
    ["token", visible(reply.tokens[i])],
    ...(base ? [effectLine(logp[i] - base[i])] : []),
    [base ? "c, after this trace" : "c", number(Math.exp(logp[i]))],
    ...(base ? [["c_base, after the null trace", number(Math.exp(base[i]))]] : []),
  ];
  return [
    h("h5", {}, base ? "Reference answer, shaded by log c − log c_base" : "Reference answer; shaded: less likely"),
    tokensRow(reply, (i) => (base ? effectShade(logp[i] - base[i]) : surpriseShade(logp[i])), describe),
  ];
}
