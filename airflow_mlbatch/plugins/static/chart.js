// Small drawings: throughput of a running batch, the spread of an output.

import { count, h, rate, svg, valueText } from "./dom.js";

const WIDTH = 320;
const HEIGHT = 64;

/** Records a second over the time that the batch was watched; null for too few samples. */
export function throughput(samples) {
  const rates = [];
  for (let place = 1; place < samples.length; place += 1) {
    const [before, after] = [samples[place - 1], samples[place]];
    if (after[0] > before[0]) {
      rates.push([after[0], Math.max(0, (after[1] - before[1]) / (after[0] - before[0]))]);
    }
  }
  if (rates.length < 2) return null;
  const [first, last] = [rates[0][0], rates[rates.length - 1][0]];
  const most = Math.max(...rates.map((each) => each[1])) || 1;
  const points = rates.map(([at, value]) => {
    const x = ((at - first) / (last - first)) * WIDTH;
    return `${x.toFixed(1)},${(HEIGHT - (value / most) * (HEIGHT - 4)).toFixed(1)}`;
  });
  const label = `Throughput while watched: at most ${rate(most)}, now ${rate(rates.at(-1)[1])}`;
  const line = svg("polyline", { points: points.join(" "), class: "line" });
  return h("figure", {}, drawing(label, line), h("figcaption", {}, label));
}

function drawing(label, ...shapes) {
  const box = `0 0 ${WIDTH} ${HEIGHT}`;
  const attributes = { viewBox: box, role: "img", "aria-label": label, preserveAspectRatio: "none" };
  return svg("svg", attributes, ...shapes);
}

const BINS = 20;

/** The spread of the values of one output; null where there is nothing to draw. */
export function histogram(name, values) {
  const numbers = values.filter((value) => typeof value === "number" && Number.isFinite(value));
  if (numbers.length === 0) return null;
  let [least, most] = [numbers[0], numbers[0]];
  for (const value of numbers) {
    if (value < least) least = value;
    if (value > most) most = value;
  }
  const width = most > least ? (most - least) / BINS : 1;
  const bins = new Array(most > least ? BINS : 1).fill(0);
  for (const value of numbers) {
    bins[Math.min(bins.length - 1, Math.floor((value - least) / width))] += 1;
  }
  const highest = Math.max(...bins);
  const step = WIDTH / bins.length;
  const bars = bins.map((size, place) => {
    const height = (size / highest) * HEIGHT;
    const from = valueText(least + place * width);
    const to = valueText(least + (place + 1) * width);
    return svg(
      "rect",
      { x: place * step, y: HEIGHT - height, width: Math.max(1, step - 1), height, class: "bar" },
      svg("title", {}, `${from} to ${to}: ${count(size)}`),
    );
  });
  const label = `${name}: ${count(numbers.length)} values from ${valueText(least)} to ${valueText(most)}`;
  return h("figure", {}, h("figcaption", {}, label), drawing(label, ...bars));
}

const MOST_VALUES = 8;
const LONGEST = 40;

/** How often each value occurs; null for long texts and for outputs without few values. */
export function counts(name, values) {
  const found = new Map();
  for (const value of values) {
    if (value === null || value === undefined) continue;
    if (typeof value !== "boolean" && (typeof value !== "string" || value.length > LONGEST)) return null;
    found.set(value, (found.get(value) ?? 0) + 1);
  }
  if (found.size === 0) return null;
  const ordered = [...found].sort((one, other) => other[1] - one[1]);
  const rows = ordered.slice(0, MOST_VALUES).map(([value, size]) =>
    h("tr", {}, h("th", { scope: "row" }, valueText(value)), h("td", { class: "number" }, count(size))),
  );
  const more = ordered.length - rows.length;
  const rest = more > 0 ? ` (${count(more)} more values)` : "";
  return h("table", { class: "counts" }, h("caption", {}, `${name}${rest}`), h("tbody", {}, ...rows));
}
