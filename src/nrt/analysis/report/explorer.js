"use strict";
// The trace explorer: one group at a time, its K traces ranked by reward under a scheme that the
// reader chooses.

const TRAINED = "trained"; // the choice that means the rewards that the run stored
const SHOWN_TRACES = 8, SHOWN_TOKENS = 400;

const withGroups = report.runs.map((run, i) => i).filter((i) => report.runs[i].groups.length);
const state = { run: withGroups[0], group: 0, scheme: TRAINED, source: "", null: "", end: "", query: "", ...fromHash() };
let listed = []; // indices of the groups that pass the filters

/** Returns the reader's choices that the page's address holds. */
function fromHash() {
  if (!location.hash.includes("=")) return {};
  const values = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  for (const name of ["run", "group"]) if (name in values) values[name] = Number(values[name]);
  if (!withGroups.includes(values.run)) delete values.run;
  if (values.scheme !== TRAINED && !SCHEMES.some((scheme) => scheme.id === values.scheme)) delete values.scheme;
  return values;
}

const run = () => report.runs[state.run];
const nats = (values) => values.map((value) => (value === null ? -Infinity : value / 1e5));

const scoreCache = new Map(); // "run/group/scheme" → scores, which every filter and ranking needs

/**
 * Returns {weights, rewards, baseReward, advantages, scheme} of a group of the current run under
 * the scheme `id`. `scheme` is null if the run's reward is none of SCHEMES.
 */
function scoresOf(groupIndex, id) {
  const key = `${state.run}/${groupIndex}/${id}`;
  if (!scoreCache.has(key)) scoreCache.set(key, computeScores(run().groups[groupIndex], id));
  return scoreCache.get(key);
}

function computeScores(group, id) {
  const schemeId = id === TRAINED ? run().scheme : id;
  const scheme = SCHEMES.find((candidate) => candidate.id === schemeId) ?? null;
  const base = nats(group.base);
  if (id !== TRAINED) return { scheme, ...scoreGroup(scheme, group.traces.map((trace) => nats(trace.logp)), base, run().weight_norm) };
  return {
    scheme, weights: group.weights ?? (scheme ? weightsOf(scheme, base, run().weight_norm) : null), baseReward: group.base_reward ?? NaN,
    rewards: group.traces.map((trace) => trace.reward ?? NaN), advantages: group.traces.map((trace) => trace.advantage ?? NaN),
  };
}

/** Returns true if a trace passes the filters on traces. */
function passes(groupIndex, k) {
  const scores = scoresOf(groupIndex, state.scheme), trace = run().groups[groupIndex].traces[k];
  const beats = scores.rewards[k] > scores.baseReward;
  return (!state.null || beats === (state.null === "beats")) && (!state.end || trace.finished === (state.end === "finished"));
}

function filteredGroups() {
  const query = state.query.toLowerCase();
  const holds = (text) => text.toLowerCase().includes(query);
  return run().groups.map((_, i) => i).filter((i) => {
    const group = run().groups[i];
    if (state.source && group.source !== state.source) return false;
    if (query && !holds(group.prompt) && !holds(group.answer) && !group.traces.some((trace) => holds(trace.text))) return false;
    return !(state.null || state.end) || group.traces.some((_, k) => passes(i, k));
  });
}

// Controls.

function drawExplorer() {
  const section = $("explorer");
  if (!withGroups.length) return section.append(note("No groups of sampled traces in the folder: nothing to explore. log_traces sets how many are written per step."));
  const groupCounts = [...new Set(withGroups.map((i) => report.runs[i]).map((run) => `${run.groups.length.toLocaleString("en")} of ${run.groups_in_folder.toLocaleString("en")}`))];
  section.append(
    lead("The K traces of a prompt, ranked by reward. Another scheme ranks the same traces by the log-probabilities that the run stored. Each token of the reference answer is shaded by the trace's effect on its probability against the null trace."),
    h("div", { class: "controls" }, controls()),
    h("div", { class: "schemes", role: "group", "aria-label": "Reward scheme", id: "schemes" }),
    h("div", { class: "pager" },
      h("button", { click: () => moveGroup(-1), "aria-label": "Previous group", title: "k" }, "◀"),
      h("select", { id: "groups", "aria-label": "Step and prompt", change: (event) => showGroup(Number(event.target.value)) }),
      h("button", { click: () => moveGroup(1), "aria-label": "Next group", title: "j" }, "▶"),
      h("input", { id: "slider", type: "range", min: 0, "aria-label": "Position among the groups", input: (event) => showGroup(listed[event.target.value]) }),
      h("span", { id: "place", class: "faint" })),
    h("p", { id: "chosen", class: "note on-paper" }),
    h("div", { id: "group", "aria-live": "polite" }),
    note(`Keys: j and k go to the next and the previous group, 0 to ${SCHEMES.length} choose the scheme, / searches, ← and → move along a row of tokens. This page holds ${groupCounts.join(" or ")} groups of ${withGroups.length > 1 ? "each run's " : ""}traces.jsonl, evenly spaced, always with the first and the last.`));
  refresh();
  return undefined;
}

function controls() {
  const select = (name, entries) => options(h("select", { change: (event) => setState({ [name]: event.target.value }) }), entries, state[name]);
  const runs = h("select", { id: "run", change: (event) => setState({ run: Number(event.target.value), group: 0, source: "" }) });
  options(runs, withGroups.map((i) => [i, visible(report.runs[i].name)]), state.run);
  return [
    withGroups.length > 1 ? h("label", {}, "Run ", runs) : null,
    h("label", {}, "Source ", h("select", { id: "source", change: (event) => setState({ source: event.target.value }) })),
    h("label", {}, "Null trace ", select("null", [["", "all traces"], ["beats", "traces that beat it"], ["loses", "traces that do not"]])),
    h("label", {}, "End ", select("end", [["", "all traces"], ["finished", "finished"], ["unfinished", "unfinished"]])),
    h("label", { class: "grow" }, "Search ", h("input", { id: "search", type: "search", placeholder: "prompt, answer or trace", value: state.query, input: (event) => setState({ query: event.target.value }) })),
  ];
}

function setState(change) {
  Object.assign(state, change);
  refresh();
}

function showGroup(groupIndex) {
  if (groupIndex !== undefined) setState({ group: groupIndex });
}

function moveGroup(by) {
  const position = listed.indexOf(state.group);
  showGroup(listed[Math.max(0, Math.min(listed.length - 1, position + by))]);
}

function refresh() {
  listed = filteredGroups();
  if (!listed.includes(state.group)) state.group = listed.find((i) => i >= state.group) ?? listed.at(-1) ?? 0;
  const sources = [...new Set(run().groups.map((group) => group.source))].filter(Boolean).sort();
  options($("source"), [["", "all"], ...sources.map((source) => [source, visible(source)])], state.source);
  options($("groups"), listed.map((i) => [i, groupLabel(run().groups[i])]), state.group);
  $("slider").max = Math.max(0, listed.length - 1);
  $("slider").value = listed.indexOf(state.group);
  $("place").textContent = listed.length ? `${listed.indexOf(state.group) + 1} of ${listed.length}` : "none";
  drawSchemes();
  $("group").replaceChildren(...(listed.length ? groupView(state.group) : [note("No group passes these filters.")]));
  hideTooltip();
  const choices = Object.fromEntries(Object.entries(state).filter(([, value]) => value !== "" && value !== undefined));
  if (touched) history.replaceState(null, "", `#${new URLSearchParams(choices)}`);
}

const groupLabel = (group) => visible(`step ${group.step} · ${group.source ? `${group.source} · ` : ""}${group.id}`);

function drawSchemes() {
  const trainedScheme = SCHEMES.find((scheme) => scheme.id === run().scheme);
  const entries = [{ id: TRAINED, label: trainedScheme ? `as trained (${trainedScheme.label})` : `as trained (${run().method})`, formula: "the rewards that the run stored" }, ...SCHEMES];
  $("chosen").textContent = `Ranked ${state.scheme === TRAINED ? "" : "by "}${entries.find((scheme) => scheme.id === state.scheme).label}.`;
  $("schemes").replaceChildren(...entries.map((scheme, i) => {
    const button = h("button", { "aria-pressed": String(scheme.id === state.scheme), title: scheme.formula, click: () => setState({ scheme: scheme.id }) }, h("kbd", {}, String(i)), scheme.label);
    button.dataset.scheme = scheme.id;
    return button;
  }));
}

// One group.

function groupView(groupIndex) {
  const group = run().groups[groupIndex], scores = scoresOf(groupIndex, state.scheme);
  const order = ranking(scores.rewards).filter((k) => passes(groupIndex, k));
  const ranks = new Map([TRAINED, ...SCHEMES.map((scheme) => scheme.id)].map((id) => {
    const rankOf = [];
    ranking(scoresOf(groupIndex, id).rewards).forEach((k, rank) => (rankOf[k] = rank + 1));
    return [id, rankOf];
  }));
  const finite = [scores.baseReward, ...scores.rewards].filter(Number.isFinite);
  const range = { low: Math.min(...finite), high: Math.max(...finite) };
  const card = (k) => traceCard(group, scores, k, ranks, range);
  const cards = h("div", { class: "traces" }, order.slice(0, SHOWN_TRACES).map(card));
  if (order.length > SHOWN_TRACES) {
    const showAll = h("button", { class: "more wide", click: () => showAll.replaceWith(...order.slice(SHOWN_TRACES).map(card)) }, `show all ${order.length} traces`);
    cards.append(showAll);
  }
  return [
    h("div", { class: "question" },
      h("div", {}, h("h4", {}, "Prompt ", h("span", { class: "faint on-paper" }, visible(withGroups.length > 1 ? `${run().name} · ` : ""), groupLabel(group))), prose(group.prompt)),
      h("div", {}, h("h4", {}, `Reference answer after the null trace `, h("span", { class: "faint" }, `R_base ${number(scores.baseReward)}; shaded: less likely`)),
        tokensRow(group, (i) => surpriseShade(nats(group.base)[i]), (i) => nullLines(group, scores, i)))),
    colourScale(), cards,
  ];
}

function traceCard(group, scores, k, ranks, range) {
  const trace = group.traces[k], logp = nats(trace.logp), base = nats(group.base), R = scores.rewards[k];
  const beats = R > scores.baseReward;
  const article = h("article", { class: "trace" },
    h("header", {},
      h("span", { class: "rank" }, String(ranks.get(state.scheme)[k])),
      rewardBar(R, scores.baseReward, range),
      h("span", {}, "R ", h("b", {}, number(R))), h("span", {}, "A ", h("b", {}, Number.isFinite(scores.advantages[k]) ? signed(scores.advantages[k], 2) : "–")),
      h("span", { class: `flag ${beats ? "good" : "bad"}` }, beats ? "beats the null trace" : "does not beat the null trace"),
      trace.finished ? null : h("span", { class: "flag" }, "unfinished")),
    traceText(trace),
    tokensRow(group, (i) => effectShade(logp[i] - base[i]), (i) => tokenLines(group, scores, k, i)),
    h("p", { class: "ranks" }, "rank by ", SCHEMES.flatMap((scheme) => [h("span", { class: scheme.id === state.scheme ? "chosen" : "" }, `${scheme.label} `, h("b", {}, String(ranks.get(scheme.id)[k]))), " "])));
  article.dataset.trace = k;
  return article;
}

/** Returns a bar from the group's lowest to its highest reward, with a tick at the null trace. */
function rewardBar(R, baseReward, range) {
  const position = (value) => (range.high > range.low && Number.isFinite(value) ? (100 * (value - range.low)) / (range.high - range.low) : 0);
  return h("span", { class: "reward", title: "reward; the tick is the null trace" },
    h("i", { style: `width:${position(R).toFixed(1)}%` }), h("s", { style: `left:${position(baseReward).toFixed(1)}%` }));
}

/**
 * Returns the trace's words shaded by entropy if its words are its tokens; otherwise the text with
 * a strip of entropies below it.
 */
function traceText(trace) {
  const words = trace.text.split(" "), entropy = trace.entropy.map((value) => (value === null ? NaN : value / 1e3));
  if (entropy.length && words.length === entropy.length && words.length <= SHOWN_TOKENS) {
    const row = h("div", { class: "tokens text", dir: "auto", "aria-label": "Trace" }, words.map((word, i) => tokenElement(word, { kind: "entropy", alpha: 0.45 * Math.tanh(entropy[i] / 2) })));
    return withTooltips(row, (i) => [["token", visible(words[i])], ["entropy", `${number(entropy[i], 3)} nats`]]);
  }
  return h("div", {}, prose(trace.text), entropy.length > 1 ? entropyStrip(entropy) : null);
}

function entropyStrip(entropy) {
  const top = Math.max(1e-3, ...entropy.filter(Number.isFinite)), n = entropy.length;
  const path = entropy.map((value, i) => `${i ? "L" : "M"}${((400 * i) / (n - 1)).toFixed(1)} ${(22 - (20 * (value || 0)) / top).toFixed(1)}`).join("");
  return h("div", { class: "strip", title: `entropy of the trace's ${n.toLocaleString("en")} tokens, from 0 to ${number(top, 3)} nats` },
    svg("svg", { viewBox: "0 0 400 24", preserveAspectRatio: "none" }, svg("path", { d: path })));
}

// Tokens of the reference answer.

const effectShade = (delta) => (Number.isNaN(delta) ? null : { kind: delta >= 0 ? "up" : "down", alpha: 0.75 * Math.tanh(Math.abs(delta) / 2) });
const surpriseShade = (logp) => ({ kind: "entropy", alpha: 0.65 * Math.tanh(-logp / 2) });

function tokenElement(text, shade) {
  const shown = visible(text).replaceAll("\n", "↵").replaceAll("\t", "⇥");
  const style = shade && shade.alpha > 0.01 ? `background:rgb(var(--${shade.kind}) / ${shade.alpha.toFixed(3)})` : null;
  return h("span", { class: "token", style }, h("bdi", {}, shown.trim() ? shown : "␣"));
}

/** Returns the reference answer: token i has the shade `shade(i)` and the tooltip `describe(i)`. */
function tokensRow(group, shade, describe) {
  const row = h("div", { class: "tokens", "aria-label": "Reference answer" });
  const add = (from, to) => row.append(...group.tokens.slice(from, to).flatMap((token, i) => {
    const element = tokenElement(token, shade(from + i));
    return token.includes("\n") ? [element, h("br")] : [element];
  }));
  add(0, SHOWN_TOKENS);
  if (group.tokens.length > SHOWN_TOKENS) {
    const showAll = h("button", { class: "more", click: () => { showAll.remove(); add(SHOWN_TOKENS); } }, `show all ${group.tokens.length.toLocaleString("en")} tokens`);
    row.append(showAll);
  }
  return withTooltips(row, describe);
}

function tokenLines(group, scores, k, i) {
  const logp = nats(group.traces[k].logp)[i], base = nats(group.base)[i], c = Math.exp(logp);
  const weight = scores.weights ? scores.weights[i] : null;
  return [
    ["token", visible(group.tokens[i])],
    effectLine(logp - base),
    ["c, after this trace", number(c)], ["c_base, after the null trace", number(Math.exp(base))],
    ...(weight === null ? [] : [["weight w", number(weight)]]),
    ...(scores.scheme ? [["signal ∂R/∂log c", number(scores.scheme.signal(c, weight, scores.rewards[k], group.tokens.length))]] : []),
  ];
}

const effectLine = (delta) => ["log c − log c_base", Number.isFinite(delta) ? signed(delta, 3) : "–"];

function nullLines(group, scores, i) {
  const base = nats(group.base)[i];
  return [["token", visible(group.tokens[i])], ["c_base", number(Math.exp(base))], ["log c_base", `${number(base)} nats`], ...(scores.weights ? [["weight w", number(scores.weights[i])]] : [])];
}

function colourScale() {
  const swatch = (delta) => h("i", { style: `background:rgb(var(--${delta < 0 ? "down" : "up"}) / ${effectShade(delta).alpha.toFixed(3)})` });
  return h("p", { class: "scale" }, "less likely than after the null trace ", h("span", {}, [-4, -2, -1, -0.3, 0, 0.3, 1, 2, 4].map(swatch)), " likelier", h("small", {}, " log c − log c_base from −4 to 4 nats"));
}
