// Errors in words a person understands, with what to do, at the top of the page.

import { element, fill } from "./element.js";
import { canSay, say } from "./words.js";

export const seen = [];
const MOST_SEEN = 20;

/** Show an error; `retry` is what "Try again" does, where that makes sense. */
export function show(error, retry = null) {
  const text = inWords(error);
  seen.unshift({ time: new Date(), text });
  seen.length = Math.min(seen.length, MOST_SEEN);
  const actions = [button("dismiss", clear)];
  if (error.code === "session_ended") actions.unshift(link("login_button", "/login"));
  else if (retry) actions.unshift(button("try_again", () => (clear(), retry())));
  fill("tgwui-notice", element("p", {}, text), element("span", {}, ...actions));
}

/** Take it away. */
export function clear() {
  fill("tgwui-notice");
}

function inWords(error) {
  const key = `error_${error.code}`;
  if (canSay(key)) return say(key);
  if (canSay(error.message)) return say(error.message);
  return say("error_other", { message: error.message || error.code || String(error) });
}

function button(key, act) {
  return element("button", { type: "button", click: act }, say(key));
}

function link(key, path) {
  return element("a", { href: window.tgwuiPage.root + path }, say(key));
}
