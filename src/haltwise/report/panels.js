// What pages with controls share: figures that are made anew, their titles saying what is found.
const byId = (id) => document.getElementById(id);
const fixed = (value, digits = 3) => drawing.number(value ?? NaN, digits);
const [BLUE, GREEN, ORANGE, VERMILION, GREY, INK] = ["blue", "green", "orange", "vermilion", "grey", "ink"].map((name) => `var(--${name})`);
const series = (name, x, y, colour, more) => ({ name, x, y, colour, kind: "line", dash: "solid", width: 2, size: 0, symbol: "circle", legend: true, tell: true, ...more });
const line = (at, colour, more) => ({ ...at, colour, dash: "solid", width: 1.6, ...more });
const show = (id, title, panel, hover = "x") => {
  byId(`${id}-title`).textContent = title;
  embedded.figures[id] = { panels: [panel], hover };
  drawing.draw(byId(id), embedded.figures[id], title);
};
