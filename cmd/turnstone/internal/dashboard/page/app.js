// The page asks the server for states, and shows them. It keeps nothing but an operator's token.
import { $, amount, ask, button, clock, fail, facts, make, say, set, settled, stamp, table } from "./parts.js";
import * as chronicle from "./history.js";
import { closeAllocation, offer, signedIn } from "./operator.js";
import { measured, showNow, showPast } from "./traffic.js";

// after is the first millisecond at which an event is seen: its own time is finer.
const after = (event) => Date.parse(event.time) + 1;

const now = { span: null, live: false, follows: true, at: 0, seq: 0, playing: false, offset: 0, chosen: 0 };
const rows = 25;

const bytesOf = (a) => a.usage.reduce((n, u) => n + u.to_peer.bytes + u.to_client.bytes, 0);

const columns = [
  { name: "Allocation", of: (a) => {
    const b = button(String(a.id), `Show allocation ${a.id}`, `allocation ${a.id}`, () => {
      now.chosen = now.chosen === a.id ? 0 : a.id;
      show(now.state);
      if (now.chosen) say(`allocation ${a.id} is shown below the list`);
    });
    b.setAttribute("aria-expanded", String(now.chosen === a.id));
    return b;
  } },
  { name: "User", of: (a) => a.username || "–" },
  { name: "Client", of: (a) => `${a.protocol} ${a.client}` },
  { name: "Relayed", of: (a) => a.relayed.join(", ") },
  { name: "Channels", number: true, of: (a) => String(a.channels.length) },
  { name: "Recorded bytes", number: true, of: (a) => amount(bytesOf(a), "B") },
  { name: "Expires", short: true, of: (a) => a.overdue ? "overdue" : clock(Date.parse(a.expires)) },
];

function showOne(a) {
  $("one").hidden = !a;
  if (!a) return;
  const until = { name: "Expires", of: (x) => x.overdue ? "overdue" : stamp(Date.parse(x.expires)) };
  const does = make("div", { class: "row" }, button("History", `History of allocation ${a.id}`, `history ${a.id}`, () => chronicle.open(a.id)));
  if (signedIn() && now.live && now.follows) {
    does.append(button("Close allocation", `Close allocation ${a.id}`, `close ${a.id}`, () => closeAllocation(a, () => look({}))));
  }
  $("one").replaceChildren(
    make("h3", {}, `Allocation ${a.id}: ${a.username || "no user"}, made ${stamp(Date.parse(a.created))}`), does,
    make("h3", {}, "Channels"), table("channels", [{ name: "Channel", of: (c) => c.number }, { name: "Peer", of: (c) => c.peer }, until, {
      name: "History", of: (c) => button("History", `History of channel ${c.number} of allocation ${a.id}`, `history ${a.id} ${c.number}`, () => chronicle.open(a.id, c.number)),
    }], a.channels),
    make("h3", {}, "Permissions"), table("permissions", [{ name: "Peer", of: (p) => p.peer }, until], a.permissions),
    make("h3", {}, "Recorded usage"), table("recorded usage", [
      { name: "Path", of: (u) => u.path }, { name: "Channel", of: (u) => u.channel }, { name: "Peer", of: (u) => u.peer || "–" },
      { name: "To peer", number: true, of: (u) => amount(u.to_peer.bytes, "B") }, { name: "To client", number: true, of: (u) => amount(u.to_client.bytes, "B") },
    ], a.usage));
}

// show shows a state, and keeps the focus where it is.
function show(s) {
  now.state = s;
  const focused = document.activeElement?.dataset?.key;
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
  chronicle.mark(s.seq);
  if (now.live && now.follows) showNow(); else showPast(now.moment, now.playing);
  if (focused) document.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
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
  if (now.acts !== now.span.acts) {
    now.acts = now.span.acts;
    offer(now.acts, () => { if (now.state) show(now.state); });
  }
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

async function leap(seq) {
  leave(false);
  if (await look({ seq })) say(`event ${now.seq}, ${now.state.count} allocations`);
}
chronicle.leadsTo(leap);
const step = (by) => leap(Math.max(now.seq + by, 0));
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
      measured(live);
      drawHealth(live);
      if (n % 2 === 0) {
        chronicle.follow();
        if (now.follows) { await measure(); await look({}); }
      }
      if (now.follows) showNow();
    } catch (err) { fail(err); }
    await new Promise((done) => setTimeout(done, 1000));
  }
}

async function start() {
  try {
    await measure();
    now.live = now.span.live;
    set($("source"), now.span.about);
    $("health").hidden = !now.live;
    await look({});
    chronicle.linked();
    document.documentElement.dataset.ready = "";
  } catch (err) { fail(err); return; }
  if (now.live) watch();
}
start();
