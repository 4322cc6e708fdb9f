(() => {
  for (const canvas of document.querySelectorAll("[data-figure]")) {
    const draw = () => drawing.draw(canvas, embedded.figures[canvas.dataset.figure], canvas.getAttribute("aria-label"));
    draw();
    drawing.onWidth(canvas, draw);
  }

  // Paper needs every detail.
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const details of closed) details.open = true;
  });
  window.addEventListener("afterprint", () => { for (const details of closed) details.open = false; });
})();
