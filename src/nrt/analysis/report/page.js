"use strict";
// The keyboard, the reload of a served page, and the order in which the sections are drawn.

let touched = false; // true once the reader has used the page: only then its address holds the choices
let lastUsed = -Infinity;

for (const kind of ["keydown", "pointerdown"]) addEventListener(kind, () => { touched = true; lastUsed = performance.now(); }, { capture: true });

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "[" || event.key === "]") return void (report.questions.length && moveQuestion(event.key === "[" ? -1 : 1));
  if (!withGroups.length) return;
  if (event.key === "j") moveGroup(1);
  else if (event.key === "k") moveGroup(-1);
  else if (event.key === "/") {
    event.preventDefault();
    $("search").focus();
  } else if (/^\d$/.test(event.key) && Number(event.key) <= SCHEMES.length) setState({ scheme: event.key === "0" ? TRAINED : SCHEMES[event.key - 1].id });
});

/**
 * Polls the server every few seconds, with the token of the page's own address if there is one, and
 * reloads the page if a file of the run has changed and the reader is idle.
 */
function follow(version) {
  setInterval(async () => {
    try {
      const latest = await (await fetch(`/version${location.search}`)).json();
      if (latest.version !== version && performance.now() - lastUsed > 8000) location.reload();
    } catch { /* the server has stopped; the page stays unchanged */ }
  }, 3000);
}

drawMasthead();
drawSummary();
drawDynamics();
drawConfidence();
drawVocabulary();
drawExplorer();
drawHeldout();
drawBenchmarks();
drawComparison();
if (document.body.dataset.live) follow(document.body.dataset.live);
