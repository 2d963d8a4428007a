// The samples: one block for each, with its original, and for each run its caption, maps, difference and scores.

const state = { moment: page.moments.length - 1, method: null, map: true, overlay: true, history: false, difference: true, smooth: false };
state.runs = new Set(page.runs.map((_, r) => r).filter(r => r < 4 || page.runs.length === 1));

const seen = new Map();
const watcher = new IntersectionObserver(entries => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    watcher.unobserve(entry.target);
    const draw = seen.get(entry.target);
    seen.delete(entry.target);
    if (draw) draw().catch(error => trouble(`A map could not be drawn: ${error}`));
  }
}, { rootMargin: "50% 0px" });

// Calls a function once its element is near the visible part of the page.
function whenSeen(element, draw) {
  seen.set(element, draw);
  watcher.observe(element);
}

function forget(root) {
  for (const element of seen.keys()) {
    if (root.contains(element)) {
      watcher.unobserve(element);
      seen.delete(element);
    }
  }
}

const explanationOf = (run, moment = state.moment) => {
  const index = run.shown[moment];
  return index === null ? null : run.explanations[index];
};

const whenOf = found => {
  const parts = [["epoch", found.epoch], ["step", found.step]].filter(([, value]) => value !== null);
  const stage = found.stage && found.stage !== "fit" ? ` (${found.stage})` : "";
  return parts.map(part => part.join(" ")).join(", ") + stage;
};

// The explanations of a run that are shown beside each other, with what they are: first, previous, now.
function momentsOf(run) {
  const index = run.shown[state.moment];
  if (index === null) return [];
  const found = [["", index]];
  if (!state.history) return found;
  found[0][0] = "now";
  if (index > 0) found.unshift(["previous", index - 1]);
  if (index > 1) found.unshift(["first", 0]);
  return found;
}

function figuresOf(group, run, index, called, i) {
  const found = run.explanations[index], method = found.methods[state.method], figures = [];
  const when = called ? `${called}: ${whenOf(found)}` : "";
  for (const panel of method ? method.panels : []) {
    const words = `${state.method}, ${panel.title}, sample ${group.ids[i]}, ${run.name}, ${whenOf(found)}`;
    const weights = () => weightsOf(panel, i, found.scale), options = { smooth: state.smooth };
    const about = [method.panels.length > 1 ? panel.title : "", when].filter(Boolean).join(", ");
    if (panel.kind !== "map") {
      figures.push(make("figure", { class: "fluid" }, panelElement(panel, i, weights, words, options),
        about ? make("figcaption", {}, about) : null));
      continue;
    }
    const largest = panel.largest[i] === null ? "not finite" : `max |a| ${brief(panel.largest[i])}`;
    const caption = make("figcaption", {}, [about, largest].filter(Boolean).join(", "));
    const picture = group.images[panel.input]?.[i], parts = make("span", { class: "figures" });
    if (state.map || !picture) parts.append(mapCell(panel, weights, words, null, options));
    if (state.overlay && picture) parts.append(mapCell(panel, weights, `overlay: ${words}`, picture, options));
    figures.push(make("figure", {}, parts, caption));
  }
  return figures;
}

function differencesOf(group, run, i) {
  const base = page.runs[group.runs[0]], mine = explanationOf(run), other = explanationOf(base);
  if (!state.difference || run === base || !mine || !other) return [];
  const panels = [mine, other].map(found => found.methods[state.method]?.panels ?? []);
  return panels[0].filter(panel => panel.kind !== "picture").map(panel => {
    const before = panels[1].find(one => one.kind === panel.kind && one.input === panel.input && one.sign === panel.sign);
    const words = `difference from ${base.name}: ${state.method}, sample ${group.ids[i]}, ${run.name}`;
    const same = before && (panel.kind !== "map" || String(before.values.shape.slice(1)) === String(panel.values.shape.slice(1)));
    const weights = () => differenceOf(panel, before, i, mine.scale);
    const place = same ? panelElement(panel, i, weights, words, { difference: true })
      : make("p", { class: "missing" }, `${base.name} has no such map`);
    return make("figure", { class: panel.kind === "map" ? "one" : "fluid" }, place, make("figcaption", {}, `difference from ${base.name}`));
  });
}

function scoresOf(group, run, i) {
  const place = make("p", { class: "scores" }), found = explanationOf(run);
  const cluster = found === run.explanations.at(-1) ? run.clusters[state.method]?.[group.entries[i]] : undefined;
  if (cluster !== undefined) place.append(make("span", {}, `strategy ${cluster}`), " ");
  const base = page.runs[group.runs[0]], pair = `${base.shown[state.moment]} ${run.shown[state.moment]}`;
  const cosine = run.compared[pair]?.[state.method]?.[i];
  if (cosine !== undefined && run !== base) {
    place.append(make("span", { class: "cosine" }, `cosine to ${base.name} ${cosine === null ? "NaN" : cosine.toFixed(2)}`), " ");
  }
  for (const [score, [values, errors]] of Object.entries(found.methods[state.method]?.scores ?? {})) {
    if (!page.scores[score]?.comparable) continue;
    const error = errors && errors[i] !== null ? ` ± ${brief(errors[i])}` : "";
    place.append(make("span", {}, `${score} ${brief(values[i])}${error}`), " ");
  }
  return place;
}

function runElement(group, run, i) {
  const found = explanationOf(run), name = make("p", { class: "run-name" }, run.name);
  if (!found) return make("div", { class: "run" }, name, make("p", { class: "missing" }, "not explained yet"));
  name.append(" ", make("small", {}, whenOf(found)));
  const [lines, wrong] = found.captions[i], method = found.methods[state.method];
  const said = lines.map((line, k) => make("span", {}, (k ? " · " : "") + line));
  const caption = make("p", { class: "caption" }, wrong ? "✗ " : "", ...said);
  const figures = momentsOf(run).flatMap(([called, index]) => figuresOf(group, run, index, called, i));
  const missing = method ? null : make("p", { class: "missing" }, `no ${state.method} in this run`);
  return make("div", { class: wrong ? "run wrong" : "run" }, page.runs.length > 1 ? name : null, caption, missing,
    make("div", { class: "figures" }, ...figures, ...differencesOf(group, run, i)), scoresOf(group, run, i));
}

function sampleElement(group, i) {
  const about = [`sample ${group.ids[i]}`, ...group.about[i]].join(" · ");
  const pictures = group.images.map(images => images[i]).filter(Boolean);
  const originals = pictures.map((key, k) => {
    const image = make("img", { src: pictureOf(key), alt: `original of sample ${group.ids[i]}` });
    image.addEventListener("load", () => { image.parentNode.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight}`; });
    return make("figure", {}, make("span", { class: "cell", style: "aspect-ratio: 1" }, image), make("figcaption", {}, k ? `input ${k}` : "original"));
  });
  return make("article", { class: "sample", "aria-label": about }, make("h4", {}, about),
    make("div", { class: "strip" },
      originals.length ? make("div", { class: "originals" }, ...originals) : null, make("div", { class: "strip runs" })));
}

function buildGroups() {
  const root = document.getElementById("groups");
  page.groups.forEach((group, g) => {
    const names = group.runs.map(r => page.runs[r].name).join(", ");
    const samples = make("div", { class: group.runs.length > 1 ? "samples several" : "samples" });
    samples.append(...group.ids.map((_, i) => sampleElement(group, i)));
    const notes = [];
    if (page.groups.length > 1) notes.push(make("h3", {}, `Samples of ${names}`));
    if (!group.images.some(images => images.length) && !group.known) notes.push(make("p", { class: "note" },
      "The files of the run hold no samples (save_inputs=False), so maps are shown without them."));
    if (group.ids.length < group.count) notes.push(make("p", { class: "note" }, `The first ${group.ids.length} of ${group.count} samples.`));
    root.append(make("div", { "data-group": g }, ...notes, samples));
  });
}

// Shows everything as `state` says.
function showSamples() {
  page.groups.forEach((group, g) => {
    const root = document.querySelector(`[data-group="${g}"]`);
    const runs = group.runs.filter(r => state.runs.has(r)).map(r => page.runs[r]);
    root.hidden = !runs.length;
    const panels = runs.flatMap(run => explanationOf(run)?.methods[state.method]?.panels ?? []);
    const fluid = panels.some(panel => panel.kind !== "map" && panel.kind !== "picture");
    const columns = state.map + state.overlay + (runs.length > 1 && state.difference);
    root.style.setProperty("--columns", Math.max(1, columns) * (state.history ? 2 : 1));
    root.querySelectorAll(".strip.runs").forEach((strip, i) => {
      forget(strip);
      strip.classList.toggle("fluid", fluid);
      strip.replaceChildren(...runs.map(run => runElement(group, run, i)));
    });
  });
}
