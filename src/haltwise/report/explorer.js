(() => {
  const { problems, prices, figures, quantity } = embedded;
  const quantityOf = `${quantity.startsWith("e") ? "an" : "a"} ${quantity} of`;
  const byId = (id) => document.getElementById(id);
  const [problemBox, priceBox, stepBox] = ["problem", "price", "step"].map(byId);
  const fixed = (value, digits = 3) => Number((value ?? NaN).toPrecision(digits)).toString().replace("-", "−").replace(/e\+?/, " × 10^");
  const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

  const axis = (title, more = {}) => ({ title: { text: title, standoff: 8 }, automargin: true, zeroline: false, exponentformat: "power", ...more });
  const plot = (id, data, layout) => {
    const div = byId(id);
    if (!div) return;
    figures[id] = { data }; // for downloads
    const c = colours();
    const figure = themed({ data, layout }, c);
    Object.assign(figure.layout, {
      template: "none", margin: { l: 8, r: 12, t: 12, b: 8 }, uirevision: "keep", hovermode: "closest",
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", xanchor: "left" },
      width: div.clientWidth, height: 380,
    });
    dress(figure.layout, c);
    Plotly.react(div, figure.data, figure.layout, { displaylogo: false, displayModeBar: false, plotlyServerURL: "", showSendToCloud: false });
  };
  const title = (id, text) => { byId(`${id}-title`).textContent = text; };
  const line = (x, name, dash) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: name, width: 1.6, dash } });
  const BLUE = "#0072B2", VERMILION = "#D55E00", GREY = "#8C8C8C", INK = "#010101";

  redraw = () => {
    const problem = problems[+problemBox.value];
    const price = prices[+priceBox.value];
    const at = problem.at[+priceBox.value];
    const last = problem.excess.length - 1;
    const t = +stepBox.value;
    const { excess, path, contours } = problem;
    const stops = at.stop < last;
    const gained = excess[at.returned] - excess[last];
    const cost = (k) => excess[k] + price * k;
    byId("price-shown").textContent = fixed(price);
    byId("step-shown").textContent = `${t} of ${last}`;

    byId("headline").textContent = stops
      ? `At a price of ${fixed(price)} per step it stops after ${count(at.stop, "step")}, at ${quantityOf} ${fixed(excess[at.returned])}`
      : `At a price of ${fixed(price)} per step it takes all ${last} steps`;
    byId("sentence").textContent = `In hindsight the best stop is after ${count(at.oracle, "step")}: loss and price then come to ${fixed(cost(at.oracle))}, here to ${fixed(excess[at.returned] + price * at.stop)}. `
      + (t < at.stop ? `At step ${t} it goes on.` : `By step ${t} it has stopped${t > at.stop ? "; what follows is not computed in use" : ""}.`)
      + (at.reason ? ` It stops since ${at.reason}.` : "");

    const taken = Math.min(t, at.stop);
    if (path) {
      const upTo = path.slice(0, t + 1);
      const drawn = (points, name, more) => ({ x: points.map((p) => p[0]), y: points.map((p) => p[1]), name, ...more });
      title("path", t >= at.stop && stops
        ? `It has stopped, ${count(last - at.stop, "step")} before the end`
        : `After ${count(t, "step")} the ${quantity} is ${fixed(excess[t])}`);
      plot("path", [
        { type: "contour", x: contours.x, y: contours.y, z: contours.z, ncontours: 18, showscale: true, hoverinfo: "skip",
          contours: { coloring: "heatmap" }, colorscale: [[0, "rgba(0,114,178,0)"], [1, "rgba(0,114,178,0.5)"]], line: { width: 0.6, color: GREY },
          colorbar: { title: { text: "log₁₀ loss", side: "right" }, thickness: 8, outlinewidth: 0, len: 0.9 } },
        drawn(upTo.slice(taken), "not taken", { mode: "lines+markers", line: { color: GREY, dash: "dot", width: 1.5 }, marker: { size: 4 }, hoverinfo: "skip", visible: t > taken }),
        drawn(upTo.slice(0, taken + 1), "steps", { mode: "lines+markers", line: { color: INK, width: 2 }, marker: { size: 6 },
          text: upTo.map((_, k) => `t = ${k}<br>${quantity} ${fixed(excess[k])}`), hovertemplate: "%{text}<extra></extra>" }),
        drawn([path[at.returned]], "returned", { mode: "markers", marker: { symbol: "star", size: 15, color: VERMILION, line: { color: "#020202", width: 1 } }, hoverinfo: "skip" }),
        ...(contours.minimizer ? [drawn([contours.minimizer], "minimum", { mode: "markers", marker: { symbol: "x-thin", size: 10, line: { width: 2, color: "#009E73" } }, hoverinfo: "skip" })] : []),
      ], { xaxis: axis("θ₀", { range: [contours.x[0], contours.x.at(-1)] }), yaxis: axis("θ₁", { range: [contours.y[0], contours.y.at(-1)] }) });
    }

    const steps = excess.map((_, k) => k);
    title("loss", stops
      ? `Going on to the end would ${gained > 0 ? "gain" : "lose"} ${fixed(Math.abs(gained))}, for ${fixed(price * (last - at.stop))} in steps`
      : `It went to the end, to ${quantityOf} ${fixed(excess[at.returned])}`);
    // Rounding may leave a minimum slightly negative; where no minimum is known much lies below 0.
    const floor = Math.max(...excess) * 1e-9;
    const log = Math.min(...excess) > -floor;
    const seen = (value) => (log ? Math.max(value, floor) : value);
    plot("loss", [
      { x: steps, y: excess.map(seen), name: quantity, mode: "lines+markers", line: { color: BLUE, width: 2 }, marker: { size: 5 }, hovertemplate: "t = %{x}<br>%{y:.4g}<extra></extra>" },
      { x: steps, y: steps.map((k) => seen(cost(k))), name: "with the price of the steps", line: { color: GREY, dash: "dash", width: 1.6 }, mode: "lines", hovertemplate: "t = %{x}<br>%{y:.4g}<extra></extra>" },
      { x: [t], y: [seen(excess[t])], name: "now", mode: "markers", marker: { size: 12, symbol: "circle-open", color: INK, line: { width: 2.4 } }, hoverinfo: "skip" },
    ], { xaxis: axis("steps t"), yaxis: axis(quantity, { type: log ? "log" : "linear" }), shapes: [line(at.stop, VERMILION, "solid")] });

    const q = at.posterior;
    const sum = (values) => values.reduce((a, b) => a + b, 0);
    title("posterior", `${Math.round(100 * sum(q.slice(0, at.stop + 1)))} % of the posterior lies at or before the stop${t === at.stop ? "" : `, ${Math.round(100 * sum(q.slice(0, t + 1)))} % at or before step ${t}`}`);
    plot("posterior", [
      { type: "bar", x: steps, y: q, name: "q(t)", marker: { color: BLUE, opacity: steps.map((k) => (k <= t ? 1 : 0.35)) }, hovertemplate: "t = %{x}<br>q = %{y:.3f}<extra></extra>" },
      ...(at.hazard ? [
        { x: steps.slice(0, Math.min(t + 1, last)), y: at.hazard.slice(0, t + 1), name: "hazard", mode: "lines+markers", line: { color: "#E69F00", width: 2 }, marker: { size: 5, symbol: "diamond" }, hovertemplate: "t = %{x}<br>hazard = %{y:.3f}<extra></extra>" },
      ] : []),
    ], { xaxis: axis("steps t", { range: [-0.6, last + 0.6] }), yaxis: axis("probability", { range: [0, 1.03] }), bargap: 0.25, shapes: [line(at.stop, VERMILION, "solid")] });

    if (!at.forecast) return;
    const brought = steps.slice(0, last).map((k) => (excess[k] - excess[k + 1]) / price);
    const now = Math.min(t, last - 1);
    title("forecast", `At step ${now} another step is forecast to gain ${fixed(at.forecast[now], 2)} prices; it brought ${fixed(brought[now], 2)}`);
    plot("forecast", [
      { x: steps.slice(0, last), y: brought, name: "what the step brought", mode: "lines+markers", line: { color: GREY, dash: "dash" }, marker: { size: 4 }, hovertemplate: "t = %{x}<br>%{y:.3g}<extra></extra>" },
      { x: steps.slice(0, now + 1), y: at.forecast.slice(0, now + 1), name: "forecast", mode: "lines+markers", line: { color: BLUE, width: 2 }, marker: { size: 6 }, hovertemplate: "t = %{x}<br>%{y:.3g}<extra></extra>" },
    ], { xaxis: axis("steps t", { range: [-0.6, last + 0.6] }), yaxis: axis("gain, in prices", { range: [-3, 10] }),
      shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: INK, width: 1 } }, line(at.stop, VERMILION, "solid")] });
  };

  let timer = 0;
  const stop = () => { clearInterval(timer); timer = 0; byId("play").textContent = "Play"; };
  byId("play").addEventListener("click", () => {
    if (timer) { stop(); return; }
    if (+stepBox.value >= +stepBox.max) stepBox.value = 0;
    byId("play").textContent = "Pause";
    timer = setInterval(() => {
      stepBox.value = +stepBox.value + 1;
      redraw();
      if (+stepBox.value >= +stepBox.max) stop();
    }, 450);
  });
  const atStop = () => { stepBox.value = problems[+problemBox.value].at[+priceBox.value].stop; redraw(); };
  problemBox.addEventListener("change", atStop);
  priceBox.addEventListener("input", atStop);
  stepBox.addEventListener("input", () => redraw());
  new ResizeObserver(() => redraw()).observe(byId("loss"));
  priceBox.value = Math.floor(prices.length / 2);
  const stopsAt = problems.map((problem) => problem.at[+priceBox.value].stop);
  problemBox.value = stopsAt.indexOf(Math.max(...stopsAt)); // the one with most to be seen
  atStop();
})();
