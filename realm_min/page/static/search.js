"use strict";
// The Search view: what a scan knows of each group of blocks, and which groups that rules out.
(() => {
  const { $, attempt, el, fixed, grouped, saved, step, svg, views } = Page;
  const countNear = () => ($("main").clientWidth < 700 ? 24 : 48); // groups drawn one by one, those of the largest upper ends
  const WAYS = [["None", null, "float32, the blocks themselves"], ["bfloat16", "bfloat16", "bfloat16, half the bytes"], ["int8", "int8", "int8, a quarter"]];
  let asked = null, compression = "int8", stale = true;

  const fault = el("p", { class: "fault", role: "alert" }), figure = el("div");
  const kinds = el("fieldset", {}, el("legend", {}, "The scan reads"), ...WAYS.map(([name, , title]) => el("label", {}, el("input", { type: "radio", name: "compression", value: name, checked: name === compression, onchange: () => { compression = name; draw(); } }), " ", title)));

  const tone = (kind) => ({ holds: "var(--answer)", vain: "var(--down)", out: "var(--prior)" })[kind];
  const NAMES = { holds: "holds one of the answers", vain: "rescored in vain", out: "ruled out" };

  const plot = (found, groups, wide, says) => {
    const W = 1000, H = wide ? 150 : 280, pad = 8;
    const low = Math.min(...groups.map((g) => g.lower)), high = Math.max(...groups.map((g) => g.upper));
    const y = (s) => pad + ((H - 2 * pad) * (high - s)) / (high - low || 1), width = W / groups.length;
    const t = y(Math.max(found.threshold ?? low, low));
    const bars = groups.map((g, i) => {
      const x = (i + 0.5) * width, parts = [svg("line", { x1: x, x2: x, y1: y(g.upper), y2: Math.max(y(g.lower), y(g.upper) + 1.5), stroke: tone(g.kind), "stroke-width": wide ? 2 : 7, "vector-effect": "non-scaling-stroke", "stroke-linecap": wide ? "butt" : "round", "stroke-opacity": g.kind === "out" ? 0.55 : 1 })];
      if (!wide) {
        parts.push(svg("path", { d: `M${x} ${y(g.exact)}h0`, stroke: "var(--ink)", "stroke-width": 5, "stroke-linecap": "round", "vector-effect": "non-scaling-stroke" }));
        const hit = svg("rect", { x: i * width, width, y: 0, height: H, fill: "transparent" });
        hit.addEventListener("pointerenter", () => says(g));
        parts.push(hit);
      }
      return parts;
    });
    return svg("svg", { viewBox: `0 0 ${W} ${H}`, height: H, preserveAspectRatio: "none", "aria-hidden": "true" }, bars,
      svg("line", { x1: 0, x2: W, y1: t, y2: t, stroke: "var(--ink)", "stroke-width": 1.5, "stroke-dasharray": "6 4", "vector-effect": "non-scaling-stroke" }));
  };

  const show = (found) => {
    const d = found.drawn, holding = new Set(found.found.map((block) => block.group));
    const groups = d.group.map((group, i) => ({ group, maximum: d.maximum[i], lower: d.lower[i], upper: d.upper[i], exact: d.exact[i], kind: holding.has(group) ? "holds" : d.rescored[i] ? "vain" : "out" }));
    const near = [...groups].sort((a, b) => b.upper - a.upper).slice(0, countNear());
    const reading = el("p", { class: "reading", "aria-live": "polite" });
    const says = (g) => (reading.textContent = `Group ${g.group}, blocks ${grouped(g.group * found.group)} to ${grouped(Math.min(found.blocks, (g.group + 1) * found.group) - 1)}: the scan’s maximum ${fixed(g.maximum, 3)} ± ${fixed((g.upper - g.lower) / 2, 3)}, the true one ${fixed(g.exact, 3)}: ${NAMES[g.kind]}.`);
    const slider = el("input", { type: "range", min: 0, max: near.length - 1, value: 0, "aria-label": "Group, by its upper end", oninput: (event) => says(near[Number(event.target.value)]) });
    says(near[0]);
    const fact = (name, value, id) => el("div", {}, el("dt", {}, name), el("dd", { id }, value));
    figure.replaceChildren(
      el("dl", { class: "facts" },
        fact("groups of 16 blocks", grouped(found.groups), "groups"), fact("threshold t", found.threshold === null ? "none" : fixed(found.threshold, 3), "threshold"),
        fact("groups rescored", grouped(found.rescored), "rescored"), fact("groups with answers", grouped(holding.size), "holding"),
        fact("bytes read a number", found.bytes, "bytes")),
      el("ul", { class: "legend" }, Object.entries(NAMES).map(([kind, name]) => el("li", {}, el("i", { style: { "--tone": tone(kind) } }), name)), el("li", {}, "• the true maximum"), el("li", {}, "- - the threshold t")),
      step(1, "Which groups are rescored?", `The scan knows the best score m of each group of ${found.group} neighbours up to a bound b, so the true one lies in m ± b. Of the lower ends the ${found.k}${["th", "st", "nd", "rd"][found.k % 10 > 3 || found.k % 100 - (found.k % 10) === 10 ? 0 : found.k % 10]} largest is the threshold t: no answer is under it. Whose upper end stays below is ruled out. Here are the ${near.length} groups of largest upper end, best first.`,
        plot(found, near, false, says), slider, reading),
      step(2, "All groups, in their place", `Most bars end far below the line${found.groups > groups.length ? `; of ${grouped(found.groups)} groups the ${groups.length} nearest to it are drawn` : ""}: of ${grouped(found.blocks)} blocks at most ${grouped(found.rescored * found.group)} are scored in full, and the answer is exactly that of scoring all.`,
        plot(found, groups, true, says)),
      step(3, "The blocks found", found.report ? `The search that answered ran on a CPU, which holds each row to the same bound: it scored ${grouped(found.report.rows)} ${found.report.rows === 1 ? "row" : "rows"} of ${grouped(found.report.groups)} ${found.report.groups === 1 ? "group" : "groups"} in full.` : "",
        el("table", {}, el("caption", {}, "Equal scores go to the smaller number."), el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "block"), el("th", { class: "number", scope: "col" }, "number"), el("th", { class: "number", scope: "col" }, "group"), el("th", { class: "number", scope: "col" }, "f(x, z)"))),
          el("tbody", {}, found.found.map((block) => el("tr", {}, el("th", { scope: "row" }, block.title || `block ${block.id}`), el("td", { class: "number" }, block.id), el("td", { class: "number" }, block.group), el("td", { class: "number" }, fixed(block.score, 3))))))));
  };

  const draw = () => attempt(fault, [], async (request) => {
    const way = WAYS.find(([name]) => name === compression)[1], given = asked;
    show(await request("search", { ...asked, compression: way }));
    stale = given !== asked;
  });
  views.search.asked = (given) => {
    asked = given;
    stale = true;
    build();
    if (!$("view-search").hidden) draw();
  };
  const build = () => $("view-search").replaceChildren(el("h2", {}, asked.question), el("p", { class: "says" }, "Why are these surely the best blocks, though hardly any was scored in full?"), kinds, fault, figure);
  views.search.push(() => asked && stale && draw());
  if (!saved) $("view-search").append(el("div", { class: "card" }, el("h2", {}, "Why is the search exact?"), el("p", { class: "says" }, "Ask a question above: here you then see which groups of blocks had to be looked at closely, and why no other could hold an answer.")));
})();
