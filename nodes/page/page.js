// The status page of rac-cloud and rac-node: asks for status.json and shows it. What comes from there is only ever set
// as text, never as markup, so a name is harmless whatever it holds.
"use strict";

const POLL_MS = 2000;
const HIDDEN_POLL_MS = 15000;
const REQUEST_MS = 8000;
const OLD_S = 6;
const SVG = "http://www.w3.org/2000/svg";
const NONE = "\u2013";
const RANK = ["down", "silent", "dropping", "waiting", "ok", "ended"];

const at = (id) => document.getElementById(id);
const state = { status: null, received: 0, failed: false, sort: "state", descending: false };

// --- numbers for people ---

function number(value, digits = 1) {
  if (value === null || value === undefined) return NONE;
  const shown = value >= 100 ? 0 : digits;
  return value.toLocaleString("en", { minimumFractionDigits: shown, maximumFractionDigits: shown });
}

function bytes(value) {
  if (value === null || value === undefined) return NONE;
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let place = 0;
  while (value >= 999.5 && place < units.length - 1) { value /= 1000; place += 1; }
  return `${number(value, value < 10 && place > 0 ? 1 : 0)} ${units[place]}`;
}

function share(value) {
  if (value === null || value === undefined) return NONE;
  return `${(100 * value).toLocaleString("en", { maximumFractionDigits: value < 0.1 ? 1 : 0 })} %`;
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  const whole = Math.round(seconds);
  if (whole < 100) return `${whole} s`;
  if (whole < 6000) return `${Math.round(whole / 60)} min`;
  if (whole < 48 * 3600) return `${Math.floor(whole / 3600)} h ${Math.round((whole % 3600) / 60)} min`;
  return `${Math.round(whole / 86400)} days`;
}

// The moment by this browser's clock, once a duration alone is hard to place.
function since(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 100) return `for ${duration(seconds)}`;
  const moment = new Date(Date.now() - 1000 * seconds);
  const day = seconds > 20 * 3600 ? { day: "numeric", month: "short" } : {};
  const clock = moment.toLocaleString([], { hour: "2-digit", minute: "2-digit", hour12: false, ...day });
  return `for ${duration(seconds)}, since ${clock}`;
}

function counts(reasons) {
  return Object.entries(reasons).map(([reason, count]) => `${reason.replaceAll("_", " ")} ${number(count, 0)}`).join(", ");
}

// --- elements ---

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Runs of known values as [x, y] in a box of so many steps and height 10; the newest is at the right.
function runs(values, steps, top) {
  const found = [];
  let run = [];
  values.forEach((value, index) => {
    if (value === null) { if (run.length) found.push(run); run = []; return; }
    run.push([steps - values.length + index, 10 - 9.5 * (top > 0 ? value / top : 0)]);
  });
  if (run.length) found.push(run);
  return found;
}

function curve(values, steps) {
  const top = Math.max(0, ...values.filter((value) => value !== null));
  const svg = shape("svg", { viewBox: `0 0 ${steps - 1} 10.5`, preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(shape("line", { class: "base", x1: 0, y1: 10.2, x2: steps - 1, y2: 10.2 }));
  for (const run of runs(values, steps, top)) {
    const points = run.map(([x, y]) => `${x},${y.toFixed(2)}`).join(" ");
    const last = run[run.length - 1];
    svg.append(shape("polygon", { class: "area", points: `${run[0][0]},10.2 ${points} ${last[0]},10.2` }));
    svg.append(shape("polyline", { class: "curve", points: run.length > 1 ? points : `${points} ${last[0] + 0.5},${last[1]}` }));
  }
  return [svg, top];
}

function chart(id, values, unit) {
  const known = values.filter((value) => value !== null);
  const box = at(id);
  const [svg, top] = curve(values, 60);
  const minutes = Math.round((60 * state.status.step_s) / 60);
  const legend = element("p");
  legend.append(element("span", `${minutes} min`), element("span", known.length ? `max ${number(top)}${unit}` : "no values yet"));
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", known.length
    ? `last ${minutes} minutes: from ${number(Math.min(...known))} to ${number(top)}${unit}` : "no values yet");
  box.replaceChildren(svg, legend);
}

// --- tables: rows stay where they are while only their values change, so that focus and selection survive ---

const COLUMNS = [
  { key: "camera", heading: "Camera", value: (row) => `${row.node}/${row.camera}` },
  { key: "state", heading: "State", value: (row) => RANK.indexOf(row.state) },
  { key: "class", heading: "Class", value: (row) => row.class },
  { key: "fps", heading: "Results/s", value: (row) => row.fps, number: true },
  { key: "depth", heading: "Depth", value: (row) => row.depth, number: true },
  { key: "kbps", heading: "kbit/s", value: (row) => row.kbps, number: true },
  { key: "latency", heading: "Latency", value: (row) => row.latency_ms, number: true },
  { key: "dropped", heading: "Dropped", value: (row) => row.dropped_share, number: true },
  { key: "traffic", heading: "Traffic", value: (row) => row.bytes_per_hour, number: true },
];
const WORKER_COLUMNS = [
  { key: "slot", heading: "Worker" },
  { key: "state", heading: "State" },
  { key: "busy", heading: "Busy", number: true },
  { key: "fps", heading: "Frames/s", number: true },
  { key: "memory", heading: "Memory", number: true },
  { key: "losses", heading: "Restarts", number: true },
];

function cellTexts(row, isNode, hours) {
  const month = row.bytes_per_hour === null ? null : row.bytes_per_hour * hours;
  const agreement = row.references ? `agrees ${share(row.agreement)} of ${number(row.references, 0)}` : "";
  return {
    camera: [isNode ? row.camera : `${row.node} / ${row.camera}`, row.why],
    state: [row.state, since(row.since_s)],
    class: [row.class === null ? NONE : `${row.class.replaceAll("_", " ")} ${share(row.probability)}`, agreement],
    fps: [number(row.fps), ""],
    depth: [number(row.depth, 0), row.level === null ? "" : `level ${row.level}`],
    kbps: [number(row.kbps), ""],
    latency: [row.latency_ms === null ? NONE : `${number(row.latency_ms, 0)} ms`, ""],
    dropped: [share(row.dropped_share), counts(row.dropped)],
    traffic: [month === null ? NONE : `${bytes(month)}/month`, row.bytes_per_hour === null ? "" : `${bytes(row.bytes_per_hour)}/hour`],
  };
}

function makeHead(table, columns, sortable) {
  const tr = table.tHead.rows[0];
  for (const column of columns) {
    const th = element("th", sortable ? undefined : column.heading, column.number ? "number" : "");
    th.scope = "col";
    th.setAttribute("role", "columnheader");
    if (sortable) {
      const button = element("button", column.heading);
      button.type = "button";
      button.addEventListener("click", () => sortBy(column.key));
      th.append(button);
    }
    tr.append(th);
  }
}

function makeRow(columns) {
  const tr = element("tr");
  tr.setAttribute("role", "row");
  tr.cellsByKey = {};
  columns.forEach((column, index) => {
    const cell = element(index === 0 ? "th" : "td", undefined, column.number ? "number" : "");
    cell.setAttribute("role", index === 0 ? "rowheader" : "cell");
    if (index === 0) cell.scope = "row";
    cell.dataset.heading = column.heading;
    const box = element("span");
    const picture = element("span", undefined, "spark");
    const main = element("span");
    const small = element("small");
    box.append(picture, main, small);
    cell.append(box);
    tr.cellsByKey[column.key] = { picture, main, small };
    tr.append(cell);
  });
  return tr;
}

function fillRow(tr, texts) {
  for (const [key, [main, small]] of Object.entries(texts)) {
    const cell = tr.cellsByKey[key];
    set(cell.main, main);
    set(cell.small, small);
    cell.small.hidden = small === "";
  }
}

const rowsById = { cameras: new Map(), workers: new Map() };

function showRows(table, columns, entries, fill) {
  const known = rowsById[table.id];
  const body = table.tBodies[0];
  const wanted = new Set(entries.map((entry) => entry.id));
  for (const [id, tr] of known) if (!wanted.has(id)) { tr.remove(); known.delete(id); }
  entries.forEach((entry, index) => {
    let tr = known.get(entry.id);
    if (!tr) { tr = makeRow(columns); known.set(entry.id, tr); }
    fill(tr, entry.row);
    if (body.rows[index] !== tr) body.insertBefore(tr, body.rows[index] || null);
  });
}

function compare(first, second) {
  const column = COLUMNS.find((each) => each.key === state.sort);
  const [a, b] = [column.value(first), column.value(second)];
  if (a !== b) {
    if (a === null || a === undefined) return 1;  // what is not known goes last, either way round
    if (b === null || b === undefined) return -1;
    const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
    if (order) return state.descending ? -order : order;
  }
  return RANK.indexOf(first.state) - RANK.indexOf(second.state)
    || (second.dropped_share || 0) - (first.dropped_share || 0)
    || `${first.node}/${first.camera}`.localeCompare(`${second.node}/${second.camera}`, "en", { numeric: true });
}

function sortBy(key) {
  const column = COLUMNS.find((each) => each.key === key);
  // Numbers begin with the largest, names and states (worst first) with the first.
  state.descending = key === state.sort ? !state.descending : Boolean(column.number);
  state.sort = key;
  if (state.status) show();
}

function showSort() {
  COLUMNS.forEach((column, index) => {
    const th = at("cameras").tHead.rows[0].cells[index];
    if (column.key === state.sort) th.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
    else th.removeAttribute("aria-sort");
  });
  at("sort").value = state.sort;
}

// --- the page ---

function show() {
  const status = state.status;
  const isNode = status.program === "rac-node";
  const totals = status.totals;
  document.title = `${totals.bad ? `(${totals.bad}) ` : ""}${status.name} ${NONE} ${status.program}`;
  set(at("title"), `${status.program} ${status.name}`);
  set(at("subtitle"), `${status.version}, up ${duration(status.uptime_s)}, bundle ${status.bundles}`);
  set(at("cameras-figure"), totals.bad ? `${totals.bad} bad of ${totals.cameras}` : `${totals.cameras}`);
  at("cameras-figure").classList.toggle("bad", totals.bad > 0);
  set(at("cameras-note"), totals.bad ? "the worst first below" : totals.cameras ? "none is bad" : "");
  set(at("fps-figure"), number(totals.fps));
  set(at("kbps-figure"), number(totals.kbps));
  set(at("latency-figure"), totals.latency_ms === null ? NONE : `${number(totals.latency_ms, 0)} ms`);
  set(at("dropped-figure"), share(totals.dropped_share));
  const hour = totals.bytes_per_hour;
  set(at("cost-figure"), hour === null ? NONE : bytes(hour * status.hours_per_month));
  set(at("cost-note"), hour === null ? "" : `${bytes(hour)} an hour; ${status.wire_note}`);
  chart("fps-chart", status.series.fps, "/s");
  chart("kbps-chart", status.series.kbps, "");
  chart("latency-chart", status.series.latency_ms, " ms");
  chart("dropped-chart", status.series.dropped, "/s");
  showCameras(status, isNode);
  showWorkers(status.workers || []);
  showFacts(status.facts);
  showSort();
}

function showCameras(status, isNode) {
  const wanted = at("filter").value.trim().toLowerCase();
  const onlyBad = at("only-bad").checked;
  const rows = status.cameras
    .filter((row) => !onlyBad || ["down", "silent", "dropping"].includes(row.state))
    .filter((row) => `${row.node}/${row.camera} ${row.state} ${row.class || ""}`.toLowerCase().includes(wanted))
    .sort(compare);
  const empty = at("no-cameras");
  empty.hidden = rows.length > 0;
  at("cameras").hidden = rows.length === 0;
  if (status.cameras.length === 0) set(empty, `No camera yet. ${status.hint}`);
  else if (onlyBad && !wanted) set(empty, "No camera is bad.");
  else set(empty, "No camera fits what is asked for above.");
  const entries = rows.map((row) => ({ id: JSON.stringify([row.node, row.camera]), row }));
  showRows(at("cameras"), COLUMNS, entries, (tr, row) => {
    fillRow(tr, cellTexts(row, isNode, status.hours_per_month));
    tr.cellsByKey.state.main.className = `state ${RANK.includes(row.state) ? row.state : ""}`;
    tr.cellsByKey.fps.picture.replaceChildren(curve(row.series, 60)[0]);
  });
  at("left-out").hidden = !status.left_out;
  set(at("left-out"), `${status.left_out} more cameras are left out: metrics.max_cameras.`);
}

function showWorkers(workers) {
  at("workers-section").hidden = workers.length === 0;
  const entries = workers.map((row) => ({ id: row.slot, row }));
  showRows(at("workers"), WORKER_COLUMNS, entries, (tr, row) => {
    fillRow(tr, {
      slot: [`${row.slot}`, ""],
      state: [row.state, row.state === "ready" || (row.state === "busy" && row.since_s < 2) ? "" : since(row.since_s)],
      busy: [share(row.busy_share), ""],
      fps: [number(row.fps), ""],
      memory: [bytes(row.memory_bytes), ""],
      losses: [number(row.losses, 0), ""],
    });
    const known = ["ready", "busy"].includes(row.state) ? "ok" : row.state;
    tr.cellsByKey.state.main.className = `state ${["ok", "dead", "starting"].includes(known) ? known : ""}`;
  });
}

function showFacts(facts) {
  const list = at("facts");
  const names = Object.keys(facts);
  if (names.join("\n") !== [...list.querySelectorAll("dt")].map((dt) => dt.textContent).join("\n")) {
    list.replaceChildren(...names.map((name) => {
      const pair = element("div");
      pair.append(element("dt", name), element("dd"));
      return pair;
    }));
  }
  names.forEach((name, index) => set(list.children[index].lastChild, facts[name]));
}

// What is shown is as old as its document was, and the time since that came.
function showConnection() {
  const banner = at("connection");
  const status = state.status;
  if (!status) {
    set(banner, state.failed ? "No connection to the program; trying again." : "Loading.");
    banner.hidden = false;
    banner.classList.toggle("bad", state.failed);
    return;
  }
  const age = (status.age_s || 0) + (performance.now() - state.received) / 1000;
  const isOld = state.failed || age > (document.hidden ? 2 * HIDDEN_POLL_MS / 1000 : OLD_S);
  document.body.classList.toggle("old", isOld);
  banner.hidden = !isOld;
  banner.classList.toggle("bad", isOld);
  const what = state.failed ? "Connection lost; trying again." : "The program answers with old values.";
  set(banner, isOld ? `${what} The data is ${duration(age)} old.` : "");
  const trouble = isOld && state.failed ? [] : status.trouble;
  const list = at("trouble");
  list.hidden = trouble.length === 0;
  if (list.dataset.shown !== JSON.stringify(trouble)) {
    list.dataset.shown = JSON.stringify(trouble);
    list.replaceChildren(...trouble.map((text) => element("li", text)));
  }
}

async function ask() {
  try {
    const answer = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(REQUEST_MS) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const status = await answer.json();
    state.failed = false;
    if (status.cameras) {
      state.status = status;
      state.received = performance.now();
      at("content").hidden = false;
      show();
    } else {
      set(at("connection"), "The program is starting.");
      return;
    }
  } catch (error) {
    state.failed = true;
  } finally {
    setTimeout(ask, document.hidden ? HIDDEN_POLL_MS : POLL_MS);
  }
  showConnection();
}

function begin() {
  makeHead(at("cameras"), COLUMNS, true);
  makeHead(at("workers"), WORKER_COLUMNS, false);
  for (const column of COLUMNS) {
    const option = element("option", column.heading);
    option.value = column.key;
    at("sort").append(option);
  }
  at("sort").addEventListener("change", () => { state.sort = ""; sortBy(at("sort").value); });
  for (const id of ["filter", "only-bad"]) at(id).addEventListener("input", () => { if (state.status) show(); });
  setInterval(showConnection, 1000);
  ask();
}

begin();
