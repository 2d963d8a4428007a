// The controls: what they change is kept in `state`, from which everything is shown again.

const element = id => document.getElementById(id);
const methods = () => [...new Set(page.runs.flatMap(run => run.explanations.flatMap(found => Object.keys(found.methods))))];

function showLegend() {
  const run = page.runs.find((one, r) => state.runs.has(r) && explanationOf(one)), place = element("legend");
  place.replaceChildren();
  if (!run) return;
  const [against, forward, what] = explanationOf(run).sides, bar = make("i", { "aria-hidden": "true" });
  const stops = [0, 0.25, 0.5, 0.75, 1].map(share => `rgb(${colorOf(2 * share - 1)})`);
  bar.style.background = `linear-gradient(to right, ${stops})`;
  place.append(make("span", {}, against), bar, make("span", {}, `${forward} ${what}; each map in its own scale`));
}

function show() {
  const label = page.moments[state.moment];
  element("moment").value = state.moment;
  element("moment").setAttribute("aria-valuetext", label);
  element("when").textContent = label;
  showLegend();
  showSamples();
  showCharts();
}

function setMoment(moment) {
  state.moment = Math.max(0, Math.min(page.moments.length - 1, moment));
  show();
}

let timer = null;
function play(on) {
  clearInterval(timer);
  timer = on ? setInterval(() => {
    if (state.moment >= page.moments.length - 1) play(false);
    else setMoment(state.moment + 1);
  }, 700) : null;
  element("play").setAttribute("aria-pressed", String(on));
  element("play").textContent = on ? "Stop" : "Play";
}

function isDark() {
  return (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
}

function showTheme() {
  element("theme").setAttribute("aria-pressed", String(isDark()));
  showCharts();
}

// Sorts the lines of a table by a column; numbers as numbers, and what is missing last.
function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells], head = heads[column], body = table.tBodies[0];
  const rising = head.getAttribute("aria-sort") !== "ascending";
  heads.forEach(one => one.setAttribute("aria-sort", one === head ? (rising ? "ascending" : "descending") : "none"));
  const key = line => line.cells[column].dataset.value;
  const compare = (a, b) => (a === undefined || b === undefined) ? (a === undefined) - (b === undefined)
    : (rising ? 1 : -1) * (Number.isNaN(Number(a)) || Number.isNaN(Number(b)) ? a.localeCompare(b) : Number(a) - Number(b));
  body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
}

function listen() {
  element("moment").max = page.moments.length - 1;
  element("moment").addEventListener("input", event => setMoment(Number(event.target.value)));
  element("play").disabled = page.moments.length < 2;
  element("play").addEventListener("click", () => {
    if (timer === null && state.moment === page.moments.length - 1) setMoment(0);
    play(timer === null);
  });
  element("method").append(...methods().map(method => make("option", { value: method }, method)));
  element("method").addEventListener("change", event => { state.method = event.target.value; show(); });
  element("opacity").addEventListener("input", event => document.documentElement.style.setProperty("--opacity", event.target.value));
  for (const name of ["map", "overlay", "history", "difference"]) {
    element(`show-${name}`)?.addEventListener("change", event => { state[name] = event.target.checked; show(); });
  }
  element("smooth").addEventListener("change", event => { state.smooth = event.target.checked; show(); });
  for (const box of document.querySelectorAll(".show-run")) {
    box.addEventListener("change", () => {
      state.runs[box.checked ? "add" : "delete"](Number(box.value));
      show();
    });
  }
  document.addEventListener("keydown", event => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.target !== document.body || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    setMoment(state.moment + step);
  });
  element("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
  for (const table of document.querySelectorAll("table.sorted"))
    [...table.tHead.rows[0].cells].forEach((head, column) => head.querySelector("button").addEventListener("click", () => sortBy(table, column)));
}

if (typeof DecompressionStream === "undefined") trouble("This browser is too old for the maps and curves; the tables below need nothing.");
state.method = methods()[0];
buildGroups();
buildCharts();
listen();
show();
showTheme();
