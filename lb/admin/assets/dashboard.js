// The dashboard: asks /status once a second, and shows what has changed.

import { Chart } from "./chart.js";
import { el, say } from "./dom.js";
import { Events } from "./events.js";
import * as figures from "./figures.js";
import { compare } from "./frame.js";
import { showListeners, showPools } from "./tables.js";

const INTERVAL = 1000; // ms
const PATIENCE = 4000; // ms for an answer
const SPAN = 300; // seconds that the charts show

const byId = (id) => document.getElementById(id);
const rates = new Chart(byId("rates"), {
  scale: "linear", write: (value) => (value === null ? "–" : figures.count(value)), span: SPAN, label: "Messages a second by listener",
});
const latency = new Chart(byId("latency"), {
  scale: "log", write: figures.duration, span: SPAN, label: "Time from a request to its response",
});
const events = new Events(byId("events"));
let latest = null; // the last answer
let silent = false;
let timer = null;

async function poll() {
  const [status, news] = await Promise.all([ask("/status"), ask(`/events?after=${events.next}`)]);
  clearTimeout(timer); // another one, if a change has asked meanwhile
  timer = setTimeout(poll, INTERVAL);
  if (!status) {
    fallSilent();
    return;
  }
  if (silent) endSilence();
  events.take(news);
  show(status);
}

// null if there is no answer.
async function ask(path) {
  try {
    const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

function show(status) {
  const restarted = latest !== null && status.uptime_seconds < latest.uptime_seconds;
  const frame = compare(restarted ? null : latest, status);
  latest = status;
  showState(status);
  showTiles(frame, status);
  showListeners(byId("listeners"), frame.listeners);
  showPools(byId("pools"), frame.pools, change);
  const now = performance.now() / 1000;
  if (!frame.seconds) return;
  rates.add(now, Object.fromEntries(frame.listeners.map((each) => [each.name, each.rate])));
  latency.add(now, { p50: frame.p50, p99: frame.p99 });
}

function endSilence() {
  silent = false;
  byId("alert").hidden = true;
  byId("main").classList.remove("stale");
  events.add("good", "the balancer answers again");
}

function fallSilent() {
  const now = performance.now() / 1000;
  if (latest) {
    rates.add(now, {});
    latency.add(now, {});
  }
  if (silent) return;
  silent = true;
  const alert = byId("alert");
  say(alert, `The balancer has not answered since ${new Date().toLocaleTimeString()}. Trying again every second.`);
  alert.hidden = false;
  byId("main").classList.add("stale");
  setPill("bad", "no answer");
  if (latest) events.add("bad", "the balancer does not answer");
}

function showState(status) {
  if (status.state !== "serving") setPill("warn", status.state);
  else if (!status.ready) setPill("bad", `not ready: ${status.not_ready_because.join("; ")}`);
  else setPill("good", "serving");
  say(
    byId("about"),
    `${status.version} · up ${figures.age(status.uptime_seconds)} · Linux ${status.kernel} · ${status.configuration}`,
  );
}

function setPill(kind, text) {
  const pill = byId("state");
  pill.className = `pill ${kind}`;
  say(pill, text);
}

const tiles = new Map();

function showTiles(frame, status) {
  const used = status.sockets / status.max_sockets;
  const tile = (name, value, note = "", kind = "") => {
    if (!tiles.has(name)) {
      const parts = { value: el("b"), note: el("small") };
      parts.element = el("div", {}, el("dt", {}, name), el("dd", {}, parts.value, parts.note));
      byId("tiles").append(parts.element);
      tiles.set(name, parts);
    }
    const parts = tiles.get(name);
    say(parts.value, value);
    say(parts.note, note);
    parts.element.className = kind;
  };
  tile("Messages a second", figures.count(frame.rate), `${figures.bytes(frame.bytes)}/s`);
  tile("Half within", figures.duration(frame.p50), "p50");
  tile("99 % within", figures.duration(frame.p99), "p99");
  tile("In flight", figures.count(frame.outstanding), "without a response yet");
  tile("Clients", figures.count(frame.clients), `${figures.percent(used)} of all sockets`, used > 0.9 ? "warn" : "");
  tile("Not delivered", figures.count(frame.dropped), frame.dropRate ? `${figures.count(frame.dropRate)} a second` : "since the start",
    frame.dropRate ? "bad" : "");
  document.title = frame.rate === null ? "sockmap-lb" : `${figures.count(frame.rate)}/s · sockmap-lb`;
}

async function change(pool, backend, command) {
  const path = [pool, backend, command].map(encodeURIComponent).join("/");
  try {
    const answer = await fetch(`/backends/${path}`, { method: "POST", signal: AbortSignal.timeout(PATIENCE) });
    if (!answer.ok) throw new Error((await answer.json()).error ?? `HTTP ${answer.status}`);
  } catch (error) {
    events.add("bad", `${command} ${pool}/${backend}: ${error.message}`);
  }
  await poll();
}

poll();
