// Prometheus' text format, and what can be said from two scrapes of one pod.

const LINE = /^(\w+)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** A scrape as `name -> [{labels, value}]`, without the prefix `tgwui_`. */
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = LINE.exec(line);
    if (!match || !match[1].startsWith("tgwui_")) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, value]));
    const name = match[1].slice("tgwui_".length);
    if (!found.has(name)) found.set(name, []);
    found.get(name).push({ labels, value: Number(match[3]) });
  }
  return found;
}

/** The sum of a metric over its labels; null where there is none. */
export function total(scrape, name) {
  const samples = scrape.get(name);
  return samples ? samples.reduce((sum, { value }) => sum + value, 0) : null;
}

/** How much a counter grew; null without two scrapes, or where the pod began anew. */
export function growth(before, now, name) {
  const [old, fresh] = [before && total(before, name), total(now, name)];
  return old === null || old === undefined || fresh === null || fresh < old ? null : fresh - old;
}

/** A quantile of what a histogram took in between two scrapes, in seconds; null for nothing. */
export function quantile(before, now, name, share) {
  const counts = new Map();
  const addAll = (scrape, sign) => {
    for (const { labels, value } of scrape?.get(`${name}_bucket`) ?? []) {
      const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
      counts.set(bound, (counts.get(bound) ?? 0) + sign * value);
    }
  };
  addAll(now, 1);
  addAll(before, -1);
  const bounds = [...counts.keys()].sort((one, other) => one - other);
  const all = counts.get(Infinity) ?? 0;
  if (!before || all <= 0) return null;
  let [lower, below] = [0, 0];
  for (const bound of bounds) {
    const upTo = counts.get(bound);
    if (upTo >= share * all) {
      if (bound === Infinity) return lower;
      return lower + ((bound - lower) * (share * all - below)) / Math.max(upTo - below, 1);
    }
    [lower, below] = [bound, upTo];
  }
  return lower;
}
