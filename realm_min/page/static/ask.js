"use strict";
// The Ask view: a question from its wordpieces to its answer.
const Ask = (() => {
  const { $, about, attempt, el, fixed, grouped, meter, open, probability, saved, shown, step, svg, tabs, views } = Page;
  const EXAMPLES = ["What is the capital of Uruguay?", "Who painted the Mona Lisa?", "What money do they use in Switzerland?"];
  let current = null, threshold = 0;

  const answer = (found) => {
    const a = found.answer, [before, said, after] = a.sentence, judged = a.confidence !== null;
    return el("article", { class: "answer", "aria-label": "Answer" },
      el("div", {},
        a.found ? null : el("p", { class: "not-found" }, el("b", {}, "Not found."), ` ${judged ? "P(right)" : "p(y|x)"} is below ${probability(threshold)}; the best of what was read:`),
        el("p", { class: "text", id: "answer-text" }, a.text),
        el("p", { class: "sentence" }, before, el("mark", {}, said), after),
        el("p", { class: "small" }, `From ${a.source}. p(y|x) is the answer’s share among all spans that were read, and no promise.`, judged ? " P(right) is fitted to questions whose answers are known." : "")),
      el("dl", { class: "figures" },
        judged ? el("div", {}, el("dt", {}, "P(right)"), el("dd", { id: "answer-confidence" }, probability(a.confidence))) : null,
        el("div", {}, el("dt", {}, "p(y|x), all spans of all blocks"), el("dd", { id: "answer-p" }, probability(a.probability))),
        el("div", {}, el("dt", {}, "Σ p(y|z,x) p(z|x), equation 1"), el("dd", { class: "minor", id: "answer-mixture" }, probability(a.mixture)))),
    );
  };

  const pieces = (found) => el("ol", { class: "pieces" }, found.wordpieces.map((piece) =>
    el("li", { class: piece.piece.startsWith("##") ? "rest" : piece.start === piece.end ? "special" : "" }, el("b", {}, piece.piece), el("small", {}, piece.id))));

  const vector = (found) => {
    const values = found.vector, most = Math.max(...values.map(Math.abs)), n = values.length, norm = Math.hypot(...values);
    const reading = el("p", { class: "reading" }, `${n} numbers, of length ${fixed(norm)}; the largest is ${fixed(most)}.`);
    const bars = values.map((v, i) => {
      const height = (40 * Math.abs(v)) / most;
      const bar = svg("rect", { x: i * 6 + 0.8, width: 4.4, y: v < 0 ? 45 : 45 - height, height: Math.max(height, 0.5), rx: 1, fill: v < 0 ? "var(--down)" : "var(--prior)" });
      const hit = svg("rect", { x: i * 6, width: 6, y: 0, height: 90, fill: "transparent" });
      hit.addEventListener("pointerenter", () => (reading.textContent = `Number ${i + 1} of ${n} is ${fixed(v, 3)}.`));
      return [bar, hit];
    });
    return [svg("svg", { viewBox: `0 0 ${n * 6} 90`, height: 90, preserveAspectRatio: "none", role: "img", "aria-label": `The question's vector: ${n} numbers of length ${fixed(norm)}` }, svg("line", { x1: 0, x2: n * 6, y1: 45, y2: 45, stroke: "var(--line)" }), bars), reading];
  };

  const blocks = (found, chosen) => {
    const group = el("div", { class: "blocks", role: "radiogroup", "aria-label": "Blocks read" });
    found.blocks.forEach((block, i) => group.append(el("label", { class: "block" },
      el("input", { type: "radio", name: "block", value: i, checked: i === found.answer.block, onchange: () => chosen(i) }),
      el("span", {}, el("span", { class: "name" }, `${i + 1}. ${block.title || `block ${block.id}`}`), el("small", { class: "place" }, block.document)),
      el("span", { class: "mono block-score" }, el("span", { class: "narrow-label" }, "f "), fixed(block.score)),
      meter(block.probability),
      el("span", { class: "alone" }, el("span", { class: "narrow-label" }, "alone: "), block.alone.text, " ", el("small", { class: "mono" }, probability(block.alone.probability))))));
    return [el("div", { class: "head", "aria-hidden": "true" }, el("span"), el("span", {}, "block"), el("span", {}, "f(x, z)"), el("span", {}, "p(z|x)"), el("span", {}, "alone it would say, p(y|z,x)")), group];
  };

  const show = (found) => {
    current = found;
    const inside = el("div");
    const look = (i) => {
      const block = found.blocks[i], name = `block ${i + 1}, ${block.title || block.id}`;
      inside.replaceChildren(
        step(4, `Every span of ${name}`, ["The reader scores each span of up to ", String(block.spans.length), " wordpieces by its first and its last token, and adds the block’s relevance. The higher in the triangle, the wider the span."], Spans.draw(block)),
        step(5, "What the answer looked at", `How much of each head’s attention goes from the best span of ${name} to the question’s words; then, for one head, to every wordpiece. ${saved ? "" : "Choose a wordpiece to see what it attends to."}`, Attention.draw(found.question, block)));
    };
    $("view-ask").replaceChildren(
      el("h2", {}, found.question), answer(found),
      step(1, "Wordpieces", "The question as the model reads it: the longest pieces that its vocabulary has, each with its number.", pieces(found)),
      step(2, "The question’s vector, Embed(x)", "All that the retriever knows of the question. A block has such a vector too, and relevance f(x, z) is their inner product.", vector(found)),
      step(3, "The blocks read", `Of all blocks those of largest f(x, z); p(z|x) is their softmax. Choose one to look inside.`, blocks(found, look)),
      inside,
      saved ? "" : el("div", { class: "actions" }, el("button", { type: "button", id: "save", onclick: save }, "Save this answer as one file")));
    setTimeout(() => current === found && look(found.answer.block)); // the answer first
  };

  const save = async () => {
    const [fault, button] = [$("asking-fault"), $("save")];
    await attempt(fault, [button], async (request) => {
      const link = el("a", { href: URL.createObjectURL(await request("save", { question: current.question, k: current.blocks.length })), download: "answer.html" });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }, button);
  };

  const ask = async () => {
    $("status").textContent = "Reading …";
    const last = await attempt($("asking-fault"), [$("asking").querySelector("button.main")], async (request) => {
      await about; // before that there are no numbers of blocks to choose from
      const given = { question: $("question").value, k: Number($("k").value) };
      show(await request("ask", given));
      views.search.asked(given);
    });
    if (last) $("status").textContent = "";
  };
  $("asking").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });

  const typed = new URLSearchParams(saved ? "" : location.hash.slice(1));
  $("tab-learn").hidden = Boolean(saved);
  open(tabs.includes(typed.get("view")) ? typed.get("view") : "ask"); // at once: the tab that is chosen next stays open
  about.then((found) => {
    threshold = found.threshold;
    for (let k = 1; k <= Math.min(20, found.blocks); k++) $("k").append(el("option", { value: k, selected: k === found.k }, k));
    if (saved) {
      show(saved.ask);
      views.search.asked({ question: saved.ask.question, k: saved.ask.blocks.length });
      return;
    }
    $("examples").append(...EXAMPLES.map((text) => el("button", { type: "button", onclick: () => { $("question").value = text; ask(); } }, text)));
    const linked = !$("question").value && typed.get("question"); // what was typed meanwhile stays
    if (linked) $("question").value = linked;
    if (typed.has("k")) $("k").value = typed.get("k");
    if (linked) ask();
    else $("view-ask").replaceChildren(el("div", { class: "card" }, el("h2", {}, "Ask, and see how the answer came to be"), el("p", { class: "says" }, `A question finds blocks among ${grouped(found.blocks)}; every span of those is a possible answer. Everything you then see is what the model has just computed: hover, click, or use the arrow keys.`)));
  });
  return {};
})();
