
"use strict";
(() => {
  const EVERY = 2000, PATIENCE = 10000, SPANS = [300, 900], WIDTH = 300, HEIGHT = 100;
  const PARTS = { nats: "NATS", postgres: "PostgreSQL", worker: "Worker", agents: "Agents", readiness: "Readiness" };
  const STATES = { ready: "Ready", not_ready: "Not ready", starting: "Starting", stopping: "Stopping" };
  const CHARTS = [
    { id: "received", title: "Received", lines: ["received"], unit: "/s", total: "in total" },
    { id: "processed", title: "Processed", lines: ["processed"], unit: "/s", total: "in total" },
    { id: "failed", title: "Failed", lines: ["failed"], unit: "/s", total: "in total", care: true },
    { id: "dead_lettered", title: "Dead-lettered", lines: ["dead_lettered"], unit: "/s", total: "in total", care: true },
    { id: "latency", title: "Processing time", lines: ["p50", "p95"], unit: "s" },
  ];
  const NAMES = { p50: "half within", p95: "95 % within" };
  const EVERY_COMPANY = "*";
  // The company whose page this is; none on the page of all.
  const chosenCompany = new URLSearchParams(location.search).get("company");
  let last = null, answered = 0, cursor = null, reach = SPANS[0], timer = 0, asking = 0;

  const byId = (id) => document.getElementById(id);
  const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

  function element(name, properties = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key === "class") made.className = value; else made[key] = value;
    }
    made.append(...children);
    return made;
  }

  function drawn(name, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  function write(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }

  // ---- numbers as people read them; a dash is "not known" ----

  const count = (value) => (value === null || value === undefined ? "–" : whole.format(value));

  const brief = (value) => (value >= 1e6 ? compact.format(value) : count(value));

  function rate(value) {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0";
    if (value < 0.1) return "< 0.1";
    return value < 100 ? value.toFixed(1) : whole.format(value);
  }

  function lasting(value) {
    if (value === null || value === undefined) return "–";
    if (value >= 20.48) return "over 20 s";
    return value < 1 ? `${value < 0.1 ? +(value * 1000).toFixed(1) : whole.format(value * 1000)} ms` : `${+value.toFixed(2)} s`;
  }

  function age(seconds) {
    if (seconds === null || seconds === undefined) return "–";
    const s = Math.floor(seconds), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
    if (s < 60) return `${s} s`;
    if (m < 60) return `${m} min ${s % 60} s`;
    return h < 24 ? `${h} h ${m % 60} min` : `${d} d ${h % 24} h`;
  }

  const clock = (epoch) => new Date(epoch * 1000).toLocaleTimeString("en-GB");

  const named = (company) => (company === EVERY_COMPANY ? "every company" : company);

  // ---- charts ----

  function ceiling(values) {
    const most = Math.max(0, ...values.filter((value) => value !== null));
    if (most === 0) return 1;
    const step = 10 ** Math.floor(Math.log10(most));
    return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((factor) => factor * step).find((bound) => bound >= most);
  }

  function path(ago, values, most) {
    let text = "", open = false;
    ago.forEach((seconds, i) => {
      if (values[i] === null || seconds > reach) { open = false; return; }
      const x = (WIDTH * (1 - seconds / reach)).toFixed(1), y = (HEIGHT * (1 - values[i] / most)).toFixed(1);
      // A lone point still shows: a line without length has round ends.
      text += open ? `L${x} ${y}` : `M${x} ${y}h0`;
      open = true;
    });
    return text;
  }

  function area(ago, values, most) {
    const line = path(ago, values, most);
    const inside = ago.filter((seconds) => seconds <= reach);
    if (!line || inside.length < 2) return "";
    const at = (seconds) => (WIDTH * (1 - seconds / reach)).toFixed(1);
    return `${line}L${at(inside[inside.length - 1])} ${HEIGHT}L${at(inside[0])} ${HEIGHT}Z`;
  }

  function tile(chart) {
    const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    for (const [name, y] of [["grid", 1], ["grid", HEIGHT / 2], ["base", HEIGHT - 1]]) {
      svg.append(drawn("line", { class: name, x1: 0, x2: WIDTH, y1: y, y2: y }));
    }
    if (chart.total) svg.append(drawn("path", { class: "area" }));
    chart.lines.forEach((_, i) => svg.append(drawn("path", { class: i ? "line second" : "line" })));
    const mark = drawn("line", { class: "cursor", y1: 0, y2: HEIGHT, visibility: "hidden" });
    svg.append(mark);
    svg.addEventListener("pointermove", (event) => point(svg, event));
    svg.addEventListener("pointerleave", () => { cursor = null; if (last) showEvents(last); });
    const values = chart.lines.map((name, i) => element("div", { class: "value" },
      element("span", {}), element("small", {})));
    const top = element("span", { class: "top" });
    const note = element("p", { class: "mean" });
    const headings = chart.total ? [values[0], note] : [
      element("div", { class: "pair" }, ...chart.lines.map((name, i) => element("div", {}, values[i],
        element("p", { class: "mean" }, element("i", { class: i ? "key second" : "key" }), NAMES[name])))),
      element("p", { class: "mean" }, "to acknowledgement, estimated")];
    const start = element("span", {});
    const box = element("div", { class: chart.total ? "tile" : "tile wide", id: chart.id },
      element("div", {}, element("h3", {}, chart.title), ...headings),
      element("div", { class: "plot" }, element("div", { class: "chart" }, top, svg),
        element("div", { class: "axis" }, start, element("span", {}, "now"))));
    byId("tiles").append(box);
    return { ...chart, box, svg, mark, values, top, note, start };
  }

  function point(svg, event) {
    if (!last || !last.history.ago.length) return;
    const bounds = svg.getBoundingClientRect();
    const wanted = reach * (1 - (event.clientX - bounds.left) / bounds.width);
    const distances = last.history.ago.map((seconds) => Math.abs(seconds - wanted));
    cursor = last.time - last.history.ago[distances.indexOf(Math.min(...distances))];
    showEvents(last);
  }

  /** The sample the pointer is on, or -1: it moves with time, like the charts. */
  function chosen(status) {
    if (cursor === null) return -1;
    return status.history.ago.findIndex((seconds) => Math.abs(status.time - seconds - cursor) < 2);
  }

  function showChart(chart, status, at) {
    const { history, events } = status;
    const most = ceiling(chart.lines.flatMap((name) => history[name]));
    const form = chart.total ? (value) => rate(value) : lasting;
    chart.lines.forEach((name, i) => {
      const now = chart.total ? events[name].rate : events[name];
      const value = at < 0 ? now : history[name][at];
      write(chart.values[i].firstChild, form(value));
      write(chart.values[i].lastChild, chart.total && value !== null ? ` ${chart.unit}` : "");
      chart.svg.querySelectorAll(".line")[i].setAttribute("d", path(history.ago, history[name], most));
    });
    write(chart.start, `${reach / 60} min ago`);
    write(chart.top, chart.total ? `${+most.toPrecision(2)} ${chart.unit}` : lasting(most));
    chart.mark.setAttribute("visibility", at < 0 ? "hidden" : "visible");
    if (at >= 0) {
      const x = WIDTH * (1 - history.ago[at] / reach);
      chart.mark.setAttribute("x1", x);
      chart.mark.setAttribute("x2", x);
    }
    if (chart.total) {
      const [name] = chart.lines, { total, rate: now } = events[name];
      chart.svg.querySelector(".area").setAttribute("d", area(history.ago, history[name], most));
      write(chart.note, `${count(total)} ${chart.total}`);
      chart.box.classList.toggle("troubled", Boolean(chart.care && Math.max(0, ...history[name])));
      chart.values[0].classList.toggle("care-text", Boolean(chart.care && now));
      chart.svg.setAttribute("aria-label", `${chart.title} per second, last ${reach / 60} minutes: now ${rate(now)}, at most ${rate(Math.max(0, ...history[name]))}`);
    } else {
      chart.svg.setAttribute("aria-label", `${chart.title}, last ${reach / 60} minutes: now half within ${lasting(events.p50)}, 95 % within ${lasting(events.p95)}`);
    }
  }

  const charts = CHARTS.map(tile);
  const resting = chosenCompany === null ? byId("moment").textContent
    : "All companies of this worker: rate over the last minute, total since its start";

  function showEvents(status) {
    const at = chosen(status);
    reach = SPANS.find((span) => (status.history.ago[0] || 0) <= span) || SPANS[SPANS.length - 1];
    write(byId("moment"), at < 0 ? resting : `At ${clock(status.time - status.history.ago[at])}, over 5 seconds`);
    for (const chart of charts) showChart(chart, status, at);
  }

  // ---- the rest of the page ----

  function fill(list, items, make) {
    while (list.children.length > items.length) list.lastChild.remove();
    items.forEach((item, i) => {
      if (!list.children[i]) list.append(make());
    });
    return [...list.children];
  }

  function showParts(status) {
    const { nats, postgres } = status.connections;
    const dead = status.agents.filter((agent) => !agent.running).map((agent) => agent.name);
    const { sources, pulling, refused, pending } = status.totals;
    const parts = [
      ["NATS", nats.problem, "Connected", nats.reconnects ? `${count(nats.reconnects)} reconnects since the start` : "No reconnects since the start"],
      ["PostgreSQL", postgres.problem, "Answers", "Takes writes"],
      ["Agents", dead.length ? `Not running: ${dead.join(", ")}` : null, `${status.agents.length} of ${status.agents.length} running`, status.agents.map((agent) => agent.name).join(", ")],
      ["Sources", refused || pulling < sources ? `${pulling} of ${sources} pulling` : null,
        `${pulling} of ${sources} pulling`, `${count(pending)} pending`],
    ];
    fill(byId("parts"), parts, () => element("li", {}, element("b"), element("span", { class: "tell" }), element("p", { class: "note" })))
      .forEach((item, i) => {
        const [name, problem, fine, note] = parts[i];
        item.id = `part-${name.toLowerCase()}`;
        item.className = problem ? (name === "Sources" && !refused ? "care" : "bad") : "";
        write(item.children[0], name);
        write(item.children[1], problem ? (i < 2 ? "Down" : problem) : fine);
        write(item.children[2], problem && i < 2 ? problem : name === "Agents" && problem ? "" : note);
      });
  }

  function showDead(rows, { waiting, oldest, exhausted }) {
    const [row] = chosenCompany === null ? [{ waiting, oldest, exhausted }] : rows;
    const totals = { waiting: null, oldest: null, exhausted: null, ...(row && { waiting: row.waiting, oldest: row.oldest, exhausted: row.exhausted }) };
    for (const [id, value] of Object.entries(totals)) {
      write(byId(id).children[1], id === "oldest" ? (totals.waiting === 0 ? "none" : age(value)) : brief(value));
      byId(id).className = value && id !== "oldest" ? "care" : "";
    }
    // One company's rows are the totals, and companies without dead letters would hide those with.
    const listed = rows.length < 2 ? [] : rows.filter((row) => row.waiting || row.exhausted);
    byId("dead").hidden = !listed.length;
    table("dead", listed, (row) => [
      [row.company], [count(row.waiting), row.waiting && "care"],
      [row.waiting ? age(row.oldest) : "–"], [count(row.exhausted), row.exhausted && "care"],
    ]);
  }

  function showSources(sources) {
    const ordered = [...sources].sort((a, b) => Boolean(b.problem) - Boolean(a.problem));
    table("sources", ordered, (row) => [
      [named(row.company)], [row.consumer, "words"],
      [row.state, `words ${row.problem || row.state === "pulling" ? "fine" : "mild"}`],
      [count(row.pending)], [count(row.unacknowledged)], [count(row.held)],
      [row.messages === null ? "–" : `${rate(row.messages)} /s`], [row.batches === null ? "–" : `${rate(row.batches)} /s`],
      [row.fetched === null ? "–" : `${row.fetched.toFixed(1)} s ago`],
    ], (row) => row.problem);
  }

  /** A company's page; the address carries its name. */
  function companyLink(cell, company) {
    if (!cell.firstElementChild) cell.replaceChildren(element("a"));
    cell.firstElementChild.href = `?company=${encodeURIComponent(company)}`;
    write(cell.firstElementChild, company);
  }

  function showCompanies({ companies, found, totals }) {
    byId("companies-list").hidden = chosenCompany !== null || totals.companies < 2;
    if (chosenCompany !== null) return;
    const all = `${count(found)}${found < totals.companies ? ` of ${count(totals.companies)}` : ""}`;
    const shown = companies.length < found ? `, the first ${count(companies.length)} shown` : "";
    write(byId("listed"), `${all}${shown}; ${count(totals.troubled)} with trouble. Those first, then those that lag most`);
    const persecond = (value) => (value === null ? "–" : `${rate(value)} /s`);
    table("rows", companies, (row) => [
      [row.company], [row.problem || "in order", "words fine"], [count(row.lag)], [count(row.held)],
      [persecond(row.received)], [persecond(row.failed), row.failed && "care"],
      [count(row.waiting), row.waiting && "care"], [count(row.exhausted), row.exhausted && "care"],
    ], (row) => row.problem, companyLink);
  }

  function showCompany(status) {
    byId("company").hidden = chosenCompany === null;
    if (chosenCompany === null || !status.company) return;
    const { company, served, reasons, events } = status.company;
    write(byId("company-title"), `Company ${company}`);
    const told = served ? Object.entries(reasons).map(([part, reason]) => `${part}: ${reason}`)
      : ["This worker does not serve it, or has had no event of it yet."];
    fill(byId("company-reasons"), told, () => element("li")).forEach((item, i) => write(item, told[i]));
    byId("types").hidden = !events.length;
    table("types", events, (row) => [
      [row.type], [count(row.received)], [count(row.processed)], [count(row.failed), row.failed && "care"],
    ]);
  }

  function table(id, rows, cells, bad = () => false, first = write) {
    const names = [...byId(id).querySelectorAll("th")].map((cell) => cell.dataset.short || cell.textContent);
    const make = () => element("tr", {}, ...names.map((name) => {
      const cell = element("td");
      cell.dataset.name = name;
      return cell;
    }));
    fill(byId(id).tBodies[0], rows, make).forEach((line, i) => {
      line.className = bad(rows[i]) ? "bad" : "";
      cells(rows[i]).forEach(([text, style], column) => {
        (column ? write : first)(line.children[column], text);
        line.children[column].className = style || "";
      });
    });
  }

  function showReasons(reasons) {
    const entries = Object.entries(reasons);
    const exhausted = last ? last.totals.exhausted : 0;
    if (last && last.more_reasons) entries.push(["And", `${count(last.more_reasons)} more`]);
    if (!entries.length && exhausted) {
      entries.push(["Attention", `${count(exhausted)} exhausted ${exhausted === 1 ? "event waits" : "events wait"} for a person`]);
    }
    fill(byId("reasons"), entries, () => element("li", {}, element("b"), element("span"))).forEach((item, i) => {
      const [part, reason] = entries[i];
      write(item.firstChild, `${PARTS[part] || part}: `);
      write(item.lastChild, reason);
    });
  }

  function state(name, text) {
    document.documentElement.dataset.state = name;
    write(byId("state"), text);
    document.title = `${text} · WhatsApp events processor`;
    const colour = { ready: "%2317693a", not_ready: "%23b3191f", lost: "%23b3191f" }[name] || "%238a5200";
    const shape = name === "ready" ? "<circle cx='8' cy='8' r='7' fill='C'/>" : "<rect x='1' y='1' width='14' height='14' fill='C'/>";
    byId("icon").href = `data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>${shape.replace("C", colour)}</svg>`;
  }

  function show(status) {
    const names = status.companies.map((row) => row.company);
    const { companies } = status.totals;
    state(status.state, STATES[status.state]);
    write(byId("companies"), companies > 3 ? `${count(companies)} companies` : names.sort().join(", "));
    write(byId("version"), status.version);
    write(byId("uptime"), age(status.uptime));
    byId("lost").hidden = true;
    showReasons(status.reasons);
    showParts(status);
    showEvents(status);
    showDead(status.dead_letters, status.totals);
    showCompany(status);
    showCompanies(status);
    showSources(status.sources);
  }

  function showLoss() {
    state("lost", "No answer from the worker");
    fill(byId("reasons"), [], null);
    byId("lost").hidden = false;
    write(byId("lost"), last ? `What is shown below was true at ${clock(last.time)}. Trying again every 2 seconds.` : "Trying again every 2 seconds.");
  }

  function address() {
    const search = byId("search").value.trim();
    if (chosenCompany !== null) return `status.json?company=${encodeURIComponent(chosenCompany)}`;
    return search ? `status.json?search=${encodeURIComponent(search)}` : "status.json";
  }

  async function refresh() {
    clearTimeout(timer);
    timer = 0;
    const mine = ++asking;
    try {
      const answer = await fetch(address(), { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const status = await answer.json();
      // What was asked for meanwhile comes later.
      if (mine !== asking) return;
      last = status;
      answered = Date.now();
      show(last);
    } catch (error) {
      if (mine !== asking) return;
      console.warn("no status:", error);
      showLoss();
    }
    timer = setTimeout(refresh, EVERY);
  }

  byId("search").addEventListener("input", refresh);

  // A page in the background is slowed down by the browser.
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible" && timer) refresh();
  });

  setInterval(() => {
    if (answered) write(byId("updated"), `${age(Math.max(0, (Date.now() - answered) / 1000))} ago`);
  }, 1000);
  refresh();
})();
