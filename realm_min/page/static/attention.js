"use strict";
// Attention of the reader: a grid of layers and heads, and the text shaded by the one that was chosen.
const Attention = (() => {
  const { el, fixed, roving, shown } = Page;

  // question, block: whose; best: the block's best span
  const draw = (question, block) => {
    const prefix = block.prefix; // tokens before the block's own
    const grid = el("div", { class: "heads", role: "radiogroup", "aria-label": "Layers and heads" });
    const text = el("p", { class: "read-text", role: "toolbar", "aria-label": "What was read. Choose a wordpiece to see what it attends to" });
    const says = el("p", { class: "reading", "aria-live": "polite" });
    const back = el("button", { type: "button", hidden: true }, "From the best span again");
    const fault = el("p", { class: "fault", role: "alert" });
    const own = { first: prefix + block.best.first, last: prefix + block.best.first + block.best.width - 1 };
    let found, chosen = null; // [layer, head]

    const share = (weights) => weights.reduce((sum, w, i) => sum + (isQuestion(i) ? w : 0), 0);
    const isQuestion = (i) => i > 0 && i < prefix - 1;
    const shade = () => {
      const [layer, head] = chosen, weights = found.weights[layer][head];
      const words = weights.filter((_, i) => found.tokens[i].block || isQuestion(i));
      const most = Math.max(...words, 1e-6);
      [...text.children].forEach((span, i) => {
        span.style.setProperty("--weight", `${Math.round(55 * Math.min(1, weights[i] / most))}%`);
        span.title = `${shown(found.tokens[i].piece)}: ${fixed(weights[i], 4)}`;
        span.classList.toggle("from", i >= found.first && i <= found.last);
      });
      const top = weights.indexOf(most) < 0 ? "" : `; of all words “${shown(found.tokens[weights.indexOf(most)].piece)}” gets the most, ${fixed(most, 3)}`;
      says.textContent = `Layer ${layer + 1}, head ${head + 1}: ${fixed(share(weights), 3)} goes to the question’s words${top}.`;
      grid.querySelectorAll("button").forEach((button) => button.setAttribute("aria-checked", String(button.dataset.at === `${layer},${head}`)));
    };
    const choose = (layer, head) => {
      chosen = [layer, head];
      shade();
    };
    const show = () => {
      const layers = found.weights.length, heads = found.weights[0].length;
      const shares = found.weights.map((row) => row.map(share)), most = Math.max(...shares.flat(), 1e-6);
      if (!chosen) {
        const flat = shares.flat(), at = flat.indexOf(Math.max(...flat));
        chosen = [Math.floor(at / heads), at % heads];
      }
      grid.style.gridTemplateColumns = `3.6rem repeat(${heads}, 1fr)`;
      const focused = grid.contains(document.activeElement);
      grid.replaceChildren(el("span", {}, "head"), ...Array.from({ length: heads }, (_, i) => el("span", {}, i + 1)), ...shares.flatMap((row, layer) => [
        el("span", {}, `layer ${layer + 1}`),
        ...row.map((x, head) => el("button", { type: "button", role: "radio", "data-at": `${layer},${head}`, style: { "--share": (x / most).toFixed(3) }, "aria-label": `layer ${layer + 1}, head ${head + 1}: ${fixed(x, 3)} on the question`, title: `layer ${layer + 1}, head ${head + 1}: ${fixed(x, 3)}`, onfocus: () => choose(layer, head), onclick: () => choose(layer, head) })),
      ]));
      text.replaceChildren(...found.tokens.map((token, i) => el("span", { role: "button", tabindex: -1, "data-at": i, class: token.block || isQuestion(i) ? "" : "special" }, `${token.piece.startsWith("##") || i === 0 ? "" : " "}${token.piece.replace(/^##/, "")}`)));
      shade();
      if (!grid.dataset.ready) {
        roving(grid, "button", heads);
        roving(text, "span");
        grid.dataset.ready = "yes";
      }
      if (focused) grid.querySelector('[aria-checked="true"]').focus();
    };
    const fetch_ = (first, last) => Page.attempt(fault, [], async (request) => {
      found = await request("attention", { question, block: block.id, first, last });
      back.hidden = first === own.first && last === own.last;
      show();
    });
    const pick = (event) => event.target.dataset.at && fetch_(Number(event.target.dataset.at), Number(event.target.dataset.at));
    text.addEventListener("click", pick);
    text.addEventListener("keydown", (event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), pick(event)));
    back.addEventListener("click", () => fetch_(own.first, own.last));
    fetch_(own.first, own.last);
    return el("div", {}, grid, says, text, el("div", { class: "actions" }, back), fault);
  };
  return { draw };
})();
