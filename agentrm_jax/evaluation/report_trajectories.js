// Trajectory viewer: a list to pick from, and the episode turn by turn with the value along it.
function episodeTags(t) {
  const tags = [[t.failed ? "broke down" : t.success ? "success" : t.done ? "no success" : "unfinished", t.failed ? "warn" : t.success ? "won" : ""],
    [`reward ${number(t.reward)}`, ""], [`progress ${number(t.progress)}`, ""], [`${t.steps.length} steps`, ""]];
  if (t.score !== undefined) tags.push([`score ${number(t.score)}`, ""]);
  if (t.chosen) tags.push(["chosen", "won"]);
  if (t.method !== undefined) tags.push([t.method, ""]);
  if (t.sample !== undefined) tags.push([`sample ${t.sample}`, ""]);
  return el("div", { class: "tags" }, tags.map(([text, kind]) => el("span", { class: "tag " + kind }, String(text))));
}

function turn(number_, step) {
  const dull = step.parsed !== null && step.parsed !== undefined && step.parsed.trim() !== step.action.trim();
  return el("div", { class: "turn", "data-step": number_ }, el("span", { class: "no" }, String(number_)), el("div", {},
    step.thought ? el("p", { class: "thought" }, step.thought) : null,
    el("div", { class: "head" }, el("span", { class: "act" }, step.action || "(empty turn)"),
      dull ? el("span", { class: "tag" }, `read as: ${step.parsed}`) : null,
      step.valid ? null : el("span", { class: "tag warn" }, "not valid"),
      step.reward ? el("span", { class: "tag" }, `reward ${number(step.reward)}`) : null,
      step.value === null ? null : pill(step.value, "value by the reward model")),
    el("div", { class: "obs" }, step.observation || "(no text)")));
}

function episode(t, box) {
  const valued = t.steps.some((s) => s.value !== null);
  const lines = [];
  if (valued) lines.push({ name: "value (reward model)", c: "var(--c0)", points: t.steps.map((s, i) => [i + 1, s.value]).filter((p) => p[1] !== null) });
  lines.push({ name: "progress", c: "var(--c1)", points: t.steps.map((s, i) => [i + 1, s.progress]) });
  const values = lines.flatMap((l) => l.points.map((p) => p[1]));
  const pick = (step) => {
    for (const node of box.querySelectorAll(".turn")) node.classList.toggle("here", node.dataset.step === String(step));
    const target = box.querySelector(`.turn[data-step="${step}"]`);
    if (target) target.scrollIntoView({ block: "nearest" });
  };
  const meta = Object.entries(t.meta);
  box.replaceChildren(el("h3", {}, t.task), el("p", { class: "goal" }, t.goal), episodeTags(t),
    t.steps.length ? el("div", {}, lineChart(lines, { x: "step", height: 150, whole: true, dots: t.steps.length <= 40, pick,
      range: [Math.min(0, ...values), Math.max(1, ...values)] }), legend(lines)) : null,
    el("span", { class: "kind" }, "first observation"), el("div", { class: "obs", style: { "margin-bottom": "12px" } }, t.observation),
    ...t.steps.map((s, i) => turn(i + 1, s)),
    meta.length ? el("details", {}, el("summary", {}, "record"), el("dl", { class: "pairs" }, flat(t.meta).flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]))) : "");
}

function trajectories(part) {
  const items = part.items;
  const detail = el("div", { class: "card detail", "aria-live": "polite" }), list = el("div", { class: "card list" });
  const query = el("input", { type: "search", placeholder: "Find in tasks, goals, actions, observations", "aria-label": "Find trajectories" });
  const environments = [...new Set(items.map((t) => t.env))];
  const env = el("select", { "aria-label": "Environment" }, el("option", { value: "" }, "all environments"), environments.map((e) => el("option", { value: e }, e)));
  const outcome = el("select", { "aria-label": "Outcome" }, [["", "any outcome"], ["won", "success"], ["lost", "no success"]].map(([v, t]) => el("option", { value: v }, t)));
  const haystacks = items.map((t) => [t.task, t.goal, t.observation, ...t.steps.flatMap((s) => [s.thought, s.action, s.observation])].join("\n").toLowerCase());
  let current = -1;
  const open = (i, byUser) => {
    current = i;
    episode(items[i], detail);
    for (const b of list.querySelectorAll("button")) b.setAttribute("aria-current", String(Number(b.dataset.index) === i));
    detail.scrollTop = 0;
    if (byUser) remember({ trajectory: i, q: query.value });
  };
  const fill = () => {
    const words = query.value.toLowerCase();
    const shown = items.map((t, i) => i).filter((i) => haystacks[i].includes(words) && (!env.value || items[i].env === env.value)
      && (!outcome.value || (outcome.value === "won") === Boolean(items[i].success)));
    list.replaceChildren(...shown.map((i) => {
      const t = items[i];
      const [sign, kind] = t.failed ? ["!", "broke"] : t.success ? ["✓", "won"] : ["·", "lost"];
      const about = [t.sample === undefined ? null : `sample ${t.sample}`, t.method, `${t.steps.length} steps`, `reward ${number(t.reward)}`, t.chosen ? "chosen" : null];
      return el("button", { type: "button", "data-index": i, "aria-current": String(i === current), onclick: () => open(i, true) },
        el("span", { class: "sign " + kind, title: kind }, sign), el("span", { class: "task" }, t.task),
        t.score === undefined ? el("span") : pill(t.score, "score"), el("span", { class: "sub" }, about.filter(Boolean).join(" · ")));
    }));
    if (!shown.length) list.append(el("p", { class: "empty" }, "No trajectory matches."));
    else if (!shown.includes(current)) open(shown[0], false);
  };
  for (const control of [query, env, outcome]) control.addEventListener("input", fill);
  const note = `${items.length} trajectories` + (part.left_out ? `; ${part.left_out} more are not in this file.` : ".");
  section("trajectories", "Trajectories", note, el("div", { class: "tools" }, query, env, outcome), el("div", { class: "viewer" }, list, detail));
  const wanted = address();
  if (wanted.has("trajectory")) query.value = wanted.get("q") || "";
  const first = Number(wanted.get("trajectory") || 0);
  fill();
  open(first < items.length ? first : 0, false);
}
