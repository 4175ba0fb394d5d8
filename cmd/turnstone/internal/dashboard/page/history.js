// What became of an allocation, or of one of its channels: its events, and what it relayed over time.
import { $, amount, ask, button, chart, clock, fail, make, say, set, stamp, steps, table } from "./parts.js";

const enough = 1000; // events, before more are asked for only by whoever reads
const usageEvery = 5 * 60e3; // milliseconds

let shown = null, moment = 0, jump = () => {}, opener;

// leadsTo says what to do where a moment of a history is chosen.
export function leadsTo(f) { jump = f; }

const titleOf = (h) => `History of ${h.channel ? `channel ${h.channel} of ` : ""}allocation ${h.id}`;

// open shows the history of an allocation, or a channel of it.
export async function open(id, channel = "") {
  opener = document.activeElement;
  shown = { id, channel, events: [], next: 0, more: true, over: false, loading: false };
  const h = shown;
  history.replaceState(null, "", `#${new URLSearchParams({ allocation: id, ...(channel ? { channel } : {}) })}`);
  $("history").hidden = false;
  set($("history-title"), titleOf(h));
  $("history").focus();
  await goOn(enough);
  if (shown === h) say(`${titleOf(h)}: ${h.events.length} events`);
}

function close() {
  shown = null;
  $("history").hidden = true;
  history.replaceState(null, "", location.pathname);
  const again = document.querySelector(`[data-key="${CSS.escape(opener?.dataset?.key ?? "")}"]`);
  (again ?? (opener?.isConnected && opener !== document.body ? opener : $("allocations"))).focus();
}

// goOn reads on, until there are so many events more, or no more.
async function goOn(events) {
  const h = shown, until = h.events.length + events;
  if (h.loading) return;
  h.loading = true;
  try {
    do {
      const page = await ask("history", { allocation: h.id, ...(h.channel ? { channel: h.channel } : {}), ...(h.next ? { from: h.next } : {}) });
      if (shown !== h) return;
      const changed = page.events.length > 0 || page.more !== h.more || page.over !== h.over;
      h.events.push(...page.events);
      h.next = page.next; h.more = page.more; h.over = page.over;
      if (changed) draw();
    } while (h.more && h.events.length < until);
    fail();
  } catch (err) {
    if (shown !== h) return;
    if (err.status === 404) { h.over = true; h.none = err.message; } else fail(err);
    h.more = false;
    draw();
  } finally { h.loading = false; }
}

// follow looks for what has happened since.
export function follow() { if (shown && !shown.more && !shown.over) goOn(enough); }

// readings are what each record of usage adds to the one before, and since when.
function readings(h) {
  const last = new Map(), begun = Date.parse(h.events[0]?.time ?? 0), out = [];
  for (const e of h.events) {
    if (!e.usage) continue;
    const u = e.usage, key = `${u.path} ${u.channel} ${u.peer}`, was = last.get(key), to = Date.parse(e.time);
    const less = (now, before) => ({ bytes: now.bytes - (before?.bytes ?? 0), packets: now.packets - (before?.packets ?? 0) });
    const from = Math.max(to - usageEvery, was?.to ?? begun);
    out.push({ ...u, from: Math.min(from, to - 1), to, toPeer: less(u.to_peer, was?.to_peer), toClient: less(u.to_client, was?.to_client) });
    last.set(key, { ...u, to });
  }
  return out;
}

// lines are the rates of one path in parts of the time from begin to end.
function lines(list, path, begin, end) {
  const parts = 200, size = Math.max((end - begin) / parts, 1);
  return [["to-peer", "toPeer"], ["to-client", "toClient"]].map(([way, field]) => {
    const values = new Array(parts).fill(0);
    let bytes = 0;
    for (const r of list.filter((r) => r.path === path)) {
      bytes += r[field].bytes;
      for (let i = Math.max(Math.floor((r.from - begin) / size), 0); i < parts && begin + i * size < r.to; i++) {
        const part = Math.min(r.to, begin + (i + 1) * size) - Math.max(r.from, begin + i * size);
        values[i] += Math.max(part, 0) / (r.to - r.from) * r[field].bytes * 8 / (size / 1000);
      }
    }
    return { way, points: steps(values), text: `${amount(bytes, "B")} in all` };
  });
}

const rate = (count, r) => `${amount(count.bytes, "B")}, ${amount(count.bytes * 8e3 / (r.to - r.from), "bit/s")}`;
const usageColumns = [
  { name: "From", short: true, of: (r) => clock(r.from) }, { name: "To", short: true, of: (r) => clock(r.to) }, { name: "Path", short: true, of: (r) => r.path },
  { name: "Binding", of: (r) => r.peer ? `${r.channel === "0x0000" ? "" : `${r.channel} `}${r.peer}` : "indications" },
  { name: "To peer", number: true, of: (r) => rate(r.toPeer, r) }, { name: "To client", number: true, of: (r) => rate(r.toClient, r) },
];
const eventColumns = [
  { name: "Event", short: true, of: (e) => button(String(e.seq), `Show the moment of event ${e.seq}`, `event ${e.seq}`, () => jump(e.seq)) },
  { name: "Time", short: true, of: (e) => stamp(Date.parse(e.time)) },
  { name: "What", of: (e) => make("span", {}, make("b", {}, e.kind), " ", e.what) },
  { name: "By", short: true, of: (e) => e.by },
];

function draw() {
  const h = shown, first = h.events[0], last = h.events.at(-1);
  const focused = document.activeElement?.dataset?.key;
  let text = "loading";
  if (first) text = `${h.events.length} events, ${stamp(Date.parse(first.time))} to ${stamp(Date.parse(last.time))}`;
  if (h.none) text = h.none;
  else if (h.more) text += "; there is more";
  else if (h.over) text += "; that is all";
  else text += "; up to the end of the log";
  set($("history-about"), text);
  const list = readings(h);
  if (list.length) {
    const begin = list.reduce((t, r) => Math.min(t, r.from), Infinity), end = list.reduce((t, r) => Math.max(t, r.to), 0);
    $("history-charts").replaceChildren(...["userspace", "kernel"].filter((p) => list.some((r) => r.path === p)).map((path) =>
      chart(path, lines(list, path, begin, end), `from ${clock(begin)} to ${clock(end)}`)));
    set($("history-note"), `From ${clock(begin)} to ${clock(end)}, by the usage in the log, which is taken to be even between two records.`);
    $("history-usage").replaceChildren(table("usage over time", usageColumns, list));
  } else {
    $("history-charts").replaceChildren();
    set($("history-note"), h.none ? "" : "No usage is recorded yet: it is every five minutes, and at the end of the allocation.");
    $("history-usage").replaceChildren();
  }
  $("history-details").hidden = !list.length;
  $("history-more").hidden = !h.more;
  mark(moment);
  if (focused) document.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

// mark marks the last event up to seq, which is the moment that is shown.
export function mark(seq) {
  moment = seq;
  if (!shown) return;
  const current = shown.events.findLast((e) => e.seq <= seq);
  if (shown.drawn === shown.events.length && shown.current === current) return;
  const focused = document.activeElement?.dataset?.key;
  shown.drawn = shown.events.length;
  shown.current = current;
  $("history-events").replaceChildren(table("events", eventColumns, shown.events, current));
  if (focused) document.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

$("which").addEventListener("submit", (e) => { e.preventDefault(); open(Number($("number").value)); });
$("history-close").onclick = close;
$("history-more").onclick = () => goOn(enough);

// linked opens the history that the address of the page names.
export function linked() {
  const q = new URLSearchParams(location.hash.slice(1)), id = Number(q.get("allocation"));
  if (id > 0 && !(shown?.id === id && shown.channel === (q.get("channel") ?? ""))) open(id, q.get("channel") ?? "");
}
window.addEventListener("hashchange", linked);
