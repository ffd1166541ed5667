/** Makes and fills elements: the few helpers that stand for a framework. */

const SVG = "http://www.w3.org/2000/svg";

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "text") made.textContent = value;
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** An HTML element; attributes that begin with "on" are listeners, `text` is its text. */
export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** An SVG element, the same way. */
export const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** The element of the page with this id. */
export const byId = (id) => document.getElementById(id);

/** A labelled select; `options` are [value, label] pairs. */
export function select(label, options, value, onchange, attributes = {}) {
  const made = h("select", { onchange: () => onchange(made.value), ...attributes });
  made.append(...options.map(([key, text]) => h("option", { value: key, selected: String(key) === String(value), text })));
  return h("label", { class: "field" }, h("span", { text: label }), made);
}

/** Draws again whenever the element's width changes; returns what draws now. */
export function onWidth(element, draw) {
  let last = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.round(entry.contentRect.width);
    if (width && width !== last) draw((last = width));
  }).observe(element);
  return () => last && draw(last);
}
