// Traffic: what a daemon relays as it does, and what the log says of any moment before.
import { $, amount, ask, chart, clock, fail, set, steps } from "./parts.js";

// What each path relayed in each second of the last two minutes.
const kept = 120;
const series = new Map();
let before, charts = [];

// measured takes what a daemon has counted by now.
export function measured(live) {
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
    paths.get(x.path).push({
      way: x.way, text: `${amount(bits, "bit/s")}, ${amount(packets, "packets/s")}`,
      points: values.map((y, i) => [(kept - values.length + i) / (kept - 1), y]),
    });
  }
  charts = [...paths].map(([path, lines]) => chart(path, lines, "in the last two minutes"));
}

// showNow shows what was measured.
export function showNow() {
  wanted = null;
  set($("traffic-title"), "Traffic now");
  set($("traffic-note"), "");
  $("charts").replaceChildren(...charts);
}

let wanted = null, asking = null;

// showPast shows the rates before a moment. Of several that are asked for at once the last one counts; while the log is
// played, what is being asked is waited for.
export async function showPast(moment, plays) {
  wanted = moment;
  if (asking) {
    if (!plays) asking.abort();
    return;
  }
  while (wanted) {
    const mine = wanted;
    asking = new AbortController();
    try {
      const rates = await ask("rates", mine, { signal: asking.signal });
      if (wanted) drawPast(rates);
    } catch (err) { if (err.name !== "AbortError") fail(err); }
    if (wanted === mine) wanted = null;
    else if (plays) await new Promise((done) => setTimeout(done, 500));
  }
  asking = null;
}

function drawPast(rates) {
  const from = Date.parse(rates.from), to = from + 1000 * rates.every * rates.series[0].bytes.length, paths = new Map();
  for (const s of rates.series) {
    if (!paths.has(s.path)) paths.set(s.path, []);
    const bits = s.bytes.map((y) => 8 * y);
    paths.get(s.path).push({ way: s.way, points: steps(bits), text: `${amount(bits.at(-1), "bit/s")}, ${amount(s.packets.at(-1), "packets/s")}` });
  }
  set($("traffic-title"), "Traffic in the half hour before");
  const late = Date.parse(rates.known) > from ? ` Before ${clock(Date.parse(rates.known))} is left out: too much has happened since.` : "";
  set($("traffic-note"), `From ${clock(from)} to ${clock(to)}, by the usage in the log: what is recorded every five minutes, and at the end of an allocation, is taken to be even in between.${late}`);
  $("charts").replaceChildren(...[...paths].map(([path, lines]) => chart(path, lines, `from ${clock(from)} to ${clock(to)}`)));
}
