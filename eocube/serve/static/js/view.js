/** Holds what is seen, keeps it fit for the cube, and tells those who draw when it changes. */

/** A view before anything is chosen. `time`, `other` and `againstTime` are the store's numbers of time steps. */
const BLANK = {
  cube: null, time: null, layer: null, bands: null, of: null, other: null, stretch: null, vmin: null, vmax: null,
  against: "off", againstTime: null, againstLayer: null, at: 0.5, point: null, source: false, camera: null,
};

/** The stretch that a layer has before one is chosen: a legend with a range of its own is drawn by it. */
export function usualStretch(layer) {
  if (layer.kind === "classes") return null;
  return layer.kind === "value" && layer.id !== "band" ? "fixed" : "percentile";
}

/** Whether a layer can be drawn from the scenes' own pixels, too. */
export const ofPixels = (layer) => ["picture", "index"].includes(layer.group);

/** How many bands the reader picks for a layer. */
export const picks = (layer) => (layer.id === "rgb" ? 3 : layer.id === "band" ? 1 : 0);

/** Layers whose difference between dates can be drawn: indices first, then pictures with bands of their own. */
export function subtracts(cube) {
  const known = cube.layers.filter((l) => l.bands && ["index", "picture"].includes(l.group));
  return [...known.filter((l) => l.group === "index"), ...known.filter((l) => l.group === "picture")].map((l) => l.id);
}

/** The time step with the most ground to see: the one whose windows are ok and clear. */
function clearest(times) {
  const worth = (t) => (t.ok / Math.max(1, t.windows)) * (1 - (t.cloud ?? 0) / 100);
  return times.reduce((best, t) => (worth(t) > worth(best) ? t : best), times[0]);
}

export class View {
  #cubes;
  #now = { ...BLANK };
  #heard = [];

  constructor(cubes) {
    this.#cubes = cubes;
  }

  /** The view now; not to be changed in place. */
  get now() {
    return this.#now;
  }

  /** The cubes that the server has. */
  get cubes() {
    return this.#cubes;
  }

  /** The cube that is seen. */
  get cube() {
    return this.#cubes.find((c) => c.id === this.#now.cube) ?? this.#cubes[0];
  }

  /** The layer that is seen. */
  get layer() {
    return this.layerOf(this.#now.layer);
  }

  /** The time step that is seen. */
  get time() {
    return this.timeOf(this.#now.time);
  }

  layerOf(id) {
    return this.cube.layers.find((l) => l.id === id);
  }

  timeOf(index) {
    return this.cube.times.find((t) => t.index === index);
  }

  /** Calls `hear(view, changed)` after every change, `changed` being the set of names that differ. */
  listen(hear) {
    this.#heard.push(hear);
  }

  /** Take what the server says of the cubes now. Those who draw hear of "cubes" where any has been written to since. */
  renew(cubes) {
    const said = (known) => known.map((c) => `${c.id} ${c.version}`).join();
    if (said(cubes) === said(this.#cubes)) return;
    this.#cubes = cubes;
    this.#tell(this.#now, this.#fit({ ...this.#now }, this.#now, {}), ["cubes"]);
  }

  /** Change some of it. What no longer fits (a band the cube lacks) falls back to what does. */
  set(change) {
    this.#tell(this.#now, this.#fit({ ...this.#now, ...change }, this.#now, change));
  }

  #tell(before, now, more = []) {
    this.#now = now;
    const differ = Object.keys(BLANK).filter((name) => JSON.stringify(before[name]) !== JSON.stringify(now[name]));
    const changed = new Set([...differ, ...more]);
    if (changed.size) for (const hear of this.#heard) hear(this, changed);
  }

  #fit(next, before, change) {
    const cube = this.#cubes.find((c) => c.id === next.cube) ?? this.#cubes[0];
    const moved = cube.id !== before.cube;
    const has = (index) => cube.times.some((t) => t.index === index);
    next.cube = cube.id;
    if (moved && before.cube !== null) Object.assign(next, { camera: change.camera ?? null, point: change.point ?? null });
    if (!has(next.time)) next.time = clearest(cube.times)?.index ?? null;
    const layer = cube.layers.find((l) => l.id === next.layer) ?? cube.layers[0];
    if (layer.id !== before.layer || moved) {
      if (!change.stretch) Object.assign(next, { stretch: usualStretch(layer), vmin: change.vmin ?? null, vmax: change.vmax ?? null });
      if (!change.bands) next.bands = null;
    }
    next.layer = layer.id;
    next.bands = fitBands(next.bands, layer, cube);
    this.#fitDifference(next, before, layer, cube, has);
    if (layer.kind === "classes") Object.assign(next, { stretch: null, vmin: null, vmax: null });
    if (next.stretch !== "fixed") Object.assign(next, { vmin: null, vmax: null });
    this.#fitAgainst(next, before, cube, has);
    next.source = Boolean(next.source && cube.has_source);
    return next;
  }

  #fitDifference(next, before, layer, cube, has) {
    if (layer.id !== "difference") return Object.assign(next, { of: null, other: null });
    const takes = subtracts(cube);
    if (!takes.includes(next.of)) next.of = takes[0] ?? null;
    next.other = apart(next.other, next, before, cube, has);
    return next;
  }

  #fitAgainst(next, before, cube, has) {
    const layer = cube.layers.find((l) => l.id === next.layer);
    if (next.against === "source" && !(cube.has_source && ofPixels(layer))) next.against = "off";
    if (next.against === "date" && cube.times.length < 2) next.against = "off";
    next.againstTime = apart(next.againstTime, next, before, cube, has);
    if (!cube.layers.some((l) => l.id === next.againstLayer)) {
      next.againstLayer = (cube.layers.find((l) => l.id === "ndvi") ?? cube.layers.at(-1)).id;
    }
  }
}

/** The time step before another one, or the one after the first. */
function beside(times, index) {
  const at = times.findIndex((t) => t.index === index);
  return (times[at - 1] ?? times[at + 1] ?? times[at])?.index ?? null;
}

/** A second date that is not the first: two that meet change places. */
function apart(index, next, before, cube, has) {
  if (has(index) && index !== next.time) return index;
  return index === next.time && has(before.time) && before.time !== next.time ? before.time : beside(cube.times, next.time);
}

function fitBands(bands, layer, cube) {
  const wanted = picks(layer);
  if (!wanted) return null;
  const names = cube.bands.map((b) => b.name);
  if (bands?.length === wanted && bands.every((b) => names.includes(b))) return bands;
  const shown = cube.layers.find((l) => l.id === "infrared" && l.bands) ?? cube.layers.find((l) => l.kind === "rgb" && l.bands);
  const usual = wanted === 3 ? shown?.bands : null;
  return (usual?.length === wanted ? usual : [...names, ...names, ...names].slice(0, wanted)).slice();
}

/** What the server is asked to draw for the view. */
export function drawn(view) {
  const { cube, layer, time, bands, of, other, stretch, vmin, vmax } = view.now;
  return { cube, version: view.cube.version, layer, time, bands, of, other, stretch, vmin, vmax, source: false };
}

/** What is drawn on the other side of the swipe; null where there is none. */
export function drawnAgainst(view) {
  const { against, againstTime, againstLayer, cube, time } = view.now;
  if (against === "date") return { ...drawn(view), time: againstTime };
  if (against === "source") return { ...drawn(view), source: true };
  if (against !== "layer") return null;
  const layer = view.layerOf(againstLayer);
  const more = layer.id === "difference" ? { of: subtracts(view.cube)[0] ?? null, other: beside(view.cube.times, time) } : {};
  const bands = fitBands(null, layer, view.cube);
  return { cube, version: view.cube.version, layer: layer.id, time, bands, stretch: usualStretch(layer), source: false, ...more };
}
