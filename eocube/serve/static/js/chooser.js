/** Lets the reader choose cube, layer, its bands and the other date, and what to compare with. */

import { byId, h, select } from "./dom.js";
import { dayAmong } from "./text.js";
import { ofPixels, picks, subtracts } from "./view.js";

const GROUPS = { picture: "Pictures", index: "Indices and change", latents: "Latents", quality: "Quality" };
const CHANNELS = ["Red", "Green", "Blue"];

const bandLabel = (band) => (band.wavelength_um ? `${band.name}, ${Math.round(band.wavelength_um * 1000)} nm` : band.name);
const bandOptions = (cube) => cube.bands.map((band) => [band.name, bandLabel(band)]);
const dateOptions = (cube, without = null) => cube.times.filter((t) => t.index !== without).map((t) => [t.index, dayAmong(t, cube.times)]);

export function makeChooser(view) {
  const cubes = byId("cubes");
  const layers = byId("layers");
  const compare = byId("compare");

  function showCubes() {
    const { cube } = view;
    const several = view.cubes.length > 1;
    cubes.replaceChildren(
      several
        ? select("Cube", view.cubes.map((c) => [c.id, c.name]), cube.id, (id) => view.set({ cube: id }), { id: "cube" })
        : h("h1", { text: cube.name }),
      h("p", { class: "soft", text: `${cube.sensor}, ${cube.resolution} m, ${cube.times.length === 1 ? "one date" : `${cube.times.length} dates`}, ${cube.zone.replace(/^utm/i, "UTM ")}` }),
    );
    document.title = `${cube.name} · eocube`;
  }

  /** What a layer asks for beside its name. */
  function options(layer) {
    const { cube } = view;
    const { bands, of, other, time } = view.now;
    const wanted = picks(layer);
    if (wanted) {
      const put = (place, name) => view.set({ bands: bands.map((b, i) => (i === place ? name : b)), vmin: null, vmax: null });
      return bands.map((band, i) => select(wanted === 3 ? CHANNELS[i] : "Band", bandOptions(cube), band, (name) => put(i, name), { id: `band-${i}` }));
    }
    if (layer.id !== "difference") return [];
    const takes = subtracts(cube).map((id) => [id, view.layerOf(id)?.title ?? id]);
    return [
      takes.length > 1 ? select("Of", takes, of, (id) => view.set({ of: id, vmin: null, vmax: null }), { id: "of" }) : null,
      select("Minus the date", dateOptions(cube, time), other, (index) => view.set({ other: Number(index) }), { id: "other-date" }),
    ];
  }

  function showLayers() {
    const { cube, layer } = view;
    const focused = layers.contains(document.activeElement) ? document.activeElement.id : null;
    const groups = Object.entries(GROUPS).map(([group, title]) => {
      const members = cube.layers.filter((l) => l.group === group && !(l.id === "difference" && cube.times.length < 2));
      if (!members.length) return null;
      return h(
        "div", { class: "group", role: "presentation" },
        h("h3", { text: title }),
        ...members.flatMap((member) => {
          const chosen = member.id === layer.id;
          const row = h(
            "label", { class: chosen ? "choice chosen" : "choice" },
            h("input", { type: "radio", name: "layer", id: `layer-${member.id}`, value: member.id, checked: chosen, onchange: () => view.set({ layer: member.id }) }),
            h("span", { text: member.title }),
          );
          const more = chosen ? options(member) : [];
          return more.length ? [row, h("div", { class: "options" }, ...more)] : [row];
        }),
      );
    });
    layers.replaceChildren(...groups.filter(Boolean));
    if (focused) byId(focused)?.focus({ preventScroll: true });
  }

  function showCompare() {
    const { cube } = view;
    const { against, againstTime, againstLayer, time } = view.now;
    const focused = compare.contains(document.activeElement) ? document.activeElement.id : null;
    const kinds = [["off", "Nothing"]];
    if (cube.times.length > 1) kinds.push(["date", "Another date"]);
    if (cube.layers.length > 1) kinds.push(["layer", "Another layer"]);
    if (cube.has_source && ofPixels(view.layer)) kinds.push(["source", "The source"]);
    compare.replaceChildren(
      select("Swipe against", kinds, against, (kind) => view.set({ against: kind, at: 0.5 }), { id: "against" }),
      against === "date" ? select("Date on the right", dateOptions(cube, time), againstTime, (index) => view.set({ againstTime: Number(index) }), { id: "against-date" }) : "",
      against === "layer"
        ? select("Layer on the right", cube.layers.filter((l) => !picks(l)).map((l) => [l.id, l.title]), againstLayer, (id) => view.set({ againstLayer: id }), { id: "against-layer" })
        : "",
    );
    if (focused) byId(focused)?.focus({ preventScroll: true });
  }

  view.listen((_, changed) => {
    const any = (...names) => names.some((name) => changed.has(name));
    if (any("cube", "cubes")) showCubes();
    if (any("cube", "cubes", "layer", "bands", "of", "other", "time")) showLayers();
    if (any("cube", "cubes", "layer", "against", "againstTime", "againstLayer", "time")) showCompare();
  });
  showCubes();
  showLayers();
  showCompare();
}
