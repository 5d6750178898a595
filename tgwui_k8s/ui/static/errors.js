// The last errors: what clients of each pod got, and what this page has said.

import { element } from "./element.js";
import * as notice from "./notice.js";
import { canSay, say } from "./words.js";

const COLUMNS = ["time", "pod", "route", "status", "error", "count", "request"];

export class Errors {
  constructor() {
    this.pods = new Map();
    this.section = element("section", { class: "tgwui-errors" });
  }

  take(pod, errors) {
    this.pods.set(pod, errors);
  }

  /** Show those of the pods that are there; untouched where nothing is new, so that it can be copied. */
  draw(pods) {
    for (const pod of this.pods.keys()) if (!pods.includes(pod)) this.pods.delete(pod);
    const all = [...this.pods].flatMap(([pod, errors]) => errors.map((error) => ({ pod, ...error })));
    all.sort((one, other) => other.last_seen - one.last_seen);
    const key = JSON.stringify([all, notice.seen.length, notice.seen[0]]);
    if (key === this.shown) return;
    this.shown = key;
    this.section.replaceChildren(
      element("h3", {}, say("engine_errors")),
      all.length ? table(all) : element("p", { class: "tgwui-hint" }, say("engine_no_errors")),
      ...ownErrors());
  }
}

function table(errors) {
  const head = COLUMNS.map((column) => element("th", {}, say(`table_${column}`)));
  return element("table", { class: "tgwui-table" },
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...errors.map(row)));
}

function row({ last_seen, pod, route, status, code, type, count, last_request_id }) {
  const what = canSay(`error_${code}`) ? say(`error_${code}`) : code ?? type;
  const cells = [new Date(last_seen * 1000).toLocaleTimeString(), pod, route, status, what, count, last_request_id];
  return element("tr", {}, ...cells.map((cell) => element("td", {}, String(cell))));
}

function ownErrors() {
  if (!notice.seen.length) return [];
  const rows = notice.seen.map(({ time, text }) => element("li", {}, `${time.toLocaleTimeString()} ${text}`));
  return [element("h3", {}, say("engine_page_errors")), element("ul", {}, ...rows)];
}
