// The page of openhosting-server: asks for the state once a second while somebody
// looks, and puts what changed in place. Text is only ever put in as text.

const PERIOD_MS = 1000;
const GIVE_UP_MS = 15000;
/** Over how long a rate is measured, and for how long one is drawn. */
const RATE_MS = 3000;
const DRAWN = 60;
/** A map is asked for again no sooner than this. */
const MAP_MS = 3000;
/** So is a picture of a screen. */
const SCREEN_MS = 1000;

const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  Object.assign(element, properties);
  element.append(...children);
  return element;
}

/** Puts text in place only where it changed: no work for the browser otherwise. */
function tell(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) {
    number /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || number >= 100 ? 0 : number >= 10 ? 1 : 2;
  return `${number.toFixed(digits)} ${units[unit]}`;
}

/** How long so many seconds are. */
function span(seconds) {
  const days = Math.floor(seconds / 86400);
  const hours = Math.floor(seconds / 3600) % 24;
  const minutes = Math.floor(seconds / 60) % 60;
  if (days > 0) return `${days} d ${hours} h`;
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min` : `${Math.max(0, Math.floor(seconds))} s`;
}

const perSecond = (rate) => (rate > 0 ? `${bytes(rate)}/s` : "–");

async function ask(path, body) {
  const options = { cache: "no-store", signal: AbortSignal.timeout(GIVE_UP_MS) };
  if (body !== undefined) {
    options.method = "POST";
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  return fetch(`/ui/${path}`, options);
}

// What moves -----------------------------------------------------------------

/** Bytes that were counted, over the last seconds. */
class Meter {
  #samples = [];

  /** Rate in bytes per second, after `count` bytes at `now` (ms). */
  add(now, count) {
    const samples = this.#samples;
    const last = samples.at(-1);
    // The server began anew.
    if (last !== undefined && count < last.count) samples.length = 0;
    samples.push({ now, count });
    while (samples.length > 2 && samples[1].now <= now - RATE_MS) samples.shift();
    const first = samples[0];
    return now > first.now ? ((count - first.count) * 1000) / (now - first.now) : 0;
  }
}

// Drives ---------------------------------------------------------------------

/** Rows by the UUID of the drive. */
const rows = new Map();

class Row {
  constructor(id) {
    this.id = id;
    this.received = new Meter();
    this.sent = new Meter();
    this.rates = [];
    this.isSeen = false;
    this.mapFor = "";
    this.mapAt = 0;
    this.name = make("span");
    this.size = make("td", { className: "number" });
    this.allocated = make("td", { className: "number" });
    this.state = make("td");
    this.canvas = make("canvas", { width: 1, height: 1 });
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", "Not known yet");
    const map = make("td", { className: "map" }, this.canvas);
    const head = make("th", { scope: "row" }, this.name, make("code", { textContent: id }));
    this.size.dataset.label = "Size";
    this.allocated.dataset.label = "On disk";
    this.element = make("tr", {}, head, this.size, this.allocated, map, this.state);
    this.element.dataset.drive = id;
    this.transfer = null;
  }

  update(drive, now) {
    this.newIn = this.drive === undefined ? 0 : Math.max(0, drive.received - this.drive.received);
    this.newOut = this.drive === undefined ? 0 : Math.max(0, drive.sent - this.drive.sent);
    this.drive = drive;
    tell(this.name, drive.name || "(no name)");
    tell(this.size, bytes(drive.size));
    tell(this.allocated, bytes(drive.allocated));
    this.rateIn = this.received.add(now, drive.received);
    this.rateOut = this.sent.add(now, drive.sent);
    this.isMoving = drive.in_flight > 0 || this.rateIn > 0 || this.rateOut > 0;
    // Only the client knows whether an upload is complete.
    const isUpload = this.rateIn > 0 && ["ready", "unfinished"].includes(drive.state);
    tell(this.state, isUpload ? "uploading" : drive.state);
    this.#showTransfer();
  }

  #showTransfer() {
    if (!this.isMoving) {
      this.transfer?.element.remove();
      this.transfer = null;
      this.rates.length = 0;
      return;
    }
    // The counts of when it began, as far as this page has seen it.
    const { received, sent } = this.drive;
    this.transfer ??= { ...newTransfer(), received: received - this.newIn, sent: sent - this.newOut, at: 0 };
    const { element, name, rate, line } = this.transfer;
    tell(name, this.drive.name || this.id);
    const said = [];
    if (this.rateIn > 0) said.push(`receiving ${bytes(this.rateIn)}/s`);
    if (this.rateOut > 0) said.push(`sending ${bytes(this.rateOut)}/s`);
    const [came, went] = [received - this.transfer.received, sent - this.transfer.sent];
    const amounts = [];
    if (came > 0) amounts.push(`${bytes(came)} received`);
    if (went > 0) amounts.push(`${bytes(went)} sent`);
    // A few requests are on their way at a time, in any order: the furthest one counts. The samples
    // that a client reads after an upload are no progress.
    const place = came > 0 ? this.drive.written_to : this.drive.read_from;
    this.transfer.at = Math.max(this.transfer.at, came > 0 || went > 0 ? place : 0);
    if (this.transfer.at > 0) amounts.push(`at ${Math.floor((100 * this.transfer.at) / this.drive.size)} % of the disk`);
    tell(rate, [said.join(", ") || "waiting", ...amounts].join("; "));
    this.rates.push(this.rateIn + this.rateOut);
    if (this.rates.length > DRAWN) this.rates.shift();
    line.setAttribute("points", points(this.rates));
    if (!element.isConnected) $("transfers").append(element);
  }

  drawMap(cells) {
    this.canvas.width = cells.length;
    const pen = this.canvas.getContext("2d");
    pen.fillStyle = getComputedStyle(this.canvas).color;
    let full = 0;
    for (let i = 0; i < cells.length; i += 1) {
      const share = cells[i] === "?" ? 0 : Number(cells[i]) / 9;
      full += share;
      // The least that there is can be seen.
      pen.globalAlpha = share === 0 ? 0 : 0.25 + 0.75 * share;
      if (share > 0) pen.fillRect(i, 0, 1, 1);
    }
    const percent = Math.round((100 * full) / Math.max(1, cells.length));
    this.canvas.setAttribute("aria-label", `About ${percent} % of it holds data`);
    this.cells = cells;
  }

  remove() {
    seen.unobserve(this.element);
    this.element.remove();
    this.transfer?.element.remove();
  }
}

function newTransfer() {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 100 30");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("fill", "none");
  line.setAttribute("stroke", "currentColor");
  line.setAttribute("stroke-width", "2");
  line.setAttribute("vector-effect", "non-scaling-stroke");
  svg.append(line);
  const name = make("span", { className: "name" });
  const rate = make("span", { className: "number rate" });
  return { element: make("li", {}, name, rate, svg), name, rate, line };
}

function points(rates) {
  const most = Math.max(...rates, 1);
  // The newest is at the right end.
  const first = DRAWN - rates.length;
  const at = (rate, i) => `${((100 * (first + i)) / (DRAWN - 1)).toFixed(1)},${(28 - (26 * rate) / most).toFixed(1)}`;
  return rates.map(at).join(" ");
}

/** Maps and screens are asked for only where they can be seen. */
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const { drive, server } = entry.target.dataset;
    const shown = drive === undefined ? cards.get(server) : rows.get(drive);
    if (shown) shown.isSeen = entry.isIntersecting;
  }
});

/** Asks for the maps that are seen and out of date, one after another. */
async function refreshMaps() {
  for (const row of [...rows.values()]) {
    const { drive } = row;
    const wanted = `${drive.size} ${drive.allocated} ${drive.received} ${drive.imaging}`;
    const isDue = row.isSeen && wanted !== row.mapFor && Date.now() - row.mapAt > MAP_MS;
    if (!isDue) continue;
    row.mapAt = Date.now();
    const answer = await ask(`map/${row.id}`);
    if (answer.ok) {
      row.drawMap((await answer.json()).cells);
      row.mapFor = wanted;
    }
  }
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const row of rows.values()) if (row.cells) row.drawMap(row.cells);
});

// Servers --------------------------------------------------------------------

/** Cards by the UUID of the server. */
const cards = new Map();

class Card {
  constructor(id) {
    this.id = id;
    this.isSeen = false;
    this.isAsking = false;
    this.askedAt = 0;
    this.name = make("span");
    this.status = make("span", { className: "status" });
    this.canvas = make("canvas", { width: 8, height: 5 });
    this.canvas.setAttribute("role", "img");
    this.caption = make("figcaption");
    this.facts = make("dl", { className: "facts" });
    this.values = new Map();
    this.drives = make("ul");
    const heading = make("h3", {}, this.name, this.status);
    const text = make("div", {}, heading, make("code", { textContent: id }), this.facts, this.drives);
    this.element = make("article", {}, make("figure", {}, this.canvas, this.caption), text);
    this.element.dataset.server = id;
    this.#blank();
  }

  update(server, now) {
    this.label = server.name || this.id;
    tell(this.name, server.name || "(no name)");
    tell(this.status, server.status);
    this.status.dataset.status = server.status;
    const cores = server.cores === null ? "" : `, ${server.cores} ${server.cores === 1 ? "core" : "cores"}`;
    this.#fact("CPU", `${server.cpu_mhz} MHz${cores}`);
    this.#fact("Memory", `${server.mem_mb} MB`);
    this.#fact("Up for", server.started === null ? null : span(now / 1000 - server.started));
    this.#fact("Address", server.address);
    this.#fact("VNC", server.vnc === null ? null : `${server.vnc}:5900`);
    server.drives.forEach((drive, i) => {
      const line = this.drives.children[i] ?? this.drives.appendChild(make("li", {}, make("span"), make("span", { className: "quiet" })));
      const kind = drive.is_cdrom ? ", CD-ROM" : "";
      const boots = drive.boots === null ? "" : server.drives.filter((d) => d.boots !== null).length > 1 ? `, boots as ${drive.boots}.` : ", boots";
      tell(line.firstChild, `${drive.slot} ${drive.name || drive.id}${kind}${boots}`);
      const isCounted = drive.read !== null && drive.written !== null;
      tell(line.lastChild, isCounted ? `${bytes(drive.read)} read, ${bytes(drive.written)} written` : "");
    });
    while (this.drives.childElementCount > server.drives.length) this.drives.lastChild.remove();
    this.isOn = server.status === "active" || server.status === "paused";
    this.element.toggleAttribute("data-off", !this.isOn);
    if (!this.isOn) this.#blank();
  }

  /** A line of what is known; none without a value. */
  #fact(name, value) {
    let line = this.values.get(name);
    if (line === undefined) {
      line = make("dd");
      this.values.set(name, line);
      this.facts.append(make("div", {}, make("dt", { textContent: name }), line));
    }
    line.parentElement.hidden = value === null;
    tell(line, value ?? "");
  }

  #blank() {
    this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.#describe("No picture: it is off");
  }

  #describe(text) {
    this.canvas.setAttribute("aria-label", text);
    tell(this.caption, text);
  }

  /** Asks for the screen, if it is due; never for two at once. */
  async look() {
    if (!this.isOn || !this.isSeen || this.isAsking || Date.now() - this.askedAt < SCREEN_MS) return;
    this.isAsking = true;
    this.askedAt = Date.now();
    try {
      const answer = await ask(`screen/${this.id}`);
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const picture = await createImageBitmap(await answer.blob());
      const { width, height } = picture;
      if (this.isOn && this.element.isConnected) {
        // To set a size clears, even where it is the same.
        if (this.canvas.width !== width) this.canvas.width = width;
        if (this.canvas.height !== height) this.canvas.height = height;
        this.canvas.getContext("2d").drawImage(picture, 0, 0);
        this.#describe(`Screen of ${this.label}, ${width} × ${height}`);
      }
      picture.close();
    } catch (error) {
      console.warn(error);
      if (this.isOn) this.#describe("No picture at the moment");
    }
    this.isAsking = false;
  }

  remove() {
    this.isOn = false;
    seen.unobserve(this.element);
    this.element.remove();
  }
}

// The whole ------------------------------------------------------------------

/** Shows what is told, in its order, and no more: each in a `Kind` of its own. */
function place(told, shown, Kind, parent, now) {
  const ids = new Set();
  let before = null;
  for (const one of told) {
    ids.add(one.id);
    let row = shown.get(one.id);
    if (row === undefined) {
      row = new Kind(one.id);
      shown.set(one.id, row);
      seen.observe(row.element);
    }
    row.update(one, now);
    const next = before === null ? parent.firstChild : before.nextSibling;
    if (next !== row.element) parent.insertBefore(row.element, next);
    before = row.element;
  }
  for (const [id, row] of shown) {
    if (ids.has(id)) continue;
    row.remove();
    shown.delete(id);
  }
}

function tellMore(id, more) {
  $(id).hidden = more === 0;
  tell($(id), `${more} more are not shown.`);
}

function show(state) {
  place(state.drives, rows, Row, $("drives"), state.now_ms);
  place(state.servers, cards, Card, $("servers"), state.now_ms);
  const total = { size: 0, allocated: 0, in: 0, out: 0 };
  for (const row of rows.values()) {
    total.size += row.drive.size;
    total.allocated += row.drive.allocated;
    total.in += row.rateIn;
    total.out += row.rateOut;
  }
  tell($("user"), state.user);
  tell($("total-drives"), String(state.drives_total));
  tell($("total-size"), bytes(total.size));
  tell($("total-allocated"), bytes(total.allocated));
  tell($("total-received"), perSecond(total.in));
  tell($("total-sent"), perSecond(total.out));
  $("no-transfers").hidden = $("transfers").childElementCount > 0;
  $("no-drives").hidden = state.drives.length > 0;
  tellMore("more-drives", state.drives_total - state.drives.length);
  tell($("total-servers"), `${state.servers_active} of ${state.servers_total}`);
  $("no-servers").hidden = state.servers.length > 0;
  tellMore("more-servers", state.servers_total - state.servers.length);
}

function enter(isIn) {
  $("login").hidden = isIn;
  $("overview").hidden = !isIn;
  $("who").hidden = !isIn;
  if (!isIn) {
    for (const shown of [rows, cards]) {
      for (const row of shown.values()) row.remove();
      shown.clear();
    }
    $("name").focus();
  }
}

function notice(text) {
  tell($("notice"), text);
  $("notice").hidden = text === "";
}

let timer = null;
/** Whoever began last goes on; an earlier one that comes late is left. */
let turn = 0;

async function refresh() {
  clearTimeout(timer);
  turn += 1;
  const mine = turn;
  try {
    const answer = await ask("state");
    if (mine !== turn) return;
    if (answer.status === 401) {
      const wasIn = !$("overview").hidden;
      enter(false);
      notice(wasIn ? "Your session ended, or the server was restarted. Log in again." : "");
      return;
    } else if (answer.ok) {
      const state = await answer.json();
      if (mine !== turn) return;
      enter(true);
      show(state);
      // Each by itself: one that hangs is in nobody's way.
      for (const card of cards.values()) card.look();
      await refreshMaps();
    } else {
      throw new Error(`status ${answer.status}`);
    }
    notice("");
  } catch (error) {
    console.warn(error);
    notice("The server does not answer. Trying again.");
  }
  if (mine === turn && !document.hidden) timer = setTimeout(refresh, PERIOD_MS);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else if ($("login").hidden) refresh();
});

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [name, key] = [$("name"), $("key")];
  tell($("refused"), "");
  try {
    const answer = await ask("login", { user: name.value.trim(), key: key.value });
    key.value = "";
    if (answer.ok) {
      await refresh();
    } else {
      tell($("refused"), (await answer.json()).error);
      key.focus();
    }
  } catch (error) {
    console.warn(error);
    notice("The server does not answer.");
  }
});

$("logout").addEventListener("click", async () => {
  turn += 1;
  clearTimeout(timer);
  try {
    await ask("logout", {});
    enter(false);
  } catch (error) {
    console.warn(error);
    notice("The server does not answer: you are still logged in.");
    refresh();
  }
});

refresh();
