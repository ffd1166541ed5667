/** Moves the divider between the map and what it is compared with, by pointer and by keyboard, and names both sides. */

import { byId } from "./dom.js";
import { dayAmong } from "./text.js";
import { drawnAgainst } from "./view.js";

const STEP = 0.02;
const LEAP = 0.1;

export function makeSwipe(view) {
  const divider = byId("divider");
  const stage = byId("stage");
  const move = (at) => view.set({ at: Math.min(1, Math.max(0, Number(at.toFixed(3)))) });

  divider.addEventListener("pointerdown", (event) => {
    divider.setPointerCapture(event.pointerId);
    event.preventDefault();
    divider.focus({ preventScroll: true });
  });
  divider.addEventListener("pointermove", (event) => {
    if (!divider.hasPointerCapture(event.pointerId)) return;
    const box = stage.getBoundingClientRect();
    move((event.clientX - box.left) / box.width);
  });
  divider.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -STEP, ArrowRight: STEP, ArrowDown: -STEP, ArrowUp: STEP, PageDown: -LEAP, PageUp: LEAP }[event.key];
    const to = { Home: 0, End: 1 }[event.key];
    if (by === undefined && to === undefined) return;
    event.preventDefault();
    move(to ?? view.now.at + by);
  });

  const show = () => {
    const against = drawnAgainst(view);
    const on = against !== null;
    for (const id of ["divider", "left-name", "right-name"]) byId(id).hidden = !on;
    if (!on) return;
    const { at, against: kind } = view.now;
    const part = Math.round(100 * at);
    divider.style.left = `${100 * at}%`;
    divider.setAttribute("aria-valuenow", part);
    divider.setAttribute("aria-valuetext", `${part} % from the left`);
    const here = dayAmong(view.time, view.cube.times);
    const names = {
      date: [here, dayAmong(view.timeOf(view.now.againstTime), view.cube.times)],
      layer: [view.layer.title, view.layerOf(against.layer).title],
      source: ["Decoded", "Source"],
    }[kind];
    byId("left-name").textContent = names[0];
    byId("right-name").textContent = names[1];
    // Names stay on their own side, and go when it is too narrow for them.
    byId("left-name").style.right = `calc(${100 - 100 * at}% + 14px)`;
    byId("right-name").style.left = `calc(${100 * at}% + 14px)`;
    byId("left-name").classList.toggle("gone", at < 0.15);
    byId("right-name").classList.toggle("gone", at > 0.85);
  };
  view.listen(show);
  show();
}
