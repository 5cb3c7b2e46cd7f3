"use strict";
// The Learn view: hide words of a sentence, see what each document makes of them, take steps.
(() => {
  const { $, about, attempt, el, fixed, grouped, meter, probability, saved, shown, svg, views } = Page;
  const BRANCHES = { with: "with the retriever’s gradient", without: "without it" };
  let sentences = [], text = "", words = [], hidden = [], found = null, at = 0, drawn = null, seed = 0;

  const sentence = el("div", { class: "words", role: "group", "aria-label": "The sentence. A pressed word is hidden" });
  const typed = el("input", { type: "text", id: "sentence", autocomplete: "off", spellcheck: "false", "aria-describedby": "learn-fault" });
  const fault = el("p", { class: "fault", id: "learn-fault", role: "alert" });
  const button = (name, id, work, main) => el("button", { type: "button", id, class: main ? "main" : "", onclick: work }, name);
  const take = button("Take a step", "step", () => go(at + 1), true), ten = button("Take ten", "ten", () => go(at + 10));
  const back = button("One back", "back", () => go(at - 1)), reset = button("Reset", "reset", () => go(0));
  const count = el("span", { class: "small", id: "count", role: "status" });
  const lesson = el("div", { hidden: true });

  const choose = async (to, hideSome = () => {}) => {
    typed.value = to;
    await attempt(fault, [], async (request) => {
      ({ words } = await request("words", { text: to }));
      [text, hidden] = [to, []];
      spell();
      lesson.hidden = true;
      await hideSome();
    });
  };
  const spell = () => {
    sentence.replaceChildren(...words.map((word, i) => el("button", {
      type: "button", "aria-pressed": String(hidden.includes(i)), class: word.known ? "" : "unknown", disabled: !word.known,
      title: word.known ? null : "The small model has no word for this",
      onclick: () => hide(hidden.includes(i) ? hidden.filter((other) => other !== i) : [...hidden, i]),
    }, text.slice(word.start, word.end))));
  };
  const hide = (places) => attempt(fault, [], async () => {
    const focus = [...sentence.children].indexOf(document.activeElement);
    hidden = places.sort((a, b) => a - b);
    spell();
    sentence.children[focus]?.focus();
    drawn = null;
    if (hidden.length) await go(0);
    lesson.hidden = !drawn; // until then it shows what it showed, and nothing where that was hidden
  });
  const salient = () => attempt(fault, [], async (request) => {
    const drawnPlaces = await request("salient", { text, seed: seed++ });
    await hide(drawnPlaces.hidden);
  });
  const go = (steps) => attempt(fault, [take, ten, back, reset], async (request) => {
    found = await request("learn", { text, hidden, steps: Math.max(0, steps) });
    at = found.steps;
    show();
  }).then(() => {
    back.disabled = reset.disabled = at === 0;
    take.disabled = found && at >= found.most;
    ten.disabled = found && at + 10 > found.most;
  });

  // ---- what is drawn, once for a lesson; a step changes its numbers
  const arrow = () => { // up and down from the middle, as long as |r|
    const path = svg("path", { fill: "currentColor" }), number = el("span");
    const node = el("span", { class: "r" }, svg("svg", { viewBox: "-8 -24 16 48", "aria-hidden": "true" }, svg("line", { x1: -8, x2: 8, y1: 0, y2: 0, stroke: "var(--line)", "stroke-width": 1.5 }), path), number);
    node.show = (r) => {
      const none = Math.abs(r) < 0.0005, up = r > 0, size = Math.abs(r), tip = (up ? -1 : 1) * (3 + 20 * size);
      const neck = tip - Math.sign(tip) * (3 + 6 * size), wide = 3 + 4 * size;
      node.className = `r ${none ? "none" : up ? "up" : "down"}`;
      path.setAttribute("d", none ? "" : `M-1.5 0V${neck}H${-wide}L0 ${tip}L${wide} ${neck}H1.5V0Z`);
      number.textContent = none ? "0.000" : `${up ? "+" : ""}${fixed(r, 3)}`;
      node.setAttribute("aria-label", none ? "r is about 0: it stays" : `r ${fixed(r, 3)}: pushed ${up ? "up" : "down"}`);
    };
    return node;
  };
  const build = () => {
    const cells = { with: [], without: [] };
    const rows = found.documents.map((document_, i) => {
      const tds = Object.keys(BRANCHES).flatMap((name) => {
        const cell = { likelihood: el("span"), guess: el("small"), prior: meter(0), posterior: meter(0, "posterior"), r: arrow() };
        cells[name].push(cell);
        return [
          el("td", { class: `number ${name}`, "data-label": `${name}: p(y|z,x)` }, cell.likelihood, " ", cell.guess),
          el("td", { class: `pair ${name}` }, cell.prior, cell.posterior), el("td", { class: name }, cell.r),
        ];
      });
      const name = document_ ? [document_[0], el("small", {}, document_[1])] : ["∅", el("small", {}, "the null document: nothing to read")];
      return el("tr", { "data-document": i }, el("th", { scope: "row" }, ...name), tds);
    });
    const columns = () => [el("th", { class: "number", scope: "col" }, "p(y|z,x)"), el("th", { scope: "col" }, "p(z|x) and p(z|x,y)"), el("th", { scope: "col" }, "r(z)")];
    const twins = {};
    const twin = (name) => {
      twins[name] = { p: el("p", { class: "p", id: `p-${name}` }), curve: svg("svg", { viewBox: "0 0 300 60", height: 60, preserveAspectRatio: "none", role: "img" }), says: el("p", { class: "small" }) };
      return el("div", { class: "twin" }, el("h4", {}, `p(y|x), ${BRANCHES[name]}`), twins[name].p, twins[name].curve, twins[name].says);
    };
    lesson.replaceChildren(
      el("div", { class: "actions" }, take, ten, back, reset, count),
      el("div", { class: "twins" }, twin("with"), twin("without")),
      el("ul", { class: "legend" },
        el("li", {}, el("i", { style: { "--tone": "var(--prior)" } }), "prior p(z|x), before y is seen"),
        el("li", {}, el("i", { style: { "--tone": "var(--answer)" } }), "posterior p(z|x,y), the share of p(y|x) that came by z"),
        el("li", {}, el("i", { style: { "--tone": "var(--up)" } }), "r(z) = posterior − prior > 0: pushed up"),
        el("li", {}, el("i", { style: { "--tone": "var(--down)" } }), "r(z) < 0: pushed down")),
      el("table", { class: "learn-table" },
        el("caption", {}, "The documents that were found for the sentence before the first step. In quotes: what the encoder would write, having read z."),
        el("thead", {}, el("tr", {}, el("th", { rowspan: 2 }, "document z"), el("th", { class: "group", colspan: 3, scope: "colgroup" }, BRANCHES.with), el("th", { class: "group", colspan: 3, scope: "colgroup" }, BRANCHES.without)), el("tr", {}, columns(), columns())),
        el("tbody", {}, rows)));
    drawn = { cells, twins };
  };
  const show = () => {
    if (!drawn) build();
    lesson.hidden = false;
    const all = [...found.with, ...found.without].map((view) => view.log_p), lowest = Math.min(...all, -1), y = (value) => 4 + (52 * value) / lowest;
    for (const name of Object.keys(BRANCHES)) {
      const view = found[name][at], { p, curve, says } = drawn.twins[name];
      p.textContent = probability(Math.exp(view.log_p));
      says.textContent = `log p(y|x) = ${fixed(view.log_p, 3)}; before the first step ${fixed(found[name][0].log_p, 3)}`;
      curve.setAttribute("aria-label", `log p(y|x) over ${at} steps, from ${fixed(found[name][0].log_p, 2)} to ${fixed(view.log_p, 2)}`);
      const x = (i) => 4 + (i * 292) / Math.max(10, at), points = found[name].map((v, i) => `${x(i)} ${y(v.log_p)}`);
      curve.replaceChildren(
        svg("line", { x1: 0, x2: 300, y1: 4, y2: 4, stroke: "var(--line)", "vector-effect": "non-scaling-stroke" }),
        svg("path", { d: `M${points.join("L")}`, fill: "none", stroke: "var(--answer)", "stroke-width": 2.5, "vector-effect": "non-scaling-stroke", "stroke-linejoin": "round" }),
        svg("path", { d: `M${points.at(-1)}h0`, stroke: "var(--answer)", "stroke-width": 9, "stroke-linecap": "round", "vector-effect": "non-scaling-stroke" }));
      drawn.cells[name].forEach((cell, i) => {
        cell.likelihood.textContent = probability(view.likelihood[i]);
        cell.guess.textContent = shown(`“${view.guesses[i].word}”`);
        cell.prior.show(view.prior[i]);
        cell.posterior.show(view.posterior[i]);
        cell.r.show(view.r[i]);
      });
    }
    count.textContent = at === 0 ? "No step was taken yet." : `After ${at} ${at === 1 ? "step" : "steps"}.`;
  };

  about.then(({ small }) => {
    if (saved) return;
    sentences = small.sentences;
    const another = () => choose(sentences[Math.floor(Math.random() * sentences.length)], salient);
    $("view-learn").append(
      el("h2", {}, "A word is hidden; which document would have helped?"),
      el("p", { class: "says" }, "Nobody tells REALM which document belongs to a sentence. It reads the hidden word y out of each that it finds, and what did better than the others together is found more readily next time:"),
      el("p", { class: "formula" }, "∂ log p(y|x) / ∂ f(x, z) = p(z|x,y) − p(z|x) = r(z)"),
      el("form", { class: "sentence-form card", novalidate: true, onsubmit: (event) => { event.preventDefault(); choose(typed.value); } },
        el("label", { for: "sentence" }, "A sentence: type one, or take another"),
        el("div", { class: "line" }, typed, el("button", { type: "submit" }, "Use it")),
        fault,
        el("p", { class: "small", style: { margin: "1rem 0 0" } }, "Click a word to hide it."),
        sentence,
        el("div", { class: "actions", style: { margin: 0 } }, button("Let salient masking choose", "salient", salient), button("Another sentence", "another", another))),
      lesson,
      el("p", { class: "small", id: "about-small" }, `Drawn from a small REALM, since the model that answers has no head for masked words: two encoders of ${small.layers} layer and ${small.hidden} numbers, ${grouped(small.parameters)} weights, ${small.words} whole words, ${small.documents} lines of the World Factbook. It learnt from masked words alone and was stopped half-way. A step is the library’s own pretrain_step and AdamW, on a copy; the documents are those found at first, as by an index that has not been refreshed.`));
  });
  let opened = false;
  views.learn.push(async () => { // it may be opened before there is anything in it
    if (opened) return;
    opened = true;
    const { first } = (await about).small;
    choose(first.text, () => hide(first.hidden));
  });
})();
