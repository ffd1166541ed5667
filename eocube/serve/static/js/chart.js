/** Draws lines and dots over an axis as SVG, with a read-out under the pointer. */

import { h, s } from "./dom.js";
import { numberTicks } from "./ticks.js";
import { number, signed } from "./text.js";

const HEIGHT = 190;
const MARGIN = { left: 46, right: 12, top: 10, bottom: 34 };
const LEAST_SPAN = 1e-6;

function span(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = Math.max((high - low) * 0.08, Math.abs(high) * 0.02, LEAST_SPAN);
  return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
}

/** Stretches of points that have a value, so that a line is broken where there is none. */
function runs(points) {
  const found = [[]];
  for (const point of points) {
    if (point.y === null || point.y === undefined || !Number.isFinite(point.y)) found.push([]);
    else found.at(-1).push(point);
  }
  return found.filter((run) => run.length);
}

/**
 * A chart in an element. `series` are {name, kind: "decoded" | "source", points: [{x, y}]}; `ticks(low, high, count)` gives
 * {x, label} along x; `name(x)` names a place on it in the read-out; `now` is a place to mark; `onPick(x)` hears of clicks.
 */
export function chart(element, { width, series, ticks, name, xTitle, yTitle, now = null, onPick = null, what }) {
  const points = series.flatMap((one) => one.points).filter((p) => Number.isFinite(p.y) && p.y !== null);
  if (!points.length) return element.replaceChildren(h("p", { class: "soft empty", text: "No values here." }));
  const xs = [...new Set(series.flatMap((one) => one.points.map((p) => p.x)))].sort((a, b) => a - b);
  const [x0, x1] = [xs[0], xs.at(-1)];
  const [y0, y1] = span(points.map((p) => p.y));
  const inner = { w: width - MARGIN.left - MARGIN.right, h: HEIGHT - MARGIN.top - MARGIN.bottom };
  const px = (x) => MARGIN.left + (x0 === x1 ? inner.w / 2 : 6 + ((x - x0) / (x1 - x0)) * (inner.w - 12));
  const py = (y) => MARGIN.top + (1 - (y - y0) / (y1 - y0)) * inner.h;

  const grid = numberTicks(y0, y1, 4).flatMap((y) => [
    s("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: py(y), y2: py(y) }),
    s("text", { x: MARGIN.left - 6, y: py(y) + 3.5, "text-anchor": "end", text: signed(y) }),
  ]);
  const axis = ticks(x0, x1, Math.max(2, Math.floor(inner.w / 62))).map(({ x, label }) =>
    s("text", { x: px(x), y: HEIGHT - MARGIN.bottom + 15, "text-anchor": "middle", text: label }));
  const drawn = series.map((one) => s(
    "g", { class: one.kind },
    ...runs(one.points).map((run) => s("polyline", { points: run.map((p) => `${px(p.x).toFixed(1)},${py(p.y).toFixed(1)}`).join(" ") })),
    ...runs(one.points).flat().map((p) => (one.kind === "source"
      ? s("rect", { x: px(p.x) - 3, y: py(p.y) - 3, width: 6, height: 6 })
      : s("circle", { cx: px(p.x), cy: py(p.y), r: 3.4 }))),
  ));
  const mark = now === null ? null : s("line", { class: "now", x1: px(now), x2: px(now), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom });
  const cursor = s("line", { class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" });
  const readout = h("p", { class: "readout", "aria-hidden": "true" });
  const svg = s(
    "svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": what, class: onPick ? "picks" : null },
    ...grid, mark, ...axis, ...drawn, cursor,
    s("text", { class: "title", x: width - MARGIN.right, y: HEIGHT - 3, "text-anchor": "end", text: xTitle }),
    s("text", { class: "title", x: MARGIN.left, y: HEIGHT - 3, text: yTitle }),
  );
  const nearest = (event) => {
    const x = event.clientX - svg.getBoundingClientRect().left;
    return xs.reduce((best, one) => (Math.abs(px(one) - x) < Math.abs(px(best) - x) ? one : best), xs[0]);
  };
  svg.addEventListener("pointermove", (event) => {
    const x = nearest(event);
    cursor.setAttribute("visibility", "visible");
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, px(x));
    const said = series.map((one) => `${one.name} ${number(one.points.find((p) => p.x === x)?.y)}`);
    readout.textContent = `${name(x)}: ${said.join(", ")}`;
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    readout.textContent = "";
  });
  if (onPick) svg.addEventListener("click", (event) => onPick(nearest(event)));
  return element.replaceChildren(svg, readout);
}
