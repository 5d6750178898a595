// What is loaded, and with the admin key: another model in its place.

import { get, getText, pod, post, stream } from "./api.js";
import { element, fill } from "./element.js";
import * as notice from "./notice.js";
import { canSay, say } from "./words.js";

const FACTS = ["model_name", "loader", "architecture", "dtype", "quantization", "device", "max_model_len"];

export class Model {
  /** `changed` is called when other names than before may be served. */
  constructor(session, changed) {
    this.session = session;
    this.changed = changed;
    this.adapters = element("div", { class: "tgwui-adapters" });
    this.facts = element("div", { class: "tgwui-facts" });
    this.progress = element("div", { id: "tgwui-progress", "aria-live": "polite" });
    this.models = element("table", { class: "tgwui-table tgwui-models" });
    this.choice = element("select", { id: "tgwui-model-choice", "aria-label": say("model_choice") });
    this.settings = element("input", { id: "tgwui-model-settings", type: "text", spellcheck: "false", placeholder: "{}" });
    document.addEventListener("click", () => setTimeout(() => this.opened(), 50));
  }

  /** Read everything anew when the tab comes into sight. */
  opened() {
    const isVisible = Boolean(document.getElementById("tgwui-model")?.offsetParent);
    if (isVisible && !this.wasVisible) {
      fill("tgwui-model", element("h3", {}, say("model_facts")), this.facts, this.admin());
      this.showFacts();
      if (this.session.role === "admin") this.list();
    }
    this.wasVisible = isVisible;
  }

  async showFacts() {
    try {
      const info = await get("/page/api/v1/internal/model/info");
      this.facts.replaceChildren(element("dl", {}, ...rows(info, cacheOf(await getText("/page/api/metrics")))));
      if (this.session.role === "admin" && info.capabilities.adapters) await this.listAdapters(info.lora_names);
      else this.adapters.replaceChildren();
    } catch (error) {
      const isEmpty = error.code === "model_not_ready";
      this.facts.replaceChildren(element("p", {}, isEmpty ? say("model_none") : ""));
      if (!isEmpty) notice.show(error);
    }
  }

  admin() {
    const heading = element("h3", {}, say("model_admin"));
    if (!this.session.has_admin) return element("section", {}, heading, hint("model_no_admin"));
    if (this.session.role !== "admin") {
      const link = element("a", { href: `${window.tgwuiPage.root}/login` }, say("log_in"));
      return element("section", {}, heading, hint("model_admin_login"), link);
    }
    const button = (key, act, kind = "") => element("button", { type: "button", id: `tgwui-${key.replace("_", "-")}`, class: kind, click: act }, say(key));
    return element("section", {}, heading,
      hint("model_this_pod", { pod: this.session.pod }),
      element("label", {}, say("model_choice"), this.choice),
      element("label", {}, say("model_arguments"), this.settings),
      hint("model_arguments_info"),
      element("p", { class: "tgwui-buttons" },
        button("model_load", () => this.load(), "tgwui-primary"),
        button("model_unload", () => this.unload()),
        button("model_refresh", () => this.list())),
      this.progress, this.models, this.adapters);
  }

  async list() {
    try {
      const { models } = await get("/page/api/v1/internal/model/list?details=true");
      const chosen = this.choice.value;
      this.choice.replaceChildren(...models.map(({ name }) => element("option", { value: name }, name)));
      if (models.some(({ name }) => name === chosen)) this.choice.value = chosen;
      const head = ["name", "loader", "size", "context", "remark"].map((key) => element("th", {}, say(`table_${key}`)));
      this.models.replaceChildren(
        element("thead", {}, element("tr", {}, ...head)),
        element("tbody", {}, ...models.map(modelRow)));
    } catch (error) {
      notice.show(error);
    }
  }

  /** Each adapter with the button that loads it, or takes it away. */
  async listAdapters(loaded) {
    const { lora_names: found } = await get("/page/api/v1/internal/lora/list");
    const names = [...new Set([...loaded, ...found])].sort();
    const row = (name) => {
      const [key, what] = loaded.includes(name) ? ["model_unload", "unload"] : ["model_load", "load"];
      return element("li", {}, element("button", { type: "button", click: () => this.changeAdapter(what, name) }, say(key)), ` ${name}`);
    };
    this.adapters.replaceChildren(element("h3", {}, say("fact_adapters")), hint("model_adapters_info"), element("ul", {}, ...names.map(row)));
  }

  async changeAdapter(what, name) {
    try {
      await post(`/page/api/v1/internal/lora/${what}`, { lora_names: [name] });
    } catch (error) {
      notice.show(error);
    }
    this.showFacts();
    this.changed();
  }

  async load() {
    const name = this.choice.value;
    const args = this.arguments();
    if (!args || this.isLoading) return;
    this.isLoading = true;
    notice.clear();
    try {
      for await (const { event, data } of stream("/page/load", { model_name: name, args })) {
        if (event === "progress") this.progress.replaceChildren(...bar(name, data));
      }
      this.progress.replaceChildren(say("model_loaded", { model: name }));
    } catch (error) {
      this.progress.replaceChildren();
      notice.show(error);
    }
    this.isLoading = false;
    this.showFacts();
    this.changed();
  }

  arguments() {
    try {
      const args = JSON.parse(this.settings.value.trim() || "{}");
      if (args && typeof args === "object" && !Array.isArray(args)) return args;
    } catch {
      // said below
    }
    notice.show({ message: "model_arguments_wrong" });
    return null;
  }

  async unload() {
    if (!window.confirm(say("model_unload_sure"))) return;
    try {
      await post("/page/api/v1/internal/model/unload");
      this.progress.replaceChildren(say("model_unloaded"));
    } catch (error) {
      notice.show(error);
    }
    this.showFacts();
  }
}

/** Blocks and their size, from the labels of `tgwui_cache_config_info`. */
function cacheOf(text) {
  const [, labels] = /^tgwui_cache_config_info\{(.*)\}/m.exec(text) ?? [];
  const label = (name) => new RegExp(`${name}="(\\d+)"`).exec(labels ?? "")?.[1];
  return labels ? say("fact_kv_value", { blocks: label("num_gpu_blocks"), size: label("block_size") }) : null;
}

function rows(info, cache) {
  const abilities = Object.entries(info.capabilities).filter(([, can]) => can === true).map(([name]) => name);
  const facts = [
    ...FACTS.map((name) => [name, info[name]]),
    ["kv", cache],
    ["weights", info.weight_bytes ? bytes(info.weight_bytes) : null],
    ["parameters", info.num_parameters ? info.num_parameters.toLocaleString() : null],
    ["vocabulary", info.vocab_size],
    ["adapters", info.lora_names.join(", ")],
    ["abilities", abilities.join(", ")],
    ...Object.entries(info.details).map(([name, value]) => [name, typeof value === "object" ? JSON.stringify(value) : String(value)]),
    ["pod", pod],
  ];
  const name = (key) => (canSay(`fact_${key}`) ? say(`fact_${key}`) : key.replaceAll("_", " "));
  return facts.filter(([, value]) => value !== null && value !== "" && value !== undefined)
    .map(([key, value]) => element("div", {}, element("dt", {}, name(key)), element("dd", {}, String(value))));
}

function modelRow({ name, loader, size_bytes, context_length, error, reason }) {
  const cells = [name, loader ?? "–", bytes(size_bytes), context_length ?? "–", error ?? reason];
  return element("tr", { class: error ? "tgwui-unusable" : null }, ...cells.map((cell) => element("td", {}, String(cell))));
}

function bar(model, { phase, bytes_read, bytes_total }) {
  const isKnown = bytes_total > 0;
  const amount = isKnown ? ` ${bytes(bytes_read)} / ${bytes(bytes_total)}` : "";
  const text = say("model_loading", { model, phase: phase ?? "…" }) + amount;
  return [element("span", {}, text), element("progress", isKnown ? { max: bytes_total, value: bytes_read } : {})];
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let [value, unit] = [count, 0];
  while (value >= 1024 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${unit && value < 100 ? value.toFixed(1) : value.toFixed(0)} ${units[unit]}`;
}

function hint(key, values) {
  return element("p", { class: "tgwui-hint" }, say(key, values));
}
