/** Saves what is seen as a GeoTIFF, and copies the link to it. */

import { byId } from "./dom.js";
import { download, file } from "./server.js";
import { drawn } from "./view.js";

const SAID_MS = 4000;

function size(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function give({ name, blob }) {
  const url = URL.createObjectURL(blob);
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), SAID_MS);
}

export function makeSaving(view, seen) {
  const said = byId("saving-said");
  const buttons = { values: byId("save-values"), picture: byId("save-picture") };

  async function save(what) {
    const bounds = seen();
    said.className = "soft";
    if (bounds === null) return void (said.textContent = "Nothing of the cube is in sight.");
    said.textContent = "Making the file…";
    for (const button of Object.values(buttons)) button.disabled = true;
    try {
      const made = await file(download(drawn(view), bounds, what));
      give(made);
      said.textContent = `${made.name}, ${size(made.blob.size)}`;
    } catch (error) {
      said.className = "failure";
      said.textContent = error.message;
    } finally {
      for (const button of Object.values(buttons)) button.disabled = false;
      buttons[what].focus({ preventScroll: true });
    }
  }

  for (const [what, button] of Object.entries(buttons)) button.addEventListener("click", () => save(what));
  byId("copy-link").addEventListener("click", async () => {
    const copied = byId("link-said");
    try {
      await navigator.clipboard.writeText(location.href);
      copied.textContent = "Copied.";
    } catch {
      copied.textContent = "Copy it from the address bar: it is this view's link.";
    }
    setTimeout(() => (copied.textContent = ""), SAID_MS);
  });
}
