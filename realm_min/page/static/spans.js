"use strict";
// The spans of a block as a triangle: a cell for each, its place the middle of the span, its height the span's width.
const Spans = (() => {
  const { el, fixed, probability, shown, svg } = Page;
  const RANGE = 15; // nats below the best that still have a colour
  const CELL = 34, WORDS = 86; // pixels: between two tokens, and below for the tokens

  const draw = (block) => {
    const rows = block.spans, count = block.tokens.length, best = block.best;
    const highest = best.score, total = rows.flat().reduce((sum, s) => sum + Math.exp(s - highest), 0);
    const tone = (s) => Math.max(0, 1 - (highest - s) / RANGE);
    const text = (first, width) => block.text.slice(block.tokens[first][0], block.tokens[first + width - 1][1]);
    let start = 0, seen = 0, at = { first: best.first, width: best.width };

    const cells = svg("g"), words = svg("g"), frame = svg("rect", { fill: "none", stroke: "var(--ink)", "stroke-width": 2.5, rx: 2 });
    const triangle = svg("svg", { tabindex: 0, role: "group", "aria-label": "Spans by place and width. Left and right arrows move along the text, up and down arrows change the width, Home goes to the best span." }, cells, words, frame);
    const reading = el("p", { class: "reading", "aria-live": "polite" });
    const slider = el("input", { type: "range", min: 0, max: count - 1, step: 1, "aria-label": "Place in the block" });
    const overview = svg("svg", { height: 44, viewBox: `0 0 ${count} 44`, preserveAspectRatio: "none", "aria-hidden": "true" });
    const window_ = svg("rect", { y: 0, height: 44, fill: "var(--faint)", stroke: "var(--soft)", "vector-effect": "non-scaling-stroke" });
    overview.append(window_, ...rows[0].map((_, i) => {
      const most = Math.max(...rows.filter((row) => i < row.length).map((row) => tone(row[i])));
      return svg("rect", { x: i + 0.1, width: 0.8, y: 44 - 42 * most - 1, height: 42 * most + 1, fill: "var(--answer)", "fill-opacity": 0.25 + 0.75 * most });
    }));

    const say = () => {
      const s = rows[at.width - 1][at.first];
      reading.replaceChildren(
        "“", el("b", {}, text(at.first, at.width)), "”", `: ${at.width} ${at.width === 1 ? "wordpiece" : "wordpieces"}, S(b, s) = ${fixed(s)}, of which f(x, z) = ${fixed(block.score)}; `,
        `among this block’s spans p = ${probability(Math.exp(s - highest) / total)}`, at.first === best.first && at.width === best.width ? ", the best" : "");
    };
    const x = (first, width) => (first - start + (width - 1) / 2 + 0.5) * CELL;
    const y = (width) => (rows.length - width + 1) * (CELL / 2);
    const point = () => {
      const visible = at.first >= start && at.first + at.width <= start + seen;
      frame.setAttribute("display", visible ? "inline" : "none");
      const side = CELL / Math.SQRT2 - 3;
      frame.setAttribute("width", side);
      frame.setAttribute("height", side);
      frame.setAttribute("transform", `translate(${x(at.first, at.width)} ${y(at.width)}) rotate(45) translate(${-side / 2} ${-side / 2})`);
      say();
    };
    const go = (first, width) => {
      width = Math.min(Math.max(1, width), rows.length);
      first = Math.min(Math.max(0, first), count - width);
      at = { first, width };
      if (first < start || first + width > start + seen) place(first + width / 2 - seen / 2);
      point();
    };
    const place = (to) => {
      const pixels = triangle.clientWidth || 320;
      seen = Math.min(count, Math.max(4, Math.floor(pixels / CELL)));
      start = Math.round(Math.min(Math.max(0, to), count - seen));
      const height = y(1) + CELL / 2 + WORDS;
      triangle.setAttribute("viewBox", `0 0 ${Math.max(pixels, seen * CELL)} ${height}`);
      triangle.setAttribute("height", height);
      cells.replaceChildren();
      words.replaceChildren();
      for (let i = start; i < start + seen; i++) {
        const own = i >= best.first && i < best.first + best.width;
        const [from, to_] = block.tokens[i];
        const word = block.text.slice(from, to_);
        words.append(svg("text", { transform: `translate(${x(i, 1) + 4} ${y(1) + CELL / 2 + 8}) rotate(-60)`, "text-anchor": "end", "font-size": 13, "font-weight": own ? 700 : 400, "dominant-baseline": "middle", style: own ? { fill: "var(--answer)" } : {} }, word.length > 12 ? `${word.slice(0, 11)}…` : word));
        for (let width = 1; width <= rows.length && i + width <= start + seen; width++) {
          const s = rows[width - 1][i];
          const half = CELL / 2 - 1.5, cx = x(i, width), cy = y(width);
          const cell = svg("path", { d: `M${cx} ${cy - half}L${cx + half} ${cy}L${cx} ${cy + half}L${cx - half} ${cy}Z`, fill: "var(--answer)", "fill-opacity": (0.04 + 0.96 * tone(s) ** 1.5).toFixed(3), stroke: "var(--line)", "stroke-width": 0.6 });
          cell.addEventListener("pointerenter", () => go(i, width));
          cells.append(cell);
        }
      }
      window_.setAttribute("x", start);
      window_.setAttribute("width", seen);
      slider.value = start + seen / 2;
      slider.setAttribute("aria-valuetext", shown(text(start, 1)));
      point();
    };
    slider.addEventListener("input", () => place(slider.value - seen / 2));
    triangle.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (event.key === "Home") go(best.first, best.width);
      else if (move) go(at.first + move[0], at.width + move[1]);
      else return;
      event.preventDefault();
    });
    const box = el("div", { class: "spans" }, overview, slider, triangle, reading, el("p", { class: "small" }, "S(b, s): ", el("span", { class: "scale" }), ` from ${fixed(highest - RANGE, 0)} or less to ${fixed(highest, 1)}. Above: the best span that begins at each wordpiece of the block; the frame is what is drawn here.`));
    const around = () => place(best.first + best.width / 2 - (seen || 20) / 2);
    new ResizeObserver(() => triangle.clientWidth && around()).observe(box);
    return box;
  };
  return { draw };
})();
