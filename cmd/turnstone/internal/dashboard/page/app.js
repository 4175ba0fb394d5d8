// The page asks the server for states, and shows them. It keeps nothing.
const $ = (id) => document.getElementById(id);

// make is an element with attributes and children.
function make(name, attributes = {}, ...children) {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

async function ask(path, query = {}) {
  const answer = await fetch(`api/${path}?${new URLSearchParams(query)}`);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error);
  return body;
}

function set(e, text) { if (e.textContent !== text) e.textContent = text; }
function say(text) { $("said").textContent = text; }
function fail(err) { $("error").hidden = !err; set($("error"), err ? `This cannot be shown: ${err.message}` : ""); }

// after is the first millisecond at which an event is seen: its own time is finer.
const after = (event) => Date.parse(event.time) + 1;
const stamp = (ms) => new Date(ms).toISOString().replace("T", " ").replace("Z", " UTC");
function amount(n, unit) {
  for (const prefix of ["", "k", "M", "G", "T"]) {
    if (n < 1000 || prefix === "T") return `${n.toFixed(prefix ? 1 : 0)} ${prefix}${unit}`;
    n /= 1000;
  }
}

const now = { span: null, live: false, follows: true, at: 0, seq: 0, playing: false, offset: 0, chosen: 0 };
const rows = 25;

// table is one with roles of its own, since a phone shows it as a list.
function table(caption, columns, list) {
  const t = make("table", { role: "table" }, make("caption", { class: "unseen" }, caption));
  t.append(make("thead", { role: "rowgroup" }, make("tr", { role: "row" },
    ...columns.map((c) => make("th", { role: "columnheader", scope: "col", class: c.number ? "number" : "" }, c.name)))));
  t.append(make("tbody", { role: "rowgroup" }, ...list.map((one) => make("tr", { role: "row" },
    ...columns.map((c) => make("td", { role: "cell", "data-name": c.name, class: c.number ? "number" : "" }, c.of(one)))))));
  return t;
}

function facts(e, list) {
  e.replaceChildren(...list.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
}

const bytesOf = (a) => a.usage.reduce((n, u) => n + u.to_peer.bytes + u.to_client.bytes, 0);

const columns = [
  { name: "Allocation", of: (a) => {
    const b = make("button", { type: "button", "aria-label": `Show allocation ${a.id}`, "data-id": a.id }, String(a.id));
    b.onclick = () => { now.chosen = now.chosen === a.id ? 0 : a.id; show(now.state); if (now.chosen) say(`allocation ${a.id} is shown below the list`); };
    b.setAttribute("aria-expanded", String(now.chosen === a.id));
    return b;
  } },
  { name: "User", of: (a) => a.username || "–" },
  { name: "Client", of: (a) => `${a.protocol} ${a.client}` },
  { name: "Relayed", of: (a) => a.relayed.join(", ") },
  { name: "Channels", number: true, of: (a) => String(a.channels.length) },
  { name: "Recorded bytes", number: true, of: (a) => amount(bytesOf(a), "B") },
  { name: "Expires", of: (a) => a.overdue ? "overdue" : stamp(Date.parse(a.expires)).slice(11, 19) },
];

function showOne(a) {
  $("one").hidden = !a;
  if (!a) return;
  const until = { name: "Expires", of: (x) => x.overdue ? "overdue" : stamp(Date.parse(x.expires)) };
  $("one").replaceChildren(
    make("h3", {}, `Allocation ${a.id}: ${a.username || "no user"}, made ${stamp(Date.parse(a.created))}`),
    make("h3", {}, "Channels"), table("channels", [{ name: "Channel", of: (c) => c.number }, { name: "Peer", of: (c) => c.peer }, until], a.channels),
    make("h3", {}, "Permissions"), table("permissions", [{ name: "Peer", of: (p) => p.peer }, until], a.permissions),
    make("h3", {}, "Recorded usage"), table("recorded usage", [
      { name: "Path", of: (u) => u.path }, { name: "Channel", of: (u) => u.channel }, { name: "Peer", of: (u) => u.peer || "–" },
      { name: "To peer", number: true, of: (u) => amount(u.to_peer.bytes, "B") }, { name: "To client", number: true, of: (u) => amount(u.to_client.bytes, "B") },
    ], a.usage));
}

// show shows a state, and keeps the focus where it is.
function show(s) {
  now.state = s;
  const focused = document.activeElement?.dataset?.id;
  now.seq = s.seq;
  now.at = s.seq ? Date.parse(s.at) : Date.parse(now.span.first.time);
  const time = s.seq ? stamp(now.at) : "before the first event";
  set($("time"), time);
  set($("where"), `event ${s.seq} of ${now.span.last.seq}${now.follows && now.live ? ", live" : ""}`);
  if (document.activeElement !== $("slider") || now.playing || now.follows) $("slider").value = now.at;
  $("slider").setAttribute("aria-valuetext", `${time}, ${s.count} allocations`);
  const use = (path) => s.usage.filter((u) => u.path === path).reduce((n, u) => n + u.bytes, 0);
  facts($("counts"), [["Allocations", s.count], ["Permissions", s.permissions], ["Channels", s.channels],
    ["Recorded, userspace", amount(use("userspace"), "B")], ["Recorded, kernel", amount(use("kernel"), "B")]]);
  const first = s.allocations.length ? now.offset + 1 : 0;
  set($("found"), `${s.matching} of ${s.count} allocations, ${first} to ${now.offset + s.allocations.length} shown`);
  $("list").replaceChildren(table("allocations at this moment", columns, s.allocations));
  $("previous").disabled = now.offset === 0;
  $("next").disabled = now.offset + s.allocations.length >= s.matching;
  $("back").disabled = s.seq <= Math.max(now.span.first.seq - 1, 0);
  $("forth").disabled = s.seq >= now.span.last.seq;
  showOne(s.allocations.find((a) => a.id === now.chosen));
  if (focused) document.querySelector(`button[data-id="${CSS.escape(focused)}"]`)?.focus();
}

// look asks for a moment. Of several that are asked for at once the last one counts.
let asked = 0;
async function look(moment) {
  const mine = ++asked;
  const query = { ...moment, offset: now.offset, limit: rows, q: $("text").value, field: $("field").value };
  try {
    const s = await ask("state", query);
    if (mine === asked) { now.moment = moment; show(s); fail(); }
    return mine === asked;
  } catch (err) {
    if (mine === asked) fail(err);
    return false;
  }
}

async function measure() {
  now.span = await ask("span");
  const first = after(now.span.first), last = after(now.span.last);
  const slider = $("slider");
  slider.min = first; slider.max = Math.max(last, first + 1); slider.step = 1;
  if (now.follows) slider.value = slider.max;
}

const atTime = (ms) => ({ at: new Date(ms).toISOString() });

function leave(follows) {
  now.follows = follows;
  pause();
}

function pause() {
  now.playing = false;
  $("play").setAttribute("aria-pressed", "false");
  set($("play"), "Play");
}

async function play() {
  if (now.playing) { pause(); return; }
  const last = after(now.span.last);
  now.follows = false;
  now.playing = true;
  $("play").setAttribute("aria-pressed", "true");
  set($("play"), "Pause");
  let at = now.at + 1 >= last ? after(now.span.first) : now.at;
  for (let before = performance.now(); now.playing;) {
    const t = performance.now();
    at = Math.min(at + (t - before) * Number($("speed").value), last);
    before = t;
    if (!await look(atTime(at)) && !$("error").hidden) break;
    if (at >= last) break;
    await new Promise((done) => setTimeout(done, 250));
  }
  if (now.playing) { pause(); say(`played to ${$("time").textContent}`); }
}

// What is done with the slider, and typed, is asked for when there was nothing new for a moment.
function settled(f) {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(f, 120); };
}

const slide = settled(async () => { if (await look(atTime(Number($("slider").value)))) say(`${now.state.count} allocations`); });
$("slider").addEventListener("input", () => { leave(false); slide(); });
// An arrow key moves by a thousandth, Page Up and Page Down by a twentieth of the log.
$("slider").addEventListener("keydown", (e) => {
  const s = $("slider"), size = s.max - s.min;
  const steps = { ArrowRight: 1e-3, ArrowUp: 1e-3, ArrowLeft: -1e-3, ArrowDown: -1e-3, PageUp: 0.05, PageDown: -0.05 };
  if (!(e.key in steps)) return;
  e.preventDefault();
  s.value = Number(s.value) + Math.sign(steps[e.key]) * Math.max(1, Math.abs(steps[e.key]) * size);
  s.dispatchEvent(new Event("input"));
});

async function step(by) {
  leave(false);
  if (await look({ seq: Math.max(now.seq + by, 0) })) say(`event ${now.seq}, ${now.state.count} allocations`);
}
$("back").onclick = () => step(-1);
$("forth").onclick = async () => {
  // An event is within a record, whose events become true together: go on until something has.
  leave(false);
  const before = now.seq;
  for (let n = 1; now.seq === before && before + n <= now.span.last.seq; n++) if (!await look({ seq: before + n })) return;
  say(`event ${now.seq}, ${now.state.count} allocations`);
};
$("play").onclick = play;
$("end").onclick = async () => { leave(true); await measure(); await look({}); say("the end of the log"); };

const find = settled(async () => {
  now.offset = 0;
  if (await look(now.moment)) say(`${now.state.matching} allocations match`);
});
$("text").addEventListener("input", find);
$("field").addEventListener("change", find);
$("search").addEventListener("submit", (e) => { e.preventDefault(); find(); });
async function turn(by) { now.offset = Math.max(now.offset + by * rows, 0); if (await look(now.moment)) say($("found").textContent); }
$("previous").onclick = () => turn(-1);
$("next").onclick = () => turn(1);

// Traffic is drawn as it comes: what each path relayed in each second of the last two minutes.
const kept = 120;
const series = new Map();
let before;
const classes = ["one", "two", "three"];

function chart(path, list, most) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", `0 0 ${kept - 1} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${path}: ${list.map((l) => `${l.way} ${l.text}`).join(", ")}; at most ${amount(most, "bit/s")} in the last two minutes`);
  list.forEach((l, i) => {
    const line = document.createElementNS(ns, "polyline");
    line.setAttribute("class", classes[i]);
    line.setAttribute("points", l.values.map((v, x) => `${kept - l.values.length + x},${99 - 97 * v / Math.max(most, 1)}`).join(" "));
    svg.append(line);
  });
  return make("figure", {}, make("h3", {}, path[0].toUpperCase() + path.slice(1)), svg, make("figcaption", {},
    make("ul", {}, ...list.map((l, i) => make("li", { class: classes[i] }, `${i ? (i > 1 ? "⋯ " : "┅ ") : "━ "}${l.way}: ${l.text}`)))));
}

function drawTraffic(live) {
  const t = performance.now(), counted = new Map(live.traffic.map((x) => [`${x.path} ${x.way}`, x]));
  const last = before;
  before = { t, counted };
  if (!last) return;
  const seconds = (t - last.t) / 1000, paths = new Map();
  for (const [key, x] of counted) {
    const was = last.counted.get(key) ?? x;
    const bits = Math.max(x.bytes - was.bytes, 0) * 8 / seconds, packets = Math.max(x.packets - was.packets, 0) / seconds;
    const values = [...(series.get(key) ?? []), bits].slice(-kept);
    series.set(key, values);
    if (!paths.has(x.path)) paths.set(x.path, []);
    paths.get(x.path).push({ way: x.way, values, text: `${amount(bits, "bit/s")}, ${amount(packets, "packets/s")}` });
  }
  $("charts").replaceChildren(...[...paths].map(([path, list]) => chart(path, list, Math.max(...list.flatMap((l) => l.values)))));
}

function drawHealth(live) {
  const s = live.status, k = live.kernel, list = [["Relays", s.kernel], ["Ready", s.ready ? "yes" : "no"], ["Draining", s.draining ? "yes" : "no"],
    ["Disk", s.room], ["Log", `event ${s.seq}, epoch ${s.epoch}`]];
  const drops = Object.entries(s.drops ?? {}).filter(([, n]) => n).map(([why, n]) => `${n} ${why}`);
  list.push(["Dropped in userspace", drops.join(", ") || "nothing"]);
  if (k) {
    const absent = Object.entries(k.absent ?? {}).map(([why, n]) => `${n} ${why}`);
    list.push(["Events not applied yet", k.lag], ["Flows in the maps", k.flows], ["Slots", `${k.slots} of ${k.capacity}`],
      ["Drift repaired", `${k.drift.added} missing, ${k.drift.changed} changed, ${k.drift.removed} foreign`], ["Failed writes", k.failures],
      ["Next hops unknown", `${k.unresolved} of ${k.gateways}`], ["Not carried", absent.join(", ") || "nothing"], ["Memory of the maps", amount(k.memory, "B")]);
    $("interfaces").replaceChildren(table("interfaces", [{ name: "Interface", of: (i) => i.interface }, { name: "XDP", of: (i) => i.mode || "off" }, { name: "Why not", of: (i) => i.reason || "–" }], k.interfaces ?? []));
  }
  facts($("facts"), list);
}

async function watch() {
  for (let n = 0; ; n++) {
    try {
      const live = await ask("live");
      drawTraffic(live);
      drawHealth(live);
      if (now.follows && n % 2 === 0) { await measure(); await look({}); } else fail();
    } catch (err) { fail(err); }
    await new Promise((done) => setTimeout(done, 1000));
  }
}

async function start() {
  try {
    await measure();
    now.live = now.span.live;
    set($("source"), now.span.about);
    $("traffic").hidden = $("health").hidden = !now.live;
    await look({});
    document.documentElement.dataset.ready = "";
  } catch (err) { fail(err); return; }
  if (now.live) watch();
}
start();
