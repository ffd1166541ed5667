/** Asks the server: JSON, tiles and files, with every failure said in words. */

const SILENT = "The server does not answer. Is `eocube serve` still running?";
const TRIES = 5;
const PAUSE_MS = 400;

/** A failure that can be shown to a person as it is. */
export class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.name = "Refused";
    this.status = status;
  }
}

async function wordsOf(response) {
  try {
    const said = await response.json();
    if (said && said.error) return String(said.error);
  } catch {
    // Not the server's own words: a proxy's page, say.
  }
  return `The server answered ${response.status} ${response.statusText}`.trim();
}

const pause = (ms, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });

/** A response that is ok. A server that is busy (503) is asked again a few times, ever later. */
async function asked(url, signal) {
  for (let attempt = 1; ; attempt++) {
    let response;
    try {
      response = await fetch(url, { signal });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Refused(SILENT);
    }
    if (response.ok) return response;
    if (response.status !== 503 || attempt >= TRIES) throw new Refused(await wordsOf(response), response.status);
    await pause(PAUSE_MS * 2 ** (attempt - 1), signal);
  }
}

/** JSON of a path. */
export const json = async (path, signal) => (await asked(path, signal)).json();

/** The bytes of a path. */
export const bytes = async (path, signal) => (await asked(path, signal)).arrayBuffer();

/** A file of a path and the name that the server gives it. */
export async function file(path, signal) {
  const response = await asked(path, signal);
  const named = /filename="?([^";]+)"?/.exec(response.headers.get("content-disposition") ?? "");
  return { name: named ? named[1] : "eocube.tif", blob: await response.blob() };
}

/** What is drawn, as the server's query: a `drawn` is {cube, version, layer, time, bands, of, other, stretch, vmin, vmax, source}. */
function query(drawn, more = {}) {
  const found = new URLSearchParams();
  if (drawn.bands) found.set("bands", drawn.bands.join(","));
  if (drawn.of) found.set("of", drawn.of);
  if (drawn.other !== undefined && drawn.other !== null) found.set("other", drawn.other);
  if (drawn.stretch) found.set("stretch", drawn.stretch);
  if (drawn.vmin && drawn.vmax) {
    found.set("vmin", drawn.vmin.join(","));
    found.set("vmax", drawn.vmax.join(","));
  }
  if (drawn.source) found.set("source", "1");
  // Of no meaning to the server: so that a browser does not answer by what it keeps of an earlier state.
  if (drawn.version) found.set("v", drawn.version);
  for (const [name, value] of Object.entries(more)) found.set(name, value);
  const text = found.toString().replaceAll("%2C", ",");
  return text && `?${text}`;
}

const path = (drawn) => `${encodeURIComponent(drawn.cube)}/${encodeURIComponent(drawn.layer)}/${drawn.time}`;

/** The template of a drawn layer's tiles; twice as many pixels for fine screens. */
export const tiles = (drawn, fine) => `/tiles/${path(drawn)}/{z}/{x}/{y}.png${query(drawn, fine ? { scale: 2 } : {})}`;

const maps = new Map();

/** Colours of a map of colours by name, from low to high; asked for once. */
export function colours(name) {
  if (!maps.has(name)) maps.set(name, json(`/api/colormap/${encodeURIComponent(name)}`).then((said) => said.colours));
  return maps.get(name);
}

/** Where the stretch of a drawn layer is told. */
export const stretch = (drawn) => `/api/stretch/${path(drawn)}${query(drawn)}`;

/** Where a file of a drawn layer is: `what` is "values" or "picture". */
export const download = (drawn, bounds, what) =>
  `/download/${path(drawn)}.tif${query(drawn, { bbox: bounds.map((v) => v.toFixed(6)).join(","), what })}`;

/** Where the values at a point are; with `source`, those of the scenes too. */
export const point = (cube, lon, lat, source) =>
  `/api/point/${encodeURIComponent(cube)}?lon=${lon.toFixed(6)}&lat=${lat.toFixed(6)}${source ? "&source=1" : ""}`;
