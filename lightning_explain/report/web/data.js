// The numbers of the page: JSON, and compressed blocks that are read when they are first needed.

const page = JSON.parse(document.getElementById("data").textContent);
const arrays = new Map();
const TYPES = { int8: Int8Array, uint8: Uint8Array, float32: Float32Array };

function trouble(text) {
  const place = document.getElementById("trouble");
  place.textContent = text;
  place.hidden = false;
}

async function inflated(key) {
  const text = atob(document.getElementById("b" + key).textContent);
  const bytes = Uint8Array.from(text, letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// All numbers of a tensor, as a typed array.
function arrayOf(tensor) {
  if (!arrays.has(tensor.key)) {
    arrays.set(tensor.key, inflated(tensor.key).then(buffer => new TYPES[tensor.type](buffer)));
  }
  return arrays.get(tensor.key);
}

// Those of one sample.
async function sampleOf(tensor, i) {
  const size = tensor.shape.slice(1).reduce((a, b) => a * b, 1);
  return (await arrayOf(tensor)).subarray(i * size, (i + 1) * size);
}

const valueOf = key => page.values[key];
const pictureOf = key => "data:image/png;base64," + document.getElementById("p" + key).textContent;

// A number in few digits, as people write it.
function brief(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "NaN";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e4 || size < 1e-3 ? value.toExponential(1).replace("e+", "e") : String(Number(value.toPrecision(3)));
}

// An element with attributes and children; texts are always texts, never HTML.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === undefined || value === null) continue;
    element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}
