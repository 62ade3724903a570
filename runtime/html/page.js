"use strict";
// Colors, the table, the choice of a dataset, the numbers as a file. viewer.js follows in one script.
const $ = (selector) => document.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const read = (id) => JSON.parse($(id).textContent);
const make = (name, words = "", attributes = {}) => {
  const element = document.createElement(name);
  element.textContent = words;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};
// a name may break after its separators
const write = (element, words) => element.replaceChildren(
  ...words.split(/(?<=\w\w[_/.,:-])(?=\w\w)/).flatMap((part, i) => (i ? [make("wbr"), part] : [part])));
let dataset = ""; // "": all of them

// ---- colors of the page
const themes = ["auto", "light", "dark"];
$("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  const next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % themes.length];
  if (next === "auto") delete root.dataset.theme;
  else root.dataset.theme = next;
  $("#theme span").textContent = next;
  $("#theme").setAttribute("aria-label", `Colors: ${next === "auto" ? "as the system" : next}`);
});

// ---- the table
const body = $("#rows tbody");
const given = [...body.rows];
const cellValue = (row, column) => {
  const cell = row.cells[column];
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  return cell.matches("th") ? cell.textContent : NaN;
};
// without a number last, whatever the direction
const compare = (a, b, sign) => {
  if (typeof a === "string" && typeof b === "string") return sign * a.localeCompare(b, "en");
  const missing = [a, b].map((v) => typeof v === "number" && Number.isNaN(v));
  if (missing[0] || missing[1]) return missing[0] - missing[1];
  return sign * (a - b);
};
all("#rows thead th").forEach((head, column) => {
  head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    all("#rows thead th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const order = [...given].sort((a, b) =>
      compare(cellValue(a, column), cellValue(b, column), up ? 1 : -1));
    body.append(...order);
  });
});

// ---- one dataset or all
all("#datasets button").forEach((button) => {
  button.addEventListener("click", () => {
    dataset = button.dataset.choose;
    all("#datasets button").forEach((b) => b.setAttribute("aria-pressed", b === button));
    all("[data-dataset]").forEach((part) => {
      part.hidden = dataset !== "" && part.dataset.dataset !== dataset;
    });
    document.dispatchEvent(new Event("dataset"));
  });
});

// ---- the numbers as a file
$("#download").addEventListener("click", () => {
  const file = new Blob([JSON.stringify(read("#data"), null, 2) + "\n"], { type: "application/json" });
  const link = make("a", "", { href: URL.createObjectURL(file), download: "report.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
$("#copy").addEventListener("click", async () => {
  const text = JSON.stringify(read("#data"), null, 2);
  try {
    await navigator.clipboard.writeText(text);
    $("#said").textContent = "copied";
  } catch {
    const area = make("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    $("#said").textContent = document.execCommand("copy") ? "copied" : "could not copy";
    area.remove();
  }
});
