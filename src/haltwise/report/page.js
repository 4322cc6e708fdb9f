(() => {
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
    dress(layout, c);
    for (const note of layout.annotations || []) note.font = { color: c.ink, size: 12 };
    const pointer = window.matchMedia("(hover: hover)").matches && !narrow;
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: c.muted, activecolor: c.ink };
    Plotly.react(div, data, layout, {
      displaylogo: false, plotlyServerURL: "", showSendToCloud: false,
      displayModeBar: pointer ? "hover" : false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      toImageButtonOptions: { format: "svg", filename: div.dataset.figure },
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

  redraw = () => { for (const canvas of drawn) draw(canvas); };

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
})();
