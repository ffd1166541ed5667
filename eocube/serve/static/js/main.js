/** Starts the page: asks which cubes there are, restores the view of the address, and puts the parts together. */

import { makeChooser } from "./chooser.js";
import { byId } from "./dom.js";
import { hasWebGL, onTraffic } from "./ground.js";
import { Maps } from "./maps.js";
import { failures, traffic } from "./notices.js";
import { read, write } from "./permalink.js";
import { makePoint } from "./point.js";
import { makeSaving } from "./saving.js";
import { json } from "./server.js";
import { makeSheets } from "./sheets.js";
import { makeStretching } from "./stretching.js";
import { makeSwipe } from "./swipe.js";
import { makeTimeline } from "./timeline.js";
import { View } from "./view.js";

/** Milliseconds between two looks at what there is: a run that goes on is finalised once a minute. */
const LOOK_MS = 60_000;

function stop(words) {
  byId("opening").classList.add("failed");
  byId("opening-words").textContent = words;
}

/** The address follows the view; an address that is changed by hand, or by going back, is followed in turn. */
function keepAddress(view) {
  let written = null;
  view.listen(() => {
    written = write(view.now);
    history.replaceState(null, "", written);
  });
  addEventListener("hashchange", () => {
    if (location.hash !== written) view.set({ against: "off", point: null, source: false, ...read(location.hash) });
  });
}

const worthShowing = (cubes) => cubes.filter((cube) => cube.times.length && cube.layers.length);

/** Asks now and then whether the cubes have grown, and at once when the page comes to the front again. */
function keepUp(view) {
  const look = async () => {
    if (document.hidden) return;
    const cubes = worthShowing((await json("/api/cubes").catch(() => ({ cubes: [] }))).cubes);
    if (cubes.length) view.renew(cubes);
  };
  setInterval(look, LOOK_MS);
  document.addEventListener("visibilitychange", look);
}

async function start() {
  if (!hasWebGL()) return stop("This page draws its map by WebGL, which this browser lacks or has switched off.");
  let held;
  try {
    held = await json("/api/cubes");
  } catch (error) {
    return stop(error.message);
  }
  const cubes = worthShowing(held.cubes);
  if (!cubes.length) return stop("There is nothing in the cube yet: it has no dates.");
  byId("version").textContent = held.version;

  const view = new View(cubes);
  view.set(read(location.hash));
  document.body.classList.add("open");
  byId("opening").remove();
  byId("app").hidden = false;

  const fail = failures(() => maps.again());
  const maps = new Maps(view, (words) => fail(words));
  onTraffic(traffic());
  const sheets = makeSheets();
  makeChooser(view);
  makeStretching(view, fail);
  makeTimeline(view, () => maps.complete);
  makeSwipe(view);
  makePoint(view, () => sheets.close());
  makeSaving(view, () => maps.seen);
  byId("fit").addEventListener("click", () => maps.fit());
  keepAddress(view);
  keepUp(view);
  history.replaceState(null, "", write(view.now));
}

start();
