// The chats of this browser: which there are, which is shown, in and out as files.

import { chooseFile, download } from "./element.js";
import * as notice from "./notice.js";
import { forget, load, names, onChange, save } from "./storage.js";
import { branch, imported, newChat, title } from "./tree.js";
import { say } from "./words.js";

const FORMAT = "tgwui-k8s chats";

export class Chats {
  /** `paint(name)` has a part of the page painted; `chosen` is called when another chat is shown. */
  constructor(paint) {
    this.paint = paint;
    this.chosen = () => {};
    this.all = names("chat:").map(stored).filter(Boolean);
    this.all.sort((one, other) => other.created - one.created);
    const current = load("current", null);
    this.current = this.all.find((chat) => chat.id === current) ?? this.all[0] ?? this.add(newChat());
    onChange((name) => name.startsWith("chat:") && this.merge(stored(name)));
  }

  /** Another tab has kept a chat: take over what it has, so that keeping ours loses nothing of it. */
  merge(theirs) {
    if (!theirs) return;
    const ours = this.all.find(({ id }) => id === theirs.id);
    if (!ours) this.all.unshift(theirs);
    for (const node of Object.values(ours ? theirs.nodes : {})) {
      const old = ours.nodes[node.id];
      // Texts only grow, so the longer one is the newer; what this tab generates it knows best.
      if (!old || (old.state !== "running" && size(old) <= size(node))) ours.nodes[node.id] = node;
    }
    for (const name of ["paint_chats", "paint_chat"]) this.paint(name);
  }

  /** Keep a chat, the shown one unless it is given, as it is now; deleted ones stay deleted. */
  save(chat = this.current) {
    const isKept = chat.leaf && this.all.includes(chat);
    if (isKept && !save(`chat:${chat.id}`, chat)) {
      notice.show({ message: "chat_storage_full" });
    }
    save("current", this.current.id);
  }

  add(chat) {
    this.all.unshift(chat);
    this.current = chat;
    return chat;
  }

  show(chat) {
    this.current = chat;
    this.chosen();
    this.save();
    this.paint("paint_chats");
  }

  // What the buttons do

  choose(id) {
    this.show(this.all.find((chat) => chat.id === id) ?? this.current);
  }

  new() {
    const empty = this.all.find((chat) => !chat.leaf) ?? newChat();
    this.all = this.all.filter((chat) => chat !== empty);
    Object.assign(empty, { created: Date.now(), system: this.current.system });
    Object.assign(empty, { template: this.current.template, thinking: this.current.thinking });
    this.show(this.add(empty));
  }

  delete() {
    if (this.current.leaf && !window.confirm(say("chat_delete_sure"))) return;
    forget(`chat:${this.current.id}`);
    this.all = this.all.filter((chat) => chat !== this.current);
    this.show(this.all[0] ?? this.add(newChat()));
  }

  branch() {
    this.show(this.add(branch(this.current)));
  }

  export() {
    const chats = this.all.filter((chat) => chat.leaf);
    download("chats.json", JSON.stringify({ format: FORMAT, version: 1, chats }, null, 1));
  }

  async import() {
    const text = await chooseFile("application/json");
    if (text === undefined) return;
    const chats = read(text);
    if (!chats) return void notice.show({ message: "chat_import_failed" });
    for (const chat of chats.reverse()) {
      this.add(chat);
      this.save();
    }
    this.show(this.current);
  }

  configure(system, template, thinking) {
    Object.assign(this.current, { system, template, thinking });
    this.save();
  }

  /** What Gradio paints: the list, and the chat's settings. */
  painted() {
    const choices = this.all.map((chat) => [title(chat, say("chat_untitled")), chat.id]);
    const { id, system, template, thinking } = this.current;
    return [{ __type__: "update", choices, value: id }, system, template, thinking];
  }
}

/** A chat as it was kept; what was being generated then is not any more, or not here. */
function stored(name) {
  const chat = load(name, null);
  if (!chat?.nodes) return null;
  for (const node of Object.values(chat.nodes)) if (node.state === "running") node.state = "broken";
  return chat;
}

function size({ text, reasoning }) {
  return text.length + reasoning.length;
}

function read(text) {
  try {
    const file = JSON.parse(text);
    const chats = file.format === FORMAT && Array.isArray(file.chats) ? file.chats.map(imported) : [];
    return chats.length && chats.every(Boolean) ? chats : null;
  } catch {
    return null;
  }
}
