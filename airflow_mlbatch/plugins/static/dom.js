// Builds pages and words numbers. Whatever comes from a service enters a page as text, never as markup:
// nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; strings become text, null and false become nothing. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for drawings. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== false));
  return element;
}

/** The headings of a table. That of a column of numbers stands above the numbers. */
export function headings(names, isNumeric) {
  const head = (name, place) =>
    h("th", { scope: "col", class: isNumeric(name, place) ? "number" : null }, name);
  return h("thead", {}, h("tr", {}, ...names.map(head)));
}

/** A table of values that does not change. */
export function valueTable(caption, names, rows) {
  const isNumeric = (_, place) => rows.some((row) => row.cells[place]?.classList.contains("number"));
  const heads = headings(names, isNumeric);
  return h("table", {}, h("caption", {}, caption), heads, h("tbody", {}, ...rows));
}

/** Changes a text only where it differs, so that a screen reader and a selection are left alone. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// --- keyboard ----------------------------------------------------------------------------------

const STOPS = "a[href], button:not(:disabled), input, select, summary, [tabindex='0']";

/**
 * Redraws a part of the page. Where the focus was on something in it, the focus is then on what has the
 * same name, or else on the first place that the keyboard reaches there.
 */
export function redraw(part, draw) {
  const before = part.contains(document.activeElement) ? document.activeElement : null;
  draw();
  if (before === null || before.isConnected) return;
  const stops = [...part.querySelectorAll(STOPS)];
  const same = stops.find((stop) => stop.tagName === before.tagName && nameOf(stop) === nameOf(before));
  (same ?? stops[0])?.focus({ preventScroll: true });
}

function nameOf(element) {
  return element.id || element.getAttribute("aria-label") || element.textContent;
}

// --- asking ------------------------------------------------------------------------------------

/** A refusal or a failure as a sentence. */
export class Problem extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

const SENTENCES = {
  401: "You are not logged in any more. Log in to Airflow and load this page again.",
  403: "You do not have the permission for this.",
};

/** The decoded answer to a request; the path is relative to where the pages are mounted. */
export async function ask(path, options = {}) {
  let reply;
  try {
    reply = await fetch(new URL(path, document.baseURI), {
      headers: { accept: "application/json" },
      ...options,
    });
  } catch {
    throw new Problem(0, "Airflow's API server does not answer.");
  }
  if (reply.ok) return reply.json();
  let detail = "";
  try {
    detail = (await reply.json()).detail;
  } catch {
    // Not one of our own answers.
  }
  const words = typeof detail === "string" && detail ? detail : `Airflow answered ${reply.status}.`;
  throw new Problem(reply.status, SENTENCES[reply.status] ?? words);
}

// Between two polls where nothing changes soon: the batch has ended, or the server does not answer.
export const SLOW_SECONDS = 15;

/**
 * Runs a step again and again while the page is visible. The step returns the seconds until the next
 * one, or null for the last. What is returned runs it at once.
 */
export function repeat(step) {
  let timer = null;
  let isRunning = false;
  let isWanted = false;
  async function run() {
    timer = null;
    if (isRunning || document.hidden) return;
    isRunning = true;
    let seconds;
    do {
      isWanted = false;
      seconds = await step();
      // What was chosen meanwhile is asked for at once.
    } while (isWanted);
    isRunning = false;
    if (seconds !== null) timer = setTimeout(run, seconds * 1000);
  }
  function now() {
    isWanted = true;
    clearTimeout(timer);
    run();
  }
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) now();
  });
  now();
  return now;
}

// --- words -------------------------------------------------------------------------------------

const COUNT = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const WHEN = new Intl.DateTimeFormat("en-CA", {
  dateStyle: "short",
  timeStyle: "medium",
  hourCycle: "h23",
});

export const NONE = "–";

export function count(value) {
  return value === null || value === undefined ? NONE : COUNT.format(value);
}

export function rate(value) {
  if (value === null || value === undefined) return NONE;
  return `${value >= 100 ? COUNT.format(Math.round(value)) : SHORT.format(value)}/s`;
}

export function when(seconds) {
  return seconds === null || seconds === undefined ? NONE : WHEN.format(new Date(seconds * 1000));
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return NONE;
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export function percent(done, total) {
  return total ? `${Math.floor((100 * done) / total)} %` : NONE;
}

/** A value of a record as text. */
export function valueText(value) {
  if (value === null || value === undefined) return NONE;
  // The digits of an id count, those of a score beyond the seventh do not.
  if (Number.isSafeInteger(value)) return String(value);
  if (typeof value === "number") return String(Number(value.toPrecision(7)));
  return typeof value === "string" ? value : JSON.stringify(value);
}

// --- parts that both pages have ----------------------------------------------------------------

const BATCH_STATES = {
  pending: "waiting",
  inProgress: "running",
  inprogress: "running",
  ready: "running",
  complete: "complete",
  failed: "failed",
  gone: "gone",
};

/** The state of a batch in a word, with a colour that is not its only sign. */
export function badge(state) {
  const word = BATCH_STATES[state] ?? state ?? "unknown";
  return h("span", { class: "badge", "data-state": word }, word);
}

export function taskBadge(state) {
  const word = state ?? "no state";
  return h("span", { class: "badge", "data-task": word }, word.replaceAll("_", " "));
}

/** The path of a task's page, relative to where the pages are mounted. */
export function taskPath(task) {
  const names = [task.dag_id, task.run_id, task.task_id].map(encodeURIComponent);
  return `dags/${names[0]}/runs/${names[1]}/tasks/${names[2]}/${task.map_index}`;
}

/** The path of the page about a table in shards; `task` is the one that has planned it. */
export function tablePath(task) {
  const names = [task.dag_id, task.run_id, task.task_id].map(encodeURIComponent);
  return `dags/${names[0]}/runs/${names[1]}/tables/${names[2]}`;
}

/** The name of a table: that of its task group. */
export function tableName(task) {
  return task.task_id.replace(/\.?plan$/, "") || task.task_id;
}

/** Whether the task that publishes a table has not ended yet. */
export function isBeingScored(table) {
  return !FINAL.includes(table.commit);
}

/** The path of Airflow's own page about a task instance. */
export function airflowPath(task) {
  const names = [task.dag_id, task.run_id, task.task_id].map(encodeURIComponent);
  const mapped = task.map_index >= 0 ? `/mapped/${task.map_index}` : "";
  return `../dags/${names[0]}/runs/${names[1]}/tasks/${names[2]}${mapped}`;
}

// The states in which a task stays.
export const FINAL = ["success", "failed", "skipped", "upstream_failed", "removed"];

export const IS_FRAMED = window.parent !== window;
