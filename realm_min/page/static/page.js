"use strict";
// What every view needs: text that stays text, elements, requests, the tabs and the theme. A view is a function that
// draws what the server computed; no number is made here but sums and shares of the server's own.
const Page = (() => {
  const $ = (id) => document.getElementById(id);
  const element = $("saved");
  const saved = element && JSON.parse(element.textContent); // this is a file, there is no server

  // Text of others is only text: what cannot be seen is shown as its escape, as on the command line.
  const UNSEEN = /[\p{C}\p{Zl}\p{Zp}\u{e0000}-\u{e0fff}]/gu;
  const escape = (c) => {
    const code = c.codePointAt(0).toString(16);
    return code.length <= 2 ? `\\x${code.padStart(2, "0")}` : code.length <= 4 ? `\\u${code.padStart(4, "0")}` : `\\U${code.padStart(8, "0")}`;
  };
  const shown = (text) => String(text).replace(UNSEEN, escape);

  const fill = (node, attributes, children) => {
    for (const [name, value] of Object.entries(attributes)) {
      if (value === false || value === null || value === undefined) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "style") for (const [key, x] of Object.entries(value)) node.style.setProperty(key, x);
      else node.setAttribute(name, value === true ? "" : shown(value));
    }
    node.append(...children.flat(Infinity).filter((x) => x !== null && x !== undefined && x !== false).map((x) => (x instanceof Node ? x : shown(x))));
    return node;
  };
  const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  // Numbers as they are read: three digits of a probability, two places of a score, a true minus sign.
  const minus = (text) => text.replace(/-(?=\d)/g, "\u2212");
  const probability = (p) => (p >= 0.9995 ? "1.000" : p >= 0.001 ? p.toFixed(3) : p === 0 ? "0" : minus(p.toExponential(1)));
  const fixed = (x, places = 2) => minus(x.toFixed(places));
  const grouped = (n) => n.toLocaleString("en-US");

  const request = async (name, given) => {
    if (saved) return fromFile(name, given);
    let answer;
    try {
      answer = await fetch(`/api/${name}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(given) });
    } catch {
      throw new Error("realm-min page does not answer: start it again, then reload");
    }
    if (answer.ok) return name === "save" ? answer.blob() : answer.json();
    throw new Error((await answer.json().catch(() => ({}))).error || `the page failed (${answer.status}): see its terminal`);
  };
  const fromFile = (name, given) => {
    const found = { about: saved.about, ask: saved.ask, search: saved.search[String(given.compression ?? "None")] }[name];
    const kept = name === "attention" && saved.attention[saved.ask.blocks.findIndex((block) => block.id === given.block)];
    if (found) return found;
    if (kept && kept.first === given.first && kept.last === given.last) return kept;
    throw new Error("this is a saved answer: ask realm-min page for more");
  };

  // One row of buttons is one stop of the Tab key; arrows move within.
  const roving = (group, selector, columns = 1) => {
    const items = () => [...group.querySelectorAll(selector)];
    const rove = (item) => items().forEach((other) => (other.tabIndex = other === item ? 0 : -1));
    rove(group.querySelector(`${selector}[aria-checked="true"], ${selector}.from`) || items()[0]);
    group.addEventListener("focusin", (event) => event.target.matches(selector) && rove(event.target));
    group.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
      const all = items(), at = all.indexOf(document.activeElement);
      const to = event.key === "Home" ? 0 : event.key === "End" ? all.length - 1 : at + (steps[event.key] || 0);
      if (at < 0 || to === at || !all[to]) return;
      event.preventDefault();
      all[to].focus();
    });
  };

  const meter = (value, kind = "prior") => {
    const bar = el("div", { class: "fill" }), text = el("span", { class: "mono" });
    const node = el("div", { class: `meter ${kind}` }, el("div", { class: "track", "aria-hidden": "true" }, bar), text);
    node.show = (p) => {
      bar.style.width = `${100 * p}%`;
      text.textContent = probability(p);
    };
    node.show(value);
    return node;
  };

  const step = (count, title, says, ...children) =>
    el("section", { class: "step", "aria-label": title }, el("h3", {}, count && el("span", { class: "count", "aria-hidden": "true" }, count), title), el("p", { class: "says" }, ...[says].flat()), ...children);

  // ---- tabs, theme, the form
  const views = { ask: [], learn: [], search: [] }; // what to do when one is opened
  const tabs = ["ask", "learn", "search"];
  const open = (name) => {
    for (const other of tabs) {
      const tab = $(`tab-${other}`);
      tab.setAttribute("aria-selected", String(other === name));
      tab.tabIndex = other === name ? 0 : -1;
      $(`view-${other}`).hidden = other !== name;
    }
    $("asking").hidden = name === "learn" || Boolean(saved);
    views[name].forEach((opened) => opened());
  };
  $("tabs").addEventListener("click", (event) => event.target.id && open(event.target.id.slice(4)));
  $("tabs").addEventListener("keydown", (event) => {
    const shownTabs = tabs.filter((name) => !$(`tab-${name}`).hidden);
    const at = shownTabs.findIndex((name) => $(`tab-${name}`) === document.activeElement);
    const to = at + ({ ArrowRight: 1, ArrowLeft: -1 }[event.key] || 0);
    if (to === at || !shownTabs[to]) return;
    open(shownTabs[to]);
    $(`tab-${shownTabs[to]}`).focus();
  });

  const themes = ["system", "light", "dark"];
  const dress = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    $("theme").textContent = `Theme: ${theme}`;
  };
  let theme = themes[0];
  try { theme = localStorage.getItem("theme") || theme; } catch { /* a file may not remember */ }
  dress(theme);
  $("theme").addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    dress(theme);
    try { localStorage.setItem("theme", theme); } catch { /* likewise */ }
  });

  const sentence = ({ message }) => shown(`${message[0].toUpperCase()}${message.slice(1)}.`.replace(/([.…])\.$/, "$1"));

  // What is asked for by a form: its fault in one sentence below the box, whose text stays. Where more was asked for
  // meanwhile, by whatever reports to the same place, this is dropped at its answer: `work` is given the `request` that
  // does so. Returns whether it was the last.
  const newest = new WeakMap(), LATE = new Error();
  const attempt = async (fault, busy, work, place = fault) => {
    const turn = {}, last = () => newest.get(place) === turn;
    const requestInTurn = async (name, given) => {
      const answer = await request(name, given);
      if (!last()) throw LATE;
      return answer;
    };
    newest.set(place, turn);
    fault.textContent = "";
    busy.forEach((button) => (button.disabled = true));
    try {
      await work(requestInTurn);
    } catch (error) {
      if (last()) fault.textContent = sentence(error);
    } finally {
      busy.forEach((button) => (button.disabled = false));
    }
    return last();
  };

  const about = request("about", {});
  about.then((found) => {
    $("about").textContent = shown(
      `Drawn from the running model: ${found.model}, two encoders of ${found.layers} layers and ${found.heads} heads of ${found.hidden} numbers, ` +
      `over ${grouped(found.blocks)} blocks. ${saved ? "Saved as one file; nothing in it runs a model." : "Everything is computed on this machine; the page loads nothing from elsewhere."}`);
  }, (error) => ($("about").textContent = sentence(error)));
  return { $, about, attempt, el, fixed, grouped, meter, open, probability, request, roving, saved, shown, step, svg, tabs, views };
})();
