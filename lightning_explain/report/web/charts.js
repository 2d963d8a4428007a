// The curves, by plotly, which is unpacked when they come near the visible part of the page.

const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const charts = [];
let plotly = null;

function loadPlotly() {
  plotly ??= inflated(page.charts).then(buffer => {
    const script = document.createElement("script");
    script.nonce = document.querySelector("script[nonce]:not([type])").nonce;
    script.textContent = new TextDecoder().decode(buffer);
    document.head.append(script);
    return window.Plotly;
  });
  return plotly;
}

// The curves of a chart: one for each run of the chosen method, or for each method of the only run.
function tracesOf(chart) {
  if (chart.own) return page.runs.map((run, r) => ({ name: run.name, r, k: r, run, at: point => [point.logged[chart.own] ?? null, null] }));
  const of = method => point => point.scores[`${chart.score}/${method}`] ?? [null, null];
  if (page.runs.length > 1) return page.runs.map((run, r) => ({ name: run.name, r, k: r, run, at: of(state.method) }));
  return methods().map((method, k) => ({ name: method, r: 0, k, run: page.runs[0], at: of(method) }));
}

function curvesOf(chart) {
  return tracesOf(chart).filter(trace => state.runs.has(trace.r)).map(({ name, r, k, run, at }) => {
    const points = run.curves.map((point, n) => ({ n, x: point.step ?? point.epoch ?? n, pair: at(point), point }))
      .filter(({ pair }) => pair[0] !== null);
    return { name, r, k, points };
  }).filter(curve => curve.points.length);
}

function draw(chart, library) {
  const style = getComputedStyle(document.documentElement), ink = style.getPropertyValue("--ink").trim();
  const line = style.getPropertyValue("--line").trim(), curves = curvesOf(chart);
  const traces = curves.map(({ name, k, points }) => ({
    name, type: "scatter", mode: "lines+markers", x: points.map(p => p.x), y: points.map(p => p.pair[0]),
    text: points.map(p => `epoch ${p.point.epoch ?? "?"}`),
    error_y: { type: "data", array: points.map(p => p.pair[1] ?? 0), visible: points.some(p => p.pair[1]), thickness: 1, width: 3 },
    line: { color: COLORS[k % COLORS.length], dash: DASHES[Math.floor(k / COLORS.length) % DASHES.length], width: 2 },
    marker: { size: 6 }, hovertemplate: "%{y:.4g} (step %{x}, %{text})<extra>%{fullData.name}</extra>",
  }));
  const now = page.runs.filter((_, r) => state.runs.has(r)).map(run => [run, run.shown[state.moment]])
    .filter(([, index]) => index !== null).map(([run, index]) => run.curves[index].step ?? run.curves[index].epoch ?? index);
  const shapes = [...new Set(now)].map(x => ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: ink, width: 1, dash: "dot" } }));
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const layout = {
    margin: { l: 48, r: 8, t: 8, b: 36 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", shapes,
    font: { color: ink, size: 12 }, xaxis: { ...axis, title: { text: "step", standoff: 4 } }, yaxis: { ...axis },
    showlegend: traces.length > 1, legend: { orientation: "h", y: -0.22 }, hovermode: "closest",
  };
  library.react(chart.plot, traces, layout, { responsive: true, displaylogo: false, displayModeBar: false });
  if (!chart.listens) {
    chart.listens = true;
    chart.plot.on("plotly_click", event => {
      const curve = curvesOf(chart)[event.points[0].curveNumber], n = curve.points[event.points[0].pointNumber].n;
      setMoment(page.runs[curve.r].shown.indexOf(n));
    });
  }
  const head = make("tr", {}, make("th", { scope: "col" }, page.runs.length > 1 ? "run" : "method"),
    make("th", { scope: "col" }, "epoch"), make("th", { scope: "col" }, "step"), make("th", { scope: "col" }, "value"));
  chart.numbers.replaceChildren(make("thead", {}, head), make("tbody", {}, ...curves.flatMap(curve => curve.points.map(p =>
    make("tr", {}, make("th", { scope: "row" }, curve.name), make("td", {}, String(p.point.epoch ?? "")), make("td", {}, String(p.point.step ?? "")),
      make("td", {}, brief(p.pair[0]) + (p.pair[1] ? ` ± ${brief(p.pair[1])}` : "")))))));
}

const drawSoon = chart => loadPlotly().then(library => draw(chart, library))
  .catch(error => trouble(`The curves could not be drawn: ${error}`));

function showCharts() {
  for (const chart of charts) if (chart.drawn) drawSoon(chart);
}

function buildCharts() {
  const add = (root, title, about, chart) => {
    const plot = make("div", { class: "plot", role: "img", "aria-label": `Curves of ${title}; the numbers are in the table below` });
    const numbers = make("table", { class: "numbers" });
    root.append(make("div", { class: "chart" }, make("h3", {}, title), about ? make("p", {}, about) : null, plot,
      make("details", {}, make("summary", {}, "Numbers"), make("div", { class: "wide", tabindex: "0" }, numbers))));
    charts.push(Object.assign(chart, { plot, numbers }));
    whenSeen(plot, async () => { chart.drawn = true; await drawSoon(chart); });
  };
  for (const [score, facts] of Object.entries(page.scores)) {
    const unit = facts.comparable ? "" : "has a unit of the output: not comparable between epochs or runs";
    add(document.getElementById("scores"), score, [facts.better, unit].filter(Boolean).join("; "), { score });
    if (facts.read) charts.at(-1).numbers.closest("details").before(make("details", {}, make("summary", {}, "How to read it"), make("p", {}, facts.read)));
  }
  const own = [...new Set(page.runs.flatMap(run => run.curves.flatMap(point => Object.keys(point.logged))))].sort();
  for (const name of own) add(document.getElementById("own"), name, "", { own: name });
  if (!own.length) document.getElementById("own").append(make("p", { class: "note" }, "The files hold none: nothing was logged, or they were written by an older version."));
  if (!Object.keys(page.scores).length) document.getElementById("scores").append(make("p", { class: "note" }, "No scores were computed."));
}
