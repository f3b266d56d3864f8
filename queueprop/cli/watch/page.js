// Whatever a span holds is input: it only ever becomes text of a node, or a number. Nothing here writes HTML.
"use strict";

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

/** An element with a class, and children that are elements or text. */
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function makeSvg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const state = { overview: null, tab: "traces", query: "", found: null, selected: "", trace: null, open: new Set() };

// What is shown as text

function duration(nanoseconds) {
  if (nanoseconds < 1e6) return `${(nanoseconds / 1e3).toFixed(0)} µs`;
  if (nanoseconds < 1e9) return `${(nanoseconds / 1e6).toFixed(nanoseconds < 1e7 ? 2 : 1)} ms`;
  return `${(nanoseconds / 1e9).toFixed(2)} s`;
}

function time(moment) {
  const date = new Date(moment);
  const pad = (number, length) => String(number).padStart(length, "0");
  return `${pad(date.getHours(), 2)}:${pad(date.getMinutes(), 2)}:${pad(date.getSeconds(), 2)}.${pad(date.getMilliseconds(), 3)}`;
}

const number = (value) => value.toLocaleString("en");
const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

/** A service has the same colour wherever it stands, and none is near the red of what is broken. */
function hue(service) {
  let hash = 0;
  for (const character of service) hash = (hash * 31 + character.codePointAt(0)) >>> 0;
  return 30 + ((hash * 137.508) % 300);
}

function serviceChip(service) {
  const chip = make("span", "service", service || "(unnamed)");
  chip.style.setProperty("--hue", hue(service));
  return chip;
}

// Counts, notices

function drawCounts(overview) {
  const count = (value, label, className = "") => make("span", `count ${className}`, make("b", "", number(value)), ` ${label}`);
  byId("counts").replaceChildren(
    count(overview.received, overview.received === 1 ? "span" : "spans"),
    count(overview.kept.traces, overview.kept.traces === 1 ? "trace" : "traces"),
    count(overview.orphaned, overview.orphaned === 1 ? "orphan" : "orphans", overview.orphaned ? "bad" : "good"),
  );
  const notices = [];
  if (overview.evicted) notices.push(`${plural(overview.evicted, "older trace")} no longer kept.`);
  if (overview.refused) notices.push(`${plural(overview.refused, "request")} refused.`);
  if (overview.rejected) notices.push(`${plural(overview.rejected, "span")} rejected.`);
  if (overview.forward && overview.forward.dropped) notices.push(`${plural(overview.forward.dropped, "span")} not handed on.`);
  if (overview.forward && overview.forward.failure) notices.push(overview.forward.failure);
  byId("notice").textContent = notices.join(" ");
  byId("notice").hidden = notices.length === 0;
}

// The flow

function drawFlow(flow, endpoint) {
  if (!flow.nodes.length) {
    byId("flow").replaceChildren(
      make("p", "empty", "Nothing has come yet. Point a program here, in any language:"),
      make("pre", "", `OTEL_EXPORTER_OTLP_ENDPOINT=${endpoint}\nOTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf`),
    );
    return;
  }
  const arrow = (id) => makeSvg(
    "marker",
    { id, viewBox: "0 0 10 10", refX: 9, refY: 5, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse", class: id },
    makeSvg("path", { d: "M0,0 L10,5 L0,10 z" }),
  );
  const picture = makeSvg("svg", {
    viewBox: `0 0 ${flow.width} ${flow.height}`, width: flow.width, height: flow.height, role: "img",
    "aria-label": "What flows between services and queues",
  });
  picture.append(makeSvg("defs", {}, arrow("arrow"), arrow("arrow-bad")));
  for (const edge of flow.edges) {
    const bad = edge.orphans > 0;
    const label = bad ? `${number(edge.count)}, ${plural(edge.orphans, "orphan")}` : number(edge.count);
    picture.append(
      makeSvg("path", { d: edge.path, class: bad ? "edge bad" : "edge", "marker-end": `url(#${bad ? "arrow-bad" : "arrow"})` }),
      makeSvg("text", { x: edge.x, y: edge.y, class: bad ? "label bad" : "label" }, label),
    );
  }
  for (const node of flow.nodes) picture.append(flowNode(node));
  byId("flow").replaceChildren(picture, ...(flow.left_out ? [make("p", "empty", `${flow.left_out} more are not shown.`)] : []));
}

function flowNode(node) {
  const group = makeSvg("g", { class: `node ${node.kind}` });
  const radius = node.kind === "queue" ? node.height / 2 : 8;
  group.append(makeSvg("rect", { x: node.x, y: node.y, width: node.width, height: node.height, rx: radius }));
  if (node.kind === "service") group.style.setProperty("--hue", hue(node.name));
  const short = node.name.length > 23 ? `${node.name.slice(0, 22)}…` : node.name;
  const [x, y] = [node.x + node.width / 2, node.y + node.height / 2];
  group.append(makeSvg("text", { x, y: node.system ? y - 1 : y + 5 }, short), makeSvg("title", {}, node.name));
  if (node.system) group.append(makeSvg("text", { x, y: y + 14, class: "system" }, node.system));
  return group;
}

// Destinations

function drawDestinations(destinations) {
  if (!destinations.length) {
    byId("destinations").replaceChildren(make("p", "empty", "No message yet."));
    return;
  }
  const head = ["destination", "published", "deliveries", "orphans"].map((title) => make("th", "", title));
  const rows = destinations.map((it) => {
    const reasons = Object.entries(it.orphans);
    const orphans = make("td", reasons.length ? "bad" : "good");
    orphans.append(...(reasons.length ? reasons.map(([reason, count]) => make("div", "", `${number(count)} ${reason}`)) : ["0"]));
    // The metric counts what was not sampled, too; what the spans tell as well is not said twice.
    const told = Object.entries(it.counted).filter(([reason, count]) => count !== it.orphans[reason]);
    if (told.length) orphans.append(make("small", "", `by its metric: ${told.map(([reason, count]) => `${number(count)} ${reason}`).join(", ")}`));
    return make("tr", "",
      make("td", "name", it.name, make("small", "", it.system)),
      make("td", "figure", number(it.published)), make("td", "figure", number(it.deliveries)), orphans);
  });
  byId("destinations").replaceChildren(make("table", "", make("thead", "", make("tr", "", ...head)), make("tbody", "", ...rows)));
}

// The lists

function drawList() {
  const overview = state.overview;
  if (!overview) return;
  byId("tab-traces").setAttribute("aria-selected", String(state.tab === "traces"));
  byId("tab-orphans").setAttribute("aria-selected", String(state.tab === "orphans"));
  byId("tab-orphans").replaceChildren("Orphans", overview.orphaned ? make("span", "badge bad", number(overview.orphaned)) : "");
  byId("list").setAttribute("aria-labelledby", `tab-${state.tab}`);
  const rows = state.tab === "orphans"
    ? overview.orphans.filter((it) => it.trace_id.includes(state.query)).map(orphanRow)
    : (state.found || overview.traces).map(traceRow);
  if (!rows.length) rows.push(make("p", "empty", state.query ? "No trace has this in its id." : state.tab === "orphans" ? "No orphan: every delivery is in its message's trace." : "No trace yet."));
  const top = byId("list").scrollTop;
  const focused = byId("list").contains(document.activeElement) ? document.activeElement.dataset.trace : null;
  byId("list").replaceChildren(...rows);
  byId("list").scrollTop = top;
  const again = focused && rows.find((it) => it.dataset.trace === focused);
  if (again) again.focus({ preventScroll: true });
}

function row(traceId, className, ...children) {
  const button = make("button", `row ${className} ${traceId === state.selected ? "selected" : ""}`, ...children);
  button.dataset.trace = traceId;
  return button;
}

function traceRow(trace) {
  return row(trace.trace_id, trace.orphans ? "bad" : "",
    make("span", "line",
      make("span", "title", trace.name),
      trace.orphans ? make("span", "badge bad", plural(trace.orphans, "orphan")) : null,
      trace.errors ? make("span", "badge error", plural(trace.errors, "error")) : null,
      make("span", "aside", `${plural(trace.spans, "span")}, ${duration(trace.duration)}`)),
    make("span", "line small",
      make("code", "", trace.trace_id.slice(0, 8)), make("span", "moment", time(trace.start)),
      ...trace.services.map(serviceChip)));
}

function orphanRow(orphan) {
  return row(orphan.trace_id, "bad",
    make("span", "line", make("span", "title", orphan.name), make("span", "badge bad", orphan.reason)),
    make("span", "line small",
      make("code", "", orphan.trace_id.slice(0, 8)), make("span", "moment", time(orphan.start)), serviceChip(orphan.service),
      make("span", "aside", `from ${orphan.destination}`)));
}

// The waterfall

const WHY = {
  "no context": "Its message had no trace context: the producer is not instrumented, or what is between them has dropped the headers.",
  "malformed context": "Its message had a trace context that cannot be read.",
  untrusted: "Its message came from a source that Settings(trust=...) does not trust: it is linked only.",
  "parent never seen": "The span that published the message has not come: its program exports nowhere, elsewhere, or it did not sample.",
  "outside of its message's trace": "It is the child of a span that was current where the message was handled, and not of the message's.",
};

function drawTrace() {
  const trace = state.trace;
  if (!trace) {
    byId("trace").replaceChildren(make("p", "empty", state.selected ? "This trace is not there, or is no longer kept." : "Choose a trace."));
    return;
  }
  const head = make("div", "facts", make("code", "id", trace.trace_id),
    make("span", "", plural(trace.rows.length + trace.left_out, "span")), make("span", "", duration(trace.duration)), make("span", "", time(trace.start)));
  const ruler = make("div", "ruler");
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    const tick = make("span", part === 1 ? "last" : "", duration(trace.duration * part));
    tick.style.left = `${part * 100}%`;
    ruler.append(tick);
  }
  const above = []; // the service of each level
  const rows = trace.rows.flatMap((span) => {
    const isNew = span.depth === 0 || above[span.depth - 1] !== span.service;
    above[span.depth] = span.service;
    return spanRows(span, trace.duration || 1, isNew);
  });
  byId("trace").replaceChildren(head, make("div", "waterfall", make("div", "span head", make("span", "what", "span"), ruler), ...rows),
    trace.left_out ? make("p", "empty", `${plural(trace.left_out, "more span")} not shown.`) : "");
}

function spanRows(span, whole, isOfAnother) {
  const what = make("span", "what", make("span", `kind ${span.kind.toLowerCase()}`, span.kind), make("span", "title", span.name));
  what.style.paddingLeft = `${0.6 + Math.min(span.depth, 20) * 1.1}rem`;
  what.title = span.name;
  if (isOfAnother && !span.orphan) what.append(serviceChip(span.service));
  if (span.orphan) what.append(make("span", "badge bad", span.orphan));
  else if (span.unseen_parent) what.append(make("span", "badge", "parent not here"));
  const bar = make("span", "bar");
  bar.style.left = `${(span.offset / whole) * 100}%`;
  bar.style.width = `max(3px, ${Math.min(span.duration / whole, 1) * 100}%)`;
  bar.style.setProperty("--hue", hue(span.service));
  const label = make("span", "took", duration(span.duration));
  const [start, end] = [span.offset / whole, Math.min((span.offset + span.duration) / whole, 1)];
  if (end < 0.85) label.style.left = `${end * 100}%`;
  else if (start > 0.15) label.style.right = `${(1 - start) * 100}%`;
  else {
    label.className = "took inside";
    label.style.right = `${(1 - end) * 100}%`;
  }
  const line = make("button", `span ${span.orphan ? "bad" : ""} ${span.status === "ERROR" ? "failed" : ""}`, what, make("span", "lane", bar, label));
  line.dataset.span = span.span_id;
  line.setAttribute("aria-expanded", String(state.open.has(span.span_id)));
  return state.open.has(span.span_id) ? [line, details(span)] : [line];
}

function details(span) {
  const box = make("div", "details");
  if (span.orphan) box.append(make("p", "bad", `Orphan, ${span.orphan}. ${WHY[span.orphan] || ""}`));
  if (span.status === "ERROR") box.append(make("p", "bad", `ERROR ${span.status_description}`));
  if (span.unseen_parent) box.append(make("p", "", `Its parent ${span.unseen_parent} is not here.`));
  for (const link of span.links) {
    const button = make("button", "link", `${link.name || `span ${link.span_id}`} in trace ${link.trace_id.slice(0, 8)}`);
    button.dataset.trace = link.trace_id;
    box.append(make("p", "", "↳ link to ", button, link.is_parent ? " (its parent)" : ""));
  }
  const table = (pairs) => make("dl", "", ...Object.entries(pairs).flatMap(([key, value]) => [make("dt", "", key), make("dd", "", value)]));
  const facts = { "span id": span.span_id, service: span.service, ...(span.pid ? { "process id": span.pid } : {}) };
  box.append(table(facts), make("h3", "", "Attributes"), table(span.attributes), make("h3", "", "Resource"), table(span.resource));
  return box;
}

// What is done

let asked = 0;

async function fetched(path) {
  const response = await fetch(path);
  return response.ok ? response.json() : null;
}

async function loadTrace() {
  const turn = ++asked;
  const trace = state.selected ? await fetched(`/api/traces/${encodeURIComponent(state.selected)}`) : null;
  if (turn !== asked) return; // another one has been chosen meanwhile
  state.trace = trace;
  drawTrace();
}

function select(traceId) {
  if (traceId !== state.selected) state.open.clear();
  state.selected = traceId;
  if (location.hash.slice(1) !== traceId) history.replaceState(null, "", `#${traceId}`);
  drawList();
  loadTrace();
}

async function search() {
  const query = state.query;
  const found = query ? await fetched(`/api/traces?q=${encodeURIComponent(query)}`) : null;
  if (query !== state.query) return;
  state.found = found;
  drawList();
}

function update(overview) {
  const before = state.overview;
  state.overview = overview;
  drawCounts(overview);
  if (!before || JSON.stringify(before.flow) !== JSON.stringify(overview.flow)) drawFlow(overview.flow, overview.endpoint);
  drawDestinations(overview.destinations);
  if (state.query) search();
  else drawList();
  const shown = overview.traces.find((it) => it.trace_id === state.selected);
  const spans = state.trace ? state.trace.rows.length + state.trace.left_out : -1;
  const orphans = state.trace ? state.trace.rows.filter((it) => it.orphan).length : -1;
  if (shown && (shown.spans !== spans || shown.orphans !== orphans)) loadTrace();
}

// Not the click alone: a row that is drawn anew between the button's going down and up would get none.
for (const kind of ["mousedown", "click"]) {
  byId("list").addEventListener(kind, (event) => {
    const chosen = event.target.closest("[data-trace]");
    if (chosen && event.button === 0 && !(kind === "click" && chosen.dataset.trace === state.selected)) select(chosen.dataset.trace);
  });
}
byId("trace").addEventListener("click", (event) => {
  const link = event.target.closest("[data-trace]");
  if (link) return select(link.dataset.trace);
  const line = event.target.closest("[data-span]");
  if (!line) return;
  const id = line.dataset.span;
  if (!state.open.delete(id)) state.open.add(id);
  drawTrace();
  const shown = byId("trace").querySelector(`[data-span="${CSS.escape(id)}"]`);
  shown.focus({ preventScroll: true });
  if (state.open.has(id)) shown.nextElementSibling.scrollIntoView({ block: "nearest" });
  shown.scrollIntoView({ block: "nearest" });
});
for (const tab of ["traces", "orphans"]) {
  byId(`tab-${tab}`).addEventListener("click", () => { state.tab = tab; drawList(); });
}
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const only = state.found && state.found.length === 1 ? state.found[0].trace_id : null;
  if (only) select(only);
});
byId("query").addEventListener("input", (event) => {
  state.query = event.target.value.trim().toLowerCase();
  search();
});
addEventListener("hashchange", () => select(location.hash.slice(1)));

const events = new EventSource("/events");
events.onopen = () => { byId("connection").className = "live"; byId("connection").textContent = "live"; };
events.onerror = () => { byId("connection").className = "lost"; byId("connection").textContent = "not connected"; };
events.onmessage = (event) => update(JSON.parse(event.data));

if (location.hash.length > 1) select(location.hash.slice(1));
else drawTrace();
