"use strict";
// Sorting: a click on a heading; numbers by their value, empty ones last; a second click turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    const numeric = rows.some((row) => row.cells[column].dataset.value !== undefined);
    const key = (row) => {
      const cell = row.cells[column];
      if (!numeric) return cell.textContent;
      return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    };
    const sign = down ? -1 : 1;
    rows.sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (numeric ? x - y : x.localeCompare(y, "en", { numeric: true }));
    });
    table.tBodies[0].append(...rows);
  }));
}

// Filtering: a row or run stays if it has all words; a table without rows left goes too.
const filter = document.getElementById("filter");
const status = document.getElementById("status");
const tables = [...document.querySelectorAll("section.table")];
const runs = [...document.querySelectorAll("details.run")];
const text = new Map();
for (const table of tables) {
  const head = table.querySelector("h3").textContent + " " + table.querySelector("p").textContent + " ";
  for (const row of table.querySelectorAll("tbody tr")) text.set(row, (head + row.textContent).toLowerCase());
}
for (const run of runs) text.set(run, run.textContent.toLowerCase());

function apply() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (item) => words.every((word) => text.get(item).includes(word));
  let shown = 0, all = 0;
  for (const table of tables) {
    let left = 0;
    for (const row of table.querySelectorAll("tbody tr")) {
      row.hidden = !(fits(row) && (!status.value || row.dataset.status === status.value));
      left += !row.hidden;
      all += 1;
    }
    table.hidden = left === 0;
    shown += left;
  }
  for (const run of runs) run.hidden = !fits(run);
  for (const fold of document.querySelectorAll("details.unrun")) fold.open = words.length > 0 || status.value !== "";
  document.getElementById("count").textContent = shown === all ? "" : `${shown} of ${all} rows`;
}
filter.addEventListener("input", apply);
status.addEventListener("change", apply);
filter.form.addEventListener("submit", (event) => event.preventDefault());

// A link to a run, or to a table that is folded away, opens it.
function open() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  const fold = target && (target.tagName === "DETAILS" ? target : target.querySelector("details.unrun"));
  if (fold) fold.open = true;
}
addEventListener("hashchange", open);
open();
