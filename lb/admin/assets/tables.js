// The tables of listeners and of the backends of each pool.

import { el, keyed, say } from "./dom.js";
import * as figures from "./figures.js";

const SURE = 4000; // ms that a question stands

export function showListeners(body, listeners) {
  keyed(body, listeners, (each) => each.name, () => {
    const cells = row([
      ["Listener", "name"], ["Address", "address"], ["Protocol"], ["Pool"], ["Messages/s", "number strong"],
      ["In", "number"], ["Out", "number"], ["Clients", "number"], ["Refused", "number"], ["Malformed", "number"],
    ]);
    return {
      element: cells.element,
      update: (each) => {
        const most = each.limits.max_clients;
        cells.write(
          each.name, each.address, each.protocol, each.pool, figures.count(each.rate),
          `${figures.bytes(each.bytesIn)}/s`, `${figures.bytes(each.bytesOut)}/s`,
          figures.count(each.clients) + (most === null ? "" : ` of ${figures.count(most)}`),
          figures.count(each.refusedInAll), figures.count(each.malformedInAll),
        );
      },
    };
  });
}

export function showPools(host, pools, change) {
  keyed(host, pools, (each) => each.name, (pool) => {
    const id = `pool-${host.children.length}-title`;
    const about = el("small");
    const body = el("tbody");
    const heads = ["Backend", "State", "Share", "Messages/s", "In flight", "p50", "p99", "Weight", "Connections", "Change"];
    const numbers = new Set(["Messages/s", "In flight", "p50", "p99", "Weight", "Connections"]);
    const element = el(
      "section", { class: "card", "aria-labelledby": id },
      el("h2", { id }, `Pool ${pool.name} `, about),
      el("table", { class: "rows backends" },
        el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col", class: numbers.has(head) ? "number" : "" }, head)))),
        body),
    );
    return {
      element,
      update: (each) => {
        const notes = [each.balance.replaceAll("_", " "), each.connections.replaceAll("_", " ")];
        if (each.accept) notes.push(`workers at ${each.accept}`);
        say(about, notes.join(" · "));
        keyed(body, each.backends, (backend) => backend.name, () => backendRow(change));
      },
    };
  });
}

function backendRow(change) {
  const chip = el("span", { class: "chip" });
  const bar = el("div");
  const share = el("span");
  const button = el("button", { type: "button" });
  const cells = row([
    ["Backend", "name"], ["State", "state", chip], ["Share", "share", el("div", { class: "bar" }, bar), share],
    ["Messages/s", "number strong"], ["In flight", "number"], ["p50", "number"], ["p99", "number"],
    ["Weight", "number"], ["Connections", "number"], ["Change", "change", button],
  ]);
  let shown = null;
  let asked = null; // a timer, while the question stands
  button.addEventListener("click", async () => {
    const command = shown.admin === "ready" ? "drain" : "ready";
    if (command === "drain" && shown.last && asked === null) {
      asked = setTimeout(() => { asked = null; label(); }, SURE);
      label();
      return;
    }
    clearTimeout(asked);
    asked = null;
    button.disabled = true;
    await change(shown.pool, shown.name, command);
    button.disabled = false;
  });
  const label = () => {
    const command = shown.admin === "ready" ? "Drain" : "Ready";
    say(button, asked === null ? command : "The last one: drain it?");
    button.setAttribute("aria-label", `${button.textContent} ${shown.pool}/${shown.name}`);
    button.className = asked === null ? command.toLowerCase() : "sure";
  };
  return {
    element: cells.element,
    update: (backend) => {
      shown = backend;
      const state = stateOf(backend);
      chip.className = `chip ${state.kind}`;
      say(chip, state.text);
      bar.style.width = `${100 * (backend.share ?? 0)}%`;
      say(share, figures.percent(backend.share));
      const weight = Math.round(backend.effective_weight * 10) / 10;
      cells.write(
        null, null, null, figures.count(backend.rate), figures.count(backend.outstanding),
        figures.duration(backend.p50), figures.duration(backend.p99),
        weight === backend.weight ? `${weight}` : `${weight} of ${backend.weight}`, figures.count(backend.connections),
      );
      label();
      if (!cells.at(0).firstChild) cells.at(0).append(el("span", {}), el("small", {}));
      say(cells.at(0).firstChild, backend.name);
      const notes = [backend.address];
      if (backend.priority) notes.push(`reserve ${backend.priority}`);
      if (backend.health === "down") notes.push(`${backend.health_reason}, for ${figures.age(backend.health_seconds)}`);
      say(cells.at(0).lastChild, notes.join(" · "));
    },
  };
}

// What the operator wants goes before what is known.
function stateOf(backend) {
  const left = backend.ejected_seconds_left;
  const health = left === null ? backend.health : `ejected for ${figures.age(left)}`;
  const kind = left !== null ? "bad" : { up: "good", down: "bad" }[health] ?? "info";
  if (backend.admin === "ready") return { text: health, kind };
  return { text: kind === "bad" ? `${backend.admin}, ${health}` : backend.admin, kind: "warn" };
}

// A row of [label, class, ...content] cells, the first of which names it.
function row(columns) {
  const cells = columns.map(([label, classes = "", ...content], place) => {
    const cell = el(place ? "td" : "th", { class: classes, "data-label": label }, ...content);
    if (!place) cell.scope = "row";
    return cell;
  });
  return {
    element: el("tr", {}, ...cells),
    at: (place) => cells[place],
    write: (...texts) => texts.forEach((text, place) => text === null || say(cells[place], text)),
  };
}
