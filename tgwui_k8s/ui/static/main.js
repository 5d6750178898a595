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

const START_MS = 100;

let isStarted = false;
let session = null;
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

/** Gradio's bridge is there. Whether it listens already it does not say, so it is asked again. */
export function bridge(set) {
  trigger = set;
  const asking = setInterval(() => (isStarted ? clearInterval(asking) : trigger("start")), START_MS);
  trigger("start");
}

async function start() {
  if (isStarted) return [];
  isStarted = true;
  applyTheme(load("theme", null));
  chat.changed();
  for (const name of ["paint_chats", "paint_notebook", "paint_parameters"]) paint(name);
  document.addEventListener("keydown", onKey);
  new Engine();
  keepFurnished();
  document.body.dataset.ready = "true";
  try {
    session = await get("/page/session");
    objects.model = new Model(session, () => parameters.refreshNames());
    furnish();
    parameters.refreshNames();
  } catch (error) {
    notice.show(error);
  }
  return [];
}

/** Gradio builds the page piece by piece, and parts of it anew: put back what is ours. */
function keepFurnished() {
  let isDue = false;
  new MutationObserver(() => {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      furnish();
    });
  }).observe(document.body, { childList: true, subtree: true });
  furnish();
}

function furnish() {
  chat.decorate();
  for (const empty of document.querySelectorAll("[data-say]:empty")) empty.textContent = say(empty.dataset.say);
  if (session && document.querySelector("#tgwui-header:empty")) header();
}

function header() {
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
