// Figures: what follows from two answers of /status, and how numbers are written. Pure.

// The counts of `after` less those of `before`, as [from, below, count], shortest first.
export function durationsBetween(before, after) {
  const old = new Map((before ?? []).map(([from, , count]) => [from, count]));
  return after
    .map(([from, below, count]) => [from, below, count - (old.get(from) ?? 0)])
    .filter(([, , count]) => count > 0);
}

// Several histograms in one.
export function merge(histograms) {
  const sums = new Map();
  for (const [from, below, count] of histograms.flat()) {
    const entry = sums.get(from) ?? [from, below, 0];
    entry[2] += count;
    sums.set(from, entry);
  }
  return [...sums.values()].sort((one, other) => one[0] - other[0]);
}

// Seconds that the share of the messages did not take longer than, by interpolation; null if there are none.
export function percentile(histogram, share) {
  const total = histogram.reduce((sum, [, , count]) => sum + count, 0);
  if (!total) return null;
  let left = share * total;
  for (const [from, below, count] of histogram) {
    if (left <= count) return from + ((below - from) * left) / count;
    left -= count;
  }
  return histogram.at(-1)[1];
}

// What a counter has grown by in a second; null where there is nothing to compare with.
export function rate(before, after, seconds) {
  if (before === undefined || before === null || !(seconds > 0) || after < before) return null;
  return (after - before) / seconds;
}

export function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0);
}

const NONE = "–";

// 1234 as 1,234, and from a hundred thousand on three digits and a letter.
export function count(value) {
  if (value === null || value === undefined) return NONE;
  if (value < 10 && !Number.isInteger(value)) return value.toFixed(1);
  if (value < 99_999.5) return Math.round(value).toLocaleString("en");
  return scaled(value, 1000, ["", " k", " M", " G", " T"]);
}

export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  return value < 1024 ? `${Math.round(value)} B` : scaled(value, 1024, [" B", " KiB", " MiB", " GiB", " TiB"]);
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  const us = seconds * 1e6;
  return us < 999_500 ? scaled(us, 1000, [" µs", " ms"]) : `${digits(seconds)} s`;
}

export function percent(share) {
  return share === null || Number.isNaN(share) ? NONE : `${(100 * share).toFixed(share > 0 && share < 1 ? 1 : 0)} %`;
}

// Like "3 d 4 h", the two largest units.
export function age(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  let left = Math.max(0, Math.floor(seconds));
  const parts = [];
  for (const [unit, size] of units) {
    if (left >= size || (unit === "s" && !parts.length)) parts.push(`${Math.floor(left / size)} ${unit}`);
    else if (parts.length) break;
    left %= size;
  }
  return parts.slice(0, 2).join(" ");
}

function scaled(value, step, units) {
  let unit = 0;
  while (value >= step * 0.9995 && unit < units.length - 1) {
    value /= step;
    unit += 1;
  }
  return digits(value) + units[unit];
}

function digits(value) {
  return value.toFixed(value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2);
}
