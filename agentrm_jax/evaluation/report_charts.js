// Elements, colours and charts. Text reaches the page only as text nodes, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = document.getElementById("mark").namespaceURI;
const tip = document.getElementById("tip");

function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (key === "class") node.className = value || "";
    else if (key === "style") for (const [name, v] of Object.entries(value)) node.style.setProperty(name, v);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

function draw(parent, tag, attributes = {}, text = null) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "c") node.style.setProperty("--c", value);
    else node.setAttribute(key, value);
  }
  if (text !== null) node.textContent = text;
  parent.append(node);
  return node;
}

const hundred = (x) => (x === null || x === undefined ? "–" : (100 * x).toFixed(1).replace("-", "−"));
const signed = (x) => (x >= 0 ? "+" : "−") + Math.abs(100 * x).toFixed(1);
const interval = (ci) => `[${hundred(ci[0])}, ${hundred(ci[1])}]`;

function number(x) {
  if (typeof x !== "number") return x === null || x === undefined ? "–" : String(x);
  if (Number.isInteger(x)) return x.toLocaleString("en-US");
  const size = Math.abs(x);
  if (size >= 1000) return Math.round(x).toLocaleString("en-US");
  if (size !== 0 && size < 1e-3) return x.toExponential(1);
  return String(Number(x.toPrecision(3)));
}

// One colour a name on the whole page; references are grey, and dashed where they are bounds.
const names = new Map();
function colour(name) {
  for (const word of ["greedy", "random", "oracle"]) if (name === word || name.startsWith(word + " (")) return `var(--${word})`;
  if (dashed(name)) return "var(--random)";
  if (!names.has(name)) names.set(name, `var(--c${names.size % 6})`);
  return names.get(name);
}
const dashed = (name) => /^(oracle|random|shortest|longest|ended|majority)( \(|$)/.test(name);

const STOPS = [[166, 97, 26], [223, 194, 125], [207, 227, 220], [128, 205, 193], [1, 133, 113]];
function shade(value) {
  const place = Math.min(Math.max(value, 0), 1) * (STOPS.length - 1);
  const low = Math.min(Math.floor(place), STOPS.length - 2);
  const rgb = STOPS[low].map((a, i) => Math.round(a + (STOPS[low + 1][i] - a) * (place - low)));
  const dark = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] < 128;
  return { background: `rgb(${rgb.join(",")})`, color: dark ? "#fff" : "#1c2226" };
}
function pill(value, title) {
  if (value === null || value === undefined) return el("span", { class: "pill", title }, "–");
  return el("span", { class: "pill", style: shade(value), title }, value.toFixed(2));
}

function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const left = event.clientX + 14 + tip.offsetWidth > innerWidth ? event.clientX - tip.offsetWidth - 10 : event.clientX + 14;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 4) + "px";
}
const hideTip = () => { tip.hidden = true; };

function legend(lines) {
  return el("div", { class: "legend" }, lines.map((l) =>
    el("span", {}, el("span", { class: l.dash ? "swatch dash" : "swatch", style: { "--c": l.c } }), l.name)));
}

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * unit).find((s) => s >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// Ticks of a logarithmic axis: 1, 2 and 5 times powers of ten.
function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) found.push(...[1, 2, 5].map((m) => Number((m * 10 ** power).toPrecision(12))));
  return found.filter((v) => v >= low && v <= high);
}

// Labels of ticks, with as many digits as it takes to tell them apart.
function tickLabels(values, percent) {
  const at = (v, digits) => (percent ? String(Number((100 * v).toFixed(digits - 2))) : digits === 3 ? number(v) : String(Number(v.toPrecision(digits))));
  for (let digits = 3; digits < 15; digits++) {
    const texts = values.map((v) => at(v, digits));
    if (new Set(texts).size === new Set(values).size) return texts;
  }
  return values.map(String);
}

// A drawing with its name for screen readers, and the numbers behind it as a table (made when it is first opened).
function figure(drawing, title, head, rows) {
  drawing.setAttribute("role", "img");
  draw(drawing, "title", {}, title);
  drawing.setAttribute("aria-label", title);
  const behind = el("details", { class: "behind" }, el("summary", {}, "Numbers"));
  behind.addEventListener("toggle", () => behind.append(el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, head.map((t, i) => el("th", { class: i ? "num" : "", scope: "col" }, t)))),
    el("tbody", {}, rows().map((row) => el("tr", {}, row.map((t, i) => el("td", { class: i ? "num" : "" }, t)))))))), { once: true });
  return el("figure", {}, drawing, behind);
}

// Calls paint(svg, width) now and whenever the width of the page gives it another one.
function chart(height, paint, classes = "chart") {
  const box = document.createElementNS(SVG, "svg");
  box.setAttribute("class", classes);
  if (typeof height === "number") box.setAttribute("height", height); // painted later, but no jump of the page
  let width = 0;
  const repaint = () => {
    const now = Math.round(box.getBoundingClientRect().width);
    if (now === width || now <= 0) return;
    width = now;
    const tall = typeof height === "function" ? height(width) : height;
    box.setAttribute("height", tall);
    box.setAttribute("viewBox", `0 0 ${width} ${tall}`);
    box.replaceChildren(...[...box.children].filter((child) => child.tagName === "title"));
    paint(box, width, tall);
  };
  new ResizeObserver(repaint).observe(box);
  return box;
}

// lines: [{name, c, dash, points: [[x, y, lo, hi]]}]; options: x, percent, log, height, range, whole, dots
function lineChart(lines, options) {
  const all = lines.flatMap((l) => l.points);
  const xs = [...new Set(all.map((p) => p[0]))].sort((a, b) => a - b);
  const ys = all.flatMap((p) => p.slice(1)).filter((v) => v !== null);
  let [low, high] = options.range || [Math.min(...ys), Math.max(...ys)];
  if (!options.range) {
    const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    [low, high] = [low >= 0 && low < room * 4 ? 0 : low - room, high + room];
    if (options.percent) high = Math.min(high, 1);
  }
  const text = options.percent ? (v) => String(Number((100 * v).toFixed(1))) : number;
  const shown = (p) => (!p ? "–" : text(p[1]) + (p.length > 3 ? ` [${text(p[2])}, ${text(p[3])}]` : ""));
  const drawing = chart(options.height || 220, (box, width, height) => {
    const yTicks = ticks(low, high, Math.max(2, Math.round(height / 45)));
    const yLabels = tickLabels(yTicks, options.percent);
    const left = 10 + 7 * Math.max(...yLabels.map((t) => t.length));
    const [right, top, bottom] = [width - 10, 10, height - 36];
    const warp = options.log ? Math.log2 : (v) => v;
    const [x0, x1] = [warp(xs[0]), warp(xs[xs.length - 1])];
    const X = (v) => (x1 === x0 ? (left + right) / 2 : left + ((warp(v) - x0) / (x1 - x0)) * (right - left));
    const Y = (v) => bottom - ((v - low) / (high - low)) * (bottom - top);
    yTicks.forEach((t, i) => {
      draw(box, "line", { class: "grid", x1: left, x2: right, y1: Y(t), y2: Y(t) });
      draw(box, "text", { x: left - 6, y: Y(t) + 4, "text-anchor": "end" }, yLabels[i]);
    });
    draw(box, "line", { class: "base", x1: left, x2: right, y1: bottom, y2: bottom });
    let edge = -Infinity;
    const marks = options.whole ? xs : options.log ? logTicks(xs[0], xs[xs.length - 1]) : ticks(xs[0], xs[xs.length - 1], Math.max(3, Math.floor(width / 110)));
    const xTicks = marks.length ? marks : xs, xLabels = tickLabels(xTicks, false);
    xTicks.forEach((t, i) => {
      const half = xLabels[i].length * 3.6;
      if (X(t) - half < edge + 6) return;
      edge = X(t) + half;
      draw(box, "text", { x: X(t), y: bottom + 16, "text-anchor": "middle" }, xLabels[i]);
    });
    draw(box, "text", { class: "label", x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, options.x);
    for (const l of lines) {
      const banded = l.points.filter((p) => p.length > 3);
      if (banded.length > 1) {
        const rim = [...banded.map((p) => `${X(p[0])},${Y(p[3])}`), ...banded.slice().reverse().map((p) => `${X(p[0])},${Y(p[2])}`)];
        draw(box, "polygon", { class: "band", c: l.c, points: rim.join(" ") });
      }
    }
    for (const l of lines) {
      const points = l.points.map((p) => `${X(p[0])},${Y(p[1])}`).join(" ");
      draw(box, "polyline", { class: l.dash ? "line dash" : "line", c: l.c, points });
      if (options.dots || l.points.length === 1)
        for (const p of l.points) draw(box, "circle", { class: "dot", c: l.c, cx: X(p[0]), cy: Y(p[1]), r: 3.6 });
    }
    const cross = draw(box, "line", { class: "cross", y1: top, y2: bottom, visibility: "hidden" });
    box.onpointermove = (event) => {
      const at = event.clientX - box.getBoundingClientRect().left;
      const x = xs.reduce((a, b) => (Math.abs(X(b) - at) < Math.abs(X(a) - at) ? b : a));
      for (const [k, v] of [["x1", X(x)], ["x2", X(x)], ["visibility", "visible"]]) cross.setAttribute(k, v);
      const rows = lines.map((l) => [l, l.points.find((p) => p[0] === x)]).filter(([, p]) => p)
        .map(([l, p]) => `${l.name}: ${shown(p)}`);
      showTip(event, [`${options.x} ${number(x)}`, ...rows].join("\n"));
    };
    box.onpointerleave = () => { cross.setAttribute("visibility", "hidden"); hideTip(); };
    if (options.pick) box.onclick = (event) => {
      const at = event.clientX - box.getBoundingClientRect().left;
      options.pick(xs.reduce((a, b) => (Math.abs(X(b) - at) < Math.abs(X(a) - at) ? b : a)));
    };
  });
  const title = options.title || `${lines.map((l) => l.name).join(", ")} over ${options.x}`;
  const rows = () => xs.map((x) => [number(x), ...lines.map((l) => shown(l.points.find((p) => p[0] === x)))]);
  return figure(drawing, title, [options.x, ...lines.map((l) => l.name)], rows);
}

// Reliability diagram: one dot a bin at (mean prediction, mean target), area by count, counts as bars below.
function calibrationChart(bins) {
  const lo = Math.min(0, ...bins.map((b) => b.prediction)), hi = Math.max(1, ...bins.map((b) => b.prediction));
  const most = Math.max(...bins.map((b) => b.count));
  const drawing = chart((width) => Math.min(width, 340) + 30, (box, width, height) => {
    const [left, right, top, bottom] = [38, Math.min(width, 380) - 8, 8, height - 38];
    const X = (v) => left + ((v - lo) / (hi - lo)) * (right - left), Y = (v) => bottom - v * (bottom - top);
    for (const t of [0, 0.25, 0.5, 0.75, 1]) {
      draw(box, "line", { class: "grid", x1: left, x2: right, y1: Y(t), y2: Y(t) });
      draw(box, "text", { x: left - 6, y: Y(t) + 4, "text-anchor": "end" }, String(t));
      draw(box, "text", { x: X(t), y: bottom + 16, "text-anchor": "middle" }, String(t));
    }
    draw(box, "line", { class: "base", x1: left, x2: right, y1: bottom, y2: bottom });
    for (const b of bins) {
      const h = (b.count / most) * (bottom - top) * 0.22;
      draw(box, "rect", { class: "count", c: "var(--faint)", x: X(b.lo) + 1, y: bottom - h, width: Math.max(1, X(b.hi) - X(b.lo) - 2), height: h });
    }
    draw(box, "line", { class: "ideal", x1: X(0), y1: Y(0), x2: X(1), y2: Y(1) });
    draw(box, "polyline", { class: "line", c: "var(--c0)", points: bins.map((b) => `${X(b.prediction)},${Y(b.target)}`).join(" ") });
    for (const b of bins) {
      const dot = draw(box, "circle", { class: "dot", c: "var(--c0)", cx: X(b.prediction), cy: Y(b.target), r: 3 + 5 * Math.sqrt(b.count / most) });
      dot.onpointermove = (event) => showTip(event, `predicted ${number(b.prediction)}\nobserved ${number(b.target)}\n${number(b.count)} states`);
      dot.onpointerleave = hideTip;
    }
    draw(box, "text", { class: "label", x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, "predicted value");
  });
  const rows = () => bins.map((b) => [`${number(b.lo)} to ${number(b.hi)}`, number(b.prediction), number(b.target), number(b.count)]);
  return figure(drawing, "Observed return against predicted value, by bin", ["bin", "predicted", "observed", "states"], rows);
}
