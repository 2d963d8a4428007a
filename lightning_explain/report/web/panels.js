// How a map of one sample is shown: over an image, as words, as bars of features, over the channels of a series.

const NAMES = [["top left", "top", "top right"], ["left", "center", "right"], ["bottom left", "bottom", "bottom right"]];
const MOST_BARS = 8, MOST_CHANNELS = 12;

// Values of a sample in [-1, 1]; NaN where there is no unit. `all` of a panel's samples have one scale if the run says so.
async function weightsOf(panel, i, scale) {
  const values = Float32Array.from(await sampleOf(panel.values, i));
  if (panel.levels) return values.map(value => value / panel.levels);
  let largest = 0;
  for (const value of scale === "all" ? await arrayOf(panel.values) : values) {
    if (Number.isFinite(value)) largest = Math.max(largest, Math.abs(value));
  }
  return values.map(value => (Number.isFinite(value) ? value / (largest || 1) : NaN));
}

// How a map differs from another one, each in its own scale: in [-1, 1], divided by the largest difference if that is larger.
// Units are found by their names where they have some.
async function differenceOf(panel, base, i, scale) {
  if (!base || base.kind !== panel.kind) return null;
  const [a, b] = [await weightsOf(base, i, scale), await weightsOf(panel, i, scale)];
  let before = a;
  if (panel.names && panel.names !== base.names) {
    const named = new Map(valueOf(base.names).map((name, k) => [name, a[k]]));
    before = valueOf(panel.names).map(name => named.get(name) ?? 0);
  }
  if (before.length !== b.length) return null;
  const found = b.map((value, k) => value - before[k]);
  const most = found.reduce((all, value) => Math.max(all, Math.abs(value) || 0), 1);
  return found.map(value => value / most);
}

const placeIn = (weight, sign) =>
  Math.max(0, Math.min(255, Math.floor(sign === "all" ? weight * 128 + 128 : weight * 256)));

function colorOf(weight, colors = valueOf(page.colors), sign = "all") {
  const place = 3 * placeIn(Number.isFinite(weight) ? weight : 0, sign);
  return [colors[place], colors[place + 1], colors[place + 2]];
}

// Smoothed over a 27th of the longer side, as on the pictures of dashboards, so that it is seen where a speckled map lies.
function smoothed(weights, height, width) {
  const deviation = Math.max(height, width) / 27, reach = Math.ceil(3 * deviation);
  const kernel = Array.from({ length: reach + 1 }, (_, k) => Math.exp(-((k / deviation) ** 2) / 2));
  const along = (values, count, lines, step, next) => {
    const found = new Float32Array(values.length);
    for (let line = 0; line < lines; line++) {
      for (let k = 0; k < count; k++) {
        let sum = 0, total = 0;
        for (let j = Math.max(0, k - reach); j <= Math.min(count - 1, k + reach); j++) {
          sum += kernel[Math.abs(j - k)] * values[line * next + j * step];
          total += kernel[Math.abs(j - k)];
        }
        found[line * next + k * step] = sum / total;
      }
    }
    return found;
  };
  const both = values => along(along(values, width, height, 1, width), height, width, width, 1);
  const strength = both(weights.map(Math.abs)), balance = both(weights);
  const most = strength.reduce((a, b) => Math.max(a, b), 0) || 1;
  return strength.map((value, k) => Math.sign(balance[k]) * (value / most) ** 1.5);
}

// Colors of a map; as an overlay, strong colors that are the more opaque the stronger the map is.
function paint(canvas, weights, colors, sign, overlay) {
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  for (let k = 0; k < weights.length; k++) {
    const weight = weights[k], size = Math.abs(weight);
    const shade = overlay ? Math.sign(weight) * size ** 0.25 : weight;
    const place = 3 * placeIn(shade, sign);
    image.data[4 * k] = colors[place];
    image.data[4 * k + 1] = colors[place + 1];
    image.data[4 * k + 2] = colors[place + 2];
    image.data[4 * k + 3] = overlay ? 255 * size ** 0.85 : 255;
  }
  context.putImageData(image, 0, 0);
}

function strongest(weights, height, width) {
  let best = 0;
  weights.forEach((weight, k) => { if (Math.abs(weight) > Math.abs(weights[best])) best = k; });
  if (!weights[best]) return "zero everywhere";
  const third = (k, count) => Math.min(2, Math.floor((3 * k) / count));
  return `strongest at the ${NAMES[third(Math.floor(best / width), height)][third(best % width, width)]}`;
}

// A map as a canvas; over a picture it is an overlay. It is drawn when it comes into view.
function mapCell(panel, weights, words, picture, options) {
  const [height, width] = panel.values.shape.slice(1);
  const canvas = make("canvas", { width, height, role: "img", "aria-label": words });
  const sign = options.difference ? "all" : panel.sign, colors = valueOf(options.difference ? page.colors : panel.colors);
  whenSeen(canvas, async () => {
    let values = await weights();
    if (!values) return;
    canvas.setAttribute("aria-label", `${words}; ${strongest(values, height, width)}`);
    if (picture && options.smooth) values = smoothed(values, height, width);
    paint(canvas, values, colors, sign, Boolean(picture));
  });
  const cell = make("span", { class: picture ? "cell overlay" : "cell", style: `aspect-ratio: ${width} / ${height}` });
  if (picture) cell.append(make("img", { src: pictureOf(picture), alt: "" }));
  cell.append(canvas);
  return cell;
}

function wordsOf(panel, i, weights, numbers) {
  const place = make("p", { class: "words" });
  valueOf(panel.words)[i].forEach((word, k) => {
    if (!word) return;
    const unit = Number.isFinite(weights[k]);
    const span = make("span", { class: unit ? null : "none", title: unit ? brief(numbers[k]) : null }, word);
    if (unit) span.style.background = `rgb(${colorOf(weights[k])})`;
    place.append(span, " ");
  });
  return place;
}

function barsOf(panel, i, weights, numbers) {
  const names = valueOf(panel.names), texts = panel.texts ? valueOf(panel.texts)[i] : null;
  const order = [...weights.keys()].filter(k => Number.isFinite(weights[k]));
  order.sort((a, b) => Math.abs(weights[b]) - Math.abs(weights[a]));
  if (!order.length) return make("p", { class: "missing" }, "not finite");
  const body = make("tbody");
  for (const k of order.slice(0, MOST_BARS)) {
    const size = Math.abs(weights[k]) * 50, bar = make("i");
    bar.style.cssText = `left: ${weights[k] < 0 ? 50 - size : 50}%; width: ${size}%; background: rgb(${colorOf(Math.sign(weights[k]))})`;
    body.append(make("tr", {},
      make("th", { scope: "row", title: names[k] }, names[k]),
      texts ? make("td", { class: "value", title: texts[k] }, texts[k] ?? "") : null,
      make("td", {}, make("span", { class: "bar", "aria-hidden": "true" }, bar)),
      make("td", { class: "number" }, brief(numbers[k]))));
  }
  const others = (panel.units ?? names.length) - Math.min(order.length, MOST_BARS);
  return make("div", {}, make("table", { class: "bars" }, body),
    others > 0 ? make("p", { class: "scores" }, `and ${others} others`) : null);
}

async function seriesOf(panel, i, weights, words) {
  const [channels, times] = panel.series.shape.slice(1), [own, places] = panel.values.shape.slice(1);
  const series = await sampleOf(panel.series, i), all = await arrayOf(panel.series), place = make("div");
  // A forecast goes on behind the series, beside what it should be.
  const ahead = panel.forecast ? panel.forecast.shape[2] : 0, pace = times / panel.times, width = times + ahead * pace;
  const future = ahead ? [["future", await sampleOf(panel.future, i)], ["forecast", await sampleOf(panel.forecast, i)]] : [];
  const size = c => weights.subarray((own > 1 ? c : 0) * places, ((own > 1 ? c : 0) + 1) * places);
  const peak = c => size(c).reduce((a, b) => Math.max(a, Math.abs(b) || 0), 0);
  const shown = [...Array(channels).keys()].sort((a, b) => peak(b) - peak(a)).slice(0, MOST_CHANNELS).sort((a, b) => a - b);
  for (const c of shown) {
    let low = Infinity, high = -Infinity;
    for (let n = 0; n < panel.series.shape[0]; n++) {
      for (let t = 0; t < times; t++) {
        const value = all[(n * channels + c) * times + t];
        if (Number.isFinite(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
      }
    }
    const name = valueOf(panel.channels)[c] ?? String(c);
    const canvas = make("canvas", { width: places, height: 1, role: "img", "aria-label": `${words}, channel ${name}` });
    canvas.style.width = `${(100 * times) / width}%`;
    const later = future.map(([name, values]) => [name, values.subarray(c * ahead, (c + 1) * ahead)]).filter(([, values]) => values.every(Number.isFinite));
    for (const [, values] of later) [low, high] = [Math.min(low, ...values), Math.max(high, ...values)];
    paint(canvas, size(c).map(weight => weight || 0), valueOf(page.colors), "all", false);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", `0 0 ${width} 1`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const y = value => (0.95 - (0.9 * (value - low)) / (high - low || 1)).toFixed(3), last = series[c * times + times - 1];
    const line = (points, kind) => {
      const found = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
      found.setAttribute("points", points.map(([t, value]) => `${t},${y(value)}`).join(" "));
      found.setAttribute("class", kind);
      svg.append(found);
    };
    line([...Array(times).keys()].map(t => [t + 0.5, series[c * times + t]]), "series");
    for (const [kind, values] of later) line([[times - 0.5, last], ...[...values].map((value, h) => [times + (h + 0.5) * pace, value])], kind);
    place.append(make("div", { class: "channel" }, make("span", {}, name), make("div", { class: "track" }, canvas, svg)));
  }
  const steps = panel.times + ahead, end = panel.rate ? `${brief(steps / panel.rate)} s` : `${steps} steps`;
  if (ahead) place.append(make("p", { class: "scores" }, "green: forecast; gray: what came"));
  place.append(make("div", { class: "axis" }, make("span", {}, panel.rate ? "0 s" : "0"), make("span", {}, end)));
  if (shown.length < channels) place.append(make("p", { class: "scores" }, `${shown.length} of ${channels} channels`));
  return place;
}

// The steps of a forecast, the first at the top, over the times before it; a map for each channel, or one for all of them.
function horizonOf(panel, i, weights, words) {
  const [rows, places] = panel.values.shape.slice(1), steps = valueOf(panel.steps), size = steps.length * places;
  const names = valueOf(panel.channels), place = make("div"), blocks = rows / steps.length;
  for (let b = 0; b < blocks; b++) {
    const name = blocks === names.length && blocks > 1 ? names[b] : "", about = [words, name && `channel ${name}`].filter(Boolean).join(", ");
    const own = weights.slice(b * size, (b + 1) * size).map(weight => weight || 0);
    const canvas = make("canvas", { width: places, height: steps.length, role: "img", "aria-label": `${about}; ${strongestStep(own, steps, panel)}` });
    paint(canvas, own, valueOf(page.colors), "all", false);
    const labels = make("span", { class: "steps" }, make("span", {}, `step ${steps[0]}`), make("span", {}, name), make("span", {}, `step ${steps.at(-1)}`));
    place.append(make("div", { class: "channel horizon" }, labels, make("div", { class: "track" }, canvas)));
  }
  const past = panel.rate ? `${brief(panel.times / panel.rate)} s` : `${panel.times} steps`;
  place.append(make("div", { class: "axis" }, make("span", {}, `${past} before`), make("span", {}, "forecast begins")));
  return place;
}

function strongestStep(weights, steps, panel) {
  const places = weights.length / steps.length;
  const best = weights.reduce((most, weight, k) => (Math.abs(weight) > Math.abs(weights[most]) ? k : most), 0);
  if (!weights[best]) return "zero everywhere";
  const lag = Math.ceil((1 - ((best % places) + 0.5) / places) * panel.times);
  return `strongest at step ${steps[Math.floor(best / places)]}, lag ${panel.rate ? `${brief(lag / panel.rate)} s` : lag}`;
}

const chosen = new Map();

// One slice of a volume or frame of a video at a time, under its map; first the one on which most of it lies, then what the reader has chosen.
function stackOf(panel, i, words) {
  const { values, shown, levels, word, places } = panel.stack, [count, height, width] = values.shape.slice(1);
  const key = `${word} ${places} ${panel.input} ${i}`, size = height * width;
  const canvas = make("canvas", { width, height, role: "img", "aria-label": words }), over = make("canvas", { width, height });
  const slider = make("input", { type: "range", min: 1, max: count, "aria-label": `${word} of ${words}` }), said = make("span");
  whenSeen(canvas, async () => {
    const weights = await sampleOf(values, i), gray = await sampleOf(shown, i), context = canvas.getContext("2d");
    const sizes = [...Array(count).keys()].map(k => weights.subarray(k * size, (k + 1) * size).reduce((sum, weight) => sum + Math.abs(weight), 0));
    const show = () => {
      const first = (slider.valueAsNumber - 1) * size, image = context.createImageData(width, height);
      gray.subarray(first, first + size).forEach((value, k) => image.data.set([value, value, value, 255], 4 * k));
      context.putImageData(image, 0, 0);
      paint(over, Float32Array.from(weights.subarray(first, first + size), value => value / levels), valueOf(page.colors), "all", true);
      context.drawImage(over, 0, 0);
      said.textContent = `${word} ${Math.floor(((slider.valueAsNumber - 0.5) * places) / count) + 1} of ${places}`;
      slider.setAttribute("aria-valuetext", said.textContent);
    };
    slider.value = chosen.get(key) ?? sizes.indexOf(Math.max(...sizes)) + 1;
    slider.addEventListener("input", () => { chosen.set(key, slider.value); show(); });
    show();
  });
  const cell = make("span", { class: "cell", style: `aspect-ratio: ${width} / ${height}` }, canvas);
  return make("div", { class: "stack" }, cell, make("div", {}, slider, said));
}

// The element that shows a panel of a sample; weights is a function, because they are read when they are needed.
function panelElement(panel, i, weights, words, options) {
  if (panel.kind === "map") return mapCell(panel, weights, words, null, options);
  if (panel.kind === "picture") {
    const picture = make("img", { src: pictureOf(panel.pictures[i]), alt: words });
    return panel.stack ? make("div", {}, picture, stackOf(panel, i, words)) : picture;
  }
  const place = make("div", { role: "group", "aria-label": words });
  whenSeen(place, async () => {
    const values = await weights();
    if (!values) return;
    const numbers = options.difference ? values : await sampleOf(panel.values, i);
    const made = { words: wordsOf, features: barsOf, bars: barsOf, series: seriesOf, horizon: horizonOf }[panel.kind];
    place.replaceChildren(await made(panel, i, values, ["series", "horizon"].includes(panel.kind) ? words : numbers));
  });
  return place;
}
