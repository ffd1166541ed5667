/** Draws the dates of a cube along time and lets one be chosen: by pointer, by keyboard, or one after the other. */

import { byId, onWidth, s } from "./dom.js";
import { dayAmong, clock, howItEnded, longDay, platform } from "./text.js";
import { timeTicks } from "./ticks.js";

const EDGE = 14;
const HEIGHT = 58;
const BARS = { top: 4, height: 30 };
/** Milliseconds that a date is seen at least while playing. */
const FRAME = 900;
const WAIT = 120;

export function makeTimeline(view, complete) {
  const slider = byId("timeline");
  const chart = byId("timeline-chart");
  const play = byId("play");
  let width = 0;
  let playing = false;

  const times = () => view.cube.times;
  const at = () => times().findIndex((t) => t.index === view.now.time);
  const stamps = () => times().map((t) => Date.parse(t.time));

  function scale() {
    const found = stamps();
    const [first, last] = [found[0], found.at(-1)];
    if (first === last) return () => width / 2;
    return (stamp) => EDGE + ((stamp - first) / (last - first)) * (width - 2 * EDGE);
  }

  function go(position) {
    const to = Math.min(times().length - 1, Math.max(0, position));
    view.set({ time: times()[to].index });
  }

  function nearest(clientX) {
    const x = clientX - chart.getBoundingClientRect().left;
    const where = scale();
    const far = stamps().map((stamp) => Math.abs(where(stamp) - x));
    go(far.indexOf(Math.min(...far)));
  }

  function draw() {
    if (!width) return;
    const where = scale();
    const places = stamps().map(where);
    const gap = Math.min(...places.slice(1).map((x, i) => x - places[i]), 40);
    const bar = Math.max(2, Math.min(10, gap - 2));
    const base = BARS.top + BARS.height;
    const marks = times().map((time, i) => {
      const ok = time.windows ? time.ok / time.windows : 0;
      const tall = Math.max(ok ? 2 : 0, ok * BARS.height);
      const cloudy = Math.round(100 * Math.min(1, (time.cloud ?? 0) / 100));
      const x = places[i] - bar / 2;
      return s(
        "g", {},
        s("title", { text: `${dayAmong(time, times())}: ${howItEnded(time)}` }),
        s("rect", { class: "all", x, y: BARS.top, width: bar, height: BARS.height, rx: 1.5 }),
        s("rect", {
          class: "ok", x, y: base - tall, width: bar, height: tall, rx: 1.5,
          style: `fill: color-mix(in srgb, var(--cloud) ${cloudy}%, var(--accent))`,
        }),
      );
    });
    const ticks = timeTicks(stamps()[0], stamps().at(-1), Math.max(2, Math.floor(width / 90)));
    const axis = ticks.map(({ stamp, label }) => s("text", { x: where(stamp), y: HEIGHT - 3, "text-anchor": "middle", text: label }));
    const x = places[at()] ?? 0;
    const thumb = s(
      "g", { class: "thumb", transform: `translate(${x} 0)` },
      s("line", { x1: 0, x2: 0, y1: 0, y2: base + 4 }),
      s("circle", { cx: 0, cy: base + 4, r: 6 }),
    );
    chart.replaceChildren(
      s("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" },
        s("line", { class: "axis", x1: 0, x2: width, y1: base + 4, y2: base + 4 }), ...marks, ...axis, thumb),
    );
  }

  function show() {
    const time = view.time;
    const several = times().length > 1;
    const sameDay = dayAmong(time, times()).includes("UTC");
    byId("date").textContent = longDay(time.time);
    byId("date-more").textContent = [clock(time.time), platform(time.platform), howItEnded(time)].filter(Boolean).join(" · ");
    slider.setAttribute("aria-valuemin", 1);
    slider.setAttribute("aria-valuemax", times().length);
    slider.setAttribute("aria-valuenow", at() + 1);
    slider.setAttribute("aria-valuetext", `${longDay(time.time)}${sameDay ? `, ${clock(time.time)}` : ""}: ${howItEnded(time)}; date ${at() + 1} of ${times().length}`);
    slider.setAttribute("aria-disabled", !several);
    byId("earlier").disabled = at() <= 0;
    byId("later").disabled = at() >= times().length - 1;
    play.hidden = !several;
    draw();
  }

  function setPlaying(on) {
    playing = on && times().length > 1;
    play.setAttribute("aria-pressed", playing);
    play.setAttribute("aria-label", playing ? "Stop" : "Play the dates");
    play.classList.toggle("on", playing);
    if (playing) turn(performance.now());
  }

  /** The next date that has something to show, once the present one is drawn and was seen for a while. */
  function turn(since) {
    setTimeout(() => {
      if (!playing) return;
      if (!complete() || performance.now() - since < FRAME) return void turn(since);
      for (let step = 1; step <= times().length; step++) {
        const next = times()[(at() + step) % times().length];
        if (next.ok > 0) {
          view.set({ time: next.index });
          break;
        }
      }
      turn(performance.now());
    }, WAIT);
  }

  slider.addEventListener("pointerdown", (event) => {
    slider.setPointerCapture(event.pointerId);
    setPlaying(false);
    nearest(event.clientX);
  });
  slider.addEventListener("pointermove", (event) => slider.hasPointerCapture(event.pointerId) && nearest(event.clientX));
  slider.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -5, PageUp: 5 }[event.key];
    const to = { Home: 0, End: times().length - 1 }[event.key];
    if (event.key === " ") setPlaying(!playing);
    else if (by !== undefined || to !== undefined) {
      setPlaying(false);
      go(to ?? at() + by);
    } else return;
    event.preventDefault();
  });
  byId("earlier").addEventListener("click", () => (setPlaying(false), go(at() - 1)));
  byId("later").addEventListener("click", () => (setPlaying(false), go(at() + 1)));
  play.addEventListener("click", () => setPlaying(!playing));
  onWidth(chart, (now) => ((width = now), draw()));
  view.listen((_, changed) => ["time", "cube", "cubes"].some((name) => changed.has(name)) && show());
  show();
}
