// The conversation: asks, shows what comes as it comes, and goes on where an answer broke off.

import { stream } from "./api.js";
import { element } from "./element.js";
import * as notice from "./notice.js";
import { add, choose, path, removeLeaf, versions } from "./tree.js";
import { say } from "./words.js";

const ROUTE = "/page/api/v1/chat/completions";
const PAINT_MS = 80;
const SAVE_MS = 1000;
const LEAST_SPREAD_MS = 100;
const UNFINISHED = new Set(["length", "stopped", "broken"]);

export class Chat {
  constructor(chats, parameters, paint) {
    this.chats = chats;
    this.parameters = parameters;
    this.paintNow = () => paint("paint_chat");
    this.shown = [];
    this.running = null;
    chats.chosen = () => (this.stop(), notice.clear(), this.paintNow());
  }

  get tree() {
    return this.chats.current;
  }

  // What buttons and keys do

  send(text) {
    if (this.running || !text?.trim()) return [text];
    const leaf = this.tree.nodes[this.tree.leaf];
    // A question without an answer is asked differently, not twice.
    add(this.tree, leaf?.role === "user" ? leaf.parent : this.tree.leaf, "user", { text });
    this.chats.paint("paint_chats");
    this.answer();
    return [""];
  }

  stop() {
    this.running?.abort();
  }

  regenerate() {
    const leaf = this.tree.nodes[this.tree.leaf];
    if (this.running || !leaf) return;
    if (leaf.role === "assistant") this.tree.leaf = leaf.parent;
    this.answer();
  }

  continue() {
    const leaf = this.tree.nodes[this.tree.leaf];
    if (this.running || !leaf) return;
    if (leaf.role === "user") this.answer();
    else this.generate(leaf, () => this.continuation(leaf));
  }

  branch() {
    if (this.tree.leaf) this.chats.branch();
  }

  /** `messages` is Gradio's value after a person has changed one of them. */
  edit(messages) {
    const index = this.shown.findIndex(({ text }, place) => messages[place]?.content[0].text !== text);
    if (this.running || index < 0) return this.paintNow();
    const { node, part } = this.shown[index];
    const text = messages[index].content[0].text;
    if (node.role === "user") {
      add(this.tree, node.parent, "user", { text });
      return this.answer();
    }
    const { reasoning } = node;
    add(this.tree, node.parent, "assistant", { text: node.text, reasoning, [part]: text });
    return this.changed();
  }

  // Generating

  answer() {
    const question = this.tree.leaf;
    const body = () => this.request(path(this.tree).filter((node) => node.state !== "running"));
    this.generate(add(this.tree, question, "assistant", { state: "running" }), body);
  }

  request(nodes) {
    const { system, template, thinking } = this.tree;
    const messages = nodes.map(({ role, text }) => ({ role, content: text }));
    if (system.trim()) messages.unshift({ role: "system", content: system });
    const body = { messages, ...this.parameters.body() };
    if (template) body.instruction_template = template;
    if (thinking) body.enable_thinking = thinking === "on";
    return body;
  }

  /** Exactly on from the tokens, or from the text where those are not known any more. */
  continuation(node) {
    const nodes = path(this.tree);
    if (!node.tokens?.length) return { ...this.request(nodes), continue_final_message: true };
    const body = this.request(nodes.slice(0, -1));
    // The API counts resumed tokens, too. Where they have used up the limit, it is for each part.
    const limit = body.max_tokens;
    if (limit > 0) body.max_tokens = limit * (1 + Math.floor(node.tokens.length / limit));
    return { ...body, resume_token_ids: [node.tokens], resume_text_lengths: [node.length] };
  }

  /** The chat it began in keeps it, also where another is shown by then. */
  async generate(node, makeBody) {
    const { tree } = this;
    const stop = (this.running = new AbortController());
    const clock = { start: performance.now(), first: null, last: null, tokens: 0 };
    const before = node.stats?.tokens ?? 0;
    notice.clear();
    this.changed();
    try {
      await this.read(tree, node, makeBody(), stop.signal, clock);
    } catch (error) {
      this.end(tree, node, stop.signal.aborted, error);
    }
    node.stats = statistics(before, clock);
    if (!UNFINISHED.has(node.state)) delete node.tokens;
    this.running = null;
    this.chats.save(tree);
    this.changed();
  }

  async read(tree, node, body, signal, clock) {
    node.state = "running";
    let finish = null;
    let saved = clock.start;
    const asked = { ...body, stream: true, return_token_ids: true };
    for await (const { data } of stream(ROUTE, asked, signal)) {
      const [choice] = data.choices;
      if (!choice) continue;
      take(node, choice);
      clock.last = performance.now();
      clock.first ??= clock.last;
      clock.tokens += choice.token_ids?.length ?? 0;
      finish = choice.finish_reason ?? finish;
      this.paintSoon();
      if (clock.last - saved > SAVE_MS) {
        this.chats.save(tree);
        saved = clock.last;
      }
    }
    node.state = finish === "length" ? "length" : "done";
  }

  end(tree, node, isStopped, error) {
    const hasText = node.text || node.reasoning;
    node.state = isStopped ? "stopped" : "broken";
    if (!hasText && tree.leaf === node.id) removeLeaf(tree);
    if (isStopped) return;
    // The tokens may be another model's by now; the text is good for any.
    if (error.param?.startsWith("resume")) delete node.tokens;
    notice.show(error, () => this.continue());
  }

  // Showing

  changed() {
    this.chats.save();
    const leaf = this.tree.nodes[this.tree.leaf];
    document.body.dataset.chat = this.running ? "running" : leaf?.role ?? "empty";
    this.paintNow();
  }

  paintSoon() {
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      this.paintNow();
    }, PAINT_MS);
  }

  /** What Gradio paints; the reasoning is a message of its own, folded when it is over. */
  painted() {
    this.shown = path(this.tree).flatMap((node) => {
      const isWaiting = node.state === "running" && !node.text && !node.reasoning;
      const parts = node.reasoning ? [{ node, part: "reasoning", text: node.reasoning }] : [];
      if (node.text || !node.reasoning) parts.push({ node, part: "text", text: isWaiting ? "…" : node.text });
      return parts;
    });
    requestAnimationFrame(() => this.decorate());
    return [this.shown.map(message)];
  }

  /** Below each message: its figures, and the way to its other versions. */
  decorate() {
    const rows = document.querySelectorAll("#tgwui-chat .message-row");
    path(this.tree).forEach((node, index) => {
      const all = versions(this.tree, node);
      const place = all.indexOf(node);
      const key = JSON.stringify([node.id, node.stats, node.state, place, all.length]);
      const old = rows[index]?.querySelector(":scope > .tgwui-foot");
      if (!rows[index] || old?.dataset.key === key) return;
      old?.remove();
      rows[index].append(this.foot(node, place, all.length, key));
    });
  }

  foot(node, place, count, key) {
    const go = (step) => () => {
      if (this.running) return;
      choose(this.tree, node, step);
      this.changed();
    };
    const arrow = (step, sign, name) => element("button", {
      type: "button", "aria-label": say(name), disabled: place + step < 0 || place + step >= count, click: go(step),
    }, sign);
    const ways = count < 2 ? [] : [
      arrow(-1, "‹", "chat_branch_previous"), `${place + 1}/${count}`, arrow(1, "›", "chat_branch_next"),
    ];
    const facts = [figures(node), UNFINISHED.has(node.state) ? say(`chat_state_${node.state}`) : ""];
    const text = facts.filter(Boolean).join(" · ");
    return element("div", { class: "tgwui-foot", "data-key": key }, element("span", {}, text), ...ways);
  }
}

function take(node, choice) {
  node.text += choice.delta.content ?? "";
  node.reasoning += choice.delta.reasoning_content ?? "";
  if (!choice.token_ids) return;
  (node.tokens ??= []).push(...choice.token_ids);
  node.length = choice.text_offset + choice.text_length;
}

function statistics(before, { start, first, last, tokens }) {
  if (first === null) return before ? { tokens: before } : undefined;
  // What came in one piece says nothing of the time between its tokens.
  const isSpread = last - first >= LEAST_SPREAD_MS;
  const speed = (tokens * 1000) / (last - (isSpread ? first : start));
  return { tokens: before + tokens, speed, first: (first - start) / 1000 };
}

function figures({ role, stats }) {
  if (role !== "assistant" || !stats) return "";
  if (!stats.speed) return say("chat_stats_short", stats);
  return say("chat_stats", { tokens: stats.tokens, speed: stats.speed.toFixed(1), first: stats.first.toFixed(2) });
}

function message({ node, part, text }) {
  const isThought = part === "reasoning";
  const isOver = node.text || node.state !== "running";
  const metadata = isThought ? { title: say("chat_reasoning"), status: isOver ? "done" : "pending" } : null;
  return { role: node.role, content: [{ type: "text", text }], metadata, options: null };
}
