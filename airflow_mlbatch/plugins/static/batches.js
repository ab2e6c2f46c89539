// The list of batches: newest first, in pages, live.

import {
  NONE,
  SLOW_SECONDS,
  ask,
  badge,
  count,
  duration,
  h,
  headings,
  isBeingScored,
  percent,
  rate,
  repeat,
  setText,
  tableName,
  tablePath,
  taskBadge,
  taskPath,
  when,
} from "./dom.js";

const STATES = ["running", "deferred", "success", "failed", "up_for_retry", "up_for_reschedule", "skipped"];
const HEADS = [
  "Dag",
  "Run",
  "Task",
  "Service",
  "Task state",
  "Batch",
  "Progress",
  "Done",
  "Failed",
  "Total",
  "Rate",
  "Time left",
  "Submitted",
  "Duration",
];
const NUMBERS = new Set(["Done", "Failed", "Total", "Rate", "Time left", "Duration"]);

const page = document.getElementById("page");
const chosen = { dag_id: "", service: "", state: "", offset: 0 };
const rows = new Map();
let again = () => {};

const selects = {
  dag_id: select("dag_id", "Dag"),
  service: select("service", "Service"),
  state: select("state", "Task state"),
};
const body = h("tbody");
const caption = h("caption", {}, "Batches");
const problem = h("p", { class: "problem", role: "alert", hidden: true });
const back = h("button", { type: "button", disabled: true }, "Newer");
const on = h("button", { type: "button", disabled: true }, "Older");
const region = { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of batches" };
page.replaceChildren(
  h("h1", {}, "Batches"),
  h("div", { class: "tools", role: "search" }, ...Object.values(selects).map((each) => each.label)),
  problem,
  h(
    "div",
    region,
    h(
      "table",
      {},
      caption,
      headings(HEADS, (name) => NUMBERS.has(name)),
      body,
    ),
  ),
  h("div", { class: "pager" }, back, on),
);
setOptions(selects.state, STATES);
let pageSize = 25;
back.addEventListener("click", () => turn(-pageSize));
on.addEventListener("click", () => turn(pageSize));

function select(name, words) {
  const found = h("select", { id: name }, h("option", { value: "" }, "all"));
  found.addEventListener("change", () => {
    chosen[name] = found.value;
    chosen.offset = 0;
    again();
  });
  return { select: found, label: h("label", {}, `${words} `, found) };
}

function setOptions({ select: list }, values) {
  const present = [...list.options].slice(1).map((option) => option.value);
  if (present.join("\n") === values.join("\n")) return;
  const value = list.value;
  list.replaceChildren(
    h("option", { value: "" }, "all"),
    ...values.map((each) => h("option", { value: each }, each.replaceAll("_", " "))),
  );
  list.value = values.includes(value) ? value : "";
}

function turn(by) {
  chosen.offset = Math.max(0, chosen.offset + by);
  again();
}

async function look() {
  const query = new URLSearchParams(Object.entries(chosen).filter(([, value]) => value));
  let answer;
  try {
    answer = await ask(`list?${query}`);
  } catch (found) {
    problem.hidden = false;
    setText(problem, found.message);
    return found.status === 401 ? null : SLOW_SECONDS;
  }
  problem.hidden = true;
  show(answer);
  const isLive = answer.batches.some((each) =>
    each.table ? isBeingScored(each.table) : each.progress && !each.progress.is_ended,
  );
  return isLive ? answer.interval : SLOW_SECONDS;
}

function show(answer) {
  pageSize = answer.page_size;
  setOptions(selects.dag_id, answer.dags);
  setOptions(selects.service, answer.services);
  const first = answer.batches.length ? chosen.offset + 1 : 0;
  const last = chosen.offset + answer.batches.length;
  setText(caption, `Batches ${count(first)} to ${count(last)} of ${count(answer.total)}, newest first`);
  back.disabled = chosen.offset === 0;
  on.disabled = last >= answer.total;
  const wanted = answer.batches.map((each) => {
    const path = each.table ? tablePath(each.task) : taskPath(each.task);
    if (!rows.has(path)) rows.set(path, newRow(each, path));
    const row = rows.get(path);
    update(row, each);
    return row.element;
  });
  if (wanted.length === 0) {
    const words = "No batches that you may see. A task is listed here once it has started one.";
    body.replaceChildren(h("tr", {}, h("td", { colspan: HEADS.length }, words)));
    return;
  }
  const isSame = wanted.length === body.children.length && wanted.every((e, i) => e === body.children[i]);
  // Rows stay where they are while their numbers change: focus and selection are not lost.
  if (!isSame) body.replaceChildren(...wanted);
}

function newRow({ task, batch, table }, path) {
  const cells = {};
  for (const name of ["task", "state", "done", "failed", "total", "rate", "left", "duration"]) {
    cells[name] = h("td", { class: ["task", "state"].includes(name) ? "" : "number" });
  }
  const mapped = task.map_index >= 0 ? ` [${task.map_index}]` : "";
  const name = table ? tableName(task) : `${task.task_id}${mapped}`;
  cells.bar = h("progress", { max: "1", value: "0", "aria-label": `Progress of ${name}` });
  cells.share = h("span", { class: "muted" });
  const scored = table ?? batch;
  const service = scored ? `${scored.service_name} ${scored.service_version}` : NONE;
  const element = h(
    "tr",
    {},
    h("td", { class: "long" }, task.dag_id),
    h("td", { class: "long" }, task.run_id),
    h("th", { scope: "row" }, h("a", { href: path }, name)),
    h("td", {}, service),
    cells.task,
    cells.state,
    h("td", { class: "progress" }, cells.bar, " ", cells.share),
    cells.done,
    cells.failed,
    cells.total,
    cells.rate,
    cells.left,
    h("td", {}, when(batch ? batch.submitted_at : task.start)),
    cells.duration,
  );
  return { element, cells };
}

function update(row, each) {
  if (each.table) updateTable(row, each);
  else updateBatch(row, each);
}

/** A table counts rows that are written; what its shards have scored meanwhile stands on its page. */
function updateTable({ cells }, { task, table }) {
  const { planned, shards, written } = table;
  const word = taskBadge(task.state);
  if (cells.task.textContent !== word.textContent) cells.task.replaceChildren(word);
  setText(cells.state, `${count(shards.done)} of ${count(planned.shards)} shards`);
  cells.bar.max = planned.rows || 1;
  cells.bar.value = written.rows;
  setText(cells.share, percent(written.rows, planned.rows));
  setText(cells.done, count(written.rows));
  setText(cells.failed, count(written.failed));
  setText(cells.total, count(planned.rows));
  setText(cells.rate, NONE);
  setText(cells.left, NONE);
  setText(cells.duration, NONE);
}

function updateBatch({ cells }, { task, batch, progress, failed }) {
  const word = taskBadge(task.state);
  if (cells.task.textContent !== word.textContent) cells.task.replaceChildren(word);
  if (batch === null) return;
  const total = progress.total ?? batch.count;
  const state = badge(progress.state);
  if (cells.state.textContent !== state.textContent) cells.state.replaceChildren(state);
  cells.state.title = progress.problem ?? "";
  cells.bar.max = total || 1;
  cells.bar.value = progress.done ?? 0;
  setText(cells.share, progress.done === null ? "" : percent(progress.done, total));
  setText(cells.done, count(progress.done));
  setText(cells.failed, count(failed));
  setText(cells.total, count(total));
  setText(cells.rate, rate(progress.rate));
  setText(cells.left, progress.is_ended ? NONE : duration(progress.seconds_left));
  const since = batch.submitted_at ?? task.start;
  const until = task.end ?? (progress.is_ended ? null : Date.now() / 1000);
  setText(cells.duration, since === null || until === null ? NONE : duration(until - since));
}

again = repeat(look);
