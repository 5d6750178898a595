// What the engine does now. Behind a load balancer each scrape may be another pod's: every answer
// names its pod, and each pod has lines of its own.

import { get } from "./api.js";
import { element, fill } from "./element.js";
import { Errors } from "./errors.js";
import { growth, parse, quantile, total } from "./metrics.js";
import * as notice from "./notice.js";
import { plot } from "./plot.js";
import { say } from "./words.js";

const INTERVAL_MS = 2000;
const SPAN_SECONDS = 120;

const PLOTS = [
  { title: "engine_requests", unit: "", lines: [
    ["engine_running", ({ now }) => total(now, "num_requests_running")],
    ["engine_waiting", ({ now }) => total(now, "num_requests_waiting")]] },
  { title: "engine_speed", unit: "", lines: [
    ["engine_generated", (two) => rate(two, "generation_tokens_total")],
    ["engine_prompt", (two) => rate(two, "prompt_tokens_total")]] },
  { title: "engine_ttft", unit: "s", lines: percentiles("time_to_first_token_seconds") },
  { title: "engine_itl", unit: "s", lines: percentiles("inter_token_latency_seconds") },
  { title: "engine_kv", unit: "%", lines: [["", ({ now }) => total(now, "kv_cache_usage_perc")]] },
  { title: "engine_prefix", unit: "%", lines: [["", prefixHits]] },
];

export class Engine {
  constructor() {
    this.pods = new Map();
    this.errors = new Errors();
    this.plots = element("div", { class: "tgwui-plots" });
    setInterval(() => this.isVisible() && this.scrape(), INTERVAL_MS);
    document.addEventListener("click", () => setTimeout(() => this.isVisible() && !this.pods.size && this.scrape(), 50));
  }

  isVisible() {
    return !document.hidden && document.getElementById("tgwui-engine")?.offsetParent;
  }

  async scrape() {
    if (this.isScraping) return;
    this.isScraping = true;
    try {
      const { pod, metrics, errors } = await get("/page/engine");
      this.take(pod, parse(metrics), performance.now() / 1000);
      this.errors.take(pod, errors);
      this.isFailing = false;
    } catch (error) {
      if (!this.isFailing) notice.show(error);
      this.isFailing = true;
    }
    this.isScraping = false;
    if (this.pods.size) this.draw();
  }

  take(pod, now, time) {
    const known = this.pods.get(pod) ?? { scrape: null, time: null, series: new Map() };
    const two = { before: known.scrape, now, seconds: time - known.time };
    for (const { title, lines } of PLOTS) {
      for (const [name, value] of lines) {
        const points = known.series.get(title + name) ?? [];
        points.push([time, value(two)]);
        known.series.set(title + name, points.filter(([at]) => time - at <= SPAN_SECONDS));
      }
    }
    this.pods.set(pod, Object.assign(known, { scrape: now, time }));
    // A pod that has not answered for as long as the plots show is gone.
    for (const [name, one] of this.pods) if (time - one.time > SPAN_SECONDS) this.pods.delete(name);
  }

  draw() {
    this.plots.replaceChildren(...PLOTS.map(({ title, unit, lines }) => plot(say(title), this.series(title, lines), unit, SPAN_SECONDS)));
    this.errors.draw([...this.pods.keys()]);
    if (!this.plots.isConnected) fill("tgwui-engine", this.plots, this.errors.section, links());
  }

  series(title, lines) {
    return [...this.pods].flatMap(([pod, { series }]) => lines.map(([name]) => ({
      name: [canBeSaid(name), this.pods.size > 1 || !name ? pod : ""].filter(Boolean).join(" "),
      points: series.get(title + name) ?? [],
    })));
  }
}

function percentiles(name) {
  return [["p50", 0.5], ["p95", 0.95]].map(([label, share]) => [label, ({ before, now }) => quantile(before, now, name, share)]);
}

function rate({ before, now, seconds }, name) {
  const grown = growth(before, now, name);
  return grown === null ? null : grown / seconds;
}

function prefixHits({ before, now }) {
  const asked = growth(before, now, "prefix_cache_queries_total");
  return asked ? growth(before, now, "prefix_cache_hits_total") / asked : null;
}

function canBeSaid(name) {
  return name && say(name);
}

function links() {
  const link = (path, key) => element("a", { href: `${window.tgwuiPage.root}/page/api${path}`, target: "_blank" }, say(key));
  return element("p", { class: "tgwui-links" }, link("/docs", "engine_docs"), link("/metrics", "engine_metrics"));
}
