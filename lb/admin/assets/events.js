// Events: what has changed between two answers of /status, newest first.

import { el, say } from "./dom.js";
import { count } from "./figures.js";

const MOST = 50;
const TOGETHER = 10_000; // ms: what goes on for so long is one event

export class Events {
  constructor(list) {
    this.list = list;
    this.latest = new Map(); // by key
    this.list.append(el("li", { class: "none" }, "Nothing has happened since this page was opened."));
  }

  // kind: good, bad, warn, info. With a key, a number is added to the last event of that key.
  add(kind, text, { key, number } = {}) {
    const now = Date.now();
    const last = key ? this.latest.get(key) : null;
    if (last && now - last.at < TOGETHER && last.item.isConnected) {
      last.number += number;
      last.at = now;
      say(last.text, text.replace("#", count(last.number)));
      return;
    }
    this.list.querySelector(".none")?.remove();
    const words = el("span", {}, number === undefined ? text : text.replace("#", count(number)));
    const time = el("time", { datetime: new Date(now).toISOString() }, new Date(now).toLocaleTimeString());
    const item = el("li", { class: kind }, time, words);
    this.list.prepend(item);
    if (key) this.latest.set(key, { item, text: words, number, at: now });
    while (this.list.children.length > MOST) this.list.lastElementChild.remove();
  }
}

// Gives [kind, text, details] for each change.
export function* differences(before, after) {
  if (before.state !== after.state) yield ["info", `the balancer is ${after.state}`];
  if (before.ready !== after.ready) {
    yield after.ready ? ["good", "ready"] : ["bad", `not ready: ${after.not_ready_because.join("; ")}`];
  }
  yield* growth(before.dropped_messages, after.dropped_messages, "#", "messages were not delivered");
  for (const listener of after.listeners) {
    const old = before.listeners.find((each) => each.name === listener.name);
    if (!old) yield ["info", `listener ${listener.name} is new`];
    else {
      yield* growth(old.refused, listener.refused, `listener ${listener.name}: #`, "clients were turned away");
      yield* growth(old.protocol_errors, listener.protocol_errors, `listener ${listener.name}: #`, "connections were malformed");
    }
  }
  for (const listener of before.listeners) {
    if (!after.listeners.some((each) => each.name === listener.name)) yield ["info", `listener ${listener.name} is gone`];
  }
  const old = byName(before);
  const now = byName(after);
  for (const [name, backend] of now) {
    const was = old.get(name);
    if (!was) yield ["info", `backend ${name} is new`];
    else yield* backendChanges(name, was, backend);
  }
  for (const name of old.keys()) if (!now.has(name)) yield ["info", `backend ${name} is gone`];
}

function* backendChanges(name, was, now) {
  if (was.health !== now.health) yield [now.health === "down" ? "bad" : "good", `backend ${name} is ${now.health}`];
  if (was.admin !== now.admin) {
    yield [now.admin === "ready" ? "good" : "warn", `backend ${name}: ${now.admin}`];
  }
  if (was.weight !== now.weight) yield ["info", `backend ${name}: weight ${now.weight} instead of ${was.weight}`];
  yield* growth(was.connect_failures, now.connect_failures, `backend ${name}: #`, "connections failed");
}

function* growth(before, after, subject, what) {
  for (const [reason, number] of Object.entries(after)) {
    const more = number - (before[reason] ?? 0);
    const text = `${subject} ${what}: ${reason.replaceAll("_", " ")}`;
    if (more > 0) yield ["bad", text, { key: text, number: more }];
  }
}

function byName(status) {
  return new Map(status.pools.flatMap((pool) => pool.backends.map((each) => [`${pool.name}/${each.name}`, each])));
}
