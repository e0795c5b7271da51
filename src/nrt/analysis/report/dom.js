"use strict";
// Building blocks. Text of runs enters the page only through text nodes: the browser shows markup
// in it and never interprets it.

const report = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

/**
 * Returns an element. Attributes that are functions become listeners; null and false are left out.
 * Children that are strings become text.
 */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";
function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Shows invisible characters: control characters as symbols, direction overrides by code. */
function visible(text) {
  return text
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (char) => String.fromCharCode(0x2400 + char.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (char) => `⟨U+${char.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

const CLIPPED = 1500;

/** Returns a block of a run's text in its own direction; a button expands a long one. */
function prose(text, kind = "") {
  const shown = visible(text);
  const block = h("div", { class: `prose ${kind}`, dir: "auto" });
  const show = (clipped) => {
    block.textContent = clipped ? shown.slice(0, CLIPPED) : shown;
    if (clipped) block.append(" … ", h("button", { class: "more", click: () => show(false) }, `show all ${shown.length.toLocaleString("en")} characters`));
    if (!shown) block.append(h("span", { class: "faint" }, "empty"));
  };
  show(shown.length > CLIPPED + 200);
  return block;
}

const MINUS = "−";
/** Formats a number with its sign, unless it rounds to zero. */
function signed(value, digits) {
  const size = Math.abs(value).toFixed(digits);
  if (Number(size) === 0) return size;
  return (value < 0 ? MINUS : "+") + size;
}

/** Formats a number with about four significant digits and a real minus sign; – for none. */
function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value < 0 ? `${MINUS}∞` : "∞";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(2).replaceAll("-", MINUS);
  return value.toLocaleString("en", { maximumSignificantDigits: digits }).replace("-", MINUS);
}

function table(head, rows, kind = "") {
  const cell = (tag) => (content, i) => h(tag, { class: i ? "" : "first", scope: tag === "th" ? "col" : null }, content);
  return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "table" },
    h("table", { class: kind }, h("thead", {}, h("tr", {}, head.map(cell("th")))), h("tbody", {}, rows.map((row) => h("tr", {}, row.map(cell("td")))))));
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, label]) => h("option", { value, selected: String(value) === String(chosen) }, label)));
  return select;
}

const note = (text) => h("p", { class: "note" }, text);
const lead = (...content) => h("p", { class: "lead" }, ...content);

// One tooltip for all tokens. A row of tokens is one stop of the Tab key; arrow keys move along it.
const tooltip = $("tooltip");

function showTooltip(token, lines) {
  tooltip.replaceChildren(...lines.map(([label, value]) => h("div", {}, h("span", {}, label), h("b", {}, value))));
  tooltip.hidden = false;
  const at = token.getBoundingClientRect(), box = tooltip.getBoundingClientRect();
  const above = at.top - box.height - 8;
  tooltip.style.left = `${Math.max(8, Math.min(at.left, document.documentElement.clientWidth - box.width - 8)) + window.scrollX}px`;
  tooltip.style.top = `${(above > 4 ? above : at.bottom + 8) + window.scrollY}px`;
}

function hideTooltip() {
  tooltip.hidden = true;
  document.querySelector(".token.current")?.classList.remove("current");
}

/**
 * Adds tooltips for pointer and keyboard to a row of `.token` elements. `describe(i)` returns the
 * tooltip's [label, value] lines.
 */
function withTooltips(row, describe) {
  const tokens = () => [...row.querySelectorAll(".token")];
  const point = (i) => {
    hideTooltip();
    const token = tokens()[i];
    if (!token) return;
    token.classList.add("current");
    showTooltip(token, describe(i));
  };
  const current = () => tokens().findIndex((token) => token.classList.contains("current"));
  row.tabIndex = 0;
  row.addEventListener("pointerover", (event) => event.target.closest(".token") && point(tokens().indexOf(event.target.closest(".token"))));
  row.addEventListener("pointerleave", hideTooltip);
  row.addEventListener("focus", () => row.matches(":focus-visible") && point(Math.max(0, current())));
  row.addEventListener("blur", hideTooltip);
  row.addEventListener("keydown", (event) => {
    const last = tokens().length - 1, at = current();
    const next = { ArrowRight: Math.min(last, at + 1), ArrowLeft: Math.max(0, at - 1), Home: 0, End: last }[event.key];
    if (next !== undefined) {
      event.preventDefault();
      point(next);
    } else if (event.key === "Escape") hideTooltip();
  });
  return row;
}
