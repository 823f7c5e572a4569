// The last events, newest first: those of the balancer, and what this page has seen of it itself.

import { el } from "./dom.js";

const MOST = 200;
const KINDS = { debug: "info", info: "info", warning: "warn", error: "bad", critical: "bad" };

export class Events {
  constructor(list) {
    this.list = list;
    this.next = 0;
    this.list.append(el("li", { class: "none" }, "Nothing has happened yet."));
  }

  // What the balancer knows and this page does not yet; null if there was no answer.
  take(answer) {
    if (!answer) return;
    if (answer.next < this.next) this.add("info", "the balancer has been restarted");
    this.next = answer.next;
    if (answer.missed) this.add("info", `${answer.missed} older events are forgotten`);
    for (const event of answer.events) {
      const up = event.about.health === "up" || event.about.admin === "ready";
      this.add(up ? "good" : (KINDS[event.level] ?? "info"), event.message, event.time * 1000);
    }
  }

  // kind: good, bad, warn, info.
  add(kind, text, at = Date.now()) {
    this.list.querySelector(".none")?.remove();
    const when = new Date(at);
    const time = el("time", { datetime: when.toISOString(), title: when.toLocaleString() }, when.toLocaleTimeString());
    this.list.prepend(el("li", { class: kind }, time, el("span", {}, text)));
    while (this.list.children.length > MOST) this.list.lastElementChild.remove();
  }
}
