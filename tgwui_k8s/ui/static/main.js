// The page's script: makes the objects that Gradio's events call, and starts them.

import { get } from "./api.js";
import { Chat } from "./chat.js";
import { Chats } from "./chats.js";
import { element, fill } from "./element.js";
import { Engine } from "./engine.js";
import { Model } from "./model.js";
import { Notebook } from "./notebook.js";
import * as notice from "./notice.js";
import { Parameters } from "./parameters.js";
import { load, save } from "./storage.js";
import { say } from "./words.js";

let trigger = () => {};
const paint = (name) => trigger(name);

const parameters = new Parameters(paint);
const chats = new Chats(paint);
const chat = new Chat(chats, parameters, paint);
const notebook = new Notebook(parameters, paint);
const objects = { parameters, chats, chat, notebook };

/** What `blocks.py` calls: a method by its name; an array that it returns is painted. */
export async function call(name, values) {
  if (name === "start") return start();
  const [object, method] = name.split(".");
  const painted = await objects[object][method](...values);
  return Array.isArray(painted) ? painted : [];
}

/** Gradio's bridge is there: from now on events can be set off. */
export function bridge(set) {
  trigger = set;
  trigger("start");
}

async function start() {
  document.documentElement.lang = document.documentElement.lang || "en";
  applyTheme(load("theme", null));
  chat.changed();
  for (const name of ["paint_chats", "paint_notebook", "paint_parameters"]) paint(name);
  document.addEventListener("keydown", onKey);
  for (const hint of document.querySelectorAll("[data-say]")) hint.textContent = say(hint.dataset.say);
  for (const place of document.querySelectorAll(".tgwui-placeholder")) place.textContent = say("chat_placeholder");
  new MutationObserver(() => chat.decorate()).observe(document.getElementById("tgwui-chat"), { childList: true, subtree: true });
  new Engine();
  document.body.dataset.ready = "true";
  try {
    const session = await get("/page/session");
    objects.model = new Model(session);
    header(session);
  } catch (error) {
    notice.show(error);
  }
  return [];
}

function header(session) {
  const theme = element("button", { type: "button", id: "tgwui-theme", "aria-label": say("theme"), title: say("theme"), click: toggleTheme }, "◐");
  const out = element("button", { type: "button", id: "tgwui-log-out", click: logOut }, say("log_out"));
  fill("tgwui-header",
    element("strong", {}, "tgwui-k8s"),
    element("span", { class: "tgwui-hint" }, `${session.version} · ${say("page_for_pod", { pod: session.pod })}`),
    element("span", { class: "tgwui-space" }),
    theme, session.has_login ? out : null);
}

async function logOut() {
  await fetch(`${window.tgwuiPage.root}/logout`, { method: "POST", headers: { "x-tgwui-page": "1" } });
  location.assign(`${window.tgwuiPage.root}/login`);
}

function toggleTheme() {
  const isDark = !document.body.classList.contains("dark");
  save("theme", isDark ? "dark" : "light");
  applyTheme(isDark ? "dark" : "light");
}

function applyTheme(theme) {
  if (theme) document.body.classList.toggle("dark", theme === "dark");
}

function onKey(event) {
  if (event.key === "Escape") {
    chat.stop();
    notebook.stop();
  } else if (event.key === "Enter" && event.ctrlKey && event.target === notebook.area) {
    event.preventDefault();
    notebook.generate(event.target.value);
  }
}
