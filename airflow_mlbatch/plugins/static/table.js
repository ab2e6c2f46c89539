// A table that is scored in shards: how far it is, and a page of its shards with links to their batches.

import {
  NONE,
  SLOW_SECONDS,
  ask,
  badge,
  count,
  h,
  headings,
  isBeingScored,
  percent,
  redraw,
  repeat,
  setText,
  tableName,
  taskBadge,
  taskPath,
} from "./dom.js";

// The page's own address names the table: what it asks for lies below it.
const PATH = location.pathname.slice(new URL(document.baseURI).pathname.length).replace(/\/$/, "");
const HEADS = ["Shard", "First row", "Rows", "State", "Scoring", "Writing", "Rows written", "Failed"];
const NUMBERS = new Set(["First row", "Rows", "Rows written", "Failed"]);

const page = document.getElementById("page");
const parts = build();
let offset = 0;
let pageSize = 100;
const again = repeat(look);

function build() {
  const value = () => h("dd", {}, NONE);
  const turn = (by) => () => {
    offset = Math.max(0, offset + by * pageSize);
    again();
  };
  const found = {
    title: h("h1", {}, "Table"),
    where: h("p", { class: "muted" }),
    state: h("p", { class: "states" }),
    problem: h("p", { class: "problem", role: "alert", hidden: true }),
    bar: h("progress", { "aria-label": "Rows written", max: "1", value: "0" }),
    shards: value(),
    active: value(),
    failedShards: value(),
    rows: value(),
    failedRows: value(),
    written: value(),
    facts: h("dl", { class: "facts" }),
    caption: h("caption", {}, "Shards"),
    body: h("tbody"),
    back: h("button", { type: "button", disabled: true, onclick: turn(-1) }, "Previous shards"),
    on: h("button", { type: "button", disabled: true, onclick: turn(1) }, "Next shards"),
  };
  const numbers = [
    ["Shards done", found.shards],
    ["Active", found.active],
    ["Failed", found.failedShards],
    ["Rows written", found.rows],
    ["Failed rows", found.failedRows],
    ["Parts", found.written],
  ].map(([name, dd]) => h("div", {}, h("dt", {}, name), dd));
  const region = { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of shards" };
  const heads = headings(HEADS, (name) => NUMBERS.has(name));
  page.replaceChildren(
    h("nav", { "aria-label": "Breadcrumb" }, h("a", { href: "./" }, "Batches"), " / ", found.where),
    h("div", { class: "head" }, found.title),
    found.state,
    found.problem,
    h(
      "section",
      { class: "panel", "aria-label": "Progress" },
      found.bar,
      h("dl", { class: "numbers" }, ...numbers),
    ),
    found.facts,
    h("h2", {}, "Shards"),
    h("div", region, h("table", {}, found.caption, heads, found.body)),
    h("div", { class: "pager" }, found.back, found.on),
  );
  return found;
}

async function look() {
  let reply;
  try {
    reply = await ask(`${PATH}/status?offset=${offset}`);
  } catch (problem) {
    showProblem(problem.message);
    return [401, 403, 404].includes(problem.status) ? null : SLOW_SECONDS;
  }
  showProblem("");
  show(reply);
  return isBeingScored(reply.table) ? reply.interval : SLOW_SECONDS;
}

function showProblem(sentence) {
  parts.problem.hidden = !sentence;
  setText(parts.problem, sentence);
}

function show({ task, table, shards, page_size: size }) {
  pageSize = size;
  const { planned, written } = table;
  setText(parts.title, `${tableName(task)}: ${table.service_name} ${table.service_version}`);
  setText(parts.where, `${task.dag_id} / ${task.run_id} / ${tableName(task)}`);
  parts.state.replaceChildren(
    isBeingScored(table) ? badge("inProgress") : taskBadge(table.commit),
    isBeingScored(table) ? " The dataset is published once all shards are written." : " Dataset",
  );
  parts.bar.max = planned.rows || 1;
  parts.bar.value = written.rows;
  setText(parts.shards, `${count(table.shards.done)} of ${count(planned.shards)}`);
  setText(parts.active, count(table.shards.active));
  setText(parts.failedShards, count(table.shards.failed));
  const share = percent(written.rows, planned.rows);
  setText(parts.rows, `${count(written.rows)} of ${count(planned.rows)} (${share})`);
  setText(parts.failedRows, count(written.failed));
  setText(parts.written, count(written.parts));
  showFacts(table);
  showShards(task, table, shards);
}

function showFacts(table) {
  if (parts.facts.childElementCount > 0) return;
  const facts = [
    ["Connection", table.conn_id],
    ["Output", table.output_path],
  ];
  parts.facts.replaceChildren(
    ...facts.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text ?? NONE))),
  );
}

function showShards(task, table, shards) {
  const first = shards.length ? offset + 1 : 0;
  const last = offset + shards.length;
  setText(parts.caption, `Shards ${count(first)} to ${count(last)} of ${count(table.planned.shards)}`);
  parts.back.disabled = offset === 0;
  parts.on.disabled = last >= table.planned.shards;
  const rows = shards.map((shard) => row(task, table, shard));
  // Replaced only where something changed, so that a selection is not lost.
  const wanted = rows.map((each) => each.outerHTML).join("");
  if (parts.body.innerHTML === wanted) return;
  redraw(parts.body, () => parts.body.replaceChildren(...rows));
}

function row(task, table, shard) {
  const scoring = { ...task, task_id: table.score_task_id, map_index: shard.map_index };
  const name = `shard ${shard.map_index}`;
  // A task has a page once it has recorded a batch.
  const link = shard.score === null ? name : h("a", { href: taskPath(scoring) }, name);
  const size = shard.start === null || shard.stop === null ? null : shard.stop - shard.start;
  return h(
    "tr",
    { class: shard.state === "failed" ? "failed" : "" },
    h("th", { scope: "row" }, link),
    h("td", { class: "number" }, count(shard.start)),
    h("td", { class: "number" }, count(size)),
    h("td", {}, shard.state),
    h("td", {}, taskBadge(shard.score)),
    h("td", {}, taskBadge(shard.write)),
    h("td", { class: "number" }, count(shard.rows)),
    h("td", { class: "number" }, count(shard.failed)),
  );
}
