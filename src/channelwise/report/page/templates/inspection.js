"use strict";
const sites = data.sites;
const siteSelect = document.getElementById("site");
const rows = [...new Set(sites.map((site) => site.row))];
const blocks = [...new Set(sites.map((site) => site.block))].sort((a, b) => a - b);

// The errors of a site's layers; the worst of them by scheme.
const siteErrors = (() => {
  let next = 0;
  return sites.map((site) => {
    const own = data.layers.slice(next, next + site.layers);
    next += site.layers;
    return (scheme) => Math.max(0, ...own.map((layer) => layer.errors[scheme] ?? 0)) || null;
  });
})();

function figure(index, quantity) {
  const site = sites[index];
  if (!site.tokens) return null;
  if (quantity === "ratio") return site.ratio;
  if (quantity === "after") return site.after ? site.after.ratio : null;
  if (quantity === "asymmetry") return site.asymmetry;
  return siteErrors[index](quantity.slice("error:".length));
}

const MEANINGS = {
  ratio: "The largest channel over the median channel: beyond 6 a static scale for all channels is hard, beyond 20 very hard.",
  after: "The same as the quantizer sees it, after the recipe's shift and scale.",
  asymmetry: "The largest centre of a channel over the largest half range: 0 is symmetric, 1 one-sided, more is offset from zero.",
};

// By place in the block and block; of several experts the worst.
function plotHeat() {
  const quantity = document.getElementById("quantity").value;
  const show = quantity.startsWith("error:") ? percent : (value) => significant(value, 2);
  const values = rows.map(() => blocks.map(() => null));
  const who = rows.map(() => blocks.map(() => null));
  sites.forEach((site, index) => {
    const value = figure(index, quantity);
    const [r, c] = [rows.indexOf(site.row), blocks.indexOf(site.block)];
    if (value !== null && (values[r][c] === null || value > values[r][c])) { values[r][c] = value; who[r][c] = index; }
  });
  document.getElementById("heat-caption").textContent = `${MEANINGS[quantity] ?? "The relative error of the site's worst layer."} Bright is bad. A click shows the site's channels below.`;
  const heat = logHeat(values, show, quantity.startsWith("error:") ? 1 : Infinity);
  const cells = values.length * blocks.length <= 160 && !isNarrow();
  const middle = heat.zmin === undefined ? 0 : (heat.zmin + heat.zmax) / 2;
  const short = (name) => (isNarrow() && name.length > 14 ? `${name.slice(0, 13)}…` : name);
  const height = Math.max(190, 96 + rows.length * (isNarrow() ? 36 : 44));
  return {
    height,
    traces: [{
      type: "heatmap", ...heat, x: blocks.map((_, index) => index), y: rows.map((_, index) => index), colorscale: "Cividis", xgap: 2, ygap: 2,
      customdata: who, hoverongaps: false, hovertemplate: "%{text}<extra></extra>",
      text: values.map((line, r) => line.map((value, c) => `<b>${escaped(rows[r])}</b>, block ${blocks[c]}<br>${show(value)}`)),
    }],
    layout: {
      margin: { l: 20, r: 8, t: 8, b: 42 },
      xaxis: axis({ tickmode: "array", ...thinned(blocks, isNarrow() ? 8 : 24), title: { text: "block", standoff: 6 }, showgrid: false, zeroline: false }),
      yaxis: axis({ tickmode: "array", tickvals: rows.map((_, index) => index), ticktext: rows.map((row) => `${escaped(short(row))} `), autorange: "reversed", showgrid: false, zeroline: false }),
      annotations: cells ? values.flatMap((line, r) => line.map((value, c) => (value === null ? null : {
        x: c, y: r, text: show(value), showarrow: false, font: { size: 11, color: heat.z[r][c] > middle ? "#141414" : "#f4f4f4" },
      }))).filter(Boolean) : [],
    },
  };
}

function thinned(labels, most) {
  const step = Math.max(1, Math.ceil(labels.length / most));
  const shown = labels.map((label, index) => [label, index]).filter(([, index]) => index % step === 0);
  return { tickvals: shown.map(([, index]) => index), ticktext: shown.map(([label]) => String(label)) };
}

function magnitudes(site) {
  return site.minima.map((low, index) => Math.max(Math.abs(low), Math.abs(site.maxima[index])));
}

// The range of every channel as a band; channels beyond the limit are marked, too.
function band(minima, maxima, marked, panel, colourIndex, name) {
  const x = minima.map((_, index) => index);
  const line = { color: seriesColour(colourIndex), width: 1, shape: "hvh" };
  const shared = { type: "scatter", mode: "lines", x, line, xaxis: "x", yaxis: panel, hoverinfo: "skip", showlegend: false };
  return [
    { ...shared, y: minima },
    { ...shared, y: maxima, fill: "tonexty", fillcolor: `color-mix(in srgb, ${seriesColour(colourIndex)} 35%, transparent)`, name },
    {
      type: "scatter", mode: "markers", x: marked.x, y: marked.y, xaxis: "x", yaxis: panel, showlegend: false,
      marker: { color: seriesColour(1), size: 7, symbol: "diamond" }, text: marked.text, hovertemplate: "%{text}<extra></extra>", cliponaxis: false,
    },
  ];
}

function channelOrder(site) {
  const sizes = magnitudes(site);
  const order = sizes.map((_, index) => index);
  return chosen("order") === "size" ? order.sort((a, b) => sizes[b] - sizes[a]) : order;
}

function plotChannels() {
  const site = sites[siteSelect.value];
  const order = channelOrder(site);
  const sizes = magnitudes(site);
  const pick = (values) => order.map((channel) => values[channel]);
  const marks = (minima, maxima, unit) => {
    const found = order.map((channel, position) => [channel, position]).filter(([channel]) => sizes[channel] > data.outlier * site.median);
    const shown = found.sort((a, b) => sizes[b[0]] - sizes[a[0]]).slice(0, 60);
    return {
      x: shown.map(([, position]) => position),
      y: shown.map(([channel]) => (Math.abs(minima[channel]) > Math.abs(maxima[channel]) ? minima[channel] : maxima[channel])),
      text: shown.map(([channel]) => `channel ${channel}: ${significant(minima[channel])} to ${significant(maxima[channel])}${unit}`),
    };
  };
  const traces = band(pick(site.minima), pick(site.maxima), marks(site.minima, site.maxima, ""), "y", 0, "before");
  const after = site.after;
  const wide = isNarrow();
  const title = (text, y) => ({ text, xref: "paper", yref: "paper", x: 0, y, xanchor: "left", yanchor: "bottom", showarrow: false, font: { color: colour("quiet"), size: 12 } });
  const annotations = [title("as it is", 1)];
  if (after) {
    const largest = Math.max(...after.minima.map(Math.abs), ...after.maxima.map(Math.abs)) || 1;
    const relative = (values) => values.map((value) => value / largest);
    const [low, high] = [relative(after.minima), relative(after.maxima)];
    traces.push(...band(pick(low), pick(high), marks(low, high, " of the largest"), "y2", 2, "after"));
    annotations.push(title(escaped(`after ${data.recipe}, in shares of the largest`), 0.45));
  }
  const label = chosen("order") === "size" ? "channels, the largest first" : "channel";
  return {
    traces, height: after ? 520 : 340,
    layout: {
      margin: { l: wide ? 46 : 60, r: 16, t: 26, b: 46 }, annotations, hovermode: "closest",
      xaxis: axis({ title: { text: label, standoff: 6 }, anchor: after ? "y2" : "y", range: [-0.5, order.length - 0.5], showgrid: false, zeroline: false }),
      yaxis: axis({ domain: after ? [0.55, 1] : [0, 1], zeroline: true, automargin: false, nticks: 9 }),
      ...(after ? { yaxis2: axis({ domain: [0, 0.45], zeroline: true, automargin: false, range: [-1.08, 1.08], nticks: 5 }) } : {}),
    },
  };
}

function describeChannels() {
  const site = sites[siteSelect.value];
  const sizes = magnitudes(site);
  const beyond = sizes.filter((size) => size > data.outlier * site.median).length;
  const asymmetric = site.asymmetry >= 1.5 ? " They are offset from zero: a shift helps." : "";
  document.getElementById("channel-caption").textContent =
    `${site.channels.toLocaleString("en-US")} channels, smallest to largest value over ${site.tokens.toLocaleString("en-US")} tokens. ` +
    `${beyond} beyond ${data.outlier} times the median channel${beyond ? ", marked by diamonds" : ""}; asymmetry ${significant(site.asymmetry, 2)}.${beyond ? asymmetric : ""}`;
  const largest = sizes.map((size, channel) => [size, channel]).sort((a, b) => b[0] - a[0]).slice(0, 8);
  const table = document.getElementById("largest");
  for (const title of table.tHead.rows[0].cells) title.setAttribute("aria-sort", "none");
  table.tBodies[0].replaceChildren(...largest.map(([size, channel]) => {
    const row = document.createElement("tr");
    const values = [site.minima[channel], site.maxima[channel], site.median ? size / site.median : null];
    if (data.recipe) values.push(site.after ? site.after.minima[channel] : null, site.after ? site.after.maxima[channel] : null);
    row.append(cell("td", String(channel), channel), ...values.map((value) => cell("td", significant(value), value)));
    return row;
  }));
}

function plotErrors() {
  const known = data.layers.flatMap((layer) => data.schemes.map((scheme) => layer.errors[scheme])).filter((error) => error > 0);
  const low = Math.min(...known) / 1.4;
  const high = Math.max(...known) * 1.4;
  return {
    height: isNarrow() ? 400 : 420,
    traces: data.schemes.map((scheme, index) => ({
      type: "scatter", mode: "markers", name: escaped(scheme), x: data.layers.map((_, position) => position),
      y: data.layers.map((layer) => (layer.errors[scheme] > 0 ? layer.errors[scheme] : null)),
      marker: { symbol: SYMBOLS[index], size: data.layers.length > 120 ? 5 : 7, color: seriesColour(index) },
      text: data.layers.map((layer) => `<b>${escaped(layer.place)}</b>, block ${layer.block}<br>${escaped(scheme)}: ${percent(layer.errors[scheme])}`),
      hovertemplate: "%{text}<extra></extra>",
    })),
    layout: {
      margin: { l: isNarrow() ? 52 : 78, r: 16, t: 12, b: 44 }, showlegend: true, legend: { ...legendBelow(), itemsizing: "constant" },
      xaxis: axis({ ...blockTicks(data.layers, isNarrow() ? 8 : 24), title: { text: "layers in order, by block", standoff: 6 }, zeroline: false, range: [-1, data.layers.length] }),
      yaxis: known.length ? axis({ title: { text: isNarrow() ? "" : "relative error of the output" }, type: "log", range: [Math.log10(low), Math.log10(high)], ...logTicks(low, high, percent) }) : axis({}),
    },
  };
}

function showSite() {
  describeChannels();
  redraw("channels");
}

const seen = sites.map((site, index) => [site.tokens ? site.ratio : -1, index]);
siteSelect.value = String(seen.reduce((best, next) => (next[0] > best[0] ? next : best))[1]);
chart("heat", plotHeat).on("plotly_click", (event) => {
  const index = event.points[0].customdata;
  if (index === null || index === undefined) return;
  siteSelect.value = String(index);
  showSite();
  document.getElementById("channel-section").scrollIntoView({ behavior: "smooth" });
});
document.getElementById("quantity").addEventListener("change", () => redraw("heat"));
describeChannels();
chart("channels", plotChannels);
siteSelect.addEventListener("change", showSite);
onChoice("order", () => redraw("channels"));
chart("errors", plotErrors);
