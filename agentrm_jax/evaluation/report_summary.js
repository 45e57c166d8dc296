// Summary table, bars, curves, training, reward models, budget, provenance; and the start of the page.
function section(id, title, note, ...children) {
  const node = el("section", { id }, el("h2", {}, title), note ? el("p", { class: "note" }, note) : null, ...children);
  document.getElementById("main").append(node);
  document.getElementById("nav").append(el("a", { href: "#" + id }, title));
  return node;
}

function swatch(name) {
  return el("span", { class: dashed(name) ? "swatch dash" : "swatch", style: { "--c": colour(name) } });
}

function choice(options, change) {
  const box = el("div", { class: "switch" });
  options.forEach(([value, label], i) => {
    const button = el("button", { type: "button", "aria-pressed": String(i === 0) }, label);
    button.onclick = () => {
      for (const other of box.children) other.setAttribute("aria-pressed", String(other === button));
      change(value);
    };
    box.append(button);
  });
  return box;
}

const overallFirst = (columns) => [...columns].sort((a, b) => (b === "overall") - (a === "overall"));

function summaryTable(summary, what) {
  const { rows, baseline } = summary, columns = overallFirst(summary.columns);
  const multi = columns.length > 1;
  const best = {};
  for (const c of columns) best[c] = Math.max(...rows.filter((r) => r.kind === "method" && r.cells[c]).map((r) => r.cells[c][what]));
  const sizes = (c) => [...new Set(rows.filter((r) => r.cells[c]).map((r) => r.cells[c].n))].sort((a, b) => a - b);
  const main = (c) => (multi && c === "overall" ? "main" : "");
  const cell = (row, c) => {
    const value = row.cells[c];
    if (!value) return el("td", { class: main(c) }, "–");
    const ci = what === "score" ? value.ci95 : value.success_ci95;
    const gain = what === "score" && value.difference;
    const way = !gain ? "" : gain.ci95[0] > 0 ? "up" : gain.ci95[1] < 0 ? "down" : "";
    const winner = row.kind === "method" && value[what] === best[c] && rows.length > 1;
    return el("td", { class: `${main(c)} ${winner ? "best" : ""}` },
      el("span", { class: "big" }, hundred(value[what])),
      ci ? el("span", { class: "ci" }, interval(ci)) : null,
      gain ? el("span", { class: "gain " + way, title: `paired difference to ${baseline}` }, `${signed(gain.score)} ${interval(gain.ci95)}`) : null,
      value.failed ? el("span", { class: "gain down" }, `${value.failed} failed`) : null);
  };
  return el("div", { class: "card scroll" }, el("table", { class: "matrix" },
    el("thead", {}, el("tr", {}, el("th", {}, "method"),
      columns.map((c) => el("th", { class: main(c), scope: "col" }, c, el("small", {}, "n = " + sizes(c).join(" / ")))))),
    el("tbody", {}, rows.map((row) => el("tr", { class: row.kind },
      el("th", { scope: "row" }, swatch(row.name), row.name), columns.map((c) => cell(row, c)))))));
}

function barPanel(title, rows, column, what) {
  const box = el("div", { class: "bars", role: "img", "aria-label": `${title}: ${what} × 100 of every method; the table above has the numbers` });
  for (const row of rows) {
    const value = row.cells[column];
    if (!value) continue;
    const ci = what === "score" ? value.ci95 : value.success_ci95;
    const at = (v) => 100 * Math.min(Math.max(v, 0), 1) + "%";
    const track = el("div", { class: "track" }, el("i", { class: dashed(row.name) ? "faded" : null, style: { width: at(value[what]), "--c": colour(row.name) } }),
      ci ? el("b", { style: { left: at(ci[0]), width: `calc(${at(ci[1])} - ${at(ci[0])})` } }) : null);
    track.onpointermove = (e) => showTip(e, `${row.name}\n${hundred(value[what])} ${ci ? interval(ci) : ""}\nn = ${value.n}`);
    track.onpointerleave = hideTip;
    box.append(el("span", { class: "name", title: row.name }, row.name), track, el("span", { class: "val" }, hundred(value[what])));
  }
  box.append(el("span"), el("div", { class: "axis" }, [0, 25, 50, 75, 100].map((t) => el("span", { style: { "--x": t + "%" } }, String(t)))), el("span"));
  return el("div", { class: "card" }, el("h3", {}, title), box);
}

function summary(part) {
  const note = ["Scores × 100 with 95 % bootstrap intervals over tasks.",
    part.baseline && part.rows.some((r) => Object.values(r.cells).some((c) => c.difference))
      ? `Third line: paired difference to ${part.baseline} on the same tasks, coloured where its interval excludes 0.` : "",
    part.weights ? "Overall: weighted over environments." : ""].join(" ");
  const single = part.columns.length === 1;
  const table = el("div"), bars = el("div", { class: single ? "cards" : "cards gap" });
  const show = (what) => {
    table.replaceChildren(summaryTable(part, what));
    bars.replaceChildren(...overallFirst(part.columns).map((c) => barPanel(c, part.rows, c, what)));
  };
  section("summary", "Summary", note,
    el("div", { class: "tools" }, choice([["score", "Score"], ["success", "Success rate"]], show)),
    single ? el("div", { class: "duo" }, table, bars) : [table, bars]);
  show("score");
}

function curves(part) {
  const columns = Object.keys(part);
  const card = el("div", { class: "card" });
  const show = (column) => {
    const lines = Object.entries(part[column]).map(([name, points]) => ({ name, points, c: colour(name), dash: dashed(name) }));
    const largest = Math.max(...lines.flatMap((l) => l.points.map((p) => p[0])));
    card.replaceChildren(lineChart(lines, { title: `Best of N, ${column}: score × 100 over the number of samples`, x: "samples N", percent: true, log: largest > 16, whole: true, dots: true, height: 300 }), legend(lines));
  };
  const menu = columns.length > 1
    ? el("div", { class: "tools" }, el("select", { "aria-label": "Environment", onchange: (e) => show(e.target.value) }, columns.map((c) => el("option", { value: c }, c)))) : null;
  section("curves", "Best of N", "Expected score × 100 when N of the samples are drawn at random, exact over all subsets. The oracle takes the best of them, random any one; bands are 95 % intervals over tasks.", menu, card);
  show(columns[0]);
}

function training(runs) {
  section("training", "Training", null, runs.map((run) => el("div", { class: "gap" }, runs.length > 1 || run.run ? el("h3", {}, run.run) : null,
    el("div", { class: "cards small" }, run.charts.map((c) => {
      const lines = Object.entries(c.lines).map(([name, points], i) => ({ name, points, c: `var(--c${i % 6})` }));
      return el("div", { class: "card" }, el("h3", {}, c.name), lineChart(lines, { title: `${c.name} over ${c.x}`, x: c.x, height: 170 }), lines.length > 1 ? legend(lines) : null);
    })), run.left_out.length ? el("p", { class: "note gap" }, `Not shown: ${run.left_out.join(", ")}.`) : null)));
}

function rewardModels(models) {
  section("reward-model", "Reward model", "Left: observed return against predicted value, one dot a bin, with the number of states as bars; a calibrated model lies on the diagonal.",
    Object.entries(models).map(([name, model]) => {
      const metrics = Object.entries(model.metrics || {});
      const facts = el("div", { class: "facts" }, metrics.map(([key, v]) => el("div", {}, el("span", {}, key.replaceAll("_", " ")), el("b", {}, number(v)))));
      const plot = (model.calibration || []).length ? el("div", {}, calibrationChart(model.calibration)) : null;
      const rows = model.aggregators || [];
      const table = rows.length ? el("div", { class: "scroll" }, el("table", {},
        el("thead", {}, el("tr", {}, ["trajectory score", "chosen × 100", "regret × 100", "ρ reward", "ρ length"].map((t, i) => el("th", { class: i ? "num" : "" }, t)))),
        el("tbody", {}, rows.map((r) => el("tr", {}, el("td", {}, r.name), [hundred(r.score), hundred(r.regret), number(r.spearman), number(r.length)].map((t) => el("td", { class: "num" }, t))))))) : null;
      return el("div", { class: "card gap" }, el("h3", {}, name), el("div", { class: "pair" }, plot, el("div", {}, facts, table)));
    }));
}

function budget(rows) {
  const keys = [...new Set(rows.flatMap((r) => Object.keys(r.spent)))];
  const head = ["method", "score × 100", ...keys.map((k) => k.replaceAll("_", " "))];
  section("budget", "Budget", "What each method spent in all, and per task below it.", el("div", { class: "card scroll" }, el("table", { class: "matrix" },
    el("thead", {}, el("tr", {}, head.map((t, i) => el("th", { class: i ? "num" : "" }, t)))),
    el("tbody", {}, rows.map((r) => el("tr", {}, el("th", { scope: "row" }, swatch(r.name), r.name,
      el("span", { class: "ci" }, [r.policy, r.reward_model].filter(Boolean).join(" · "))), el("td", { class: "num" }, hundred(r.score)),
      keys.map((k) => el("td", { class: "num" }, number(r.spent[k]),
        typeof r.spent[k] === "number" ? el("span", { class: "ci" }, number(r.spent[k] / r.n)) : null))))))));
}

function flat(value, prefix = "") {
  if (value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length)
    return Object.entries(value).flatMap(([k, v]) => flat(v, prefix ? `${prefix}.${k}` : k));
  const text = Array.isArray(value) && value.every((v) => typeof v === "string") ? value.join("\n") : typeof value === "string" ? value : JSON.stringify(value);
  return [[prefix, text]];
}

function provenance(part) {
  section("provenance", "Provenance", "How to get these figures again.", el("div", { class: "card" }, Object.entries(part).map(([name, value]) => {
    const rows = flat(value).flatMap(([key, text]) => [el("dt", {}, key || name), el("dd", {}, text)]);
    return el("details", { class: "gap", open: rows.length <= 24 }, el("summary", {}, name), el("dl", { class: "pairs" }, rows));
  })));
}

// The address after # keeps what is shown, so that a view can be linked: #trajectory=3, #tree=0&q=door.
function address() {
  return location.hash.includes("=") ? new URLSearchParams(location.hash.slice(1)) : new URLSearchParams();
}
function remember(values) {
  const kept = new URLSearchParams(Object.entries(values).filter(([, v]) => v !== "" && v !== null));
  history.replaceState(null, "", "#" + kept);
}

function start() {
  if (data.summary) summary(data.summary);
  if (Object.keys(data.curves).length) curves(data.curves);
  if (data.equal_budget) equalBudget(data.equal_budget);
  if (data.prefixes.length) prefixes(data.prefixes);
  if (data.value_curves.length) valueCurves(data.value_curves);
  if (data.opinions.length) opinions(data.opinions);
  if (data.trajectories.items.length) trajectories(data.trajectories);
  if (data.trees.items.length) trees(data.trees);
  if (Object.keys(data.reward_models).length) rewardModels(data.reward_models);
  if (data.training.some((run) => run.charts.length)) training(data.training.filter((run) => run.charts.length));
  if (data.budget.length) budget(data.budget);
  if (Object.keys(data.provenance).length) provenance(data.provenance);
  if (!document.querySelector("section")) document.getElementById("main").append(el("p", { class: "note" }, "There is nothing to report yet."));
  const wanted = address();
  const goto = wanted.has("tree") ? "trees" : wanted.has("trajectory") ? "trajectories" : "";
  if (goto && document.getElementById(goto)) document.getElementById(goto).scrollIntoView();
}
