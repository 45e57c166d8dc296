// Tree viewer: an icicle of the whole tree (width by visits, colour by value) above an outline that opens and searches.
function prepare(tree) {
  const nodes = tree.nodes;
  nodes.forEach((n, i) => {
    n.index = i;
    n.children = [];
    n.depth = 0;
    if (n.parent >= 0) {
      n.depth = nodes[n.parent].depth + 1;
      nodes[n.parent].children.push(i);
    }
    n.text = [n.action, n.thought || "", n.observation].join("\n").toLowerCase();
  });
  for (const n of nodes) n.children.sort((a, b) => nodes[b].visits - nodes[a].visits || nodes[b].value - nodes[a].value || a - b);
  const ended = nodes.filter((n) => n.done && n.index);
  tree.best = ended.length ? ended.reduce((a, b) => (b.reward > a.reward || (b.reward === a.reward && b.depth < a.depth) ? b : a)).index : mostValued(nodes);
}
function mostValued(nodes) {
  return nodes.filter((n) => n.visits).reduce((a, b) => (b.value > a.value ? b : a), nodes[0]).index;
}
function mostVisited(nodes) {
  let at = 0;
  while (nodes[at].children.length) at = nodes[at].children[0];
  return at;
}
function lineage(nodes, index) {
  const path = [];
  for (let at = index; at >= 0; at = nodes[at].parent) path.push(at);
  return path;
}

function icicle(tree, state, choose) {
  const nodes = tree.nodes;
  const depth = Math.max(...nodes.map((n) => n.depth)) + 1;
  const tall = Math.max(9, Math.min(24, Math.floor(260 / depth)));
  const drawing = chart(depth * tall + 2, (box, width) => {
    const place = (index, left, room) => {
      const n = nodes[index];
      const rect = draw(box, "rect", { x: left, y: n.depth * tall + 1, width: Math.max(room, 0.5), height: tall - 1, rx: 2 });
      rect.style.fill = n.visits ? shade(n.value).background : "var(--line)";
      if (state.path.has(index)) rect.classList.add("path");
      if (state.matches.has(index)) rect.classList.add("hit");
      rect.onclick = () => choose(index);
      rect.onpointermove = (e) => showTip(e, `${label(n)}\nN ${n.visits} · V ${n.visits ? n.value.toFixed(3) : "–"}${n.done ? ` · ended with ${number(n.reward)}` : ""}`);
      rect.onpointerleave = hideTip;
      const total = n.children.reduce((sum, c) => sum + Math.max(nodes[c].visits, 0.35), 0);
      const share = room * Math.min(1, total / Math.max(n.visits, total, 1e-9));
      let at = left;
      for (const c of n.children) {
        const part = (share * Math.max(nodes[c].visits, 0.35)) / total;
        if (part >= 0.6) place(c, at, part);
        at += part;
      }
    };
    place(0, 0, width);
  }, "chart icicle");
  drawing.setAttribute("role", "img");
  drawing.setAttribute("aria-label", `Search tree of ${nodes.length} states, as wide as they were visited; the path below has the numbers`);
  return drawing;
}

function label(n) {
  if (n.parent < 0) return "start";
  const text = n.parsed || n.action || "(empty turn)";
  return text.length > 160 ? text.slice(0, 160) + "…" : text;
}

function marked(text, query) {
  if (!query) return [text];
  const pieces = [], low = text.toLowerCase();
  let at = 0;
  for (let hit = low.indexOf(query); hit >= 0; hit = low.indexOf(query, at)) {
    pieces.push(text.slice(at, hit), el("mark", {}, text.slice(hit, hit + query.length)));
    at = hit + query.length;
  }
  return [...pieces, text.slice(at)];
}

function snippet(n, query) {
  if (!query || label(n).toLowerCase().includes(query)) return null;
  for (const [kind, text] of [["thought", n.thought || ""], ["turn", n.action], ["observation", n.observation]]) {
    const hit = text.toLowerCase().indexOf(query);
    if (hit < 0) continue;
    const from = Math.max(0, hit - 50), to = hit + query.length + 60, cut = text.slice(from, to).replaceAll("\n", " ");
    return el("div", { class: "snip", style: { "--d": n.depth } }, `${kind}: ${from ? "…" : ""}`, ...marked(cut, query), to < text.length ? "…" : "");
  }
  return null;
}

function nodeDetail(n, query) {
  const facts = [`N ${n.visits}`, n.visits ? `V ${n.value.toFixed(3)} ± ${n.std.toFixed(3)}` : null, n.visits ? `returns ${number(n.min)} to ${number(n.max)}` : null,
    `reward ${number(n.reward)}`, `progress ${number(n.progress)}`, n.copies > 1 ? `proposed ${n.copies} times` : null,
    n.expanded ? "expanded" : "not expanded", n.closed ? "closed" : null];
  return el("div", { class: "more", style: { "--d": n.depth } }, n.thought ? el("p", { class: "thought" }, ...marked(n.thought, query)) : null,
    n.parent >= 0 ? el("div", { class: "act" }, ...marked(n.action || "(empty turn)", query)) : null,
    el("div", { class: "obs" }, ...marked(n.observation || "(no text)", query)),
    el("div", { class: "tags", style: { "margin-top": "8px", "margin-bottom": "0" } }, facts.filter(Boolean).map((t) => el("span", { class: "tag" }, t))));
}

function treeRow(n, state, act) {
  const inner = n.children.length > 0, open = state.open.has(n.index);
  const classes = ["row", state.path.has(n.index) ? "path" : "", state.now === n.index ? "now" : ""].join(" ");
  const twist = el("span", { class: "twist" }, inner ? (open ? "▾" : "▸") : "");
  twist.onclick = (event) => { event.stopPropagation(); if (inner) act.toggle(n.index); };
  const row = el("div", { class: classes, style: { "--d": n.depth }, role: "treeitem", tabindex: state.focus === n.index ? 0 : -1, "data-index": n.index,
    "aria-level": n.depth + 1, "aria-expanded": inner ? String(open) : null },
    twist, n.visits ? pill(n.value, "mean return V") : el("span", { class: "pill", title: "not simulated" }, "–"),
    el("span", { class: "visits", title: "simulation returns N" }, `N ${n.visits}`),
    el("span", { class: n.parent < 0 ? "what start" : "what" }, ...marked(label(n), state.query)),
    n.done ? el("span", { class: n.success ? "tag won" : "tag" }, n.success ? "success" : `ended, ${number(n.reward)}`) : null,
    n.valid ? null : el("span", { class: "tag warn" }, "not valid"),
    n.copies > 1 ? el("span", { class: "tag", title: "sampled proposals merged here" }, `×${n.copies}`) : null);
  row.onclick = () => act.detail(n.index);
  return [row, snippet(n, state.query), state.detail.has(n.index) ? nodeDetail(n, state.query) : null].filter(Boolean);
}

function trees(part) {
  for (const tree of part.items) prepare(tree);
  const nameOf = (t, i) => `${i + 1}. ${t.task} (${t.nodes.length} nodes)`;
  const menu = el("select", { "aria-label": "Tree" }, part.items.map((t, i) => el("option", { value: i }, nameOf(t, i))));
  const query = el("input", { type: "search", placeholder: "Find in actions, thoughts, observations", "aria-label": "Find nodes" });
  const count = el("span", { class: "note", style: { margin: "0" }, role: "status" });
  const outline = el("div", { class: "outline", role: "tree", "aria-label": "Search tree" }), map = el("div"), goal = el("p", { class: "goal" }), facts = el("div", { class: "tags" });
  let tree, state, order = [];
  const fresh = () => ({ open: new Set([0]), detail: new Set(), path: new Set(), matches: new Set(), query: "", now: -1, focus: 0 });
  const render = () => {
    const rows = [];
    order = [];
    const walk = (i) => {
      order.push(i);
      rows.push(...treeRow(tree.nodes[i], state, act));
      if (state.open.has(i)) tree.nodes[i].children.forEach(walk);
    };
    walk(0);
    outline.replaceChildren(...rows);
    map.replaceChildren(icicle(tree, state, (i) => act.reveal(i)));
  };
  const settle = (i, focus = false) => {
    const row = outline.querySelector(`[data-index="${i}"]`);
    if (!row) return;
    outline.scrollTop += row.getBoundingClientRect().top - outline.getBoundingClientRect().top - outline.clientHeight / 3;
    if (focus) row.focus({ preventScroll: true });
  };
  const act = {
    toggle: (i) => { state.open.has(i) ? state.open.delete(i) : state.open.add(i); state.focus = i; render(); },
    detail: (i) => { state.detail.has(i) ? state.detail.delete(i) : state.detail.add(i); state.focus = i; render(); },
    reveal: (i) => { for (const p of lineage(tree.nodes, i).slice(1)) state.open.add(p); state.detail.add(i); state.now = state.focus = i; render(); settle(i); },
    follow: (i) => { const path = lineage(tree.nodes, i); state.path = new Set(path); path.forEach((p) => state.open.add(p)); state.focus = i; render(); settle(i); },
    all: (on) => { state.open = new Set(on ? tree.nodes.map((n) => n.index) : [0]); if (!on) { state.detail.clear(); state.path.clear(); } render(); },
  };
  const search = () => {
    state.query = query.value.trim().toLowerCase();
    state.matches = new Set(state.query ? tree.nodes.filter((n) => n.text.includes(state.query)).map((n) => n.index) : []);
    for (const m of state.matches) for (const p of lineage(tree.nodes, m).slice(1)) state.open.add(p);
    state.now = -1;
    count.textContent = state.query ? `${state.matches.size} of ${tree.nodes.length} nodes match` + (state.matches.size ? "; Enter goes through them" : "") : "";
    render();
  };
  const next = () => {
    const hits = order.filter((i) => state.matches.has(i));
    if (!hits.length) return;
    state.now = state.focus = hits[(hits.indexOf(state.now) + 1) % hits.length];
    render();
    settle(state.now);
  };
  const choose = (i) => {
    tree = part.items[i];
    state = fresh();
    goal.textContent = tree.goal;
    const ended = tree.nodes.filter((n) => n.done), won = ended.filter((n) => n.success).length;
    const about = [`${tree.nodes.length} nodes`, `${tree.nodes[0].visits} simulations`, `${won} of ${ended.length} ended nodes succeed`,
      tree.left_out ? `${tree.left_out} little visited nodes are not in this file` : null, ...flat(tree.meta).filter(([k]) => k).map(([k, v]) => `${k} ${v}`)];
    facts.replaceChildren(...about.filter(Boolean).map((t) => el("span", { class: "tag" }, t)));
    tree.nodes[0].children.forEach((c) => state.open.add(c));
    search();
  };
  const store = () => remember({ tree: menu.value, q: query.value });
  menu.addEventListener("input", () => { choose(Number(menu.value)); store(); });
  query.addEventListener("input", () => { search(); store(); });
  query.addEventListener("keydown", (e) => { if (e.key === "Enter") next(); });
  outline.addEventListener("keydown", (e) => {
    const row = e.target.closest(".row");
    if (!row) return;
    const i = Number(row.dataset.index), n = tree.nodes[i], at = order.indexOf(i);
    const move = (to) => { if (to === undefined || to < 0) return; state.focus = to; render(); const r = outline.querySelector(`[data-index="${to}"]`); r.focus(); };
    const keys = {
      ArrowDown: () => move(order[at + 1]), ArrowUp: () => move(order[at - 1]), Enter: () => { act.detail(i); move(i); },
      ArrowRight: () => { if (n.children.length && !state.open.has(i)) act.toggle(i); move(i); },
      ArrowLeft: () => { if (state.open.has(i) && n.children.length) { act.toggle(i); move(i); } else move(n.parent); },
    };
    if (keys[e.key]) { e.preventDefault(); keys[e.key](); }
  });
  const button = (text, action) => el("button", { type: "button", onclick: action }, text);
  const note = "Width is visits, colour is the mean return. Click a node for its text, the arrow to open it." + (part.left_out ? ` ${part.left_out} more trees are not in this file.` : "");
  section("trees", "Search trees", note, el("div", { class: "card" }, el("div", { class: "tools" }, menu, query),
    el("div", { class: "tools" }, button("Best outcome", () => act.follow(tree.best)), button("Most visited", () => act.follow(mostVisited(tree.nodes))),
      button("Open all", () => act.all(true)), button("Close all", () => act.all(false)), count),
    goal, facts, map, el("div", { class: "tools", style: { margin: "8px 0 0" } }, el("span", { class: "scale" }, "V 0", el("i"), "1")), outline));
  const wanted = address();
  if (wanted.has("tree") && Number(wanted.get("tree")) < part.items.length) {
    menu.value = wanted.get("tree");
    query.value = wanted.get("q") || "";
  }
  choose(Number(menu.value));
  if (wanted.get("show") === "best") act.follow(tree.best);
}
