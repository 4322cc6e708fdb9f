"use strict";
(() => {
  const embedded = JSON.parse(document.getElementById("embedded").textContent);
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  let printing = false;

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

  const draw = (div) => {
    const c = colours();
    const { data, layout } = themed(embedded.figures[div.dataset.figure], c);
    const narrow = div.clientWidth < 520;
    const legend = layout.showlegend !== false
      && data.filter((trace) => trace.showlegend !== false && trace.name).length > 1;
    const rows = Object.keys(layout).filter((key) => /^yaxis\d*$/.test(key)).length;
    const bars = data.some((trace) => trace.type === "bar");
    const base = (bars ? 320 : 340) + 150 * (rows - 1);
    layout.width = printing ? Math.min(div.clientWidth, 660) : div.clientWidth;
    layout.height = base + (legend ? 40 : 0);
    layout.font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: c.muted };
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.hoverlabel = { bgcolor: c.surface, bordercolor: c.grid, font: { color: c.ink } };
    layout.legend = { ...layout.legend, font: { size: 12, color: c.ink }, bgcolor: "rgba(0,0,0,0)", maxheight: 900 };
    for (const key of Object.keys(layout)) {
      if (!/^[xy]axis\d*$/.test(key)) continue;
      Object.assign(layout[key], { gridcolor: c.grid, linecolor: c.grid, tickcolor: c.grid });
    }
    for (const note of layout.annotations || []) note.font = { color: c.ink, size: 12 };
    const pointer = window.matchMedia("(hover: hover)").matches && !narrow;
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: c.muted, activecolor: c.ink };
    Plotly.react(div, data, layout, {
      displaylogo: false, plotlyServerURL: "", showSendToCloud: false,
      displayModeBar: pointer ? "hover" : false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      toImageButtonOptions: { format: "svg", filename: embedded.data[div.dataset.figure].name },
    }).then(() => {
      // The legend stands above the plot and takes what it needs, however many lines that is.
      const box = div.querySelector(".legend .bg");
      const height = base + (box ? Math.ceil(box.getBoundingClientRect().height) : 0);
      return Math.abs(height - layout.height) > 4 ? Plotly.relayout(div, { height }) : null;
    });
  };

  const canvases = [...document.querySelectorAll("[data-figure]")];
  const drawn = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting || drawn.has(entry.target)) continue;
      watcher.unobserve(entry.target);
      drawn.add(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "600px" });
  for (const canvas of canvases) watcher.observe(canvas);

  // Phones turn, windows are dragged: a figure keeps to its card.
  const widths = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const box = target.querySelector(".main-svg");
      if (drawn.has(target) && box && Math.abs(box.clientWidth - target.clientWidth) > 1) draw(target);
    }
  });
  for (const canvas of canvases) widths.observe(canvas);

  const redraw = () => { for (const canvas of drawn) draw(canvas); };
  system.addEventListener("change", redraw);
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("haltwise-theme", root.dataset.theme); } catch { /* not remembered */ }
    redraw();
  });

  // Paper is white and needs every figure and every detail.
  let closed = [];
  window.addEventListener("beforeprint", () => {
    printing = true;
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const details of closed) details.open = true;
    for (const canvas of canvases) drawn.add(canvas);
    redraw();
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    for (const details of closed) details.open = false;
    redraw();
  });

  // RFC 4180; a leading = + - @ in a name would be a formula to a spreadsheet.
  const field = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-csv]");
    if (!button) return;
    const { name, columns, rows } = embedded.data[button.dataset.csv];
    const csv = [columns, ...rows].map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv], { type: "text/csv;charset=utf-8" }));
    link.download = `${name}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
})();
