"use strict";
// The keyboard, how a page that a server gave learns of a newer one, and the order in which the sections are drawn.

let touched = false; // whether the reader has used the page: only then its address tells what is shown
let lastUsed = -Infinity;

for (const kind of ["keydown", "pointerdown"]) addEventListener(kind, () => { touched = true; lastUsed = performance.now(); }, { capture: true });

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "[" || event.key === "]") return void (report.questions.length && turn(event.key === "[" ? -1 : 1));
  if (!withGroups.length) return;
  if (event.key === "j") move(1);
  else if (event.key === "k") move(-1);
  else if (event.key === "/") {
    event.preventDefault();
    $("search").focus();
  } else if (/^\d$/.test(event.key) && Number(event.key) <= SCHEMES.length) set({ scheme: event.key === "0" ? TRAINED : SCHEMES[event.key - 1].id });
});

/** Asks the server every few seconds, with the token that stands in the page's own address if there is one, and reloads when a file of the run has changed and the reader is not at work. */
function follow(version) {
  setInterval(async () => {
    try {
      const latest = await (await fetch(`/version${location.search}`)).json();
      if (latest.version !== version && performance.now() - lastUsed > 8000) location.reload();
    } catch { /* the server has gone; the page stays as it is */ }
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
