/** Writes what is seen into the address and reads it back, so that a copied link shows the same. */

const list = (text) => (text ? text.split(",") : null);

function numbers(text, count = null) {
  const found = list(text)?.map(Number);
  return found && found.every(Number.isFinite) && (count === null || found.length === count) ? found : null;
}

/** The fragment of a view: only what differs from what a bare address shows. */
export function write(view) {
  const parts = [["cube", view.cube], ["time", view.time], ["layer", view.layer]];
  if (view.bands) parts.push(["bands", view.bands.join(",")]);
  if (view.of) parts.push(["of", view.of]);
  if (view.other !== null && view.other !== undefined) parts.push(["other", view.other]);
  if (view.stretch) parts.push(["stretch", view.stretch]);
  if (view.vmin && view.vmax) parts.push(["vmin", view.vmin.join(",")], ["vmax", view.vmax.join(",")]);
  if (view.against !== "off") {
    parts.push(["against", view.against], ["at", view.at.toFixed(3)]);
    if (view.against === "date") parts.push(["against_time", view.againstTime]);
    if (view.against === "layer") parts.push(["against_layer", view.againstLayer]);
  }
  if (view.point) parts.push(["point", view.point.map((v) => v.toFixed(6)).join(",")]);
  if (view.point && view.source) parts.push(["source", 1]);
  if (view.camera) parts.push(["map", [view.camera.zoom.toFixed(4), view.camera.lat.toFixed(6), view.camera.lon.toFixed(6)].join("/")]);
  return `#${parts.map(([name, value]) => `${name}=${encodeURIComponent(value).replaceAll("%2C", ",").replaceAll("%2F", "/")}`).join("&")}`;
}

/** What a fragment says; what it does not say, or says wrongly, is left out. */
export function read(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const found = {};
  const text = (name, key = name) => given.get(name) && (found[key] = given.get(name));
  const index = (name, key = name) => /^\d+$/.test(given.get(name) ?? "") && (found[key] = Number(given.get(name)));
  text("cube");
  text("layer");
  index("time");
  text("of");
  index("other");
  if (given.get("bands")) found.bands = list(given.get("bands"));
  if (["percentile", "fixed"].includes(given.get("stretch"))) found.stretch = given.get("stretch");
  const [low, high] = [numbers(given.get("vmin")), numbers(given.get("vmax"))];
  if (low && high && low.length === high.length) Object.assign(found, { vmin: low, vmax: high });
  if (["date", "layer", "source"].includes(given.get("against"))) found.against = given.get("against");
  index("against_time", "againstTime");
  text("against_layer", "againstLayer");
  const at = Number(given.get("at"));
  if (given.get("at") && at >= 0 && at <= 1) found.at = at;
  const point = numbers(given.get("point"), 2);
  if (point && Math.abs(point[1]) <= 90) found.point = point;
  if (given.get("source") === "1") found.source = true;
  const camera = given.get("map")?.split("/").map(Number);
  if (camera?.length === 3 && camera.every(Number.isFinite) && Math.abs(camera[1]) <= 85) {
    found.camera = { zoom: camera[0], lat: camera[1], lon: camera[2] };
  }
  return found;
}
