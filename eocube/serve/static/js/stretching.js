/** Shows between which numbers colours run, lets them be set by hand, and draws the legend by them. */

import { byId, h } from "./dom.js";
import { colours as coloursOf, json, stretch as stretchPath } from "./server.js";
import { short, signed } from "./text.js";
import { drawn, picks, usualStretch } from "./view.js";

const CHANNELS = ["Red", "Green", "Blue"];
/** The map of colours of every difference: red where it shrank, blue where it grew. */
const DIFFERENCE = "rdbu";

/** The names of what the three colours of a picture stand for, or of the one value. */
function channels(view) {
  const { layer } = view;
  const named = picks(layer) ? view.now.bands : layer.bands;
  if (layer.kind === "rgb") return CHANNELS.map((colour, i) => ({ colour, name: named?.[i] ?? (layer.id === "pca" ? `component ${i + 1}` : "") }));
  return [{ colour: "", name: layer.id === "band" ? named[0] : layer.title }];
}

function unitOf(view) {
  const { layer, cube } = view;
  if (layer.kind === "rgb") return layer.group === "latents" ? "" : (cube.bands[0]?.unit ?? "");
  if (layer.id === "band") return cube.bands.find((b) => b.name === view.now.bands[0])?.unit ?? "";
  return layer.legend?.unit ?? "";
}

const plainUnit = (unit) => (unit === "1" ? "" : unit === "percent" ? "%" : unit);

export function makeStretching(view, onError) {
  const box = byId("stretch");
  const legend = byId("legend");
  let used = null;
  let colours = [];
  let asked = null;
  let waits = false;

  async function ask() {
    asked?.abort();
    asked = null;
    used = null;
    waits = view.layer.kind !== "classes";
    show();
    if (view.layer.kind === "classes") return;
    const mine = (asked = new AbortController());
    try {
      const map = view.layer.id === "difference" ? DIFFERENCE : view.layer.legend?.colormap;
      const said = await Promise.all([json(stretchPath(drawn(view)), mine.signal), map ? coloursOf(map) : []]);
      if (mine.signal.aborted) return;
      [used, colours] = said;
    } catch (error) {
      if (mine.signal.aborted) return;
      onError(error.message);
    }
    waits = false;
    show();
  }

  function set(place, which, text) {
    const value = Number(text);
    if (text === "" || !Number.isFinite(value)) return show();
    const change = { vmin: [...used.vmin], vmax: [...used.vmax] };
    change[which][place] = value;
    if (change.vmin[place] >= change.vmax[place]) {
      byId("stretch-wrong").textContent = "The lower number must be below the upper one.";
      return;
    }
    view.set({ stretch: "fixed", ...change });
  }

  function controls() {
    const { layer } = view;
    const kind = view.now.stretch;
    const radio = (value, text) =>
      h("label", { class: "pill" },
        h("input", {
          type: "radio", name: "stretch", id: `stretch-${value}`, value, checked: kind === value,
          onchange: () => view.set({ stretch: value, vmin: null, vmax: null }),
        }), h("span", { text }));
    const rows = kind === "fixed" && used
      ? channels(view).map(({ colour, name }, i) => h(
          "div", { class: "range" },
          h("span", { text: layer.kind === "rgb" ? `${colour}${name ? ` ${name}` : ""}` : "From, to" }),
          ...["vmin", "vmax"].map((which) => h("input", {
            type: "number", step: "any", id: `${which}-${i}`, value: short(used[which][i]),
            "aria-label": `${colour || name}, ${which === "vmin" ? "lowest" : "highest"}`, onchange: (event) => set(i, which, event.target.value),
          })),
        ))
      : [];
    const mine = view.now.vmin !== null;
    return [
      usualStretch(layer) === "percentile" ? h("div", { class: "pills", role: "radiogroup", "aria-labelledby": "stretch-title" }, radio("percentile", "Percentile"), radio("fixed", "Fixed")) : "",
      ...rows,
      waits && !rows.length && usualStretch(layer) === "fixed" ? h("p", { class: "soft", text: "Measuring…" }) : "",
      h("p", { class: "wrong", id: "stretch-wrong", role: "alert" }),
      mine ? h("button", { type: "button", class: "plain", onclick: () => view.set({ vmin: null, vmax: null }), text: "Back to the usual range" }) : "",
    ];
  }

  function bar(low, high, unit) {
    const image = `linear-gradient(to right, ${colours.join(", ")})`;
    const middle = (low + high) / 2;
    return [
      h("div", { class: "bar", style: `background-image: ${image}`, "aria-hidden": "true" }),
      h("div", { class: "ends" }, h("span", { text: signed(low) }), h("span", { text: signed(middle) }), h("span", { text: `${signed(high)}${unit ? ` ${unit}` : ""}` })),
    ];
  }

  function legendBody() {
    const { layer } = view;
    const unit = plainUnit(unitOf(view));
    if (layer.kind === "classes") {
      return [h("ul", { class: "classes" }, ...layer.legend.classes.map((c) => h("li", {}, h("i", { style: c.colour ? `background: ${c.colour}` : "" }), c.label)))];
    }
    if (!used) return [h("p", { class: "soft", text: waits ? "Measuring the range…" : "The range is not known." })];
    if (layer.kind === "value") return bar(used.vmin[0], used.vmax[0], unit);
    return [h("dl", { class: "channels" }, ...channels(view).flatMap(({ colour, name }, i) => [
      h("dt", {}, h("i", { class: colour.toLowerCase() }), name || colour),
      h("dd", { text: `${signed(used.vmin[i] ?? used.vmin[0])} to ${signed(used.vmax[i] ?? used.vmax[0])}${unit ? ` ${unit}` : ""}` }),
    ]))];
  }

  function title() {
    const { layer } = view;
    if (layer.id === "band") return view.now.bands[0];
    if (layer.id !== "difference") return layer.title;
    const of = view.layerOf(view.now.of);
    return of ? `Difference, ${of.title}` : layer.title;
  }

  function show() {
    const focused = box.contains(document.activeElement) ? document.activeElement.id : null;
    // Components have no unit that a person could set a range in.
    const ranged = view.layer.kind !== "classes" && view.layer.group !== "latents";
    byId("stretching").hidden = !ranged;
    box.replaceChildren(...(ranged ? controls() : []));
    if (focused) byId(focused)?.focus({ preventScroll: true });
    legend.replaceChildren(h("h2", { text: title() }), ...legendBody(), h("p", { class: "missing-key" }, h("i", { class: "hatched" }), "no data"));
  }

  view.listen((_, changed) => {
    if (["cube", "cubes", "time", "layer", "bands", "of", "other", "stretch", "vmin", "vmax"].some((name) => changed.has(name))) ask();
  });
  ask();
}
