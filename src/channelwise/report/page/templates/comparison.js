"use strict";
const plot = data.plot;
const GROUP = { both: { index: 0, symbol: "circle" }, weights: { index: 1, symbol: "square" } };

// Where the readable part of the quality axis ends, and whether more is better.
function qualityRange(measure, values, everything) {
  const known = values.filter((value) => value !== null);
  const low = Math.min(measure.fp ?? 1, ...known);
  const high = Math.max(measure.fp ?? 1, ...known);
  if (measure.kind === "ratio") {
    const end = everything ? high : Math.min(high, 1 + measure.limit);
    const log = end / low > 10;
    const room = log ? (end / low) ** 0.06 : (end - low) * 0.07 || 0.01;
    return log ? { log, low: low / room, high: end * room } : { log, low: low - room, high: end + room };
  }
  const end = everything ? low : Math.max(low, measure.fp - measure.limit);
  const room = (high - end) * 0.07 || 0.01;
  return { log: false, low: end - room, high: high + room };
}

function sizeOf(recipe, key) {
  const value = recipe.sizes[key];
  return value === null || value === undefined ? null : key === "model_bytes" ? value / 1e6 : value;
}

function plotSizeAgainstQuality(width) {
  const key = document.getElementById("measure")?.value ?? Object.keys(plot.measures)[0];
  const size = chosen("size") ?? Object.keys(plot.sizes)[0];
  const measure = plot.measures[key];
  const shown = plot.recipes.filter((recipe) => recipe.values[key] !== null && sizeOf(recipe, size) !== null);
  const range = qualityRange(measure, shown.map((recipe) => recipe.values[key]), chosen("range") === "all");
  const clipped = (value) => Math.min(range.high, Math.max(range.low, value));
  const isBeyond = (value) => value > range.high || value < range.low;
  const show = (value) => (measure.kind === "ratio" ? `${significant(value, value < 10 ? 4 : 3)} × FP` : `${significant(100 * value, 3)} %`);
  const unit = size === "model_bytes" ? " MB" : " bits";
  const traces = [];
  for (const [group, style] of Object.entries(GROUP)) {
    const isFront = (recipe) => plot.fronts[key][size][group].includes(recipe.name);
    // The legend shows the first one's symbol.
    const own = shown.filter((recipe) => recipe.group === group).sort((a, b) => isFront(b) - isFront(a));
    if (!own.length) continue;
    const front = plot.fronts[key][size][group].map((name) => own.find((recipe) => recipe.name === name)).filter(Boolean);
    traces.push({
      type: "scatter", mode: "lines", x: front.map((r) => sizeOf(r, size)), y: front.map((r) => clipped(r.values[key])),
      line: { color: seriesColour(style.index), width: 1.5, dash: group === "both" ? "solid" : "dash" },
      hoverinfo: "skip", showlegend: false,
    });
    traces.push({
      type: "scatter", mode: "markers", name: plot.groups[group], x: own.map((r) => sizeOf(r, size)), y: own.map((r) => clipped(r.values[key])),
      marker: {
        color: seriesColour(style.index), size: own.map((r) => (front.includes(r) ? 11 : 8)), opacity: 1,
        symbol: own.map((r) => (isBeyond(r.values[key]) ? (r.values[key] > range.high ? "triangle-up-open" : "triangle-down-open") : front.includes(r) ? style.symbol : `${style.symbol}-open`)),
        line: { width: 1.5, color: seriesColour(style.index) },
      },
      text: own.map((r) => `<b>${escaped(r.name)}</b> ${r.widths}<br>${show(r.values[key])}<br>${significant(sizeOf(r, size), 4)}${unit}`),
      hovertemplate: "%{text}<extra></extra>", cliponaxis: false,
    });
  }
  const sizes = shown.map((recipe) => sizeOf(recipe, size));
  const widest = Math.max(...sizes);
  const narrowest = Math.min(...sizes);
  const roomX = (widest - narrowest) * 0.06 || 1;
  const frame = { l: isNarrow() ? 50 : 66, r: 16, t: 14, b: isNarrow() ? 88 : 80 };
  const height = isNarrow() ? 400 : 480;
  const inner = { width: width - frame.l - frame.r, height: height - frame.t - frame.b };
  const x = { low: narrowest - roomX, high: widest + roomX };
  const toY = (value) => {
    const share = range.log ? Math.log(value / range.low) / Math.log(range.high / range.low) : (value - range.low) / (range.high - range.low);
    return (1 - share) * inner.height;
  };
  const fronts = plot.fronts[key][size];
  const points = shown.map((recipe) => ({
    name: recipe.name,
    x: ((sizeOf(recipe, size) - x.low) / (x.high - x.low)) * inner.width, y: toY(clipped(recipe.values[key])),
    beyond: isBeyond(recipe.values[key]), front: fronts[recipe.group].includes(recipe.name),
    text: isBeyond(recipe.values[key]) ? `${recipe.name} ${measure.kind === "ratio" ? `${significant(recipe.values[key], 2)} ×` : show(recipe.values[key])}` : recipe.name,
    colour: seriesColour(GROUP[recipe.group].index),
  }));
  points.sort((a, b) => b.front - a.front || a.beyond - b.beyond);
  const place = new Map(points.map((point) => [point.name, point]));
  const lines = Object.values(fronts).map((names) => names.map((name) => place.get(name)).filter(Boolean));
  const level = measure.fp >= range.low && measure.fp <= range.high ? toY(measure.fp) : null;
  if (level !== null) lines.push([{ x: 0, y: level }, { x: inner.width, y: level }]);
  const labels = placedLabels(points, lines, inner, isNarrow() ? 5.9 : 7);
  const y = axis({
    title: { text: measure.label, standoff: 8 }, automargin: false, range: range.log ? [Math.log10(range.low), Math.log10(range.high)] : [range.low, range.high],
    type: range.log ? "log" : "linear", tickformat: measure.kind === "share" ? ".1%" : undefined, zeroline: false, fixedrange: false,
  });
  if (range.log) Object.assign(y, logTicks(range.low, range.high, (value) => significant(value, 2)));
  return {
    traces, height,
    layout: {
      margin: frame, xaxis: axis({ title: { text: size === "model_bytes" ? "model size, MB" : "bits per weight, with scales", standoff: 8 }, range: [x.low, x.high], automargin: false, zeroline: false }),
      yaxis: y, legend: { ...legendBelow(), y: -0.17 }, showlegend: true,
      shapes: level !== null ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: measure.fp, y1: measure.fp, line: { color: colour("quiet"), width: 1, dash: "dot" } }] : [],
      annotations: [
        ...labels.map((label) => ({
          xref: "paper", yref: "paper", x: label.x / inner.width, y: 1 - label.y / inner.height, xanchor: "left", yanchor: "middle",
          text: escaped(label.text), showarrow: false, font: { size: isNarrow() ? 10 : 11.5, color: label.colour }, borderpad: 0,
        })),
        ...(level !== null ? [{ xref: "paper", x: 0, xanchor: "left", y: range.log ? Math.log10(measure.fp) : measure.fp, yanchor: measure.kind === "ratio" ? "top" : "bottom", text: "floating point", showarrow: false, font: { size: 11, color: colour("quiet") } }] : []),
      ],
    },
  };
}

const layers = data.layers.layers;
const places = [...new Set(layers.map((layer) => layer.place))];
const blocks = [...new Set(layers.map((layer) => layer.block))];

// One line for each place of a block; of several experts the worst counts.
function plotLayers() {
  const errors = data.layers.recipes[document.getElementById("recipe").value].errors;
  const known = errors.filter((error) => error > 0);
  const low = Math.min(...known) / 1.4;
  const high = Math.max(...known) * 1.4;
  const traces = places.map((place, index) => {
    const worst = new Map();
    layers.forEach((layer, position) => {
      const error = errors[position];
      if (layer.place === place && error > 0) worst.set(layer.block, Math.max(error, worst.get(layer.block) ?? 0));
    });
    const seen = blocks.filter((block) => worst.has(block));
    return {
      type: "scatter", mode: "lines+markers", name: escaped(place), x: seen, y: seen.map((block) => worst.get(block)),
      line: { color: seriesColour(index), width: 1.5, dash: DASHES[index % DASHES.length] },
      marker: { symbol: SYMBOLS[index % SYMBOLS.length], size: 7, color: seriesColour(index) },
      hovertemplate: `${escaped(place)}, block %{x}: %{customdata}<extra></extra>`, customdata: seen.map((block) => percent(worst.get(block))),
    };
  }).filter((trace) => trace.x.length);
  return {
    traces, height: 420,
    layout: {
      margin: { l: isNarrow() ? 52 : 78, r: 16, t: 12, b: 44 }, showlegend: true, legend: legendBelow(),
      xaxis: axis({ title: { text: "block", standoff: 6 }, type: "category", categoryorder: "array", categoryarray: blocks, nticks: isNarrow() ? 8 : 24 }),
      yaxis: known.length ? axis({ title: { text: isNarrow() ? "" : "relative error of the output" }, type: "log", range: [Math.log10(low), Math.log10(high)], ...logTicks(low, high, percent) }) : axis({}),
    },
  };
}

function fillLayerTable() {
  const found = data.layers.recipes[document.getElementById("recipe").value];
  const table = document.getElementById("layers");
  const numeric = found.choices.map((choice) => found.rows.every((row) => typeof (row[4][choice] ?? 0) === "number"));
  const titles = [["layer", false], ["block", true], ["bits", true], ["weights", false], ["inputs", false], ["relative error", true], ...found.choices.map((choice, index) => [choice, numeric[index]])];
  const top = document.createElement("tr");
  top.append(...titles.map(([text, isNumber]) => heading(text, isNumber)));
  table.tHead.replaceChildren(top);
  table.tBodies[0].replaceChildren(...found.rows.map(([position, bits, weights, inputs, choices]) => {
    const layer = layers[position];
    const row = document.createElement("tr");
    const name = cell("th", layer.place);
    name.scope = "row";
    name.title = layer.name;
    const block = cell("td", layer.block, Number.isNaN(Number(layer.block)) ? 1e9 : Number(layer.block));
    row.append(name, block, cell("td", bits === null ? "–" : bits.toFixed(2), bits), cell("td", weights ?? "–"), cell("td", inputs ?? "as they are"), cell("td", percent(found.errors[position]), found.errors[position]));
    found.choices.forEach((choice, index) => {
      const value = choices[choice];
      if (numeric[index]) row.append(cell("td", significant(value), value ?? null));
      else row.append(cell("td", typeof value === "number" ? significant(value) : value ?? "–"));
    });
    return row;
  }));
  const known = found.errors.map((error, index) => [error, index]).filter(([error]) => error !== null).sort((a, b) => b[0] - a[0]);
  document.getElementById("layer-caption").textContent = known.length
    ? `The worst: ${known.slice(0, 3).map(([error, index]) => `${layers[index].place} of block ${layers[index].block} (${percent(error)})`).join(", ")}.` : "";
}

function plotHeat() {
  const names = Object.keys(data.layers.recipes);
  const values = names.map((name) => data.layers.recipes[name].errors);
  const heat = logHeat(values, percent, 1);
  const short = (name) => (isNarrow() && name.length > 17 ? `${name.slice(0, 16)}…` : name);
  return {
    traces: [{
      type: "heatmap", ...heat, x: layers.map((_, index) => index), y: names.map((_, index) => index), colorscale: "Cividis", xgap: layers.length < 80 ? 1 : 0, ygap: 1,
      text: values.map((row, r) => row.map((value, c) => `<b>${escaped(names[r])}</b><br>${escaped(layers[c].name)}<br>${percent(value)}`)),
      hovertemplate: "%{text}<extra></extra>", hoverongaps: false,
    }],
    height: Math.max(170, 90 + names.length * 24),
    layout: {
      margin: { l: 20, r: 8, t: 8, b: 40 },
      xaxis: axis({ ...blockTicks(layers, isNarrow() ? 8 : 24), title: { text: "block", standoff: 6 }, showgrid: false, zeroline: false }),
      yaxis: axis({ tickmode: "array", tickvals: names.map((_, index) => index), ticktext: names.map((name) => `${escaped(short(name))} `), autorange: "reversed", showgrid: false, zeroline: false, tickfont: { size: isNarrow() ? 10 : 12 } }),
    },
  };
}

chart("plot", plotSizeAgainstQuality);
document.getElementById("measure")?.addEventListener("change", () => redraw("plot"));
onChoice("size", () => redraw("plot"));
onChoice("range", () => redraw("plot"));
if (document.getElementById("recipe")) {
  const select = document.getElementById("recipe");
  const showRecipe = () => { fillLayerTable(); redraw("layer-chart"); };
  fillLayerTable();
  chart("layer-chart", plotLayers);
  chart("heat", plotHeat).on("plotly_click", (event) => { select.selectedIndex = event.points[0].y; showRecipe(); });
  select.addEventListener("change", showRecipe);
}
