// A small line plot as SVG; colours come from page.css, so that both themes fit.

import { element } from "./element.js";

const [WIDTH, HEIGHT, TOP, BOTTOM] = [320, 120, 8, 16];

/** `series` is `[{name, points: [[time, value or null]]}]`; times are seconds. */
export function plot(title, series, unit = "", span = 120) {
  const now = Math.max(...series.flatMap(({ points }) => points.map(([time]) => time)), 0);
  const values = series.flatMap(({ points }) => points.map(([, value]) => value)).filter((value) => value !== null);
  const most = nice(Math.max(...values, 0));
  const x = (time) => WIDTH - ((now - time) / span) * WIDTH;
  const y = (value) => TOP + (1 - value / most) * (HEIGHT - TOP - BOTTOM);
  const lines = series.map(({ points }, index) => element("path", { class: `tgwui-line-${index % 6}`, d: curve(points, x, y) }));
  const keys = series.map(({ name, points }, index) => {
    const last = points.at(-1)?.[1];
    return element("li", { class: `tgwui-key-${index % 6}` }, `${name} `, element("b", {}, number(last, unit)));
  });
  return element("figure", { class: "tgwui-plot" },
    element("figcaption", {}, title),
    element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title },
      element("line", { class: "tgwui-axis", x1: 0, x2: WIDTH, y1: y(0), y2: y(0) }),
      element("line", { class: "tgwui-axis", x1: 0, x2: WIDTH, y1: y(most), y2: y(most) }),
      element("text", { x: 2, y: y(most) + 11 }, number(most, unit)),
      element("text", { x: 2, y: HEIGHT - 3 }, `−${span} s`),
      ...lines),
    element("ul", {}, ...keys));
}

/** A number as short as it stays readable. */
export function number(value, unit = "") {
  if (value === null || value === undefined) return "–";
  if (unit === "s") return value < 1 ? `${(value * 1000).toFixed(value < 0.1 ? 1 : 0)} ms` : `${value.toFixed(2)} s`;
  if (unit === "%") return `${(value * 100).toFixed(value < 0.1 ? 1 : 0)} %`;
  return value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1);
}

function curve(points, x, y) {
  let isDown = false;
  return points.map(([time, value]) => {
    if (value === null) return (isDown = false), "";
    const step = `${isDown ? "L" : "M"}${x(time).toFixed(1)} ${y(value).toFixed(1)}`;
    isDown = true;
    return step;
  }).join("");
}

function nice(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}
