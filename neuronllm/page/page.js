"use strict";
// Tables that are sorted, filtered and paged; figures; neuron cards. All words and numbers come with the page.

const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

// --- tables ---

function liveTable(box) {
  const body = box.querySelector("tbody");
  const rows = [...body.rows];
  const size = Number(box.dataset.page) || Infinity;
  const filters = all("[data-filter]", box);
  const pager = box.querySelector(".pager");
  let first = 0;

  function show() {
    const chosen = rows.filter((row) => filters.every((f) => !f.value || row.dataset[f.dataset.filter] === f.value));
    if (first >= chosen.length) first = 0;
    const shown = new Set(chosen.slice(first, first + size));
    for (const row of rows) row.hidden = true;
    for (const row of chosen) {
      row.hidden = false;
      row.classList.toggle("later", !shown.has(row)); // on another page
    }
    pager.hidden = rows.length <= size;
    pager.querySelector("output").textContent =
      chosen.length ? `${first + 1} to ${first + shown.size} of ${chosen.length}` : "nothing of this kind";
    const [back, on] = all("button", pager);
    back.disabled = first === 0;
    on.disabled = first + size >= chosen.length;
  }

  function sort(head) {
    const column = head.cellIndex;
    const numeric = head.classList.contains("n");
    const before = head.getAttribute("aria-sort");
    const falls = before === "none" ? numeric : before === "ascending"; // of numbers the largest comes first
    for (const other of all("th", head.parentNode)) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", falls ? "descending" : "ascending");
    rows.sort((a, b) => compare(key(a.cells[column]), key(b.cells[column]), falls));
    body.append(...rows);
    first = 0;
    show();
  }

  for (const button of all("th button", box)) button.addEventListener("click", () => sort(button.parentNode));
  for (const filter of filters) filter.addEventListener("change", () => { first = 0; show(); });
  for (const button of all("button", pager)) {
    button.addEventListener("click", () => { first = Math.max(0, first + button.dataset.step * size); show(); });
  }
  for (const tools of all(".tools", box)) tools.hidden = false;
  show();
}

function key(cell) {
  if (cell.dataset.v) return cell.dataset.v.split(" ").map(Number);
  const text = cell.textContent.trim();
  return cell.classList.contains("none") || !text ? null : text;
}

function compare(a, b, falls) {
  if (a === null || b === null) return (a === null) - (b === null); // what there is not stays last
  const order = Array.isArray(a) && Array.isArray(b)
    ? a.map((value, n) => value - b[n]).find(Boolean) || 0
    : String(a).localeCompare(String(b), "en", { numeric: true });
  return falls ? -order : order;
}

// One of several groups is shown.
function liveChoice(box) {
  const pick = box.querySelector("select");
  const groups = all(".choice", box);
  const show = () => groups.forEach((group, n) => { group.hidden = n !== pick.selectedIndex; });
  pick.addEventListener("change", show);
  box.querySelector(".tools").hidden = false;
  for (const group of groups) group.querySelector("h4").hidden = true;
  show();
}

// --- what is packed ---

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

// --- cards ---

function openCard(facts, number, move) {
  if (!facts.cards[number]) return;
  const place = document.getElementById("card");
  place.innerHTML = facts.cards[number]; // escaped where it was made
  for (const button of all("button[data-card]")) {
    button.toggleAttribute("aria-current", Number(button.dataset.card) === number);
  }
  if (!move) return;
  history.replaceState(null, "", `#card-${number}`);
  place.querySelector("h3").focus({ preventScroll: true });
  place.scrollIntoView({ block: "nearest" });
}

// --- figures ---

// Only these buttons: left to itself, the library has one that sends the figure to its maker's server.
const settings = {
  modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
  displaylogo: false,
  showSendToCloud: false,
  plotlyServerURL: "",
  doubleClick: "reset",
  responsive: true,
};
const PAPER = 980; // pixels that fit between the margins of A4 on its side
const screenDark = matchMedia("screen and (prefers-color-scheme: dark)");

function drawn(figure, facts, theme) {
  const colours = facts.themes[theme];
  return JSON.parse(JSON.stringify(figure), (_, value) => (Object.hasOwn(colours, value) ? colours[value] : value));
}

// Below the axis the legend takes as many lines as its longest entry asks for.
function makeRoom(layout, data, width) {
  const names = data.filter((trace) => trace.name && trace.showlegend !== false).map((trace) => trace.name);
  const entry = 56 + 7 * Math.max(0, ...names.map((name) => name.length));
  const lines = Math.ceil(names.length / Math.max(1, Math.floor((width - 40) / entry)));
  layout.legend = { ...layout.legend, entrywidth: entry - 40, entrywidthmode: "pixels" };
  layout.margin.b += 21 * lines;
  layout.height += 21 * lines;
}

function liveFigure(box, facts) {
  const list = facts.figures[box.dataset.figures];
  const plot = box.querySelector(".plot");
  const pick = box.querySelector("[data-pick]");
  let listening = false;

  async function draw(paper = false) {
    const figure = list[pick.value];
    const { data, layout } = drawn(figure, facts, screenDark.matches && !paper ? "dark" : "light");
    if (paper) layout.width = PAPER;
    makeRoom(layout, data, layout.width || plot.clientWidth);
    plot.style.minHeight = `${layout.height}px`;
    plot.setAttribute("aria-label", figure.alt);
    await Plotly.react(plot, data, layout, settings);
    if (!listening) plot.on("plotly_click", (event) => clicked(event, list[pick.value], facts));
    listening = true;
  }

  pick.addEventListener("change", () => draw());
  for (const tools of all(".tools", box)) tools.hidden = list.length < 2;
  screenDark.addEventListener("change", () => draw());
  addEventListener("beforeprint", () => draw(true));
  addEventListener("afterprint", () => draw());
  return draw();
}

function clicked(event, figure, facts) {
  if (!figure.bin) return;
  const marks = event.points.find((point) => point.data.type === "scatter");
  const bin = event.points.find((point) => point.data.type === "heatmap");
  const told = document.getElementById("told");
  const number = marks ? marks.customdata : bin && cardIn(bin, figure);
  told.textContent = "";
  if (number !== undefined) openCard(facts, number, true);
  else if (bin) told.textContent = `${bin.y}, ${range(bin, figure)}: no card here, only the strongest neurons have one.`;
}

const ends = (bin, figure) => [bin.x - (figure.bin - 1) / 2, bin.x + (figure.bin - 1) / 2];

function range(bin, figure) {
  const [low, high] = ends(bin, figure);
  return low === high ? `neuron ${low}` : `neurons ${low} to ${high}`;
}

function cardIn(bin, figure) {
  const [low, high] = ends(bin, figure);
  for (const trace of figure.data.slice(1)) {
    const found = trace.x.findIndex((x, n) => trace.y[n] === bin.y && low <= x && x <= high);
    if (found >= 0) return trace.customdata[found];
  }
  return undefined;
}

// --- the page ---

async function start() {
  for (const box of all("[data-table]")) liveTable(box);
  for (const box of all("[data-choice]")) liveChoice(box);
  const facts = JSON.parse(await unpacked("payload"));
  for (const button of all("button[data-card]")) {
    button.addEventListener("click", () => openCard(facts, Number(button.dataset.card), true));
  }
  const openLinked = () => {
    const linked = location.hash.match(/^#card-(\d+)$/);
    if (linked) openCard(facts, Number(linked[1]), true);
  };
  openCard(facts, 0, false);
  openLinked();
  addEventListener("hashchange", openLinked);
  if (document.getElementById("library")) {
    const script = document.createElement("script");
    script.textContent = await unpacked("library");
    document.head.append(script);
    for (const box of all("[data-figures]")) await liveFigure(box, facts);
  }
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => {
  const trouble = document.getElementById("trouble");
  trouble.hidden = false;
  trouble.textContent = `Figures and cards could not be shown in this browser (${error.message}). The tables are complete.`;
});
