/** Opens and closes the panels as sheets where the window is narrow; where it is wide they stand beside the map. */

import { byId } from "./dom.js";

/** Whether the window is so narrow that panels are sheets. */
export const NARROW = matchMedia("(max-width: 760px)");

export function makeSheets() {
  const tab = byId("panel-tab");
  const panel = byId("panel");

  const open = (on) => {
    document.body.classList.toggle("sheet", on);
    tab.setAttribute("aria-expanded", on);
    // A closed sheet is out of sight, and so out of the order of tabs.
    panel.inert = NARROW.matches && !on;
  };
  tab.addEventListener("click", () => {
    const on = !document.body.classList.contains("sheet");
    open(on);
    if (on) byId("panel-close").focus({ preventScroll: true });
  });
  byId("panel-close").addEventListener("click", () => (open(false), tab.focus()));
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && NARROW.matches) (open(false), tab.focus());
  });
  // Who tabs on, or touches the map, has done with it; else what has the focus would lie under the sheet.
  panel.addEventListener("focusout", ({ relatedTarget: to }) => {
    if (NARROW.matches && to && to !== tab && !panel.contains(to)) open(false);
  });
  NARROW.addEventListener("change", () => open(false));
  open(false);
  return { close: () => open(false) };
}
