"use strict";
// Charts are drawn when they come near the screen, and after the plotting library has run.

const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f6b4a", "#7a7a7a"]; // Okabe and Ito's colours, for colour-blind readers
const DASHES = ["solid", "dash", "dot", "dashdot"];
const VARIANTS = [...new Set(report.runs.map((run) => run.variant))];
const hidden = new Set(); // variants that the reader has hidden

const colour = (variant) => PALETTE[VARIANTS.indexOf(variant) % PALETTE.length];
const dash = (variant) => DASHES[Math.floor(VARIANTS.indexOf(variant) / PALETTE.length) % DASHES.length];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const charts = new Map(); // element → () => {traces, layout}
const screenObserver = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)), { rootMargin: "400px" });

/** Returns a figure with a title. `make` returns plotly's {traces, layout} at drawing time. */
function chart(title, make) {
  const plot = h("div", { class: "plot" });
  charts.set(plot, make);
  return h("figure", {}, h("figcaption", {}, title), plot);
}

/** Runs the plotting library, which the page embeds as text, and starts drawing. */
function loadPlotly() {
  if (!window.Plotly) document.head.append(h("script", {}, $("plotly").textContent));
  drawCharts();
}

function drawCharts() {
  for (const plot of charts.keys()) screenObserver.observe(plot);
}

function draw(plot) {
  screenObserver.unobserve(plot);
  const { traces, layout } = charts.get(plot)();
  const fullLayout = { ...withStyle(layout), hovermode: traces.length > 12 ? "closest" : "x unified" };
  plot.style.height = `${fullLayout.height}px`; // otherwise the library shrinks the element when the window is resized
  Plotly.react(plot, traces, fullLayout, { displayModeBar: false, responsive: true });
}

function redraw() {
  for (const plot of charts.keys()) if (plot.classList.contains("js-plotly-plot")) draw(plot);
}

/** Returns the layout with the page's fonts, colours and margins. */
function withStyle(layout) {
  const axis = { gridcolor: css("--rule"), zerolinecolor: css("--rule"), linecolor: css("--rule"), layer: "below traces", tickfont: { size: 11 }, automargin: true, title: { font: { size: 12 } } };
  const merged = (options) => ({ ...axis, ...options, title: { ...axis.title, ...(options?.title ?? {}) } });
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: css("--sans"), size: 12, color: css("--soft") },
    margin: { l: 44, r: 12, t: 6, b: 38 }, showlegend: false, dragmode: false, height: innerWidth < 640 ? 165 : 210,
    hoverlabel: { bgcolor: css("--paper"), bordercolor: css("--rule"), font: { family: css("--sans"), size: 12, color: css("--ink") } },
    ...layout, xaxis: { ...merged(layout.xaxis), fixedrange: true }, yaxis: { ...merged(layout.yaxis), fixedrange: true },
  };
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => { loadPlotly(); for (const plot of charts.keys()) draw(plot); });
