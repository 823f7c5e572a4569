// A chart of the last minutes, in SVG. Series may come and go; null is a gap.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 56, right: 10, top: 8, bottom: 22 };
const HEIGHT = 190;
const COLOURS = 6;
const MINUTE = 60;
const STEPS = [15, 30, 60, 120, 300]; // seconds between labels of the time axis ...
const LABEL = 70; // ... which are so wide

export class Chart {
  // scale: "linear" from 0, or "log"; write: a value as text; span: seconds that are shown at most.
  constructor(host, { scale, write, span, label }) {
    Object.assign(this, { host, scale, write, span, label, points: [], names: [], width: 600 });
    this.legend = host.appendChild(document.createElement("ul"));
    this.legend.className = "legend";
    this.svg = host.appendChild(make("svg", { role: "img", height: HEIGHT }));
    this.tip = host.appendChild(document.createElement("div"));
    this.tip.className = "tip";
    this.tip.hidden = true;
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    new ResizeObserver(() => this.draw()).observe(host);
  }

  // One more point: seconds of any clock, and an object of values by name.
  add(time, values) {
    this.points.push({ time, values });
    while (this.points[0].time < time - this.span) this.points.shift();
    this.names = [...new Set(this.points.flatMap((each) => Object.keys(each.values)))];
    this.draw();
  }

  draw() {
    const width = this.host.clientWidth;
    if (!width) return;
    this.width = width;
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const last = this.points.at(-1);
    this.end = last ? last.time : 0;
    const age = last ? last.time - this.points[0].time : 0;
    this.shown = Math.min(this.span, Math.max(MINUTE, MINUTE * Math.ceil(age / MINUTE)));
    const ticks = this.ticks();
    const parts = [...this.axes(ticks)];
    this.names.forEach((name, index) => parts.push(...this.line(name, index)));
    this.cross = make("line", { class: "cross", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" });
    this.svg.replaceChildren(...parts, this.cross);
    this.describe(last);
  }

  ticks() {
    const values = this.points.flatMap((each) => Object.values(each.values)).filter((value) => value > 0);
    const most = Math.max(...values, 0);
    if (this.scale === "linear") {
      this.low = 0;
      const step = niceStep((most || 1) / 3);
      this.high = step * Math.max(1, Math.ceil((most || 1) / step));
      return Array.from({ length: Math.round(this.high / step) + 1 }, (_, index) => index * step);
    }
    const least = Math.min(...values, most || 1e-4);
    const first = Math.floor(Math.log10(least || 1e-4) + 1e-9);
    const end = Math.max(first + 1, Math.ceil(Math.log10(most || 1e-3) - 1e-9));
    this.low = 10 ** first;
    this.high = 10 ** end;
    return Array.from({ length: end - first + 1 }, (_, index) => 10 ** (first + index));
  }

  x(time) {
    return this.width - MARGIN.right - ((this.end - time) / this.shown) * (this.width - MARGIN.left - MARGIN.right);
  }

  y(value) {
    const room = HEIGHT - MARGIN.top - MARGIN.bottom;
    const share =
      this.scale === "linear"
        ? value / this.high
        : (Math.log10(Math.max(value, this.low)) - Math.log10(this.low)) / (Math.log10(this.high) - Math.log10(this.low));
    return HEIGHT - MARGIN.bottom - share * room;
  }

  *axes(ticks) {
    for (const tick of ticks) {
      const y = Math.round(this.y(tick)) + 0.5;
      yield make("line", { class: "grid", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: y, y2: y });
      yield text(this.write(tick).replace(/\.0+(?= )/, ""), { x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" });
    }
    const widest = (this.width - MARGIN.left - MARGIN.right) / LABEL;
    const step = STEPS.find((each) => this.shown / each <= widest) ?? this.span;
    for (let ago = 0; ago <= this.shown; ago += step) {
      const anchor = ago === 0 ? "end" : ago === this.shown ? "start" : "middle";
      yield text(agoText(ago), { x: this.x(this.end - ago), y: HEIGHT - 5, "text-anchor": anchor });
    }
  }

  *line(name, index) {
    const colour = `c${index % COLOURS}`;
    const pieces = [[]];
    for (const { time, values } of this.points) {
      const value = values[name];
      if (value === null || value === undefined) pieces.push([]);
      else pieces.at(-1).push([this.x(time), this.y(value)]);
    }
    for (const piece of pieces.filter((each) => each.length)) {
      const path = `M${piece.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join("L")}`;
      if (this.scale === "linear") {
        const floor = HEIGHT - MARGIN.bottom;
        yield make("path", { class: `area ${colour}`, d: `${path}L${piece.at(-1)[0]},${floor}L${piece[0][0]},${floor}Z` });
      }
      yield make("path", { class: `line ${colour}`, d: path });
      if (piece.length === 1) yield make("circle", { class: `dot ${colour}`, cx: piece[0][0], cy: piece[0][1], r: 2 });
    }
  }

  describe(last) {
    const now = this.names.map((name) => `${name} ${this.write(last?.values[name] ?? null)}`);
    this.svg.setAttribute("aria-label", `${this.label}, now: ${now.join(", ") || "nothing yet"}`);
    this.legend.replaceChildren(
      ...this.names.map((name, index) => {
        const item = document.createElement("li");
        item.className = `c${index % COLOURS}`;
        const value = document.createElement("b");
        value.textContent = this.write(last?.values[name] ?? null);
        item.append(`${name} `, value);
        return item;
      }),
    );
  }

  point(event) {
    const x = event ? event.clientX - this.svg.getBoundingClientRect().left : -1;
    const nearest = x < MARGIN.left ? null : this.nearest(x);
    this.tip.hidden = nearest === null;
    this.cross?.setAttribute("visibility", nearest ? "visible" : "hidden");
    if (!nearest) return;
    const at = this.x(nearest.time);
    this.cross.setAttribute("x1", at);
    this.cross.setAttribute("x2", at);
    const ago = Math.round(this.end - nearest.time);
    const lines = [ago ? `${ago} s ago` : "now"];
    for (const name of this.names) lines.push(`${name}: ${this.write(nearest.values[name] ?? null)}`);
    this.tip.textContent = lines.join("\n");
    const left = at > this.width / 2;
    this.tip.style.left = left ? "auto" : `${at + 10}px`;
    this.tip.style.right = left ? `${this.width - at + 10}px` : "auto";
  }

  nearest(x) {
    let best = null;
    for (const each of this.points) {
      if (!best || Math.abs(this.x(each.time) - x) < Math.abs(this.x(best.time) - x)) best = each;
    }
    return best && Math.abs(this.x(best.time) - x) < 20 ? best : null;
  }
}

function agoText(seconds) {
  if (!seconds) return "now";
  return seconds % MINUTE ? `−${seconds} s` : `−${seconds / MINUTE} min`;
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((each) => each * power >= rough * 0.999) ?? 10;
  return Math.max(step * power, 1);
}

function make(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function text(words, attributes) {
  const element = make("text", attributes);
  element.textContent = words;
  return element;
}
