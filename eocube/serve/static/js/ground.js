/** Draws the ground on a map: tiles of one layer over a hatch that means "nothing here". */

import * as maplibre from "../vendor/maplibre-gl/maplibre-gl.mjs";
import { bytes, tiles } from "./server.js";

const SCHEME = "eocube";
const HATCH = "hatch";
/** Milliseconds after which old tiles go although not all new ones are there. */
const PATIENCE = 8000;
const FINE = 1.5;

let pending = 0;
const traffic = new Set();

function counted(step) {
  pending += step;
  for (const hear of traffic) hear(pending);
}

/** Calls `hear(count)` whenever the number of tiles under way changes. */
export const onTraffic = (hear) => traffic.add(hear);

// Tiles come through the page's own requests, not MapLibre's: a server that is busy is asked again, and errors keep their words.
maplibre.addProtocol(SCHEME, async ({ url }, abort) => {
  counted(1);
  try {
    return { data: await bytes(url.slice(SCHEME.length + 3), abort.signal) };
  } finally {
    counted(-1);
  }
});

/** Pixels of a pattern of diagonal lines that repeats without a seam. */
function hatch(colour) {
  const side = 16;
  const canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const pen = canvas.getContext("2d");
  pen.strokeStyle = colour;
  pen.lineWidth = 1.5;
  for (const shift of [-side, 0, side]) {
    pen.beginPath();
    pen.moveTo(shift - 2, side + 2);
    pen.lineTo(shift + side + 2, -2);
    pen.stroke();
  }
  return pen.getImageData(0, 0, side, side);
}

const tone = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const rectangle = ([w, s, e, n]) => ({
  type: "Feature", properties: {}, geometry: { type: "Polygon", coordinates: [[[w, s], [e, s], [e, n], [w, n], [w, s]]] },
});

/** True where a map can be drawn at all. */
export function hasWebGL() {
  try {
    const canvas = document.createElement("canvas");
    return Boolean(canvas.getContext("webgl2") ?? canvas.getContext("webgl"));
  } catch {
    return false;
  }
}

export class Ground {
  #serial = 0;
  #shown = null;
  #leaving = [];
  #wanted = null;
  #ready = false;
  #bounds = null;
  #drawn = null;

  /** A map in an element. `onError(words)` hears of tiles that fail; `options` go to MapLibre. */
  constructor(container, options, onError) {
    this.map = new maplibre.Map({
      container, style: { version: 8, sources: {}, layers: [] }, attributionControl: false, dragRotate: false, pitchWithRotate: false,
      maxPitch: 0, renderWorldCopies: false, fadeDuration: 0, ...options,
    });
    this.map.touchZoomRotate.disableRotation();
    this.map.keyboard.disableRotation();
    this.map.on("load", () => {
      this.#ready = true;
      this.paint();
      if (this.#bounds) this.lay(this.#bounds);
      if (this.#wanted) this.draw(...this.#wanted);
    });
    this.map.on("error", ({ error }) => {
      if (error?.name !== "AbortError") onError(error?.message ?? String(error));
    });
    this.map.on("sourcedata", (event) => event.sourceId === this.#shown && this.#settle());
    this.map.on("idle", () => this.#settle());
  }

  /** Lay the hatch where the cube is: what no tile covers is missing. */
  lay(bounds) {
    this.#bounds = bounds;
    if (!this.#ready) return;
    const source = this.map.getSource("cube");
    if (source) return void source.setData(rectangle(bounds));
    this.map.addSource("cube", { type: "geojson", data: rectangle(bounds) });
    this.map.addLayer({ id: "missing", type: "fill", source: "cube", paint: { "fill-pattern": HATCH } });
    this.map.addLayer({ id: "outline", type: "line", source: "cube", paint: { "line-color": tone("--outline"), "line-width": 1 } });
  }

  /** Take the colours of the page's present scheme, light or dark. */
  paint() {
    if (!this.#ready) return;
    if (this.map.hasImage(HATCH)) this.map.updateImage(HATCH, hatch(tone("--hatch")));
    else this.map.addImage(HATCH, hatch(tone("--hatch")), { pixelRatio: 2 });
    if (this.map.getLayer("outline")) this.map.setPaintProperty("outline", "line-color", tone("--outline"));
  }

  /** Show a drawn layer of a cube; the one before stays until the new one's tiles are there. */
  draw(drawn, cube, smooth) {
    this.#wanted = [drawn, cube, smooth];
    if (!this.#ready) return;
    const template = tiles(drawn, window.devicePixelRatio > FINE);
    if (template === this.#drawn) return;
    this.#drawn = template;
    const id = `tiles-${this.#serial++}`;
    this.map.addSource(id, {
      type: "raster", tiles: [`${SCHEME}://${template}`], tileSize: 256, bounds: cube.bounds, minzoom: cube.min_zoom, maxzoom: cube.max_zoom,
    });
    this.map.addLayer(
      { id, type: "raster", source: id, paint: { "raster-fade-duration": 0, "raster-resampling": smooth ? "linear" : "nearest" } },
      "outline",
    );
    if (this.#shown) this.#leaving.push(this.#shown);
    // Of those that wait to go, only the last has tiles worth seeing.
    while (this.#leaving.length > 1) this.#remove(this.#leaving.shift());
    this.#shown = id;
    setTimeout(() => this.#shown === id && this.#clear(), PATIENCE);
  }

  /** True when every tile in sight is there. */
  get complete() {
    return this.#ready && this.#shown !== null && Boolean(this.map.getSource(this.#shown)) && this.map.isSourceLoaded(this.#shown);
  }

  /** Show nothing, until the next `draw`. */
  blank() {
    this.#wanted = null;
    this.#drawn = null;
    this.#clear();
    if (this.#shown) this.#remove(this.#shown);
    this.#shown = null;
  }

  /** Ask again for every tile, as after an error. */
  again() {
    const wanted = this.#wanted;
    if (!wanted) return;
    this.blank();
    this.draw(...wanted);
  }

  #settle() {
    if (this.#leaving.length && this.complete) this.#clear();
  }

  #clear() {
    for (const id of this.#leaving.splice(0)) this.#remove(id);
  }

  #remove(id) {
    if (this.map.getLayer(id)) this.map.removeLayer(id);
    if (this.map.getSource(id)) this.map.removeSource(id);
  }
}
