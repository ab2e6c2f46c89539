// The tables in which a results task has written a batch: all of its rows, a page at a time.

import { ask, count, h, redraw, valueTable, valueText } from "./dom.js";
import { longText } from "./parts.js";

const NAMES = { table: "Scored table", rejects: "Rejects" };

export class StoredTables {
  constructor(path) {
    this.path = path;
    this.section = h("section", { "aria-label": "Written tables" });
  }

  /** Looks which tables there are; shows nothing where there are none. */
  async load() {
    let tables;
    try {
      ({ tables } = await ask(`${this.path}/tables`));
    } catch (problem) {
      this.section.replaceChildren(
        h("h2", {}, "Written tables"),
        h("p", { class: "problem", role: "alert" }, problem.message),
      );
      return;
    }
    this.section.replaceChildren(...tables.map((table) => new StoredTable(this.path, table).element));
  }
}

class StoredTable {
  constructor(path, table) {
    this.path = path;
    this.table = table;
    this.rows = h("div", {});
    this.element = h(
      "div",
      {},
      h("h2", {}, NAMES[table.name] ?? table.name),
      h("p", { class: "muted" }, table.path),
      this.rows,
    );
    const open = { type: "button", onclick: () => this.load(0) };
    this.rows.append(h("button", open, `Show its ${count(table.rows)} rows`));
  }

  async load(offset) {
    let page;
    try {
      page = await ask(`${this.path}/tables/${this.table.name}?offset=${offset}`);
    } catch (problem) {
      const retry = { type: "button", onclick: () => this.load(offset) };
      redraw(this.rows, () =>
        this.rows.replaceChildren(
          h("p", { class: "problem", role: "alert" }, problem.message),
          h("button", retry, "Read again"),
        ),
      );
      return;
    }
    redraw(this.rows, () => this.show(page));
  }

  show({ columns, rows, offset, total, page_size: size, hidden_columns: hidden }) {
    const last = offset + rows.length;
    const more = hidden ? `, ${count(hidden)} more columns are in the file` : "";
    const caption = `Rows ${count(rows.length ? offset + 1 : 0)} to ${count(last)} of ${count(total)}${more}`;
    const name = NAMES[this.table.name] ?? this.table.name;
    const region = { class: "scroll", tabindex: "0", role: "region", "aria-label": `Rows of ${name}` };
    const cell = (value) =>
      h("td", { class: typeof value === "number" ? "number" : "" }, longText(valueText(value)));
    const lines = rows.map((row) => h("tr", {}, ...row.map(cell)));
    this.rows.replaceChildren(
      h("div", region, valueTable(caption, columns, lines)),
      this.pager(offset, size, last, total),
    );
  }

  pager(offset, size, last, total) {
    const back = { type: "button", disabled: offset === 0 };
    back.onclick = () => this.load(Math.max(0, offset - size));
    const on = { type: "button", disabled: last >= total, onclick: () => this.load(last) };
    return h("div", { class: "pager" }, h("button", back, "Previous rows"), h("button", on, "Next rows"));
  }
}
