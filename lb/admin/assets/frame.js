// A frame: what is shown of one second, from the answers of /status at its two ends. Pure.

import { durationsBetween, merge, percentile, rate, sum } from "./figures.js";

// `before` is null for the first answer: there are no rates then.
export function compare(before, after) {
  const seconds = before ? after.uptime_seconds - before.uptime_seconds : 0;
  const pools = after.pools.map((pool) => comparePool(find(before?.pools, pool), pool, seconds));
  const listeners = after.listeners.map((each) => compareListener(find(before?.listeners, each), each, seconds));
  const histogram = merge(pools.flatMap((pool) => pool.backends.map((backend) => backend.histogram)));
  const dropped = sum(Object.values(after.dropped_messages));
  return {
    seconds,
    pools,
    listeners,
    rate: total(listeners.map((each) => each.rate)),
    bytes: total(listeners.flatMap((each) => [each.bytesIn, each.bytesOut])),
    p50: percentile(histogram, 0.5),
    p99: percentile(histogram, 0.99),
    outstanding: sum(after.pools.flatMap((pool) => pool.backends.map((backend) => backend.outstanding))),
    clients: sum(after.listeners.map((each) => each.clients)),
    dropped,
    dropRate: before ? rate(sum(Object.values(before.dropped_messages)), dropped, seconds) : null,
  };
}

function compareListener(old, now, seconds) {
  return {
    ...now,
    rate: rate(old?.requests, now.requests, seconds),
    bytesIn: rate(old?.request_bytes, now.request_bytes, seconds),
    bytesOut: rate(old?.response_bytes, now.response_bytes, seconds),
    refusedInAll: sum(Object.values(now.refused)),
    malformedInAll: sum(Object.values(now.protocol_errors)),
  };
}

function comparePool(old, now, seconds) {
  const backends = now.backends.map((backend) => {
    const before = find(old?.backends, backend);
    const histogram = before ? durationsBetween(before.durations, backend.durations) : [];
    return {
      ...backend,
      pool: now.name,
      rate: rate(before?.requests, backend.requests, seconds),
      histogram,
      p50: percentile(histogram, 0.5),
      p99: percentile(histogram, 0.99),
    };
  });
  const inAll = total(backends.map((backend) => backend.rate));
  const serving = backends.filter((backend) => backend.effective_weight > 0 && backend.health !== "down");
  for (const backend of backends) {
    backend.share = inAll ? (backend.rate ?? 0) / inAll : null;
    backend.last = serving.length === 1 && serving[0] === backend;
  }
  return { ...now, backends, rate: inAll };
}

function find(all, one) {
  return all?.find((each) => each.name === one.name);
}

// null if there is none.
function total(numbers) {
  const known = numbers.filter((number) => number !== null);
  return known.length ? sum(known) : null;
}
