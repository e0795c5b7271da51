"use strict";
// Summary, dynamics, token confidence, vocabulary and comparison.

const PANELS = [
  ["trace/entropy", "Trace entropy, nats/token"],
  ["trace/length", "Trace length, tokens"],
  ["gain", "Gain over the null trace, nats/token"],
  ["reward/beats_null", "Share that beats the null trace"],
  ["trace/unfinished", "Share unfinished"],
  ["readout/right", "Right traces, share"],
  ["readout/probability", "Probability of the answer's least likely token after a right trace"],
  ["heldout/accuracy", "Held-out accuracy"],
  ["heldout/accuracy_null", "Held-out accuracy, null trace"],
  ["heldout/gain", "Held-out gain, nats/token"],
  ["reward/gain", "Gain in reward, R − R_base"],
  ["loss/total", "Loss"],
  ["loss/trace", "Loss, trace term"],
  ["loss/answer", "Loss, answer term"],
  ["loss/format", "Loss, format term"],
  ["group/no_variance", "Groups without variance, share"],
  ["optim/grad_norm", "Gradient norm"],
  ["speed/rollout", "Sampled tokens per second"],
  ["time/step", "Seconds per step"],
];

const several = report.runs.length > 1;
const accuracyOf = (run) => run.measured.find((measured) => measured.measure === "correct")?.scores.at(-1);

function drawMasthead() {
  const [first] = report.runs;
  const title = several ? `${report.runs.length} runs` : first.name;
  $("title").textContent = visible(title);
  document.title = `${title} · nrt report`;
  const methods = [...new Set(report.runs.map((run) => run.method))].join(", ");
  $("byline").textContent = visible(several ? methods : `${methods} · ${first.status}`);
  const sections = [...document.querySelectorAll("main section")];
  $("contents").append(...sections.map((section) => h("a", { href: `#${section.id}` }, section.querySelector("h2").textContent)));
  $("colophon").append(h("p", {}, `Made ${report.made} by nrt from the run folder${several ? "s" : ""} alone. Everything on this page is inside this one file.`));
}

function drawSummary() {
  const section = $("summary");
  if (several) section.append(overview(), h("h3", {}, "Each run"));
  for (const run of report.runs) {
    section.append(several ? h("details", {}, h("summary", {}, visible(run.name)), runSummary(run)) : runSummary(run));
  }
}

function overview() {
  const anyAccuracy = report.runs.some(accuracyOf);
  const rows = report.runs.map((run) => {
    const score = accuracyOf(run) ?? run.measured[0]?.scores.at(-1);
    const problems = run.warnings.length + run.missing.length;
    return [swatched(run.variant, run.name), run.status, interval(score?.before), interval(score?.after), change(score?.change), problems ? `${problems} below` : "–"];
  });
  const measure = anyAccuracy ? "accuracy" : "log-probability";
  return table(["run", "status", `${measure} before`, "after", "change", "notes"], rows);
}

function runSummary(run) {
  const facts = h("dl", { class: "facts" }, run.facts.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, visible(value)))));
  const results = run.measured.map((measured) => [h("h3", {}, measured.unit[0].toUpperCase() + measured.unit.slice(1)), scoreTable(measured)]).flat();
  const warnings = run.warnings.map((warning) => h("li", {}, h("b", {}, `step ${warning.step}: `), visible(String(warning.message ?? warning.kind))));
  return h("div", {},
    facts, ...results,
    run.measured.length ? note("Brackets hold 95 % intervals over questions (one run says nothing about seeds); changes are paired by question.") : null,
    warnings.length ? h("div", { class: "callout" }, h("h3", {}, "Warnings"), h("ul", {}, warnings)) : null,
    run.missing.length ? h("div", { class: "callout quiet" }, h("h3", {}, "Missing in this folder"), h("ul", {}, run.missing.map((text) => h("li", {}, visible(text))))) : null);
}

function scoreTable(measured) {
  const graphic = measured.measure === "correct";
  const head = ["", "questions", "before", "after", ...(graphic ? ["0 – 1"] : []), "change", "after the null trace"];
  return table(head, measured.scores.map((score) =>
    [visible(score.family), score.questions.toLocaleString("en"), interval(score.before), interval(score.after), ...(graphic ? [dumbbell(score)] : []), change(score.change), interval(score.null)]), "scores");
}

const fixed = (value, places) => value.toFixed(places).replace("-", MINUS);
function interval(value) {
  if (!value) return h("span", { class: "faint" }, "–");
  return h("span", { class: "interval" }, fixed(value.mean, 3), h("small", {}, ` [${fixed(value.low, 3)}, ${fixed(value.high, 3)}]`));
}
function change(value) {
  if (!value) return h("span", { class: "faint" }, "–");
  return h("span", { class: "interval" }, signed(value.mean, 3), h("small", {}, ` [${signed(value.low, 3)}, ${signed(value.high, 3)}]`));
}

/** Returns a drawing of before (hollow) and after (full) on a line from 0 to 1, with intervals. */
function dumbbell(score) {
  const x = (value) => 6 + 128 * value;
  const drawing = svg("svg", { class: "dumbbell", viewBox: "0 0 140 16", width: 140, height: 16, role: "img" }, svg("line", { x1: 6, x2: 134, y1: 8, y2: 8, class: "track" }));
  for (const [value, kind] of [[score.before, "before"], [score.after, "after"]]) {
    if (!value) continue;
    drawing.append(svg("line", { x1: x(value.low), x2: x(value.high), y1: 8, y2: 8, class: `range ${kind}` }), svg("circle", { cx: x(value.mean), cy: 8, r: 4, class: kind }));
  }
  return drawing;
}

function swatched(variant, text) {
  return h("span", { class: "swatched" }, h("i", { class: `swatch ${dash(variant)}`, style: `--colour:${colour(variant)}` }), visible(text));
}

/** Returns the legend of all charts: one button per variant, which hides and shows its curves. */
function legend(variants) {
  return h("div", { class: "legend", role: "group", "aria-label": "Runs shown in the charts" }, variants.map((variant) => {
    const button = h("button", { "aria-pressed": !hidden.has(variant) ? "true" : "false", click: () => {
      hidden[hidden.has(variant) ? "delete" : "add"](variant);
      for (const other of document.querySelectorAll(".legend button")) if (other.dataset.variant === variant) other.setAttribute("aria-pressed", String(!hidden.has(variant)));
      redraw();
    } }, swatched(variant, variant));
    button.dataset.variant = variant;
    return button;
  }));
}

function curveChart(metric, label) {
  return chart(label, () => ({
    traces: report.runs.filter((run) => run.curves[metric] && !hidden.has(run.variant)).map((run) => {
      const curve = run.curves[metric];
      return {
        x: curve.steps, y: curve.values, name: plain(several ? run.name : label), type: "scatter", mode: curve.steps.length < 15 ? "lines+markers" : "lines",
        line: { color: colour(run.variant), dash: dash(run.variant), width: several ? 1.3 : 1.6 }, marker: { size: 6 }, cliponaxis: false, hovertemplate: "%{y:.4~g}",
      };
    }),
    layout: { xaxis: { title: { text: "step" }, hoverformat: "~g", rangemode: "tozero" }, yaxis: { rangemode: /share|accuracy/i.test(label) ? "tozero" : "normal" } },
  }));
}

/** Replaces the characters of markup: the plotting library interprets some markup in names. */
const plain = (text) => visible(text).replaceAll("<", "‹").replaceAll(">", "›").replaceAll("&", "＆");

function drawDynamics() {
  const section = $("dynamics");
  const names = [...new Set(report.runs.flatMap((run) => Object.keys(run.curves)))];
  if (!names.length) return section.append(note("No metrics in the folder: no curves."));
  const judged = names.filter((name) => name.startsWith("judge/")).sort().map((name) => [name, `Judge: ${name.slice("judge/".length)}`]);
  const panels = [...PANELS.slice(0, 2), ...judged, ...PANELS.slice(2)].filter(([name]) => names.includes(name));
  const others = names.filter((name) => !panels.some(([shown]) => shown === name)).sort();
  const units = several ? " The unit of a reward depends on the method's scheme." : "";
  section.append(lead(`Each point is one step, or the mean of several steps if a run has more than 500. Hover for values.${units}`));
  if (several) section.append(legend(VARIANTS));
  section.append(h("div", { class: "panels" }, panels.map(([name, label]) => curveChart(name, label))));
  if (!others.length) return undefined;
  const container = h("div", { class: "panels" });
  const choice = options(h("select", { change: () => show(choice.value) }), others.map((name) => [name, name]), others[0]);
  const show = (name) => {
    for (const plot of container.querySelectorAll(".plot")) charts.delete(plot);
    container.replaceChildren(curveChart(name, name));
    if (window.Plotly) drawCharts();
  };
  show(others[0]);
  section.append(h("label", { class: "field" }, "Any other metric ", choice), container);
  return undefined;
}

function drawConfidence() {
  const section = $("confidence");
  if (!report.confidence) return section.append(note(report.confidence_missing));
  const { baseline, bins } = report.confidence;
  const names = Object.keys(bins);
  const middle = (bin) => (bin.low + bin.high) / 2;
  section.append(lead("Left: how uncertain the baseline, ", h("b", {}, visible(baseline)), ", is about the tokens of the reference answers. Right: their probability relative to the baseline; above 1 the model is more certain of the reference. Bands hold 95 % of bootstrap resamples of the questions; they say nothing about further seeds."));
  if (names.length > 1) section.append(legend(names));
  const [first] = Object.values(bins);
  section.append(h("div", { class: "panels two" },
    chart("Answer tokens by their entropy under the baseline", () => ({
      traces: [{ x: first.map(middle), y: first.map((bin) => bin.tokens), width: first.map((bin) => bin.high - bin.low), type: "bar", marker: { color: css("--bar"), line: { color: css("--paper"), width: 1 } }, hovertemplate: "%{y:,} tokens<extra></extra>" }],
      layout: { height: 280, xaxis: { title: { text: "entropy, nats" }, hoverformat: ".2f" }, yaxis: { type: "log", title: { text: "tokens" }, dtick: 1 } },
    })),
    chart("P / P(baseline)", () => ({
      traces: names.filter((name) => !hidden.has(name)).flatMap((name) => {
        const x = bins[name].map(middle), ratios = bins[name].map((bin) => bin.ratio);
        return [
          { x: [...x, ...[...x].reverse()], y: [...ratios.map((r) => r.high), ...ratios.map((r) => r.low).reverse()], fill: "toself", fillcolor: `${colour(name)}26`, line: { width: 0 }, hoverinfo: "skip", type: "scatter", mode: "lines" },
          { x, y: ratios.map((r) => r.mean), customdata: ratios.map((r) => [r.low, r.high]), name: plain(name), type: "scatter", mode: "lines+markers", line: { color: colour(name), dash: dash(name), width: 1.6 }, marker: { size: 6 }, hovertemplate: "%{y:.3~g} [%{customdata[0]:.3~g}, %{customdata[1]:.3~g}]" },
        ];
      }),
      layout: { height: 280, xaxis: { title: { text: "entropy under the baseline, nats" }, hoverformat: ".2f" }, yaxis: { rangemode: "tozero" }, shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: css("--soft"), width: 1, dash: "dot" } }] },
    }))));
  return undefined;
}

function drawVocabulary() {
  const section = $("vocabulary");
  const runs = report.runs.filter((run) => run.vocabulary);
  if (!runs.length) return section.append(note("No traces in the folder: no vocabulary."));
  const container = h("div", {});
  const show = (run) => container.replaceChildren(...wordsOf(run));
  section.append(lead("Words of traces against words of the reference answers: log-odds with an informative Dirichlet prior, ordered by z-score."));
  if (runs.length > 1) {
    const choice = options(h("select", { change: () => show(runs[choice.value]) }), runs.map((run, i) => [i, visible(run.name)]), 0);
    section.append(h("label", { class: "field" }, "Run ", choice));
  }
  section.append(container);
  show(runs[0]);
  return undefined;
}

function wordsOf(run) {
  const vocabulary = run.vocabulary;
  if (!vocabulary.risen.length && !vocabulary.fallen.length) return [note("Traces or answers have no words to compare.")];
  const most = Math.max(...[...vocabulary.risen, ...vocabulary.fallen].map((word) => Math.abs(word.z)));
  const list = (title, words) => h("div", {}, h("h3", {}, title), table(["word", "", "z", "in traces", "in answers"], words.map((word) => [
    h("bdi", {}, visible(word.word)), h("span", { class: `bar ${word.z > 0 ? "up" : "down"}`, style: `width:${(90 * Math.abs(word.z)) / most}px` }),
    signed(word.z, 1), word.in_traces.toLocaleString("en"), word.in_answers.toLocaleString("en")]), "words"));
  const side = (word) => {
    if (word.z > 1.96) return "up";
    return word.z < -1.96 ? "down" : "";
  };
  const cloud = (title, words, count) => {
    const top = Math.max(1, ...words.map(count));
    return h("figure", { class: "cloud" }, h("figcaption", {}, title), h("p", {}, words.slice().sort((a, b) => a.word.localeCompare(b.word)).map((word) =>
      [h("bdi", { class: side(word), style: `font-size:${(0.8 + 1.7 * Math.sqrt(count(word) / top)).toFixed(2)}rem`, title: `${count(word).toLocaleString("en")} times` }, visible(word.word)), " "]).flat()));
  };
  return [
    h("div", { class: "two" }, list("Likelier in traces", vocabulary.risen), list("Likelier in answers", vocabulary.fallen)),
    h("div", { class: "two" },
      cloud(`Traces, ${vocabulary.trace_words.toLocaleString("en")} words`, vocabulary.trace_cloud, (word) => word.in_traces),
      cloud(`Reference answers, ${vocabulary.answer_words.toLocaleString("en")} words`, vocabulary.answer_cloud, (word) => word.in_answers)),
    note(`Traces and answers are those of ${several ? `${visible(run.name)}: ` : ""}${run.vocabulary_of}. Size: frequency of the word. Colour: words that differ at |z| > 1.96, blue in traces, orange in answers.`),
  ];
}

function drawComparison() {
  const section = $("comparison"), compared = report.compared;
  if (!compared) return section.append(note(report.compared_missing));
  const families = [...new Set(compared.rows.map((row) => row.family))], names = [...new Set(compared.rows.map((row) => row.variant))];
  const cells = (name, value) => families.map((family) => value(compared.rows.find((row) => row.variant === name && row.family === family)));
  const measure = compared.measure === "correct" ? "Accuracy" : "Log-probability of the reference, nats per token";
  const seeds = (name) => Object.keys(compared.rows.find((row) => row.variant === name).by_seed).length;
  section.append(
    h("h3", {}, `${measure}, last held-out evaluation`),
    table(["", "seeds", ...families], names.map((name) => [swatched(name, name), String(seeds(name)), ...cells(name, (row) => interval(row.interval))]), "scores"),
    h("h3", {}, "Difference from ", visible(compared.baseline)),
    table(["", ...families], names.filter((name) => name !== compared.baseline).map((name) => [swatched(name, name), ...cells(name, (row) => change(row.difference))]), "scores"),
    note("Means over seeds with 95 % intervals over seeds and questions. Differences are paired by seed and question."));
  return undefined;
}
