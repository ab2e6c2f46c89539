// The records that were read: a table in pages, a filter, and what their outputs look like.

import { NONE, ask, count, h, redraw, setText, valueTable, valueText } from "./dom.js";
import { counts, histogram } from "./chart.js";
import { longText } from "./parts.js";
import { StoredTables } from "./stored.js";

const PAGE = 50;
const RETRY_SECONDS = 1.5;
const PICTURE = /\.(png|jpe?g|gif|webp)$/i;

export class Records {
  constructor(path, section) {
    this.path = path;
    this.section = section;
    this.onRead = () => {};
    this.answer = null;
    this.onlyFailed = false;
    this.page = 0;
    // Inputs by the index of their record, as far as they were asked for.
    this.inputs = new Map();
    this.inputNames = [];
    this.hasInputs = true;
    this.stored = new StoredTables(path);
    // Says what the table shows since the reader has turned a page or chosen a filter.
    this.spoken = h("p", { class: "hidden", role: "status" });
  }

  /** How many failed, as far as that is known. */
  failedText() {
    if (this.answer === null) return NONE;
    const failed = this.answer.records.filter((record) => !record.success).length;
    if (this.answer.is_whole) return count(failed);
    return `${count(failed)} of the first ${count(this.answer.records.length)}`;
  }

  async load() {
    try {
      this.answer = await ask(`${this.path}/records`);
      this.inputs.clear();
    } catch (problem) {
      if (problem.status === 503) setTimeout(() => this.load(), RETRY_SECONDS * 1000);
      redraw(this.section, () =>
        this.section.replaceChildren(
          h("h2", {}, "Records"),
          h("p", { class: "problem", role: "alert" }, problem.message),
          this.readAgain(),
        ),
      );
      return;
    }
    this.page = 0;
    this.onRead();
    redraw(this.section, () => this.show());
    this.stored.load();
  }

  readAgain() {
    return h("button", { type: "button", onclick: () => this.load() }, "Read again");
  }

  show() {
    const { records } = this.answer;
    const filter = h("input", { type: "checkbox", id: "only-failed", checked: this.onlyFailed });
    filter.addEventListener("change", () => {
      this.onlyFailed = filter.checked;
      this.page = 0;
      this.turn();
    });
    this.table = h("div", {});
    const tools = [filter, h("label", { for: "only-failed" }, "Only failed records"), this.readAgain()];
    this.section.replaceChildren(
      h("h2", {}, "Records"),
      h("p", { class: "muted" }, this.extent()),
      h("div", { class: "spread" }, ...this.spread()),
      h("div", { class: "tools" }, ...tools),
      this.spoken,
      this.table,
      this.stored.section,
    );
    if (records.length === 0) this.section.querySelector(".tools").prepend("No records. ");
    this.showTable();
  }

  extent() {
    const { records, is_whole: isWhole, bytes_read: size } = this.answer;
    const kib = `${count(Math.ceil(size / 1024))} KiB`;
    if (isWhole) return `${count(records.length)} records, all that the server has so far (${kib}).`;
    if (records.length === 0) return `The first record is larger than the ${kib} that this page reads.`;
    return (
      `The first ${count(records.length)} records, from the ${kib} that this page reads of the results. ` +
      "A results task writes all of them to a table."
    );
  }

  /** Drawings and counts over the records that were read. */
  spread() {
    return this.answer.outputs
      .map(({ name }) => {
        const values = this.answer.records.map((record) => record.outputs[name]);
        const isNumeric = values.some((value) => typeof value === "number");
        return isNumeric ? histogram(name, values) : counts(name, values);
      })
      .filter((drawn) => drawn !== null);
  }

  /** Shows what the reader asked for, and says so to a screen reader. */
  turn() {
    this.showTable();
    setText(this.spoken, this.table.querySelector("caption").textContent);
  }

  showTable() {
    redraw(this.table, () => this.drawTable());
  }

  drawTable() {
    const { records, outputs } = this.answer;
    const wanted = this.onlyFailed ? records.filter((record) => !record.success) : records;
    const last = Math.max(0, Math.ceil(wanted.length / PAGE) - 1);
    this.page = Math.min(this.page, last);
    const shown = wanted.slice(this.page * PAGE, (this.page + 1) * PAGE);
    const names = outputs.map((output) => output.name);
    const heads = ["Index", ...this.inputNames, ...names, "Success", "Error", "Console output", "Files"];
    const what = this.onlyFailed ? "failed records" : "records";
    const caption = `${count(wanted.length)} ${what}, page ${this.page + 1} of ${last + 1}`;
    const region = { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of records" };
    this.table.replaceChildren(
      h("div", region, valueTable(caption, heads, shown.map((record) => this.row(record, names)))),
      this.pager(last),
    );
    this.readInputs(shown);
  }

  /** Asks for the inputs of the records that are shown, and shows them when they come. */
  async readInputs(shown) {
    const missing = shown.map((record) => record.index).filter((index) => !this.inputs.has(index));
    if (missing.length === 0 || !this.hasInputs) return;
    missing.forEach((index) => this.inputs.set(index, null));
    const query = missing.map((index) => `index=${index}`).join("&");
    let found;
    try {
      found = await ask(`${this.path}/inputs?${query}`);
    } catch (problem) {
      missing.forEach((index) => this.inputs.delete(index));
      this.table.append(h("p", { class: "muted" }, `Inputs are not shown. ${problem.message}`));
      return;
    }
    // The batch was not made from a table.
    this.hasInputs = found !== null;
    if (!this.hasInputs) return;
    this.inputNames = found.columns;
    missing.forEach((index, place) => this.inputs.set(index, found.rows[place]));
    this.showTable();
  }

  row(record, names) {
    const inputs = this.inputNames.map((_, place) => {
      const value = this.inputs.get(record.index)?.[place];
      return h("td", { class: typeof value === "number" ? "number" : "" }, longText(valueText(value)));
    });
    const values = names.map((name) => {
      const value = record.outputs[name];
      const kind = typeof value === "number" ? "number" : "";
      return h("td", { class: kind }, longText(valueText(value)));
    });
    return h(
      "tr",
      { class: record.success ? "" : "failed" },
      h("th", { scope: "row", class: "number" }, String(record.index)),
      ...inputs,
      ...values,
      h("td", {}, record.success ? "yes" : "no"),
      h("td", {}, longText(record.error ?? "")),
      h("td", {}, record.console ? h("pre", {}, longText(record.console)) : ""),
      h("td", {}, ...record.artifacts.map((name) => this.file(record, name))),
    );
  }

  file(record, name) {
    const href = `${this.path}/records/${record.index}/files/${encodeURIComponent(name)}`;
    if (!PICTURE.test(name)) return h("a", { href, download: name, class: "file" }, name);
    // The server checks what it is; other files are sent as downloads, which an image element does not show.
    const picture = h("img", { src: href, alt: name, loading: "lazy", width: "96", height: "72" });
    const words = `Open ${name} of record ${record.index}`;
    const open = h("button", { type: "button", class: "picture", "aria-label": words }, picture);
    picture.addEventListener("error", () => {
      open.replaceWith(h("a", { href, download: name, class: "file" }, name));
    });
    open.addEventListener("click", () => this.open(href, name, record.index));
    return open;
  }

  open(href, name, index) {
    const close = h("button", { type: "button", autofocus: true }, "Close");
    const title = h("h2", { id: "picture-title" }, `${name}, record ${index}`);
    const picture = h("img", { src: href, alt: name, class: "full" });
    const dialog = h("dialog", { "aria-labelledby": "picture-title" }, title, picture, close);
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }

  pager(last) {
    const go = (by) => () => {
      this.page += by;
      this.turn();
    };
    const back = { type: "button", onclick: go(-1), disabled: this.page === 0 };
    const on = { type: "button", onclick: go(1), disabled: this.page >= last };
    return h(
      "div",
      { class: "pager" },
      h("button", back, "Previous page"),
      h("button", on, "Next page"),
    );
  }
}
