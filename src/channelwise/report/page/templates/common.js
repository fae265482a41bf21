"use strict";
// What both pages share: their data, charts that follow the colour scheme, tables that sort.
const data = JSON.parse(document.getElementById("data").textContent);
const charts = new Map();
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function seriesColour(index) {
  return colour(`c${(index % 8) + 1}`);
}

function isNarrow() {
  return window.innerWidth < 640;
}

function significant(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const extreme = value !== 0 && (Math.abs(value) < 1e-4 || Math.abs(value) >= 1e6);
  const text = extreme ? value.toExponential(1) : Number(value.toPrecision(digits)).toLocaleString("en-US", { maximumSignificantDigits: digits });
  return text.replace("-", "−");
}

function percent(value) {
  return value === null || value === undefined ? "–" : `${significant(100 * value, 2)} %`;
}

function escaped(text) {
  const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
  return String(text).replace(/[&<>]/g, (character) => entities[character]);
}

// An axis in the page's colours.
function axis(options) {
  return {
    gridcolor: colour("grid"), linecolor: colour("line"), zerolinecolor: colour("line"), tickcolor: colour("line"),
    automargin: true, ...options,
    ...(options.title ? { title: { font: { size: isNarrow() ? 11 : 12, color: colour("quiet") }, ...options.title } } : {}),
  };
}

// Ticks of a logarithmic axis at 1, 2, 5 of each decade, or whole decades where there are many, as people write them.
function logTicks(low, high, show) {
  const decades = Math.log10(high / low);
  const values = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    const every = decades > 8 ? 3 : decades > 4 ? 2 : 1;
    if (decades > 2.5 && power % every !== 0) continue;
    for (const digit of decades > 2.5 ? [1] : decades > 1 ? [1, 3] : [1, 2, 5]) values.push(digit * 10 ** power);
  }
  const seen = values.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  return { tickvals: seen, ticktext: seen.map(show), tickmode: "array" };
}

// draw() gives {traces, layout}; it is called again when colours or the width change.
function chart(id, draw) {
  const element = document.getElementById(id);
  if (!element) return;
  const update = () => {
    const { traces, layout, height } = draw(element.clientWidth);
    if (height) element.style.height = `${height}px`;
    const touch = window.matchMedia("(pointer: coarse)").matches;
    Plotly.react(element, traces, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: touch ? false : "zoom",
      font: { family: getComputedStyle(document.body).fontFamily, size: isNarrow() ? 11 : 13, color: colour("text") },
      hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"), font: { color: colour("text") }, align: "left" },
      margin: { l: 60, r: 16, t: 12, b: 44 }, width: element.clientWidth, height: element.clientHeight, ...layout,
    }, { responsive: false, displayModeBar: false, displaylogo: false });
  };
  charts.set(id, update);
  update();
  return element;
}

function redraw(...ids) {
  for (const id of ids.length ? ids : charts.keys()) charts.get(id)?.();
}

let width = window.innerWidth;
let waiting = 0;
window.addEventListener("resize", () => {
  if (window.innerWidth === width) return;
  width = window.innerWidth;
  window.clearTimeout(waiting);
  waiting = window.setTimeout(() => redraw(), 120);
});
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());

// Paper is light, and as wide as the text of an A4 page.
const PAPER_WIDTH = 640;
function onPaper(isPrinting) {
  document.documentElement.classList.toggle("on-paper", isPrinting);
  for (const id of charts.keys()) document.getElementById(id).style.width = isPrinting ? `${PAPER_WIDTH}px` : "";
  redraw();
}
window.addEventListener("beforeprint", () => onPaper(true));
window.addEventListener("afterprint", () => onPaper(false));

// The legend below a chart, where it takes no room from the plot.
function legendBelow() {
  return { orientation: "h", x: 0, xanchor: "left", y: -0.16, yanchor: "top", font: { size: isNarrow() ? 11 : 12 } };
}

// Axis ticks at the first layer of each block; layers: [{block}].
function blockTicks(layers, most) {
  const first = new Map();
  layers.forEach((layer, index) => { if (!first.has(layer.block)) first.set(layer.block, index); });
  const blocks = [...first.entries()];
  const step = Math.max(1, Math.ceil(blocks.length / most));
  const shown = blocks.filter((_, index) => index % step === 0);
  return { tickmode: "array", tickvals: shown.map(([, index]) => index), ticktext: shown.map(([block]) => String(block)) };
}

// Colours of a logarithmic heat map, with ticks that people read. Values that are not positive are left out; those
// beyond `most` look like it.
function logHeat(values, show, most = Infinity) {
  const known = values.flat().filter((value) => value > 0);
  if (!known.length) return { z: values.map((row) => row.map(() => null)), colorbar: {} };
  const low = Math.min(...known);
  const high = Math.max(low, Math.min(most, Math.max(...known)));
  const ticks = logTicks(low, high, show);
  if (ticks.tickvals.length < 2) Object.assign(ticks, { tickvals: [low, high], ticktext: [show(low), show(high)] });
  return {
    z: values.map((row) => row.map((value) => (value > 0 ? Math.log10(value) : null))),
    zmin: Math.log10(low), zmax: Math.log10(high > low ? high : low * 1.01),
    colorbar: { tickmode: "array", tickvals: ticks.tickvals.map(Math.log10), ticktext: ticks.ticktext,
      thickness: isNarrow() ? 8 : 14, outlinewidth: 0, xpad: 4, len: 1 },
  };
}

// Points along a line, close enough that no letter fits between them.
function alongLine(line) {
  return line.slice(1).flatMap((end, index) => {
    const start = line[index];
    const steps = Math.ceil(Math.hypot(end.x - start.x, end.y - start.y) / 6) || 1;
    return Array.from({ length: steps }, (_, step) => ({
      x: start.x + ((end.x - start.x) * step) / steps, y: start.y + ((end.y - start.y) * step) / steps,
    }));
  });
}

// Labels beside points, where they overlap neither points nor each other nor the frame; the first ones have precedence.
// points: [{x, y, text, colour}], lines: [[{x, y}]] that labels keep off too, in pixels of the plot.
function placedLabels(points, lines, size, letter) {
  const around = (room) => ({ x, y }) => ({ left: x - room, right: x + room, top: y - room, bottom: y + room });
  const taken = [...points.map(around(6)), ...lines.flatMap(alongLine).map(around(2))];
  const labels = [];
  for (const point of points) {
    if (!point.text) continue;
    const wide = point.text.length * letter;
    const places = [[10, 0], [-wide - 10, 0], [-wide / 2, -16], [-wide / 2, 16], [6, -16], [6, 16], [-wide - 6, -16], [-wide - 6, 16]];
    for (const [dx, dy] of places) {
      const box = { left: point.x + dx, right: point.x + dx + wide, top: point.y + dy - 8, bottom: point.y + dy + 8 };
      const inside = box.left >= 2 && box.right <= size.width - 2 && box.top >= 0 && box.bottom <= size.height;
      const free = taken.every((o) => box.right < o.left || box.left > o.right || box.bottom < o.top || box.top > o.bottom);
      if (!inside || !free) continue;
      taken.push(box);
      labels.push({ x: box.left, y: (box.top + box.bottom) / 2, text: point.text, colour: point.colour });
      break;
    }
  }
  return labels;
}

// Headings sort their table's last body by the cells' data-value, or text; what is missing stays at the end.
function sortBy(table, column, direction) {
  const headings = table.tHead.rows[0].cells;
  for (const heading of headings) heading.setAttribute("aria-sort", "none");
  headings[column].setAttribute("aria-sort", direction);
  const body = table.tBodies[table.tBodies.length - 1];
  const sign = direction === "ascending" ? 1 : -1;
  const key = (row) => {
    const cell = row.cells[column];
    const value = cell.dataset.value;
    if (value === undefined) return cell.textContent.trim();
    return value === "" ? null : Number(value);
  };
  const rows = [...body.rows].map((row) => [key(row), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number" && typeof b === "number") return sign * (a - b);
    return sign * String(a).localeCompare(String(b), "en", { numeric: true });
  });
  body.append(...rows.map(([, row]) => row));
}

document.addEventListener("click", (event) => {
  const heading = event.target.closest?.("th[aria-sort]");
  if (!heading) return;
  const now = heading.getAttribute("aria-sort");
  sortBy(heading.closest("table"), heading.cellIndex, now === "ascending" ? "descending" : "ascending");
});

// A cell made of text, never of markup.
function cell(tag, text, value) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (value !== undefined) {
    made.className = "number";
    made.dataset.value = value === null ? "" : value;
  }
  return made;
}

function heading(text, isNumber) {
  const made = document.createElement("th");
  made.scope = "col";
  made.setAttribute("aria-sort", "none");
  if (isNumber) made.className = "number";
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  made.append(button);
  return made;
}

function chosen(name) {
  return document.querySelector(`input[name="${name}"]:checked`)?.value;
}

function onChoice(name, act) {
  for (const input of document.querySelectorAll(`input[name="${name}"]`)) input.addEventListener("change", act);
}
