// The parameters of every request, and the same request as a program would send it.

import { get } from "./api.js";
import * as notice from "./notice.js";
import { load, save } from "./storage.js";
import { say } from "./words.js";

const { parameters, api, root } = window.tgwuiPage;
const SAMPLE = "How do models get on EFS?";
const OPENAI = new Set(["max_tokens", "temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty"]);

export class Parameters {
  constructor(paint) {
    this.paint = () => paint("paint_parameters");
    this.values = { ...defaults(), ...load("parameters", {}) };
    this.extra = load("extra", "");
    this.preset = load("preset", null);
    this.model = load("model", "");
    this.names = [];
  }

  /** Which names the pod serves now: the model's, and its adapters'. */
  async refreshNames() {
    const models = await get("/page/api/v1/models").catch(() => ({ data: [] }));
    this.names = models.data.map(({ id }) => id);
    this.paint();
  }

  chooseModel(name) {
    this.model = name ?? "";
    this.keep();
    return this.programs();
  }

  /** The fields to send: what differs from the API's own defaults. Throws for wrong JSON. */
  body() {
    const body = this.model ? { model: this.model } : {};
    for (const { name, neutral, kind } of parameters) {
      const value = this.values[name];
      if (value === null || value === undefined || value === "" || value === neutral) continue;
      body[name] = kind === "lines" && name === "stop" ? lines(value) : value;
    }
    return { ...body, ...this.extraFields() };
  }

  extraFields() {
    if (!this.extra.trim()) return {};
    try {
      const fields = JSON.parse(this.extra);
      if (typeof fields === "object" && fields && !Array.isArray(fields)) return fields;
    } catch {
      // said below
    }
    throw { code: null, message: "extra_wrong" };
  }

  changed(...values) {
    this.extra = values.pop() ?? "";
    parameters.forEach(({ name }, index) => (this.values[name] = values[index]));
    this.keep();
    return this.programs();
  }

  async choosePreset(name) {
    if (!name) return;
    try {
      const preset = await get(`/page/preset?name=${encodeURIComponent(name)}`);
      const kept = {};
      for (const { name: field, group } of parameters) if (group === "length") kept[field] = this.values[field];
      this.values = { ...defaults(), ...kept };
      for (const { name: field } of parameters) if (field in preset) this.values[field] = shown(preset[field]);
      this.preset = name;
    } catch (error) {
      notice.show(error);
    }
    this.keep();
    this.paint();
  }

  reset() {
    Object.assign(this, { values: defaults(), extra: "", preset: null, model: "" });
    this.keep();
    this.paint();
  }

  keep() {
    save("parameters", this.values);
    save("extra", this.extra);
    save("preset", this.preset);
    save("model", this.model);
  }

  /** What Gradio paints, in the order of `blocks.py`. */
  painted() {
    const values = parameters.map(({ name }) => this.values[name]);
    const choices = [[say("served_default"), ""], ...this.names.map((name) => [name, name])];
    const served = { __type__: "update", choices, value: this.model };
    return [served, this.preset, ...values, this.extra, ...this.programs()];
  }

  programs() {
    try {
      const fields = this.body();
      return [asCurl(fields), asPython(fields)];
    } catch {
      return ["", ""];
    }
  }
}

function defaults() {
  return Object.fromEntries(parameters.map(({ name, default: value }) => [name, value]));
}

function shown(value) {
  return Array.isArray(value) ? value.join("\n") : value;
}

function lines(text) {
  return text.split("\n").filter(Boolean);
}

/** Where programs reach the API: as the operator says, else as far as the page's own address tells. */
export function address(api, root, { protocol, hostname, port, origin }) {
  if (api.url) return `${api.url}/v1`;
  const hasProxy = root || protocol === "https:" || !port;
  return hasProxy ? `${origin}${api.root}/v1` : `http://${hostname}:${api.port}/v1`;
}

export function asCurl(fields) {
  const body = { messages: [{ role: "user", content: SAMPLE }], ...fields };
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl ${address(api, root, location)}/chat/completions \\
  -H 'Content-Type: application/json' \\
  -H "Authorization: Bearer $TGWUI_API_KEY" \\
  -d '${json}'`;
}

export function asPython({ model, ...fields }) {
  const known = Object.entries(fields).filter(([name]) => OPENAI.has(name));
  const other = Object.entries(fields).filter(([name]) => !OPENAI.has(name));
  const extra = other.length ? `    extra_body=${python(Object.fromEntries(other))},\n` : "";
  return `import os

from openai import OpenAI

client = OpenAI(base_url="${address(api, root, location)}", api_key=os.environ.get("TGWUI_API_KEY", "none"))
answer = client.chat.completions.create(
    model=${model ? python(model) : "client.models.list().data[0].id"},
    messages=[{"role": "user", "content": ${python(SAMPLE)}}],
${known.map(([name, value]) => `    ${name}=${python(value)},\n`).join("")}${extra})
print(answer.choices[0].message.content)`;
}

/** A JSON value as Python writes it. */
export function python(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([key, one]) => `${python(key)}: ${python(one)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}
