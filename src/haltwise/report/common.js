"use strict";
// What all pages share: embedded JSON, themes and downloads.
const embedded = JSON.parse(document.getElementById("embedded").textContent);
const root = document.documentElement;
const system = window.matchMedia("(prefers-color-scheme: dark)");
let printing = false;
let redraw = () => {};

// Themes: the system's unless chosen here; remembered where the browser allows it.
const remembered = () => { try { return localStorage.getItem("haltwise-theme"); } catch { return null; } };
const wanted = new URLSearchParams(location.hash.slice(1)).get("theme") || remembered();
if (wanted === "dark" || wanted === "light") root.dataset.theme = wanted;
const isDark = () => !printing && (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

const colours = () => isDark()
  ? { ink: "#e6e8eb", muted: "#a3abb5", grid: "#2b3138", surface: "#171b20", blue: "#2f93d6", yellow: "#f0e442", heat: "86,180,233" }
  : { ink: "#1b1f24", muted: "#59636e", grid: "#e3e6ea", surface: "#ffffff", blue: "#0072b2", yellow: "#c9bb00", heat: "0,114,178" };

// "#010101" in a figure means the colour of text, "#020202" that of the ground; blue and yellow keep their contrast.
const themed = (figure, c) => JSON.parse(JSON.stringify(figure)
  .replaceAll("#010101", c.ink).replaceAll("#020202", c.surface).replaceAll("#0072B2", c.blue).replaceAll("#F0E442", c.yellow)
  .replaceAll("rgba(0,114,178,", `rgba(${c.heat},`));

const dress = (layout, c) => {
  layout.font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: c.muted };
  layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
  layout.hoverlabel = { bgcolor: c.surface, bordercolor: c.grid, font: { color: c.ink } };
  layout.legend = { ...layout.legend, font: { size: 12, color: c.ink }, bgcolor: "rgba(0,0,0,0)", maxheight: 900 };
  for (const key of Object.keys(layout)) {
    if (!/^[xy]axis\d*$/.test(key)) continue;
    Object.assign(layout[key], { gridcolor: c.grid, linecolor: c.grid, tickcolor: c.grid });
  }
};

system.addEventListener("change", () => redraw());
document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("haltwise-theme", root.dataset.theme); } catch { /* not remembered */ }
  redraw();
});

// RFC 4180; a leading = + - @ in a name would be a formula to a spreadsheet.
const field = (value) => {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
// Every figure is a table of its named series.
const series = ({ data }) => ({
  columns: ["series", "x", "y"],
  rows: data.filter((trace) => trace.name && trace.x && trace.visible !== false)
    .flatMap((trace) => Array.from(trace.x, (x, k) => [trace.name, x, trace.y[k]])),
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-csv]");
  if (!button) return;
  const name = button.dataset.csv;
  const { columns, rows } = embedded.tables?.[name] ?? series(embedded.figures[name]);
  const csv = [columns, ...rows].map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv], { type: "text/csv;charset=utf-8" }));
  link.download = `${name}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
