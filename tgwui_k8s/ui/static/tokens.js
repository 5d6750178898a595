// Tokens coloured by their probability; hover, focus or tap shows what else could have come.

import { element, fill } from "./element.js";
import { say } from "./words.js";

const LEVELS = 5;
const MOST_SHOWN = 5000;

/** The tokens of a completion's log probabilities as `{text, logprob, top}`. */
export function tokensOf(logprobs) {
  return (logprobs?.tokens ?? []).map((text, index) => ({
    text,
    logprob: logprobs.token_logprobs[index],
    top: logprobs.top_logprobs?.[index] ?? null,
  }));
}

/** Show tokens, the last ones where there are very many. */
export function showTokens(tokens) {
  if (!tokens.length) return fill("tgwui-tokens", element("p", { class: "tgwui-hint" }, say("notebook_tokens_none")));
  const detail = element("div", { class: "tgwui-token-detail", "aria-live": "polite" });
  const spans = tokens.slice(-MOST_SHOWN).map((token) => span(token, detail));
  const list = element("div", { class: "tgwui-token-list", role: "group", "aria-label": say("notebook_tokens") }, ...spans);
  return fill("tgwui-tokens", list, detail);
}

function span(token, detail) {
  const show = () => detail.replaceChildren(...details(token));
  const probability = token.logprob === null ? null : Math.exp(token.logprob);
  const level = probability === null ? "none" : Math.min(LEVELS - 1, Math.floor(probability * LEVELS));
  return element("span", {
    class: `tgwui-token tgwui-level-${level}`,
    tabindex: "0",
    title: probability === null ? say("notebook_first") : percent(probability),
    mouseenter: show, focus: show, click: show,
  }, token.text);
}

function details({ text, logprob, top }) {
  if (logprob === null) return [element("p", {}, say("notebook_first"))];
  const others = Object.entries(top ?? {}).sort(([, one], [, other]) => other - one);
  const rows = others.map(([other, value]) => element("tr", { class: other === text ? "tgwui-chosen" : null },
    element("td", {}, element("code", {}, visible(other))),
    element("td", {}, bar(Math.exp(value))),
    element("td", {}, percent(Math.exp(value)))));
  return [
    element("p", {}, element("code", {}, visible(text)), ` ${percent(Math.exp(logprob))}`),
    element("table", {}, element("caption", {}, say("notebook_others")), element("tbody", {}, ...rows)),
  ];
}

function bar(probability) {
  return element("span", { class: "tgwui-bar", style: `width:${(probability * 8).toFixed(2)}rem` });
}

function percent(probability) {
  const value = probability * 100;
  return say("notebook_percent", { percent: value >= 0.1 ? value.toFixed(1) : value.toPrecision(1) });
}

function visible(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
}
