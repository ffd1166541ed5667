/** Shows what a clicked point holds: its decoded spectrum, its course over time, and the source's beside them. */

import { chart } from "./chart.js";
import { byId, h, onWidth, select } from "./dom.js";
import { json, point as pointPath } from "./server.js";
import { clock, day, dayAmong, number, place, state } from "./text.js";
import { numberTicks, timeTicks } from "./ticks.js";

const NM = 1000;

export function makePoint(view, onOpen) {
  const panel = byId("point");
  const body = byId("point-body");
  const spectrum = h("div", { class: "chart", id: "spectrum" });
  const course = h("div", { class: "chart", id: "course" });
  let found = null;
  let asked = null;
  let quantity = null;
  let width = 0;

  async function ask() {
    asked?.abort();
    const { point, cube, source } = view.now;
    panel.hidden = point === null;
    document.body.classList.toggle("with-point", point !== null);
    if (point === null) return void (found = null);
    const mine = (asked = new AbortController());
    say(source ? "Reading the source, decoding…" : "Decoding…");
    try {
      found = await json(pointPath(cube, ...point, source), mine.signal);
      found.withSource = source;
      show();
    } catch (error) {
      if (mine.signal.aborted) return;
      found = null;
      panel.removeAttribute("aria-busy");
      body.replaceChildren(h("p", { class: "failure", role: "alert", text: error.message }), h("button", { type: "button", onclick: ask, text: "Try again" }));
    }
  }

  function say(words) {
    panel.setAttribute("aria-busy", "true");
    if (found) byId("point-status").textContent = words;
    else body.replaceChildren(h("p", { class: "soft", id: "point-status", role: "status", text: words }));
  }

  const entry = () => found.times.find((t) => t.index === view.now.time);
  const names = () => view.cube.bands.map((b) => b.name);
  const optical = () => view.cube.bands.every((b) => b.wavelength_um);

  /** The quantities whose course can be drawn: bands, and indices that the server worked out. */
  function quantities() {
    const indices = Object.keys(found.indices ?? {}).map((id) => [`index:${id}`, view.layerOf(id)?.title ?? id.toUpperCase()]);
    return [...indices, ...names().map((name) => [`band:${name}`, name])];
  }

  function of(time, which) {
    const [kind, name] = quantity.split(/:(.*)/);
    if (kind === "band") return time[which]?.[name] ?? null;
    const indices = which === "source" ? found.source_indices : found.indices;
    return indices?.[name]?.[found.times.indexOf(time)] ?? null;
  }

  function spectrumPoints(held) {
    const placed = view.cube.bands.map((b, i) => ({ x: optical() ? b.wavelength_um * NM : i, y: held?.[b.name] ?? null }));
    return placed.sort((a, b) => a.x - b.x);
  }

  function drawSpectrum() {
    const time = entry();
    const series = [{ name: "decoded", kind: "decoded", points: spectrumPoints(time?.decoded) }];
    if (found.withSource && time?.source) series.push({ name: "source", kind: "source", points: spectrumPoints(time.source) });
    const bands = view.cube.bands;
    chart(spectrum, {
      width, series, what: `Spectrum on ${day(view.time.time)}; its numbers are in the table below`,
      ticks: optical() ? (low, high, count) => numberTicks(low, high, count).map((x) => ({ x, label: String(x) })) : () => bands.map((b, x) => ({ x, label: b.name })),
      name: (x) => (optical() ? `${bands.filter((b) => b.wavelength_um * NM === x).map((b) => b.name).join(", ")}, ${Math.round(x)} nm` : bands[x].name),
      xTitle: optical() ? "wavelength, nm" : "band", yTitle: yTitle(bands[0].unit, optical()),
    });
  }

  function drawCourse() {
    const stamp = (t) => Date.parse(t.time);
    const along = (which) => found.times.map((t) => ({ x: stamp(t), y: of(t, which), index: t.index })).sort((a, b) => a.x - b.x);
    const series = [{ name: "decoded", kind: "decoded", points: along("decoded") }];
    if (found.withSource) series.push({ name: "source", kind: "source", points: along("source") });
    const label = quantities().find(([key]) => key === quantity)[1];
    const isIndex = quantity.startsWith("index:");
    chart(course, {
      width, series, now: Date.parse(view.time.time), what: `${label} over time; its numbers are in the table below`,
      ticks: (low, high, count) => timeTicks(low, high, count).map(({ stamp: x, label: text }) => ({ x, label: text })),
      name: (x) => day(new Date(x).toISOString()), xTitle: "", yTitle: isIndex ? label : `${label}${yTitle(view.cube.bands[0].unit, optical()) ? `, ${yTitle(view.cube.bands[0].unit, optical())}` : ""}`,
      onPick: (x) => view.set({ time: series[0].points.find((p) => p.x === x).index }),
    });
  }

  function table(caption, head, rows) {
    return h("table", {}, h("caption", { text: caption }),
      h("thead", {}, h("tr", {}, ...head.map((text) => h("th", { scope: "col", text })))),
      h("tbody", {}, ...rows.map(([first, ...rest]) => h("tr", {}, h("th", { scope: "row", text: first }), ...rest.map((text) => h("td", { text }))))));
  }

  function tables() {
    const time = entry();
    const label = quantities().find(([key]) => key === quantity)[1];
    const both = found.withSource;
    const head = both ? ["Decoded", "Source"] : ["Decoded"];
    const pair = (decoded, source) => (both ? [number(decoded), number(source)] : [number(decoded)]);
    return h(
      "details", { class: "numbers", open: byId("numbers")?.open ?? false, id: "numbers" },
      h("summary", { text: "The numbers" }),
      table(`Spectrum, ${dayAmong(view.time, view.cube.times)}`, ["Band", ...head],
        view.cube.bands.map((b) => [b.name, ...pair(time?.decoded?.[b.name], time?.source?.[b.name])])),
      table(label, ["Date", "Window", ...head],
        view.cube.times.map((t) => [t, found.times.find((f) => f.index === t.index)]).filter(([, f]) => f)
          .map(([t, f]) => [dayAmong(t, view.cube.times), state(f.status), ...pair(of(f, "decoded"), of(f, "source"))])),
    );
  }

  /** How good the window is that the point lies in, on the date that is seen. */
  function quality() {
    const time = entry();
    if (!time) return "";
    const facts = [`window ${state(time.status)}`];
    if (Number.isFinite(time.psnr) && time.psnr !== null) facts.push(`PSNR ${time.psnr.toFixed(1)} dB`);
    if (Number.isFinite(time.cloud) && time.cloud !== null) facts.push(`cloud ${Math.round(time.cloud)} %`);
    return h("p", { class: "facts", text: `${dayAmong(view.time, view.cube.times)}, ${clock(view.time.time)}: ${facts.join(", ")}` });
  }

  function show() {
    panel.removeAttribute("aria-busy");
    const many = quantities();
    if (!many.some(([key]) => key === quantity)) quantity = (many.find(([key]) => key === "index:ndvi") ?? many[0])[0];
    const focused = body.contains(document.activeElement) ? document.activeElement.id : null;
    const key = h("p", { class: "key" }, h("span", { class: "decoded", text: "decoded" }), found.withSource ? h("span", { class: "source", text: "source" }) : "");
    const missingSource = found.withSource && found.times.every((t) => !t.source) ? h("p", { class: "soft", text: "The source has no values here." }) : "";
    body.replaceChildren(
      h("p", { class: "where", text: place(found.lon, found.lat) }),
      quality(),
      view.cube.has_source
        ? h("label", { class: "check" }, h("input", { type: "checkbox", id: "with-source", checked: view.now.source, onchange: (e) => view.set({ source: e.target.checked }) }), h("span", { text: "Read the source too" }))
        : "",
      h("p", { class: "soft", id: "point-status", role: "status" }), missingSource,
      h("div", { class: "row" }, h("h3", { text: "Spectrum" }), key), spectrum,
      h("div", { class: "row" }, h("h3", { text: "Over time" }), select("Quantity", many, quantity, (q) => ((quantity = q), show()), { id: "quantity" })), course,
      tables(),
    );
    if (width) {
      drawSpectrum();
      drawCourse();
    }
    if (focused) byId(focused)?.focus({ preventScroll: true });
  }

  byId("point-close").addEventListener("click", () => {
    view.set({ point: null });
    document.querySelector("#map canvas")?.focus();
  });
  panel.addEventListener("keydown", (event) => event.key === "Escape" && byId("point-close").click());
  onWidth(body, (now) => {
    width = now;
    if (found) {
      drawSpectrum();
      drawCourse();
    }
  });
  view.listen((_, changed) => {
    const told = changed.has("source") || changed.has("cubes");
    if (changed.has("point") || changed.has("cube") || (told && view.now.point)) {
      if (changed.has("cube")) found = null;
      if (changed.has("point") && view.now.point) onOpen();
      ask();
    } else if (changed.has("time") && found) show();
  });
  ask();
}

const yTitle = (unit, optical) => (unit && unit !== "1" ? unit : optical ? "reflectance" : "");
