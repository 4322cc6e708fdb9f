// Figures of the notebooks: drawn once the page is there, in the colours of its theme.
(() => {
  const isDark = () => {
    const chosen = document.body.dataset.theme;
    return chosen === "dark" || (chosen !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  };
  const draw = () => {
    const [ink, grid, surface, blue] = isDark()
      ? ["#e6e8eb", "#3a4149", "#171b20", "#2f93d6"] : ["#1b1f24", "#e3e6ea", "#ffffff", "#0072b2"];
    for (const script of document.querySelectorAll("script.plotly-figure")) {
      const { data, layout } = JSON.parse(script.textContent
        .replaceAll("#010101", ink).replaceAll("#020202", surface).replaceAll("#0072B2", blue));
      Object.assign(layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: ink, size: 13 }, hoverlabel: { bgcolor: surface, font: { color: ink } } });
      for (const key of Object.keys(layout)) if (/^[xy]axis\d*$/.test(key)) layout[key].gridcolor = grid;
      Plotly.react(script.previousElementSibling, data, layout, { displayModeBar: false, responsive: true });
    }
  };
  // What is wider than its place is scrolled by arrow keys, too.
  const reach = () => {
    for (const wide of document.querySelectorAll("article table.docutils, article div.math, article pre")) {
      if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
    }
  };
  addEventListener("DOMContentLoaded", () => {
    draw();
    reach();
    addEventListener("resize", reach);
    new MutationObserver(draw).observe(document.body, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  });
})();
