// A chat is a tree of messages: regenerating and editing add siblings, nothing is overwritten.
//
//   chat    {id, created, leaf, system, template, thinking, nodes: {id: message}}
//   message {id, parent, role, text, reasoning, state, stats, tokens, length}
//
// `state` is done, length, stopped, broken or running; `tokens` and `length` are what the API needs
// to resume an answer exactly, for as long as nobody has changed its text.

const TEXTS = ["system", "template", "thinking"];
const STATES = new Set(["done", "length", "stopped", "broken"]);

/** A chat without messages. */
export function newChat() {
  return { id: newId(), created: Date.now(), leaf: null, nodes: {}, system: "", template: "", thinking: "" };
}

/** Add a message below `parent` and make it the leaf. */
export function add(chat, parent, role, fields = {}) {
  const node = { id: newId(), parent, role, text: "", reasoning: "", state: "done", ...fields };
  chat.nodes[node.id] = node;
  chat.leaf = node.id;
  return node;
}

/** Remove a leaf; its parent is the leaf then. */
export function removeLeaf(chat) {
  const node = chat.nodes[chat.leaf];
  delete chat.nodes[node.id];
  chat.leaf = node.parent;
}

/** The messages from the first to the leaf. */
export function path(chat) {
  const found = [];
  for (let node = chat.nodes[chat.leaf]; node; node = chat.nodes[node.parent]) found.unshift(node);
  return found;
}

/** The versions of a message, oldest first. */
export function versions(chat, node) {
  return Object.values(chat.nodes).filter((one) => one.parent === node.parent && one.role === node.role);
}

/** Show another version of a message, with what was said last below it. */
export function choose(chat, node, step) {
  const all = versions(chat, node);
  let shown = all[all.findIndex(({ id }) => id === node.id) + step];
  while (shown) {
    chat.leaf = shown.id;
    shown = Object.values(chat.nodes).filter((one) => one.parent === chat.leaf).pop();
  }
}

/** A chat of its own with the messages up to the leaf. */
export function branch(chat) {
  const copy = { ...newChat(), system: chat.system, template: chat.template, thinking: chat.thinking };
  for (const { id, parent, ...fields } of path(chat)) add(copy, copy.leaf, fields.role, fields);
  return copy;
}

/** How a chat is listed: its first words. */
export function title(chat, untitled) {
  const first = Object.values(chat.nodes).find((node) => node.role === "user");
  const text = first?.text.trim().replace(/\s+/g, " ") ?? "";
  return text.length > 48 ? `${text.slice(0, 47)}…` : text || untitled;
}

/** A chat from a file, taken apart and put together again; null where it is none. */
export function imported(given) {
  if (typeof given?.nodes !== "object" || given.nodes === null) return null;
  const chat = newChat();
  for (const name of TEXTS) chat[name] = typeof given[name] === "string" ? given[name] : "";
  if (Number.isFinite(given.created)) chat.created = given.created;
  const ids = new Map([[null, null]]);
  for (const [id, node] of Object.entries(given.nodes)) {
    const isWhole = typeof node?.text === "string" && ["user", "assistant"].includes(node.role);
    if (!isWhole || !ids.has(node.parent ?? null)) return null;
    ids.set(id, add(chat, ids.get(node.parent ?? null), node.role, {
      text: node.text,
      reasoning: typeof node.reasoning === "string" ? node.reasoning : "",
      state: STATES.has(node.state) ? node.state : "done",
      stats: Number.isFinite(node.stats?.tokens) ? { tokens: node.stats.tokens } : undefined,
    }).id);
  }
  chat.leaf = ids.get(given.leaf) ?? chat.leaf;
  return chat;
}

let count = 0;

function newId() {
  count += 1;
  return `${Date.now().toString(36)}-${count}-${Math.random().toString(36).slice(2, 8)}`;
}
