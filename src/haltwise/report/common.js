"use strict";
// What all pages share: embedded JSON, themes and downloads.
const embedded = JSON.parse(document.getElementById("embedded").textContent);
const root = document.documentElement;

// Themes: the system's unless chosen here; remembered where the browser allows it.
const remembered = () => { try { return localStorage.getItem("haltwise-theme"); } catch { return null; } };
const wanted = new URLSearchParams(location.hash.slice(1)).get("theme") || remembered();
if (wanted === "dark" || wanted === "light") root.dataset.theme = wanted;
document.getElementById("theme").addEventListener("click", () => {
  const dark = (root.dataset.theme || (window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("haltwise-theme", root.dataset.theme); } catch { /* not remembered */ }
});

// RFC 4180; a leading = + - @ in a name would be a formula to a spreadsheet.
const field = (value) => {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
// Every figure is a table of its series.
const table = ({ panels }) => ({
  columns: ["series", "x", "y"],
  rows: panels.flatMap((panel) => panel.series).filter((series) => series.kind !== "band")
    .flatMap((series) => series.x.map((x, k) => [series.name, x, series.y[k]])),
});
const download = (name, type, text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
document.addEventListener("click", (event) => {
  const { csv, svg } = event.target.closest("[data-csv], [data-svg]")?.dataset ?? {};
  if (csv) {
    const { columns, rows } = embedded.tables?.[csv] ?? table(embedded.figures[csv]);
    download(`${csv}.csv`, "text/csv", [columns, ...rows].map((row) => row.map(field).join(",")).join("\r\n") + "\r\n");
  }
  if (svg) download(`${svg}.svg`, "image/svg+xml", drawing.saved(document.querySelector(`.canvas[data-figure="${svg}"]`)));
});
