/** Says what is going on and what went wrong, each once, in words. */

import { byId } from "./dom.js";

/** Milliseconds before waiting is worth a word. */
const SOON = 250;

/** Shows how many tiles are under way. */
export function traffic() {
  const line = byId("traffic");
  let timer = null;
  return (count) => {
    document.body.classList.toggle("busy", count > 0);
    clearTimeout(timer);
    timer = setTimeout(() => (line.textContent = count ? `Decoding, ${count} ${count === 1 ? "tile" : "tiles"} to come` : ""), count ? SOON : 0);
  };
}

/** Shows failures until they are dismissed or all is asked for again. */
export function failures(again) {
  const box = byId("failure");
  const close = () => (box.hidden = true);
  byId("failure-close").addEventListener("click", close);
  byId("failure-again").addEventListener("click", () => (close(), again()));
  return (words) => {
    const line = byId("failure-words");
    if (!box.hidden && line.textContent === words) return;
    box.hidden = false;
    line.textContent = words;
  };
}
