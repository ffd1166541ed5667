/** Holds the map and, beside it, the one that it is compared with: one camera, one point, a divider between them. */

import * as maplibre from "../vendor/maplibre-gl/maplibre-gl.mjs";
import { byId } from "./dom.js";
import { Ground } from "./ground.js";
import { NARROW } from "./sheets.js";
import { place } from "./text.js";
import { drawn, drawnAgainst } from "./view.js";

/** Zooms beyond those that have tiles. */
const BEYOND = 1.5;
/** Share of a narrow map that the sheet of a point leaves free. */
const FREE = 0.38;
/** Share of the cube's width and height around it to which the map may be moved. */
const AROUND = 2;

function around([w, s, e, n]) {
  const [dx, dy] = [(e - w) * AROUND + 0.02, (n - s) * AROUND + 0.02];
  return [[w - dx, Math.max(-85, s - dy)], [e + dx, Math.min(85, n + dy)]];
}

export class Maps {
  #view;
  #onError;
  #other = null;
  #cube = null;

  constructor(view, onError) {
    this.#view = view;
    this.#onError = onError;
    const { camera } = view.now;
    const start = camera ? { center: [camera.lon, camera.lat], zoom: camera.zoom } : { bounds: view.cube.bounds, fitBoundsOptions: { padding: 24 } };
    this.ground = new Ground(byId("map"), start, onError);
    this.map = this.ground.map;
    this.map.addControl(new maplibre.NavigationControl({ showCompass: false }), "top-right");
    this.map.addControl(new maplibre.ScaleControl({ maxWidth: 110 }), "bottom-right");
    const canvas = this.map.getCanvas();
    canvas.setAttribute("aria-label", "Map. Arrow keys move it, plus and minus zoom, Enter reads the values at the cross in the middle.");
    canvas.addEventListener("keydown", (event) => event.key === "Enter" && this.#pick(this.map.getCenter()));
    canvas.addEventListener("focus", () => byId("stage").classList.toggle("keyboard", canvas.matches(":focus-visible")));
    canvas.addEventListener("blur", () => byId("stage").classList.remove("keyboard"));
    this.map.on("click", (event) => this.#pick(event.lngLat));
    this.map.on("mousemove", (event) => (byId("cursor").textContent = place(event.lngLat.lng, event.lngLat.lat)));
    this.map.on("mouseout", () => (byId("cursor").textContent = ""));
    this.map.on("move", () => this.#follow());
    this.map.on("moveend", () => this.#noteCamera());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (this.ground.paint(), this.#other?.paint()));
    new ResizeObserver(() => this.#resize()).observe(byId("stage"));
    view.listen((_, changed) => this.#changed(changed));
    this.#changed(new Set(["cube", "layer", "against", "at", "point"]));
  }

  /** True when all that is seen has been drawn. */
  get complete() {
    return this.ground.complete && (this.#other === null || this.#view.now.against === "off" || this.#other.complete);
  }

  /** Show the whole cube. */
  fit() {
    this.map.fitBounds(this.#view.cube.bounds, { padding: 24, duration: 300 });
  }

  /** West, south, east, north of what is seen of the cube; null where nothing of it is. */
  get seen() {
    const box = this.map.getBounds();
    const [w, s, e, n] = this.#view.cube.bounds;
    const found = [Math.max(w, box.getWest()), Math.max(s, box.getSouth()), Math.min(e, box.getEast()), Math.min(n, box.getNorth())];
    return found[0] < found[2] && found[1] < found[3] ? found : null;
  }

  /** Ask for every tile again. */
  again() {
    this.ground.again();
    this.#other?.again();
  }

  #pick({ lng, lat }) {
    this.#view.set({ point: [lng, lat] });
  }

  #changed(changed) {
    const view = this.#view;
    const { cube } = view;
    if (changed.has("cubes") && this.#cube === cube.id) {
      this.ground.lay(cube.bounds);
      this.#other?.lay(cube.bounds);
      this.map.setMaxBounds(around(cube.bounds));
    }
    if (this.#cube !== cube.id) {
      const first = this.#cube === null;
      this.#cube = cube.id;
      this.map.setMaxBounds(null);
      this.map.setMaxZoom(cube.max_zoom + BEYOND);
      this.ground.lay(cube.bounds);
      this.#other?.lay(cube.bounds);
      if (!first && !view.now.camera) this.map.fitBounds(cube.bounds, { padding: 24, animate: false });
      this.map.setMaxBounds(around(cube.bounds));
    }
    this.ground.draw(drawn(view), cube, view.layer.kind !== "classes" && view.layer.group !== "quality");
    this.#compare();
    if (changed.has("at") || changed.has("against")) byId("other").style.clipPath = `inset(0 0 0 ${(100 * view.now.at).toFixed(3)}%)`;
    if (changed.has("camera")) this.#aim(view.now.camera);
    this.#mark();
    if (changed.has("point") && view.now.point) this.#reveal(view.now.point);
  }

  /** Move a point out from under the sheet that tells of it. */
  #reveal(point) {
    if (!NARROW.matches) return;
    const { y } = this.map.project(point);
    const free = FREE * byId("stage").clientHeight;
    if (y > free - 16) this.map.panBy([0, y - free / 2], { duration: 250 });
  }

  #compare() {
    const against = drawnAgainst(this.#view);
    byId("stage").classList.toggle("split", against !== null);
    if (against === null) return this.#other?.blank();
    if (this.#other === null) {
      const camera = { center: this.map.getCenter(), zoom: this.map.getZoom() };
      this.#other = new Ground(byId("other"), { interactive: false, ...camera }, this.#onError);
      this.#other.map.getCanvas().setAttribute("aria-hidden", "true");
      this.#other.map.getCanvas().tabIndex = -1;
      this.#other.lay(this.#view.cube.bounds);
    }
    const layer = this.#view.layerOf(against.layer);
    this.#other.draw(against, this.#view.cube, layer.kind !== "classes" && layer.group !== "quality");
    return this.#follow();
  }

  #aim(camera) {
    if (!camera) return;
    const now = this.map.getCenter();
    const same = Math.abs(now.lng - camera.lon) < 1e-6 && Math.abs(now.lat - camera.lat) < 1e-6 && Math.abs(this.map.getZoom() - camera.zoom) < 1e-4;
    if (!same) this.map.jumpTo({ center: [camera.lon, camera.lat], zoom: camera.zoom });
  }

  #noteCamera() {
    const { lng, lat } = this.map.getCenter();
    this.#view.set({ camera: { lon: Number(lng.toFixed(6)), lat: Number(lat.toFixed(6)), zoom: Number(this.map.getZoom().toFixed(4)) } });
  }

  #follow() {
    if (this.#other && this.#view.now.against !== "off") {
      this.#other.map.jumpTo({ center: this.map.getCenter(), zoom: this.map.getZoom() });
    }
    this.#mark();
  }

  #resize() {
    this.map.resize();
    this.#other?.map.resize();
    this.#follow();
  }

  #mark() {
    const pin = byId("pin");
    const { point } = this.#view.now;
    pin.hidden = point === null;
    if (point === null) return;
    const { x, y } = this.map.project(point);
    pin.style.transform = `translate(${x}px, ${y}px)`;
  }
}
