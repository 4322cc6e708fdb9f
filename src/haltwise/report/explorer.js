(() => {
  const { items, prices, words } = embedded;
  const [itemBox, priceBox, stepBox] = ["item", "price", "step"].map(byId);
  const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
  const quantityOf = `${/^[aeiou]/.test(words.quantity) ? "an" : "a"} ${words.quantity} of`;

  const redraw = () => {
    const item = items[+itemBox.value];
    const price = prices[+priceBox.value];
    const at = item.at[+priceBox.value];
    const last = item.excess.length - 1;
    const t = +stepBox.value;
    const { excess, path, contours } = item;
    const stops = at.stop < last;
    const gained = excess[at.returned] - excess[last];
    const cost = (k) => excess[k] + price * k;
    byId("price-shown").textContent = fixed(price);
    byId("step-shown").textContent = `${t} of ${last}`;

    byId("headline").textContent = stops
      ? `At a price of ${fixed(price)} per ${words.step} it stops after ${count(at.stop, words.step)}, at ${quantityOf} ${fixed(excess[at.returned])}`
      : `At a price of ${fixed(price)} per ${words.step} it takes all ${count(last, words.step)}`;
    byId("sentence").textContent = `In hindsight the best stop is after ${count(at.oracle, words.step)}: with the price it then comes to ${fixed(cost(at.oracle))}, here to ${fixed(excess[at.returned] + price * at.stop)}. `
      + (t < at.stop ? `After ${count(t, words.step)} it goes on.` : `By then it has stopped${t > at.stop ? "; what follows is not computed in use" : ""}.`)
      + (at.reason ? ` It stops since ${at.reason}.` : "");

    const taken = Math.min(t, at.stop);
    if (path) {
      const upTo = path.slice(0, t + 1);
      const text = upTo.map((_, k) => `${words.quantity} ${fixed(excess[k])} after ${count(k, words.step)}`);
      const drawn = (points, name, colour, more) => series(name, points.map((p) => p[0]), points.map((p) => p[1]), colour, more);
      show("path", t >= at.stop && stops
        ? `It has stopped, ${count(last - at.stop, words.step)} before the end`
        : `After ${count(t, words.step)} the ${words.quantity} is ${fixed(excess[t])}`, {
        x: { title: "θ₀", range: [contours.x[0], contours.x.at(-1)] },
        y: { title: "θ₁", range: [contours.y[0], contours.y.at(-1)] },
        heat: { x: [contours.x[0], contours.x.at(-1)], y: [contours.y[0], contours.y.at(-1)], z: contours.z, colour: [64, 140, 200] },
        lines: [],
        series: [
          ...(t > taken ? [drawn(upTo.slice(taken), "not taken", GREY, { dash: "dot", width: 1.5, size: 4, tell: false })] : []),
          drawn(upTo.slice(0, taken + 1), "steps", INK, { size: 6, text }),
          drawn([path[at.returned]], "returned", VERMILION, { kind: "points", symbol: "star", size: 15, tell: false }),
          ...(contours.minimizer ? [drawn([contours.minimizer], "minimum", GREEN, { kind: "points", symbol: "cross", size: 9, tell: false })] : []),
        ],
      }, "point");
    }

    const steps = excess.map((_, k) => k);
    const x = { title: `${words.step}s t`, range: [-0.6, last + 0.6] };
    // Rounding may leave a minimum slightly negative; where no minimum is known much lies below 0.
    const floor = Math.max(...excess) * 1e-9;
    const log = Math.min(...excess) > -floor;
    const seen = (value) => (log ? Math.max(value, floor) : value);
    show("loss", stops
      ? `Going on to the end would ${gained > 0 ? "gain" : "lose"} ${fixed(Math.abs(gained))}, for ${fixed(price * (last - at.stop))} in ${words.step}s`
      : `It went to the end, to ${quantityOf} ${fixed(excess[at.returned])}`, {
      x, y: { title: words.quantity, log },
      series: [
        series(words.quantity, steps, excess.map(seen), BLUE, { size: 5 }),
        series(`with the price of the ${words.step}s`, steps, steps.map((k) => seen(cost(k))), GREY, { dash: "dash", width: 1.6 }),
        series("now", [t], [seen(excess[t])], INK, { kind: "points", size: 12, symbol: "ring", tell: false }),
      ],
      lines: [line({ x: at.stop }, VERMILION)],
    });

    const q = at.posterior;
    const sum = (values) => values.reduce((a, b) => a + b, 0);
    show("posterior", `${Math.round(100 * sum(q.slice(0, at.stop + 1)))}\u202f% of the posterior lies at or before the stop${t === at.stop ? "" : `, ${Math.round(100 * sum(q.slice(0, t + 1)))}\u202f% at or before ${words.step} ${t}`}`, {
      x, y: { title: "probability", range: [0, 1.03] },
      series: [
        series("q(t)", steps, q, BLUE, { kind: "bars", opacity: steps.map((k) => (k <= t ? 1 : 0.35)) }),
        ...(at.hazard ? [series("hazard", steps.slice(0, Math.min(t + 1, last)), at.hazard.slice(0, t + 1), ORANGE, { size: 6, symbol: "diamond" })] : []),
      ],
      lines: [line({ x: at.stop }, VERMILION)],
    });

    if (!at.forecast) return;
    const brought = steps.slice(0, last).map((k) => (excess[k] - excess[k + 1]) / price);
    const now = Math.min(t, last - 1);
    show("forecast", `After ${count(now, words.step)} another is forecast to gain ${fixed(at.forecast[now], 2)} prices; it brought ${fixed(brought[now], 2)}`, {
      x, y: { title: "gain, in prices", range: [-3, 10] },
      series: [
        series(`what the ${words.step} brought`, steps.slice(0, last), brought, GREY, { dash: "dash", size: 4 }),
        series("forecast", steps.slice(0, now + 1), at.forecast.slice(0, now + 1), BLUE, { size: 6 }),
      ],
      lines: [line({ y: 1 }, INK, { width: 1 }), line({ x: at.stop }, VERMILION)],
    });
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
  const atStop = () => { stepBox.value = items[+itemBox.value].at[+priceBox.value].stop; redraw(); };
  itemBox.addEventListener("change", atStop);
  priceBox.addEventListener("input", atStop);
  stepBox.addEventListener("input", () => redraw());
  drawing.onWidth(byId("loss"), redraw);
  priceBox.value = Math.floor(prices.length / 2);
  const stopsAt = items.map((item) => item.at[+priceBox.value].stop);
  itemBox.value = stopsAt.indexOf(Math.max(...stopsAt)); // the one with most to be seen
  atStop();
})();
