/** Finds round places for an axis: numbers, and days, months or years of time. */

const DAY = 86_400_000;

/** At most about `count` round numbers from low to high. */
export function numberTicks(low, high, count = 5) {
  const raw = (high - low) / Math.max(1, count) || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

const days = (step) => ({
  ms: step * DAY,
  next: (date) => new Date(Date.UTC(date.getUTCFullYear(), date.getUTCMonth(), date.getUTCDate() + step)),
  first: (date) => new Date(Date.UTC(date.getUTCFullYear(), date.getUTCMonth(), date.getUTCDate())),
  label: new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" }),
});
const months = (step) => ({
  ms: step * 30 * DAY,
  next: (date) => new Date(Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + step, 1)),
  first: (date) => new Date(Date.UTC(date.getUTCFullYear(), Math.floor(date.getUTCMonth() / step) * step, 1)),
  label: new Intl.DateTimeFormat("en-GB", { month: "short", year: "numeric", timeZone: "UTC" }),
});
const years = (step) => ({
  ms: step * 365 * DAY,
  next: (date) => new Date(Date.UTC(date.getUTCFullYear() + step, 0, 1)),
  first: (date) => new Date(Date.UTC(Math.floor(date.getUTCFullYear() / step) * step, 0, 1)),
  label: new Intl.DateTimeFormat("en-GB", { year: "numeric", timeZone: "UTC" }),
});
const STEPS = [days(1), days(2), days(5), days(10), months(1), months(2), months(3), months(6), years(1), years(2), years(5)];

/** At most about `count` {stamp, label} between two moments in milliseconds; the moment itself where they are one. */
export function timeTicks(first, last, count) {
  const step = STEPS.find((s) => (last - first) / s.ms <= count) ?? STEPS.at(-1);
  if (last - first < DAY) return [{ stamp: first, label: days(1).label.format(new Date(first)) }];
  const found = [];
  for (let date = step.first(new Date(first)); date.getTime() <= last; date = step.next(date)) {
    if (date.getTime() >= first) found.push({ stamp: date.getTime(), label: step.label.format(date) });
  }
  return found.length ? found : [{ stamp: first, label: days(1).label.format(new Date(first)) }];
}
