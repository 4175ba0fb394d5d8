// What the parts of the page have in common.
export const $ = (id) => document.getElementById(id);

// make is an element with attributes and children.
export function make(name, attributes = {}, ...children) {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

// button is one that finds its focus again by key when it is made anew.
export function button(text, name, key, press) {
  const b = make("button", { type: "button", "aria-label": name, "data-key": key }, text);
  b.onclick = press;
  return b;
}

export async function ask(path, query = {}, options = {}) {
  const answer = await fetch(`api/${path}?${new URLSearchParams(query)}`, options);
  const body = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(body.error), { status: answer.status });
  return body;
}

export function set(e, text) { if (e.textContent !== text) e.textContent = text; }
export function say(text) { $("said").textContent = text; }
export function fail(err) { $("error").hidden = !err; set($("error"), err ? `This cannot be shown: ${err.message}` : ""); }

// settled has f be called when nothing new came for a moment.
export function settled(f) {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(f, 120); };
}

export const stamp = (ms) => new Date(ms).toISOString().replace("T", " ").replace("Z", " UTC");
export const clock = (ms) => stamp(ms).slice(11, 19);
export function amount(n, unit) {
  for (const prefix of ["", "k", "M", "G", "T"]) {
    if (n < 1000 || prefix === "T") return `${n.toFixed(prefix ? 1 : 0)} ${prefix}${unit}`;
    n /= 1000;
  }
}

const classOf = (c) => `${c.number ? "number" : ""} ${c.short ? "short" : ""}`.trim();

// table is one with roles of its own, since a phone shows it as a list. A column says whether it has numbers, and whether what it
// has is short, and not to be broken.
export function table(caption, columns, list, current) {
  const t = make("table", { role: "table" }, make("caption", { class: "unseen" }, caption));
  t.append(make("thead", { role: "rowgroup" }, make("tr", { role: "row" },
    ...columns.map((c) => make("th", { role: "columnheader", scope: "col", class: classOf(c) }, c.name)))));
  t.append(make("tbody", { role: "rowgroup" }, ...list.map((one) => make("tr", { role: "row", ...(one === current ? { "aria-current": "true" } : {}) },
    ...columns.map((c) => make("td", { role: "cell", "data-name": c.name, class: classOf(c) }, c.of(one)))))));
  return t;
}

export function facts(e, list) {
  e.replaceChildren(...list.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
}

const ns = "http://www.w3.org/2000/svg", classes = ["one", "two", "three"], strokes = ["━ ", "┅ ", "⋯ "];

// chart draws lines of [x, y], where x is from 0 to 1 and y in bits a second.
export function chart(title, lines, when) {
  const most = lines.reduce((n, l) => l.points.reduce((n, [, y]) => Math.max(n, y), n), 1);
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", "0 0 1000 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${title}: ${lines.map((l) => `${l.way} ${l.text}`).join(", ")}; at most ${amount(most, "bit/s")} ${when}`);
  lines.forEach((l, i) => {
    const line = document.createElementNS(ns, "polyline");
    line.setAttribute("class", classes[i]);
    line.setAttribute("points", l.points.map(([x, y]) => `${(1000 * x).toFixed(1)},${(99 - 97 * y / most).toFixed(1)}`).join(" "));
    svg.append(line);
  });
  return make("figure", {}, make("h3", {}, title[0].toUpperCase() + title.slice(1)), svg, make("figcaption", {},
    make("ul", {}, ...lines.map((l, i) => make("li", { class: classes[i] }, `${strokes[i]}${l.way}: ${l.text}`)))));
}

// steps are the points of values, each of which holds for as long as the others.
export const steps = (values) => values.flatMap((y, i) => [[i / values.length, y], [(i + 1) / values.length, y]]);
