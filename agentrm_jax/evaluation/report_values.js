// What methods cost beside what they earn, what values know before an episode ends, and what opinions are worth.
const table = (head, rows) => el("div", { class: "scroll" }, el("table", {},
  el("thead", {}, el("tr", {}, head.map((t, i) => el("th", { class: i ? "num" : "", scope: "col" }, t)))),
  el("tbody", {}, rows.map((row) => el("tr", {}, row.map((t, i) => el(i ? "td" : "th", i ? { class: "num" } : { scope: "row" }, t)))))));

function equalBudget(part) {
  const names = { policy_tokens: "policy tokens a task", reward_tokens: "reward model tokens a task", env_steps: "environment steps a task", seconds: "seconds a task" };
  const card = el("div", { class: "card" });
  const show = (unit) => {
    const curve = (which) => part.curve.filter((p) => p[unit] > 0).map((p) => [p[unit], p[which]]);
    const lines = [
      { name: part.reference, points: curve("best_of_n"), c: colour(part.reference) },
      { name: "oracle", points: curve("oracle"), c: colour("oracle"), dash: true },
      { name: "random", points: curve("random"), c: colour("random"), dash: true },
      ...part.methods.filter((m) => m.method !== part.reference && m[unit] > 0).map((m) => ({ name: m.method, points: [[m[unit], m.score]], c: colour(m.method) })),
    ].filter((l) => l.points.length);
    card.replaceChildren(lineChart(lines, { title: `Score × 100 over ${names[unit]}`, x: names[unit], percent: true, log: true, dots: true, height: 300 }), legend(lines));
  };
  const head = ["method", "score × 100", "policy tokens", "reward tokens", "env steps", "seconds", `${part.reference} for as many policy tokens`];
  const rows = part.methods.map((m) => [m.method, hundred(m.score), number(Math.round(m.policy_tokens)), number(Math.round(m.reward_tokens)), number(Math.round(m.env_steps)), number(m.seconds),
    `${hundred(m.same)} (n = ${m.n.toFixed(1)}${m.beyond ? ", more than were drawn" : ""})`]);
  section("equal-budget", "Equal budget", `What a task costs each method, against ${part.reference} with 1, 2, ... of its samples. The last column is what ${part.reference} earns with as many policy tokens.`,
    el("div", { class: "tools" }, choice(Object.entries(names).map(([unit, name]) => [unit, name.replace(" a task", "")]), show)), card,
    el("div", { class: "card gap" }, table(head, rows)));
  show("policy_tokens");
}

function prefixCards(method, env, found) {
  const chart = (title, x, lines) => {
    const kept = lines.filter((l) => l.points.length > 1);
    return kept.length ? el("div", { class: "card" }, el("h3", {}, title), lineChart(kept, { title: `${title}, ${env}, ${method}`, x, percent: true, dots: true, height: 190, whole: true }), legend(kept)) : null;
  };
  const by = (points, x, y) => points.filter((p) => p[y] !== null).map((p) => [p[x], p[y]]);
  const step = found.by_step, go = found.to_go;
  return [
    chart("Final score × 100 of the best prefix", "step k", [
      { name: "chosen at step k", points: by(step, "step", "chosen"), c: colour(method) },
      { name: "any that goes on", points: by(step, "step", "random"), c: colour("random"), dash: true }]),
    chart("Order kept × 100 at step k", "step k", [
      { name: "within a task", points: by(step, "step", "concordance"), c: "var(--c0)" },
      { name: "AUC over tasks", points: by(step, "step", "auc"), c: "var(--c1)" }]),
    chart("AUC of success × 100", "steps to go", [{ name: "AUC over tasks", points: by(go, "steps", "auc"), c: "var(--c1)" }]),
  ];
}

function prefixes(part) {
  const cards = part.flatMap(({ method, found }) => Object.entries(found).flatMap(([env, of]) => {
    const drawn = prefixCards(method, env, of).filter(Boolean);
    return drawn.length ? [el("h3", {}, `${env}, ${method}`), el("div", { class: "cards small gap" }, drawn)] : [];
  }));
  if (cards.length) section("prefixes", "Before the end", "Scores of unfinished states against what became of their episodes. Only episodes that go on after step k are compared there, so their length says nothing; 50 is chance.", cards);
}

function valueCurves(part) {
  const cards = part.flatMap(({ method, found }) => Object.entries(found).map(([env, curves]) => {
    const lines = Object.entries(curves).map(([name, points]) => ({ name: `${name} (${points[0][2]} episodes)`, points: points.map((p) => p.slice(0, 2)), c: name === "solved" ? "var(--c1)" : "var(--c3)" }));
    return el("div", { class: "card" }, el("h3", {}, `${env}, ${method}`), lineChart(lines, { title: `Mean score along episodes, ${env}, ${method}`, x: "part of the episode", height: 190 }), legend(lines));
  }));
  section("along", "Values along episodes", "The mean score from the first step (0) to the last (1). A search picks what scores high: where values of failed episodes grow as those of solved ones do, it is misled.", el("div", { class: "cards small" }, cards));
}

function opinions(part) {
  const fact = (name, value) => el("div", {}, el("span", {}, name), el("b", {}, value));
  section("opinions", "Judges and ensembles", "How far a judge's choices depend on the order in which candidates were shown, and how much the members of an ensemble differ.", part.map((r) => {
    const facts = [], judge = r.judge;
    if (judge) facts.push(fact("position bias", number(judge.bias)), fact("orders that agree", number(judge.agreement)), fact("by chance", number(judge.agreement_by_chance)),
      fact("questions", number(judge.questions)), fact("unanswered readings", number(judge.unanswered)), fact("states without a score", number(judge.missing)));
    if (r.disagreement) facts.push(fact("states scored", number(r.disagreement.states)), fact("standard deviation of members", number(r.disagreement.mean_deviation)));
    const places = judge && judge.positions.length ? table(["place", "chosen", "expected"], judge.positions.map((p) => [String(p.position), number(p.chosen), number(p.expected)])) : null;
    return el("div", { class: "card gap" }, el("h3", {}, r.method), el("div", { class: "facts" }, facts), places);
  }));
}
