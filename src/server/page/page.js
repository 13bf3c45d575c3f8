// The page of openhosting-server: asks for the state once a second while somebody
// looks, and puts what changed in place. Text is only ever put in as text.

const PERIOD_MS = 1000;
const GIVE_UP_MS = 15000;
/** Over how long a rate is measured, and for how long one is drawn. */
const RATE_MS = 3000;
const DRAWN = 60;
/** A map is asked for again no sooner than this. */
const MAP_MS = 3000;

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
    this.drive = drive;
    tell(this.name, drive.name || "(no name)");
    tell(this.size, bytes(drive.size));
    tell(this.allocated, bytes(drive.allocated));
    tell(this.state, drive.imaging === null ? drive.status : `imaging ${drive.imaging}`);
    this.rateIn = this.received.add(now, drive.received);
    this.rateOut = this.sent.add(now, drive.sent);
    this.isMoving = drive.in_flight > 0 || this.rateIn > 0 || this.rateOut > 0;
    this.#showTransfer();
  }

  #showTransfer() {
    if (!this.isMoving) {
      this.transfer?.element.remove();
      this.transfer = null;
      this.rates.length = 0;
      return;
    }
    this.transfer ??= newTransfer();
    const { element, name, rate, line } = this.transfer;
    tell(name, this.drive.name || this.id);
    const said = [];
    if (this.rateIn > 0) said.push(`receiving ${bytes(this.rateIn)}/s`);
    if (this.rateOut > 0) said.push(`sending ${bytes(this.rateOut)}/s`);
    tell(rate, said.join(", ") || "waiting");
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

/** Maps are asked for only where they can be seen. */
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const row = rows.get(entry.target.dataset.drive);
    if (row) row.isSeen = entry.isIntersecting;
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

// The whole ------------------------------------------------------------------

function show(state) {
  const table = $("drives");
  const total = { size: 0, allocated: 0, in: 0, out: 0 };
  const ids = new Set();
  let before = null;
  for (const drive of state.drives) {
    ids.add(drive.id);
    let row = rows.get(drive.id);
    if (row === undefined) {
      row = new Row(drive.id);
      rows.set(drive.id, row);
      seen.observe(row.element);
    }
    row.update(drive, state.now_ms);
    const place = before === null ? table.firstChild : before.nextSibling;
    if (place !== row.element) table.insertBefore(row.element, place);
    before = row.element;
    total.size += drive.size;
    total.allocated += drive.allocated;
    total.in += row.rateIn;
    total.out += row.rateOut;
  }
  for (const [id, row] of rows) {
    if (ids.has(id)) continue;
    row.remove();
    rows.delete(id);
  }
  tell($("user"), state.user);
  tell($("total-drives"), String(state.drives_total));
  tell($("total-size"), bytes(total.size));
  tell($("total-allocated"), bytes(total.allocated));
  tell($("total-received"), perSecond(total.in));
  tell($("total-sent"), perSecond(total.out));
  $("no-transfers").hidden = $("transfers").childElementCount > 0;
  $("no-drives").hidden = state.drives.length > 0;
  const more = state.drives_total - state.drives.length;
  $("more-drives").hidden = more === 0;
  tell($("more-drives"), `${more} more are not shown.`);
}

function enter(isIn) {
  $("login").hidden = isIn;
  $("overview").hidden = !isIn;
  $("who").hidden = !isIn;
  if (!isIn) {
    for (const row of rows.values()) row.remove();
    rows.clear();
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
  let goesOn = true;
  try {
    const answer = await ask("state");
    if (mine !== turn) return;
    if (answer.status === 401) {
      enter(false);
      goesOn = false;
    } else if (answer.ok) {
      const state = await answer.json();
      if (mine !== turn) return;
      enter(true);
      show(state);
      await refreshMaps();
    } else {
      throw new Error(`status ${answer.status}`);
    }
    notice("");
  } catch (error) {
    console.warn(error);
    notice("The server does not answer. Trying again.");
  }
  if (goesOn && mine === turn && !document.hidden) timer = setTimeout(refresh, PERIOD_MS);
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
