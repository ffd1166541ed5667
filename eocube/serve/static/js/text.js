/** Puts dates, numbers and states into words: one place for how the page speaks. */

const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
const LONG_DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "long", year: "numeric", timeZone: "UTC" });
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", timeZone: "UTC" });

/** "15 Aug 2023" of an ISO time in UTC. */
export const day = (iso) => DAY.format(new Date(iso));

/** "15 August 2023" of an ISO time in UTC. */
export const longDay = (iso) => LONG_DAY.format(new Date(iso));

/** "10:00 UTC" of an ISO time. */
export const clock = (iso) => `${CLOCK.format(new Date(iso))} UTC`;

/** A date that tells two times of one day apart, by adding the hour where the cube has several that day. */
export function dayAmong(time, times) {
  const mine = day(time.time);
  return times.some((t) => t.index !== time.index && day(t.time) === mine) ? `${mine}, ${clock(time.time)}` : mine;
}

/** A share in whole percent, never rounded up to all of it nor down to none of it. */
export function percent(part, whole) {
  if (!whole) return "0 %";
  const share = (100 * part) / whole;
  if (share > 99 && part < whole) return "99 %";
  if (share < 1 && part > 0) return "1 %";
  return `${Math.round(share)} %`;
}

/** "Sentinel-2B" of "sentinel-2b". */
export const platform = (name) => (name || "").replace(/^[a-z]/, (c) => c.toUpperCase()).replace(/-(\d)([a-z])$/, (_, n, c) => `-${n}${c.toUpperCase()}`);

/** How a time step ended, in one line. */
export function howItEnded(time) {
  const words = [`${percent(time.ok, time.windows)} of ${time.windows} windows ok`];
  if (time.cloud !== null && time.cloud !== undefined) words.push(`cloud ${Math.round(time.cloud)} %`);
  return words.join(", ");
}

/** A number with as many digits as its size deserves; a dash for none. */
export function number(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  const decimals = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : size >= 1 ? Math.min(3, digits) : digits;
  return value.toFixed(decimals).replace(/^-/, "−").replace(/^−(0(?:\.0+)?)$/, "$1");
}

/** A number for an axis or an input: short, with a plain minus. */
export const short = (value) => String(Number(value.toPrecision(3)));

/** A short number with a true minus, to be read. */
export const signed = (value) => short(value).replace(/^-/, "−");

/** "46.3512° N, 15.4780° E". */
export function place(lon, lat, digits = 4) {
  return `${Math.abs(lat).toFixed(digits)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(lon).toFixed(digits)}° ${lon < 0 ? "W" : "E"}`;
}

/** "read failed" of "read_failed". */
export const state = (name) => String(name).replaceAll("_", " ");
