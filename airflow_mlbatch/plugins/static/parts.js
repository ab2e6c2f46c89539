// Parts that several tables have.

import { count, h } from "./dom.js";

const LONG = 200;

/** A text that is folded where it is long. */
export function longText(text) {
  if (text.length <= LONG) return text;
  const more = `${text.slice(0, LONG)}… (${count(text.length)} characters)`;
  return h("details", {}, h("summary", {}, more), text);
}
