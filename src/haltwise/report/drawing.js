// Figures as SVG. Values are told to the pointer, to the finger and to the arrow keys.
const drawing = (() => {
  const make = (tag, attributes, parent) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    parent?.append(made);
    return made;
  };
  const html = (tag, attributes, parent) => parent.appendChild(Object.assign(document.createElement(tag), attributes));
  const pen = document.createElement("canvas").getContext("2d");
  const wide = (text) => {
    pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    return pen.measureText(text).width;
  };

  const power = (n) => `10${[...String(n)].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("")}`;
  const number = (value, digits = 4) => {
    if (!Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    let text = Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 12 });
    if (size > 0 && (size < 1e-4 || size >= 1e7)) {
      const [head, tail] = value.toExponential(2).split("e");
      text = `${Number(head)} × ${power(+tail)}`;
    }
    return text.replace("-", "−");
  };
  const told = (axis, value) => (typeof value === "string" ? value : axis.percent ? `${number(100 * value, 3)}\u202f%` : number(value));

  const extent = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
  const steps = (low, high, most, least = 0) => {
    const size = 10 ** Math.floor(Math.log10((high - low) / most));
    const step = Math.max(least, size * [1, 2, 5, 10].find((factor) => (high - low) / (factor * size) <= most));
    const first = Math.ceil(low / step - 1e-9);
    return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, k) => Number(((first + k) * step).toPrecision(12)));
  };
  const decades = (low, high, most) => {
    const [first, last] = [Math.ceil(low - 1e-9), Math.floor(high + 1e-9)];
    if (last - first >= 2) {
      const stride = Math.ceil((last - first + 1) / most);
      return Array.from({ length: Math.floor((last - first) / stride) + 1 }, (_, k) => 10 ** (first + k * stride));
    }
    const fine = Array.from({ length: last - first + 3 }, (_, k) => 10 ** (first - 1 + k)).flatMap((one) => [one, 2 * one, 5 * one])
      .filter((value) => value >= 10 ** low && value <= 10 ** high);
    return fine.length > 1 ? fine : steps(10 ** low, 10 ** high, most);
  };

  // From values to pixels, with the ticks; room is the share of the span that is left free beside them.
  const scaled = (axis, values, [from, to], { room, most, zero }) => {
    if (axis.categories) {
      const step = (to - from) / axis.categories.length;
      const at = (name) => from + (axis.categories.indexOf(name) + 0.5) * step;
      return { at, ticks: axis.categories.map((name) => [at(name), name]) };
    }
    const map = axis.log ? (value) => (value > 0 ? Math.log10(value) : -1e9) : (value) => value;
    let [low, high] = axis.range ?? extent(values.filter((value) => Number.isFinite(value) && (!axis.log || value > 0)));
    if (low > high) [low, high] = axis.log ? [1, 10] : [0, 1];
    if (zero && !axis.range) low = Math.min(low, 0);
    [low, high] = [map(low), map(high)];
    if (low === high) [low, high] = [low - 0.5, high + 0.5];
    if (!axis.range) {
      const free = room * (high - low);
      [low, high] = [zero ? low : low - free, high + free];
    }
    const whole = !axis.log && values.every((value) => value === null || Number.isInteger(value));
    const found = axis.log ? decades(low, high, most) : steps(low, high, most, whole ? 1 : 0);
    const at = (value) => Math.max(-1e5, Math.min(1e5, from + ((map(value) - low) / (high - low)) * (to - from)));
    const named = (value) => (axis.log && (value < 1e-3 || value > 1e4) && Number.isInteger(Math.log10(value)) ? power(Math.log10(value)) : told(axis, value));
    return { at, ticks: found.map((value) => [at(value), named(value)]) };
  };

  const DASHES = { solid: "none", dot: "1.5 4", dash: "7 4", dashdot: "8 3 2 3", longdash: "12 4" };
  const polygon = (size, radii, turn) => radii.map((radius, k) => {
    const angle = turn + (2 * Math.PI * k) / radii.length;
    return `${k ? "L" : "M"}${(size * radius * Math.sin(angle)).toFixed(2)} ${(-size * radius * Math.cos(angle)).toFixed(2)}`;
  }).join("") + "Z";
  const SYMBOLS = {
    diamond: (r) => polygon(r, [1.15, 1.15, 1.15, 1.15], 0),
    square: (r) => polygon(r, [1.25, 1.25, 1.25, 1.25], Math.PI / 4),
    star: (r) => polygon(r, [1.3, 0.55, 1.3, 0.55, 1.3, 0.55, 1.3, 0.55, 1.3, 0.55], 0),
    "triangle-up": (r) => polygon(r, [1.25, 1.25, 1.25], 0),
    cross: (r) => `M${-r} ${-r}L${r} ${r}M${r} ${-r}L${-r} ${r}`,
  };
  const mark = (series, x, y, parent) => {
    const radius = series.size / 2;
    const hollow = series.symbol === "cross" || series.symbol === "ring";
    const style = hollow ? `fill: none; stroke: ${series.colour}; stroke-width: 2` : `fill: ${series.colour}; stroke: var(--surface); stroke-width: .8`;
    const shape = SYMBOLS[series.symbol];
    return shape
      ? make("path", { d: shape(radius), transform: `translate(${x} ${y})`, style }, parent)
      : make("circle", { cx: x, cy: y, r: radius, style }, parent);
  };
  const stroke = ({ colour, dash, width }) => `fill: none; stroke: ${colour}; stroke-width: ${width}; stroke-dasharray: ${DASHES[dash]}; stroke-linejoin: round`;
  const swatch = (series, parent) => {
    const box = make("svg", { viewBox: "0 0 26 14", width: 26, height: 14, "aria-hidden": "true" }, parent);
    if (series.kind === "bars") make("rect", { x: 6, y: 1, width: 12, height: 12, style: `fill: ${series.colour}` }, box);
    if (series.kind === "line") make("path", { d: "M1 7H25", style: stroke(series) }, box);
    if (series.size) mark({ ...series, size: Math.min(series.size, 11) }, 13, 7, box);
  };

  // A surface [rows of y][columns of x] as bands of one colour, the lowest clear.
  const BANDS = 18;
  const heated = ({ z, colour }) => {
    const [rows, columns] = [z.length, z[0].length];
    const fine = 5;
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [(columns - 1) * fine, (rows - 1) * fine];
    const paint = canvas.getContext("2d");
    const image = paint.createImageData(canvas.width, canvas.height);
    const [low, high] = extent(z.flat());
    for (let j = 0; j < canvas.height; j += 1) {
      for (let i = 0; i < canvas.width; i += 1) {
        const [column, row, u, v] = [Math.floor(i / fine), Math.floor(j / fine), (i % fine) / fine, (j % fine) / fine];
        const value = (1 - v) * ((1 - u) * z[row][column] + u * z[row][column + 1]) + v * ((1 - u) * z[row + 1][column] + u * z[row + 1][column + 1]);
        const band = Math.floor((BANDS * (value - low)) / (high - low || 1)) / BANDS;
        image.data.set([...colour, Math.round(140 * band)], 4 * ((canvas.height - 1 - j) * canvas.width + i));
      }
    }
    paint.putImageData(image, 0, 0);
    return canvas.toDataURL();
  };

  const path = (points) => {
    let text = "";
    let pen = "M";
    for (const [x, y] of points) {
      if (y === null) { pen = "M"; continue; }
      text += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
      pen = "L";
    }
    return text;
  };

  const drawSeries = (series, panel, group, x, y, bars) => {
    const known = (k) => series.y[k] !== null && series.x[k] !== null && !(panel.y.log && series.y[k] <= 0);
    const points = series.x.map((value, k) => (known(k) ? [x.at(value), y.at(series.y[k]), k] : [0, null, k]));
    if (series.kind === "band") {
      const ends = series.x.flatMap((value, k) => (series.low[k] === null || series.high[k] === null ? [] : [k]));
      const edge = [...ends.map((k) => [x.at(series.x[k]), y.at(series.high[k])]), ...ends.reverse().map((k) => [x.at(series.x[k]), y.at(series.low[k])])];
      make("path", { d: path(edge), style: `fill: ${series.colour}; opacity: .15` }, group);
      return [];
    }
    const found = points.filter(([, at]) => at !== null);
    if (series.kind === "bars") {
      const place = bars.indexOf(series);
      const width = (0.8 * Math.abs(x.at(1) - x.at(0))) / bars.length;
      for (const [left, top, k] of found) {
        const from = left + (place - bars.length / 2) * width;
        const style = `fill: ${series.colour}; opacity: ${series.opacity?.[k] ?? 1}`;
        make("rect", { x: from + 0.5, width: Math.max(width - 1, 0.5), y: top, height: Math.max(y.at(0) - top, 0), style }, group);
      }
    } else {
      if (series.low) {
        for (const [at, , k] of found) {
          if (series.low[k] !== null && series.high[k] !== null) make("path", { d: `M${at} ${y.at(series.low[k])}V${y.at(series.high[k])}`, style: `stroke: ${series.colour}; stroke-width: 1.5` }, group);
        }
      }
      if (series.kind === "line") make("path", { d: path(points), style: stroke(series) }, group);
      if (series.size) for (const [at, top] of found) mark(series, at, top, group);
    }
    return found.map(([left, top, k]) => ({ left, top, k, series, panel }));
  };

  const words = ({ series, panel, k }, together) => {
    if (series.text) return series.text[k];
    const value = told(panel.y, series.y[k]);
    return together ? value : `${value} at ${panel.x.title} ${told(panel.x, series.x[k])}`;
  };

  const draw = (box, figure, label) => {
    const hidden = box.hiddenSeries ??= new Set();
    const width = box.clientWidth;
    if (!width) return;
    const held = [...box.querySelectorAll("button, svg[tabindex]")].indexOf(document.activeElement);
    const shownOf = (panel) => panel.series.filter((series) => !hidden.has(series.name));
    box.replaceChildren();

    const entries = new Map(figure.panels.flatMap((panel) => panel.series).filter((series) => series.legend).map((series) => [series.name, series]));
    if (entries.size > 1) {
      const legend = html("div", { className: "legend" }, box);
      for (const [name, series] of entries) {
        const entry = html("button", { type: "button" }, legend);
        entry.setAttribute("aria-pressed", String(!hidden.has(name)));
        swatch(series, entry);
        entry.append(name);
        entry.addEventListener("click", () => {
          if (!hidden.delete(name)) hidden.add(name);
          draw(box, figure, label);
        });
      }
    }

    const many = figure.panels.length > 1;
    const [first] = figure.panels;
    const drawn = figure.panels.map(shownOf);
    const values = (series, key) => [...(series[key] ?? []), ...(key === "y" ? [...(series.low ?? []), ...(series.high ?? [])] : [])];
    const high = many ? 132 : first.y.categories ? Math.max(200, 26 * first.y.categories.length) : 276;
    const tops = figure.panels.map((_, k) => 26 + k * (high + 34));
    const bars = drawn.flat().filter((series) => series.kind === "bars");
    const ys = figure.panels.map((panel, k) => scaled(
      panel.y, [...drawn[k].flatMap((series) => values(series, "y")), ...panel.lines.flatMap((line) => line.y ?? [])], [tops[k] + high, tops[k]],
      { room: 0.06, most: many ? 3 : 6, zero: drawn[k].some((series) => series.kind === "bars") },
    ));
    const left = Math.min(0.4 * width, 10 + Math.max(...ys.flatMap(({ ticks }) => ticks.map(([, name]) => wide(name)))));
    const right = width - 22;
    const xValues = drawn.flat().flatMap((series) => values(series, "x"));
    const x = scaled(bars.length ? { ...first.x, range: first.x.range ?? ((ends) => [ends[0] - 0.6, ends[1] + 0.6])(extent(xValues)) } : first.x,
      xValues, [left, right], { room: 0.02, most: Math.max(2, (right - left) / 64) });
    const bottom = tops.at(-1) + high;

    const svg = make("svg", { viewBox: `0 0 ${width} ${bottom + 44}`, width, height: bottom + 44, tabindex: 0, role: "img", "aria-label": `${label} Arrow keys tell the values.` }, box);
    const clip = `clip-${box.id || box.dataset.figure}`;
    const text = (content, attributes) => { make("text", { style: "font-size: 12px; fill: var(--muted)", ...attributes }, svg).textContent = content; };
    let marks = [];
    figure.panels.forEach((panel, k) => {
      const [y, top] = [ys[k], tops[k]];
      make("rect", { x: left, y: top, width: right - left, height: high }, make("clipPath", { id: `${clip}-${k}` }, svg));
      const group = make("g", { "clip-path": `url(#${clip}-${k})` }, svg);
      if (panel.heat) {
        const { x: across, y: along } = panel.heat;
        const [from, to] = [x.at(across[0]), x.at(across[1])];
        make("image", { href: heated(panel.heat), x: from, width: to - from, y: y.at(along[1]), height: y.at(along[0]) - y.at(along[1]), preserveAspectRatio: "none" }, group);
      }
      for (const [at, name] of y.ticks) {
        make("path", { d: `M${left} ${at}H${right}`, style: "stroke: var(--rule)" }, svg);
        text(name, { x: left - 6, y: at + 4, "text-anchor": "end" });
      }
      for (const [at, name] of x.ticks) {
        make("path", { d: `M${at} ${top}V${top + high}`, style: "stroke: var(--rule)" }, svg);
        if (k === figure.panels.length - 1) text(name, { x: at, y: bottom + 17, "text-anchor": "middle" });
      }
      svg.append(group);
      for (const line of panel.lines) {
        const d = "x" in line ? `M${x.at(line.x)} ${top}V${top + high}` : `M${left} ${y.at(line.y)}H${right}`;
        make("path", { d, style: stroke(line) }, group);
      }
      for (const series of drawn[k]) marks.push(...drawSeries(series, panel, group, x, y, bars));
      text(panel.y.title, { x: 2, y: top - 10 });
    });
    text(first.x.title, { x: right, y: bottom + 36, "text-anchor": "end" });

    // What is told: all that is known at one x, or one mark alone.
    marks = marks.filter(({ left: at, top, series }) => series.tell && at >= left - 1 && at <= right + 1 && top > -1e5);
    const together = figure.hover === "x";
    const stops = together ? [...new Set(marks.map((each) => each.left))].sort((a, b) => a - b) : marks;
    const cursor = make("g", { "aria-hidden": "true" }, svg);
    const tip = html("div", { className: "tip", hidden: true }, box);
    tip.setAttribute("role", "status");
    const hide = () => { tip.hidden = true; cursor.replaceChildren(); };
    const tell = (place) => {
      const stop = stops[place];
      if (stop === undefined) return;
      box.toldPlace = place;
      const at = together ? stop : stop.left;
      const here = together ? marks.filter((each) => each.left === stop) : [stop];
      cursor.replaceChildren();
      if (together) make("path", { d: `M${at} ${tops[0]}V${bottom}`, style: "stroke: var(--muted); stroke-dasharray: 2 3" }, cursor);
      for (const each of here) make("circle", { cx: each.left, cy: each.top, r: together ? 4.5 : 10, style: "fill: none; stroke: var(--ink); stroke-width: 1.6" }, cursor);
      tip.replaceChildren();
      if (together) html("p", { textContent: `${first.x.title} ${told(first.x, here[0].series.x[here[0].k])}` }, tip);
      for (const each of here) {
        const row = html("p", {}, tip);
        swatch(each.series, row);
        row.append(`${each.series.name}: ${words(each, together)}`);
      }
      tip.hidden = false;
      const scale = svg.getBoundingClientRect().width / width || 1;
      const beyond = at * scale + tip.offsetWidth + 22 > box.clientWidth;
      tip.style.left = `${Math.max(0, beyond ? at * scale - tip.offsetWidth - 14 : at * scale + 14)}px`;
      tip.style.top = `${svg.offsetTop + (together ? tops[0] : Math.max(0, here[0].top - 20)) * scale}px`;
    };
    svg.addEventListener("pointermove", (event) => {
      const frame = svg.getBoundingClientRect();
      const [px, py] = [((event.clientX - frame.left) * width) / frame.width, ((event.clientY - frame.top) * width) / frame.width];
      const far = (stop) => (together ? Math.abs(stop - px) : Math.hypot(stop.left - px, stop.top - py));
      let nearest = 0;
      stops.forEach((stop, k) => { if (far(stop) < far(stops[nearest])) nearest = k; });
      if (stops.length && far(stops[nearest]) < (together ? 1e9 : 40)) tell(nearest); else hide();
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const last = stops.length - 1;
      const now = tip.hidden ? -1 : box.toldPlace;
      const to = { ArrowRight: Math.min(now + 1, last), ArrowLeft: Math.max(now - 1, 0), Home: 0, End: last }[event.key];
      const other = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") hide();
      else if (to !== undefined) tell(to);
      else if (other && !together && now >= 0) {
        const names = [...new Set(marks.map((each) => each.series))];
        const next = names[(names.indexOf(stops[now].series) + other + names.length) % names.length];
        tell(stops.findIndex((each) => each.series === next));
      } else return;
      event.preventDefault();
    });
    if (held >= 0) box.querySelectorAll("button, svg[tabindex]")[held]?.focus();
  };

  // The figure as a file, its colours those of the page now.
  const saved = (box) => {
    const copy = box.querySelector("svg[tabindex]").cloneNode(true);
    const style = getComputedStyle(root);
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("font-family", getComputedStyle(document.body).fontFamily);
    return copy.outerHTML.replace(/var\((--\w+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  };
  // Phones turn, windows are dragged: a figure keeps to its card.
  const onWidth = (box, redraw) => {
    let width = box.clientWidth;
    new ResizeObserver(() => requestAnimationFrame(() => {
      if (box.clientWidth === width) return;
      width = box.clientWidth;
      redraw();
    })).observe(box);
  };
  return { draw, number, onWidth, saved };
})();
