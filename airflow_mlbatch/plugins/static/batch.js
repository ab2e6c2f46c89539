// One batch: its progress while it runs, then its records.

import {
  FINAL,
  IS_FRAMED,
  NONE,
  SLOW_SECONDS,
  airflowPath,
  ask,
  badge,
  count,
  duration,
  h,
  percent,
  rate,
  repeat,
  setText,
  tableName,
  tablePath,
  taskBadge,
  when,
} from "./dom.js";
import { throughput } from "./chart.js";
import { Records } from "./records.js";

// The page's own address names the task: what it asks for lies below it.
const PATH = location.pathname.slice(new URL(document.baseURI).pathname.length).replace(/\/$/, "");

const page = document.getElementById("page");
const parts = build();
const records = new Records(PATH, parts.records);
let isEnded = null;
let again = () => {};

function build() {
  const value = () => h("dd", {}, NONE);
  const found = {
    title: h("h1", {}, "Batch"),
    where: h("p", { class: "muted" }),
    state: h("p", { class: "states" }),
    spoken: h("p", { class: "hidden", role: "status" }),
    problem: h("p", { class: "problem", role: "alert", hidden: true }),
    bar: h("progress", { "aria-label": "Records scored", max: "1", value: "0" }),
    done: value(),
    failed: value(),
    rate: value(),
    left: value(),
    started: value(),
    duration: value(),
    chart: h("div", { class: "chart" }),
    facts: h("dl", { class: "facts" }),
    cancel: h("button", { class: "danger", type: "button", hidden: true }, "Cancel batch…"),
    records: h("section", { "aria-label": "Records" }),
  };
  const numbers = [
    ["Done", found.done],
    ["Failed", found.failed],
    ["Rate", found.rate],
    ["Time left", found.left],
    ["Submitted", found.started],
    ["Duration", found.duration],
  ].map(([name, dd]) => h("div", {}, h("dt", {}, name), dd));
  found.cancel.addEventListener("click", confirmCancel);
  const list = h("a", { href: "./" }, "Batches");
  page.replaceChildren(
    h("nav", { "aria-label": "Breadcrumb" }, list, " / ", found.where),
    h("div", { class: "head" }, found.title, found.cancel),
    found.state,
    found.spoken,
    found.problem,
    h(
      "section",
      { class: "panel", "aria-label": "Progress" },
      found.bar,
      h("dl", { class: "numbers" }, ...numbers),
      found.chart,
    ),
    found.facts,
    found.records,
  );
  return found;
}

async function look() {
  let answer;
  try {
    answer = await ask(`${PATH}/status`);
  } catch (problem) {
    showProblem(problem.message);
    return [401, 403].includes(problem.status) ? null : SLOW_SECONDS;
  }
  show(answer);
  const isTaskOver = FINAL.includes(answer.task.state);
  if (answer.batch === null) return isTaskOver ? null : answer.interval;
  if (answer.progress.is_ended) return isTaskOver ? null : SLOW_SECONDS;
  return answer.interval;
}

function show(answer) {
  const { task, batch, progress } = answer;
  const mapped = task.map_index >= 0 ? ` [${task.map_index}]` : "";
  const name = `${task.dag_id} / ${task.run_id} / ${task.task_id}${mapped}`;
  if (!parts.where.textContent.startsWith(name)) {
    // Inside of Airflow's own page a link would open Airflow within Airflow.
    const label = IS_FRAMED ? name : h("a", { href: airflowPath(task) }, name);
    parts.where.replaceChildren(label, ...partOfTable(task, answer.table));
  }
  if (batch === null) {
    parts.state.replaceChildren("Task ", taskBadge(task.state));
    showProblem("This task has not recorded a batch: it has not started one yet, or it ended first.");
    return;
  }
  setText(parts.title, `${batch.service_name} ${batch.service_version}`);
  parts.state.replaceChildren("Batch ", badge(progress.state), " Task ", taskBadge(task.state));
  showProblem(progress.problem ?? progress.message);
  showNumbers(answer);
  showFacts(batch);
  parts.chart.replaceChildren(throughput(progress.samples) ?? "");
  const mayCancel = answer.can_cancel && !progress.is_ended;
  parts.cancel.hidden = !mayCancel;
  if (isEnded !== progress.is_ended) {
    isEnded = progress.is_ended;
    setText(parts.spoken, `The batch is ${badge(progress.state).textContent}.`);
    if (progress.state !== "gone" && progress.state !== null) records.load();
  }
}

function partOfTable(task, planTaskId) {
  if (planTaskId === null) return [];
  const plan = { ...task, task_id: planTaskId };
  return [", a shard of the table ", h("a", { href: tablePath(plan) }, tableName(plan))];
}

function showProblem(sentence) {
  parts.problem.hidden = !sentence;
  setText(parts.problem, sentence ?? "");
}

function showNumbers({ task, batch, progress }) {
  const total = progress.total ?? batch.count;
  const done = progress.done;
  parts.bar.max = total || 1;
  if (done === null) parts.bar.removeAttribute("value");
  else parts.bar.value = done;
  const share = done === null ? "" : ` (${percent(done, total)})`;
  setText(parts.done, `${count(done)} of ${count(total)}${share}`);
  setText(parts.failed, records.failedText());
  setText(parts.rate, rate(progress.rate));
  setText(parts.left, progress.is_ended ? NONE : duration(progress.seconds_left));
  setText(parts.started, when(batch.submitted_at));
  setText(parts.duration, duration(elapsed(task, batch, progress)));
}

function elapsed(task, batch, progress) {
  const since = batch.submitted_at ?? task.start;
  if (since === null) return null;
  if (task.end !== null) return task.end - since;
  return progress.is_ended ? null : Date.now() / 1000 - since;
}

function showFacts(batch) {
  const facts = [
    ["Connection", batch.conn_id],
    ["Server", batch.server ?? NONE],
    ["Execution", batch.execution_id],
  ];
  const wanted = facts.flat().join("\n");
  if (parts.facts.dataset.shown === wanted) return;
  parts.facts.dataset.shown = wanted;
  parts.facts.replaceChildren(
    ...facts.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text))),
  );
}

records.onRead = () => setText(parts.failed, records.failedText());
again = repeat(look);

// --- the one action ----------------------------------------------------------------------------

function confirmCancel() {
  const words = h("p", {}, "The scoring server stops the batch and deletes its results. The task fails.");
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const keep = h("button", { type: "button", autofocus: true }, "Keep it");
  const cancel = h("button", { class: "danger", type: "button" }, "Cancel the batch");
  const title = h("h2", { id: "cancel-title" }, "Cancel this batch?");
  const buttons = h("div", { class: "buttons" }, keep, cancel);
  const dialog = h("dialog", { "aria-labelledby": "cancel-title" }, title, words, problem, buttons);
  keep.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  cancel.addEventListener("click", async () => {
    cancel.disabled = true;
    try {
      await ask(`${PATH}/cancel`, { method: "POST" });
      dialog.close();
      again();
    } catch (found) {
      problem.hidden = false;
      setText(problem, found.message);
      cancel.disabled = false;
    }
  });
  page.append(dialog);
  dialog.showModal();
}
