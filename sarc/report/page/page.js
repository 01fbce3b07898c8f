"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
for (const p of D.programs) for (const v of p.values) for (const c of D.word_columns) v[c] = D.words[v[c]];
const $ = id => document.getElementById(id);
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const el = (tag, cls, text) => { const e = document.createElement(tag); if (cls) e.className = cls; if (text !== undefined) e.textContent = text; return e; };
const bytes = n => { if (n === null) return "?"; for (const [u, s] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 1024]]) if (n >= s) return (n / s).toFixed(n / s < 10 ? 2 : 1) + " " + u; return n + " B"; };
const time = s => s >= 1 ? s.toFixed(2) + " s" : s >= 1e-3 ? (s * 1e3).toFixed(s < 1e-2 ? 2 : 1) + " ms" : (s * 1e6).toFixed(0) + " µs";
const percent = x => (100 * x).toFixed(x < 0.0995 ? 1 : 0) + " %";
const tip = $("tip");
function showTip(event, text) {
  tip.textContent = text; tip.style.display = "block";
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const below = event.clientY + 16, y = below + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : below;
  tip.style.left = Math.max(4, x) + "px"; tip.style.top = Math.max(4, y) + "px";
}
const hideTip = () => { tip.style.display = "none"; };
function table(head, rows, numeric) {
  const t = el("table"), h = el("tr");
  head.forEach((x, k) => h.append(el("th", numeric.includes(k) ? "n" : "", x)));
  const body = el("tbody");
  for (const row of rows) {
    const tr = el("tr");
    row.forEach((x, k) => { const td = el("td", numeric.includes(k) ? "n" : ""); x instanceof Node ? td.append(x) : td.textContent = x; tr.append(td); });
    body.append(tr);
  }
  const top = el("thead"); top.append(h); t.append(top, body); return t;
}
const CATEGORY_COLOURS = {parameters: "#8d99a6", arguments: "#b4bcc6", bound: "#a58a5c", saved: "#4a90c4", "edge rows": "#d9822b", folds: "#7fb685", halo: "#c2574f", chunks: "#d9a05b", values: "#b07cc6", gradients: "#5f9ea0", workspace: "#c9b458"};
const RANK_COLOURS = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"];

function summary() {
  const f = D.facts;
  $("about").textContent = `${f.nodes.toLocaleString("en")} nodes, ${f.edges.toLocaleString("en")} edges in ${f.parts} parts (${f["cut by"]}); one ${D.memory.some(m => m.stage === "backward") ? "training step" : "call"}`;
  const computing = f["ranks shown"].length;
  const tiles = [[time(f.seconds), "the step took"], [time(f.compute_seconds), `computing, ${computing} part${computing > 1 ? "s" : ""} together`],
    [bytes(f.peak_bytes), "at the peak, largest part"], [bytes(f.saved_bytes), "kept for the backward pass, all parts"], [bytes(f.sent_bytes), "sent between parts, all together"], [f.parameters.toLocaleString("en"), "parameters"]];
  for (const [value, what] of tiles) { const t = el("div", "tile"); t.append(el("b", "", value), el("span", "", what)); $("tiles").append(t); }
  const total = D.lines.reduce((a, r) => a + r.seconds, 0) || 1;
  $("time-lines").append(table(["line of the model", "pass", "time", "share", ""], D.lines.filter(r => r.seconds > 0).slice(0, 60).map(r => {
    const bar = el("span", "bar"); bar.style.width = Math.max(1, 80 * r.seconds / total / (D.lines[0].seconds / total)) + "px";
    const line = el("code", "", r.line.split("/").slice(-2).join("/")); line.title = r.line;
    return [line, r.stage, time(r.seconds), percent(r.seconds / total), bar]; }), [2, 3]));
  const peak = D.memory.reduce((a, m) => !a || m.peak > a.peak ? m : a, null);
  if (peak) {
    $("memory-short").append(el("p", "note", `The most is alive on part ${peak.rank} in the ${peak.stage} pass: ${bytes(peak.peak)}, after`), el("code", "", peak.instruction));
    const stack = el("div", "stack");
    for (const [name, size] of Object.entries(peak.by_category)) { const s = el("span"); s.style.cssText = `width:${100 * size / peak.peak}%;background:${CATEGORY_COLOURS[name]}`; s.title = `${name}: ${bytes(size)}`; stack.append(s); }
    $("memory-short").append(stack, table(["", "category", "bytes", "share"], Object.entries(peak.by_category).sort((a, b) => b[1] - a[1]).map(([name, size]) => {
      const dot = el("span", "bar"); dot.style.cssText = `width:11px;height:11px;background:${CATEGORY_COLOURS[name]}`;
      const what = el("span", "", name); what.title = D.categories[name]; return [dot, what, bytes(size), percent(size / peak.peak)]; }), [2, 3]));
  } else $("memory-short").append(el("p", "note", "not measured: sarc.profile(memory=True)"));
  const sent = D.lines.filter(r => r.sent > 0).sort((a, b) => b.sent - a.sent), all = sent.reduce((a, r) => a + r.sent, 0) || 1;
  if (!sent.length) $("travel-short").append(el("p", "note", "Nothing is sent between parts."));
  else $("travel-short").append(table(["line of the model", "pass", "sent", "share"], sent.slice(0, 60).map(r => { const line = el("code", "", r.line.split("/").slice(-2).join("/")); line.title = r.line; return [line, r.stage, bytes(r.sent), percent(r.sent / all)]; }), [2, 3])), $("travel-short").className = "scroll";
}

const W = 190, H = 34, PX = 212, PY = 66, NS = "http://www.w3.org/2000/svg";
const svgEl = (tag, attrs) => { const e = document.createElementNS(NS, tag); for (const k in attrs) e.setAttribute(k, attrs[k]); return e; };
class Graph {
  constructor(holder, stage) {
    this.holder = holder;
    const top = el("div", "bar-top"), pick = el("select"), search = el("input"), out = el("button", "", "−"), into = el("button", "", "+");
    pick.setAttribute("aria-label", "stage"); search.placeholder = "find: a name, operator, type or line"; search.setAttribute("aria-label", "find");
    for (const p of D.programs) { const o = el("option", "", `${p.stage} (${p.values.length})`); o.value = p.stage; pick.append(o); }
    top.append(pick, search, out, into);
    this.svg = svgEl("svg", {}); this.layer = svgEl("g", {}); this.svg.append(this.layer);
    this.detail = el("div", "detail");
    holder.append(top, this.svg, this.detail);
    pick.onchange = () => this.load(pick.value);
    search.onkeydown = e => { if (e.key === "Enter") this.find(search.value); };
    into.onclick = () => this.scaleBy(1.25); out.onclick = () => this.scaleBy(0.8);
    this.svg.addEventListener("wheel", e => { e.preventDefault(); if (e.ctrlKey) this.scaleBy(e.deltaY < 0 ? 1.12 : 0.89, e); else { this.x += e.deltaX / this.k; this.y += e.deltaY / this.k; this.draw(); } }, {passive: false});
    this.svg.addEventListener("pointerdown", e => { this.drag = [e.clientX, e.clientY, this.x, this.y, false]; });
    addEventListener("pointermove", e => { if (!this.drag) return; const dx = e.clientX - this.drag[0], dy = e.clientY - this.drag[1]; if (Math.abs(dx) + Math.abs(dy) > 4) this.drag[4] = true; if (this.drag[4]) { this.x = this.drag[2] - dx / this.k; this.y = this.drag[3] - dy / this.k; this.draw(); } });
    addEventListener("pointerup", () => { this.moved = this.drag && this.drag[4]; this.drag = null; });
    addEventListener("resize", () => this.draw());
    pick.value = D.programs.some(p => p.stage === stage) ? stage : D.programs[D.programs.length - 1].stage;
    this.load(pick.value);
  }
  load(stage) {
    this.program = D.programs.find(p => p.stage === stage); this.values = this.program.values;
    this.users = this.values.map(() => []); this.byRow = new Map();
    this.values.forEach((v, k) => { for (const o of v[11]) this.users[o].push(k); if (!this.byRow.has(v[10])) this.byRow.set(v[10], []); this.byRow.get(v[10]).push(k); });
    this.long = []; this.values.forEach((v, k) => { for (const o of v[11]) if (v[10] - this.values[o][10] > 8) this.long.push([o, k]); });
    this.chosen = -1; this.k = 1; this.found = [];
    const width = this.svg.clientWidth || 600, first = this.values.find(v => !v[1].startsWith("input")) || this.values[0];
    this.x = (first ? first[9] * PX + W / 2 : 0) - width / 2; this.y = -16; this.describe(); this.draw();
  }
  scaleBy(f, e) {
    const r = this.svg.getBoundingClientRect(), px = e ? e.clientX - r.left : r.width / 2, py = e ? e.clientY - r.top : r.height / 2;
    const k = Math.min(2.5, Math.max(0.12, this.k * f)); this.x += px / this.k - px / k; this.y += py / this.k - py / k; this.k = k; this.draw();
  }
  near() { if (this.chosen < 0) return new Set(); return new Set([...this.values[this.chosen][11], ...this.users[this.chosen]]); }
  path(o, k) {
    const a = this.values[o], b = this.values[k], x1 = a[9] * PX + W / 2, y1 = a[10] * PY + H, x2 = b[9] * PX + W / 2, y2 = b[10] * PY, m = Math.min(60, Math.max(14, (y2 - y1) / 2));
    return `M${x1} ${y1}C${x1} ${y1 + m} ${x2} ${y2 - m} ${x2} ${y2}`;
  }
  draw() {
    const w = this.svg.clientWidth / this.k, h = this.svg.clientHeight / this.k, near = this.near(), made = [], edges = [];
    const r0 = Math.floor(this.y / PY) - 9, r1 = Math.ceil((this.y + h) / PY) + 9;
    const seen = [];
    for (let r = r0; r <= r1; r++) for (const k of this.byRow.get(r) || []) seen.push(k);
    const edge = (o, k, long) => { const hot = this.chosen === o || this.chosen === k; if (long && !hot) { const xa = this.values[o][9] * PX, xb = this.values[k][9] * PX; if (Math.max(xa, xb) + W < this.x || Math.min(xa, xb) > this.x + w) return; } edges.push(svgEl("path", {d: this.path(o, k), class: "edge" + (long ? " long" : "") + (hot ? " near" : "")})); };
    for (const k of seen) for (const o of this.values[k][11]) if (this.values[k][10] - this.values[o][10] <= 8) edge(o, k, false);
    for (const [o, k] of this.long) { const hot = this.chosen === o || this.chosen === k; if (hot || (this.values[o][10] <= r1 && this.values[k][10] >= r0 && this.k > 0.45 && edges.length < 4000)) edge(o, k, true); }
    for (const k of seen) {
      const v = this.values[k], x = v[9] * PX, y = v[10] * PY;
      if (x + W < this.x || x > this.x + w || y + H < this.y || y > this.y + h) continue;
      const g = svgEl("g", {class: `node ${v[8] || "whole"}${v[7] ? " result" : ""}${k === this.chosen ? " chosen" : near.has(k) ? " near" : ""}`, transform: `translate(${x} ${y})`, "data-name": v[0]});
      g.append(svgEl("rect", {width: W, height: H, rx: 4}));
      if (this.k > 0.35) {
        const a = svgEl("text", {x: 6, y: 14}), b = svgEl("text", {x: 6, y: 27, class: "sub"});
        const name = v[1].startsWith("input ") ? v[1].slice(6) : v[1].replace("aten.", "");
        a.textContent = name.length > 27 ? name.slice(0, 26) + "…" : name; b.textContent = v[3].length > 31 ? v[3].slice(0, 30) + "…" : v[3]; g.append(a, b);
      }
      g.addEventListener("mousemove", e => showTip(e, this.tipText(k))); g.addEventListener("mouseleave", hideTip);
      g.addEventListener("click", () => { if (!this.moved) this.choose(k, false); });
      made.push(g);
    }
    this.layer.replaceChildren(...edges, ...made);
    this.layer.setAttribute("transform", `scale(${this.k}) translate(${-this.x} ${-this.y})`);
  }
  tipText(k) {
    const v = this.values[k], space = {nodes: "rows of nodes", edges: "rows of edges", "": "replicated: whole on every part"}[v[8]];
    return [`%${v[0]} = ${v[1]}`, `${v[3] || "no type yet"}   ${space}`, v[4] ? `${v[4]} bytes: ${bytes(v[5])} over the whole graph` : "", v[7] ? `returned as ${v[7]}` : "", v[6]].filter(Boolean).join("\n");
  }
  choose(k, jump) {
    this.chosen = k;
    if (jump) { const v = this.values[k]; this.x = v[9] * PX + W / 2 - this.svg.clientWidth / this.k / 2; this.y = v[10] * PY - this.svg.clientHeight / this.k / 2; }
    this.describe(); this.draw();
  }
  link(k) { const a = el("a", "", "%" + this.values[k][0]); a.tabIndex = 0; a.onclick = () => this.choose(k, true); return a; }
  describe() {
    const d = this.detail; d.replaceChildren();
    if (this.chosen < 0) {
      d.append(el("div", "", `${this.program.stage}: ${this.values.length} values, ${Object.keys(this.program.edges).length} edge programs. Row sets:`));
      for (const s of this.program.spaces) d.append(el("div", "mono", s));
      return;
    }
    const v = this.values[this.chosen], head = el("div", "mono"); head.append(el("b", "", `%${v[0]}: ${v[3] || "?"} = ${v[1]}${v[1].startsWith("input") ? "" : `(${v[2]})`}`));
    d.append(head, el("div", "", `${v[4] ? `${v[4]} bytes, ${bytes(v[5])} over the whole graph. ` : ""}${v[7] ? `Returned as ${v[7]}. ` : ""}${v[6] ? "Line " : ""}`));
    if (v[6]) d.lastChild.append(el("code", "", v[6]));
    for (const [what, list] of [["reads ", v[11]], ["is read by ", this.users[this.chosen]]]) {
      if (!list.length) continue; const row = el("div", "", what);
      list.slice(0, 40).forEach((k, n) => { if (n) row.append(", "); row.append(this.link(k)); }); if (list.length > 40) row.append(` and ${list.length - 40} more`); d.append(row);
    }
    const called = /^@(\w+)/.exec(v[2]); if (v[1] === "edge_call" && called && this.program.edges[called[1]]) d.append(el("pre", "", this.program.edges[called[1]]));
  }
  find(text) {
    const t = text.trim().toLowerCase().replace(/^%/, ""); if (!t) return;
    const hits = this.values.map((v, k) => k).filter(k => [0, 1, 3, 6, 7].some(c => this.values[k][c].toLowerCase().includes(t)));
    if (!hits.length) { this.detail.replaceChildren(el("div", "", `nothing named ${text}`)); return; }
    const next = hits.find(k => k > this.chosen); this.choose(next === undefined ? hits[0] : next, true);
    this.detail.prepend(el("div", "note", `${hits.indexOf(this.chosen) + 1} of ${hits.length}; Enter goes to the next`));
  }
}

function matrices() {
  for (const m of D.matrix) {
    const box = el("div"), flat = m.bytes.flat().filter(x => x !== null), most = Math.max(1, ...flat), total = flat.reduce((a, b) => a + b, 0);
    box.append(el("h3", "", `${m.stage}: ${bytes(total)}`));
    const t = el("table", "heat"), head = el("tr"); head.append(el("th", "", "from \\ to")); m.bytes.forEach((_, q) => head.append(el("th", "", q))); head.append(el("th", "", "sum")); t.append(head);
    m.bytes.forEach((row, p) => {
      const tr = el("tr"); tr.append(el("th", "", p));
      row.forEach((n, q) => { const td = el("td", "", n === null ? "?" : p === q ? "·" : bytes(n)); if (n) { td.style.background = `rgba(31,111,178,${0.08 + 0.87 * n / most})`; td.style.color = n / most > 0.5 ? "#fff" : ""; }
        td.addEventListener("mousemove", e => showTip(e, `part ${p} sends ${n === null ? "an unknown number of" : n.toLocaleString("en")} bytes to part ${q} in the ${m.stage} pass`)); td.addEventListener("mouseleave", hideTip); tr.append(td); });
      tr.append(el("th", "", bytes(row.every(x => x === null) ? null : row.reduce((a, b) => a + (b || 0), 0)))); t.append(tr);
    });
    box.append(t); $("matrices").append(box);
  }
  const short = line => { const e = el("code", "", line.split("/").slice(-2).join("/")); e.title = line; return e; }, code = text => el("code", "", text);
  if (D.exchanges.length) $("travels").append(el("h3", "", "What travels, in the order of the step"), table(["pass", "what", "values", "a row", "how", "sent", "messages of a part", "line of the model"],
    D.exchanges.map(e => { const how = el("span", "", e.how === "whole" ? "all peers at once" : "chunk by chunk"); how.title = `predicted: all peers at once ${time(e.whole_seconds)}, chunk by chunk ${time(e.ring_seconds)}`;
      return [e.stage, e.what === "return" ? "sums returned to their owners" : "rows fetched from their owners", code(e.names.map(n => "%" + n.replace(/^%/, "")).join(", ")), bytes(e.row_bytes), how, bytes(e.sent_bytes), e.messages, short(e.line)]; }), [3, 5, 6]));
  if (D.once.length) $("travels").append(el("h3", "", "Made of data, once a feature matrix"), el("p", "note", "Not part of the step above: sent and computed in the first call, and again when the data change."),
    table(["", "values", "sent or kept"], D.once.map(e => [e.what, code(e.value), bytes(e.bytes)]), [2]));
  if (D.placements.length) $("travels").append(el("h3", "", "Where edges run whose ends two parts own"),
    el("p", "note", "At the owner of the destination (dst), of the source (src), or each edge at either (cover). Bytes sent by all parts; predicted time and bytes held on the largest part."),
    table(["pass", "edge programs", "site", "", "sent", "time", "holds", "why", "line of the model"], D.placements.map(c => [c.stage, code(c.programs), c.site, c.chosen ? "chosen" : "", c.bytes === null ? "" : bytes(c.bytes), c.seconds === null ? "" : time(c.seconds), c.memory === null ? "" : bytes(c.memory), c.why, short(c.line)]), [4, 5, 6]));
}

const KIND_COLOURS = {Launch: "#4a90c4", RunBlock: "#2f6ea5", Begin: "#9cc3e0", Combine: "#6fa8d0", PostRecv: "#a8d5ad", Send: "#7fb685", Wait: "#d9a05b", AllToAll: "#7fb685", Finish: "#d9a05b", AllReduce: "#b07cc6"};
const KIND_WORDS = {Launch: "operator", RunBlock: "block of edges", Begin: "accumulators", Combine: "combine returned folds", PostRecv: "post receive", Send: "send", Wait: "wait for a message", AllToAll: "begin an all-to-all", Finish: "wait for an all-to-all", AllReduce: "all-reduce"};
function sizeCanvas(canvas, height) { const r = devicePixelRatio || 1, w = canvas.clientWidth || canvas.parentElement.clientWidth; canvas.style.height = height + "px"; canvas.width = w * r; canvas.height = height * r; const c = canvas.getContext("2d"); c.scale(r, r); return [c, w]; }
function ticks(from, to, count) { const raw = (to - from) / count, base = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].map(x => x * base).find(x => x >= raw); const out = []; for (let t = Math.ceil(from / step) * step; t <= to; t += step) out.push(t); return out; }
function timelineOn(canvas, data) {
  const ranks = [...new Set(data.events.map(e => e[0]))].sort((a, b) => a - b), lanes = [1, 2], ROW = 17, GAP = 9, LEFT = 112, TOP = 20;
  const height = TOP + ranks.length * (2 * ROW + GAP) + 4, end = Math.max(1, ...data.events.map(e => e[3] + e[4]));
  const rows = new Map(); for (const e of data.events) { const key = ranks.indexOf(e[0]) * 2 + lanes.indexOf(e[1]); if (!rows.has(key)) rows.set(key, []); rows.get(key).push(e); }
  for (const list of rows.values()) list.sort((a, b) => a[3] - b[3]);
  let from = 0, to = end, drag = null;
  const yOf = key => TOP + (key >> 1) * (2 * ROW + GAP) + (key & 1) * ROW;
  function draw() {
    const [c, w] = sizeCanvas(canvas, height), scale = (w - LEFT - 6) / (to - from); c.font = "11px system-ui"; c.textBaseline = "middle";
    c.strokeStyle = css("--line"); c.fillStyle = css("--dim");
    for (const t of ticks(from, to, 9)) { const x = LEFT + (t - from) * scale; c.beginPath(); c.moveTo(x, TOP - 4); c.lineTo(x, height); c.stroke(); c.fillText(time(t / 1e6), x + 3, 9); }
    ranks.forEach((r, k) => { c.fillStyle = css("--ink"); c.fillText(`rank ${r} compute`, 6, yOf(2 * k) + ROW / 2); c.fillStyle = css("--dim"); c.fillText("exchange", 40, yOf(2 * k + 1) + ROW / 2); });
    for (const [key, list] of rows) { let last = -1; for (const e of list) { if (e[3] + e[4] < from || e[3] > to) continue; const x = LEFT + Math.max(0, (e[3] - from) * scale), x2 = LEFT + Math.min(w - LEFT - 6, (e[3] + e[4] - from) * scale); if (x2 < last && x2 - x < 0.4) continue; c.fillStyle = KIND_COLOURS[data.names[e[2]]]; c.fillRect(x, yOf(key) + 1, Math.max(0.6, x2 - x), ROW - 3); last = x2; } }
  }
  function at(e) {
    const r = canvas.getBoundingClientRect(), scale = (r.width - LEFT - 6) / (to - from), t = from + (e.clientX - r.left - LEFT) / scale, y = e.clientY - r.top;
    let best = null;
    for (const [key, list] of rows) if (y >= yOf(key) && y < yOf(key) + ROW) for (const v of list) if (v[3] - 1.5 / scale <= t && v[3] + v[4] + 1.5 / scale >= t && (!best || v[4] < best[4] || best[3] + best[4] < t)) best = v;
    return best;
  }
  canvas.addEventListener("mousemove", e => { if (drag) { const dt = (drag[0] - e.clientX) / (canvas.clientWidth - LEFT - 6) * (drag[2] - drag[1]); from = drag[1] + dt; to = drag[2] + dt; draw(); return; } const v = at(e); v ? showTip(e, `rank ${v[0]}: ${data.names[v[5]]}\n${time(v[4] / 1e6)}, from ${time(v[3] / 1e6)}${data.names[v[6]] ? "\n" + data.names[v[6]] : ""}`) : hideTip(); });
  canvas.addEventListener("mouseleave", hideTip);
  canvas.addEventListener("mousedown", e => { drag = [e.clientX, from, to]; }); addEventListener("mouseup", () => { drag = null; });
  canvas.addEventListener("dblclick", () => { from = 0; to = end; draw(); });
  canvas.addEventListener("wheel", e => { if (!e.ctrlKey && !e.shiftKey) return; e.preventDefault(); const r = canvas.getBoundingClientRect(), f = (e.deltaY || e.deltaX) < 0 ? 0.8 : 1.25, t = from + (e.clientX - r.left - LEFT) / (r.width - LEFT - 6) * (to - from); from = t - (t - from) * f; to = t + (to - t) * f; draw(); }, {passive: false});
  addEventListener("resize", draw); draw();
}
function timeline() {
  $("timeline-about").textContent = "Per rank what it computes and what it exchanges. Ctrl or shift + scroll zooms, drag moves, double click shows all." + (D.in_turn ? " This step ran in one process, which steps through its parts in turn: a part's waits include the other parts' work, and the parts never run at once as they do under torchrun." : "");
  for (const [k, c] of Object.entries(KIND_COLOURS)) { const s = el("span"), i = el("i"); i.style.background = c; s.append(i, KIND_WORDS[k]); $("timeline-legend").append(s); }
  timelineOn($("measured"), D.timeline);
  if (D.timeline.left_out) $("measured-note").textContent = `${D.timeline.left_out.toLocaleString("en")} shortest events are left out.`;
  if (!D.predicted) { $("predicted-block").style.display = "none"; return; }
  const r = D.rates; $("predicted-note").textContent = `By the cost model, all parts at once, at this machine's rates: ${(r.flops / 1e9).toFixed(1)} G operations/s, ${(r.nbytes / 1e9).toFixed(1)} GB/s, messages at ${(r.sent / 1e9).toFixed(1)} GB/s, and at least the time that the fastest tenth of the measured instructions of a kind took (operator ${time(D.predicted.least.Launch || 0)}, block ${time(D.predicted.least.RunBlock || 0)}, send ${time(D.predicted.least.Send || 0)}).` + (D.predicted.left_out ? ` ${D.predicted.left_out.toLocaleString("en")} shortest events are left out.` : "");
  timelineOn($("predicted"), D.predicted);
}

function memory() {
  if (!D.memory.length) { $("memory").style.display = "none"; return; }
  const ranks = [...new Set(D.memory.map(m => m.rank))], stages = [...new Set(D.memory.map(m => m.stage))], canvas = $("memory-curve"), H2 = 240, LEFT = 78, TOP = 10, BOTTOM = 24;
  const most = Math.max(...D.memory.map(m => m.peak)), longest = stages.map(s => Math.max(1, ...D.memory.filter(m => m.stage === s).map(m => m.points.length ? m.points[m.points.length - 1][0] : 1))), sum = longest.reduce((a, b) => a + b, 0);
  let chosen = D.memory.reduce((a, m) => m.peak > a.peak ? m : a).rank;
  const xOf = (m, place, w) => { const s = stages.indexOf(m.stage), before = longest.slice(0, s).reduce((a, b) => a + b, 0); return LEFT + (before + place) / sum * (w - LEFT - 10); };
  const yOf = n => TOP + (1 - n / (most * 1.05)) * (H2 - TOP - BOTTOM);
  function draw() {
    const [c, w] = sizeCanvas(canvas, H2); c.font = "11px system-ui"; c.textBaseline = "middle";
    for (const t of ticks(0, most * 1.05, 5)) { c.strokeStyle = css("--line"); c.beginPath(); c.moveTo(LEFT, yOf(t)); c.lineTo(w - 10, yOf(t)); c.stroke(); c.fillStyle = css("--dim"); c.fillText(bytes(Math.round(t)), 6, yOf(t)); }
    stages.forEach((s, k) => { const x = xOf({stage: s}, 0, w); c.strokeStyle = css("--dim"); c.beginPath(); c.moveTo(x, TOP); c.lineTo(x, H2 - BOTTOM); c.stroke(); c.fillStyle = css("--ink"); c.fillText(`${s} pass: ${longest[k] + 1} instructions`, x + 5, H2 - 10); });
    for (const m of [...D.memory].sort((a, b) => (a.rank === chosen) - (b.rank === chosen))) {
      c.strokeStyle = RANK_COLOURS[m.rank % 10]; c.lineWidth = m.rank === chosen ? 2.4 : 1; c.globalAlpha = m.rank === chosen ? 1 : 0.55; c.beginPath();
      m.points.forEach(([k, n], i) => { const x = xOf(m, k, w), y = yOf(n); i ? (c.lineTo(x, yOf(m.points[i - 1][1])), c.lineTo(x, y)) : c.moveTo(x, y); }); c.stroke(); c.globalAlpha = 1; c.lineWidth = 1;
      if (m.rank === chosen) { c.fillStyle = RANK_COLOURS[m.rank % 10]; c.beginPath(); c.arc(xOf(m, m.at, w), yOf(m.peak), 4.5, 0, 7); c.fill(); }
    }
  }
  function peak() {
    $("peak").replaceChildren();
    const cols = el("div", "columns");
    for (const m of D.memory.filter(m => m.rank === chosen)) {
      const box = el("div"); box.append(el("h3", "", `Part ${m.rank}, ${m.stage}: ${bytes(m.peak)} at the peak`)); const after = el("p", "note", "after "); after.append(el("code", "", m.instruction)); if (m.line) after.append("  ", el("code", "", m.line)); box.append(after);
      const rows = m.alive.map(([n, cat, size, line]) => { const dot = el("span", "bar"); dot.style.cssText = `width:11px;height:11px;background:${CATEGORY_COLOURS[cat]}`; const name = el("code", "", "%" + n); name.title = line; return [dot, name, cat, bytes(size), percent(size / m.peak)]; });
      if (m.rest[0]) rows.push(["", `${m.rest[0]} smaller values`, "", bytes(m.rest[1]), percent(m.rest[1] / m.peak)]);
      const scroll = el("div", "scroll"); scroll.append(table(["", "alive", "category", "bytes", "share"], rows, [3, 4])); box.append(scroll); cols.append(box);
    }
    $("peak").append(cols);
  }
  for (const r of ranks) { const b = el("button", r === chosen ? "on" : "", `part ${r}`); b.style.borderLeft = `10px solid ${RANK_COLOURS[r % 10]}`; b.onclick = () => { chosen = r; [...$("memory-legend").children].forEach(x => x.classList.toggle("on", x === b)); draw(); peak(); }; $("memory-legend").append(b); }
  canvas.addEventListener("mousemove", e => {
    const r = canvas.getBoundingClientRect(), x = e.clientX - r.left; let best = null;
    for (const m of D.memory.filter(m => m.rank === chosen)) for (const [k, n] of m.points) { const d = Math.abs(xOf(m, k, r.width) - x); if (!best || d < best[0]) best = [d, m, k, n]; }
    if (best) showTip(e, `part ${chosen}, ${best[1].stage}, instruction ${best[2]}: ${bytes(best[3])}`);
  });
  canvas.addEventListener("mouseleave", hideTip); addEventListener("resize", draw); draw(); peak();
  if (D.planned.length) $("planned").append(el("h3", "", "Predicted and measured"), el("p", "note", "What the memory plan says a step needs on a part, before it runs, and the most that was alive in it."),
    table(["part", ...Object.keys(D.planned[0].groups), "predicted", "measured"], D.planned.map(p => [p.rank, ...Object.values(p.groups).map(bytes), bytes(p.total), p.measured === null ? "" : bytes(p.measured)]), Object.keys(D.planned[0].groups).map((_, k) => k + 1).concat([6, 7])));
  if (D.saved.length) $("planned").append(el("h3", "", "Kept between the passes, all parts"), table(["value", "type", "bytes"], D.saved.map(([n, type, size]) => [el("code", "", "%" + n), el("code", "", type), bytes(size)]), [2]));
}

function kernels() {
  const most = Math.max(1e-12, ...D.kernels.map(k => k.share)), head = el("div", "note", "name, time of all its calls, share of the computing time, calls");
  $("kernel-list").append(head);
  for (const k of D.kernels) {
    const box = el("details", "kernel"), top = el("summary"), bar = el("span", "bar"); bar.style.width = Math.max(1, 260 * k.share / most) + "px";
    const name = el("code", "", k.name + (k.names.length > 1 ? ` and ${k.names.length - 1} more` : "")); name.title = k["runs as"];
    top.append(name, el("span", "n", time(k.seconds)), el("span", "n", percent(k.share)), el("span", "n", `${k.calls} ×`), bar); box.append(top);
    box.addEventListener("toggle", () => {
      if (!box.open || box.children.length > 1) return;
      box.append(el("p", "note", k["runs as"]));
      if (k.names.length) box.append(el("pre", "", k.names.join("\n")));
      if (k.program) box.append(el("h3", "", "Edge program"), el("pre", "", k.program));
      if (k.source) box.append(el("h3", "", k.language), el("pre", "", k.source));
    });
    $("kernel-list").append(box);
  }
}

summary();
window.graphs = [new Graph($("before"), "raised"), new Graph($("after"), "partitioned forward")];
matrices(); timeline(); memory(); kernels();
document.documentElement.dataset.ready = Math.round(performance.now());
