(() => {
  const { items, prices, totals, metric, unit } = embedded;
  const [itemBox, priceBox] = ["item", "price"].map(byId);
  const share = (value) => `${fixed(100 * value, 2)}\u202f%`;

  const redraw = () => {
    const item = items[+itemBox.value];
    const place = +priceBox.value;
    const price = prices[place];
    const stop = item.stops[place];
    const { cost, budget, target } = item;
    byId("price-shown").textContent = fixed(price);
    const givenUp = stop !== null;
    const met = item.success !== undefined && item.success !== null;
    const end = givenUp ? stop : cost.length - 1;

    byId("headline").textContent = givenUp
      ? `At a price of ${fixed(price)} it is given up after ${fixed(cost[stop])} of ${fixed(budget)} ${unit}, at ${metric} ${fixed(item.metric[stop])}`
      : `At a price of ${fixed(price)} it ${met ? `goes on to its target, after ${fixed(item.spent)} ${unit}` : `is never given up, and spends ${fixed(item.spent)} ${unit}`}`;
    byId("sentence").textContent = (givenUp
      ? `Its chance to reach ${target} was then forecast to be ${share(item.chance[stop])}. ${met
        ? `It would have met its target after ${fixed(item.spent)} ${unit}: a success is lost.`
        : `It never did: ${fixed(item.spent - cost[stop])} ${unit} are saved.`} `
      : "") + `Of all runs in the file ${totals.runs[place]} are given up at this price; that saves ${share(totals.saved[place])} of the cost and loses ${share(totals.lost[place])} of the successes.`;

    const x = { title: unit, range: [0, Math.max(budget, cost.at(-1))] };
    const mark = givenUp ? [line({ x: cost[stop] }, VERMILION)] : [];
    const parts = (name, values, more) => [
      series(name, cost.slice(0, end + 1), values.slice(0, end + 1), BLUE, more),
      ...(givenUp ? [series(`${name}, afterwards`, cost.slice(end), values.slice(end), GREY, { dash: "dot", ...more })] : []),
    ];
    show("curve", givenUp ? `${share(1 - cost[stop] / item.spent)} of what it spent came after it is given up` : `It ${met ? "meets" : "misses"} its target of ${target}`, {
      x, y: { title: metric }, series: parts(metric, item.metric), lines: [line({ y: item.goal }, INK, { width: 1, dash: "dash" }), ...mark],
    });
    show("chance", `The chance was ${share(item.chance[0])} at first, ${share(item.chance[end])} ${givenUp ? "when it is given up" : "at the end"}`, {
      x, y: { title: "chance to meet the target", percent: true, range: [-0.02, 1.02] }, series: parts("chance", item.chance), lines: mark,
    });
    show("worth", givenUp ? `After ${fixed(cost[stop])} ${unit} going on is not worth its price` : "Going on is worth its price throughout", {
      x, y: { title: "chance per unit of cost to come", log: true }, series: parts("worth", item.score), lines: [line({ y: price }, INK, { width: 1 }), ...mark],
    });
    const text = prices.map((each, k) => `at a price of ${fixed(each)}, ${share(totals.saved[k])} of the cost saved and ${share(totals.lost[k])} of the successes lost`);
    show("all", `Over all runs ${share(totals.saved[place])} of the cost is saved and ${share(totals.lost[place])} of the successes are lost`, {
      x: { title: "share of the successes lost", percent: true }, y: { title: "share of the cost saved", percent: true },
      series: [
        series("every price", totals.lost, totals.saved, BLUE, { size: 5, text }),
        series("this price", [totals.lost[place]], [totals.saved[place]], VERMILION, { kind: "points", symbol: "diamond", size: 13, tell: false }),
      ],
      lines: [],
    }, "point");
  };

  itemBox.addEventListener("change", redraw);
  priceBox.addEventListener("input", redraw);
  for (const button of document.querySelectorAll("[data-place]")) {
    button.addEventListener("click", () => { priceBox.value = button.dataset.place; redraw(); });
  }
  drawing.onWidth(byId("curve"), redraw);
  priceBox.value = embedded.levels.at(-1)?.place ?? Math.floor(prices.length / 2);
  itemBox.value = Math.max(0, items.findIndex((item) => item.stops[+priceBox.value] !== null));
  redraw();
})();
