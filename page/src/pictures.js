// Pictures: SVG and boxes from numbers. They know no model. Teal is the untouched run, orange the edited one, in every
// picture, and each says in words what it shows.

import { h, svg, tween } from "./dom.js";
import { topK } from "./numbers.js";
import { number, percent, short, t } from "./text.js";
import { shown } from "./tokens.js";

const ROWS = 7;

/** The likeliest next words, untouched and edited: { element, draw(clean, edited) } with log-probabilities; app.vocabulary holds the words. */
export function wordsPicture(app) {
  const list = h("ol", { class: "words", "aria-label": t("words.label") });
  const legend = h("p", { class: "legend" }, key("clean", t("legend.clean")), key("edited", t("legend.edited")));
  const rows = new Map();
  return {
    element: h("div", { class: "picture" }, h("h3", {}, t("words.title")), legend, list),
    draw(clean, edited) {
      const ids = [...new Set([...topK(edited ?? clean, 5), ...topK(clean, 5)])];
      const now = edited ?? clean;
      ids.sort((a, b) => now[b] - now[a]);
      ids.length = Math.min(ids.length, ROWS);
      legend.hidden = !edited;
      for (const [id, row] of rows) {
        if (ids.includes(id)) continue;
        row.element.remove();
        rows.delete(id);
      }
      list.style.setProperty("--rows", ids.length);
      ids.forEach((id, place) => {
        if (!rows.has(id)) rows.set(id, wordRow(app.vocabulary[id]));
        const row = rows.get(id);
        list.append(row.element); // in the order in which a screen reader reads
        row.show(place, Math.exp(clean[id]), edited && Math.exp(edited[id]));
      });
    },
  };
}

function wordRow(text) {
  const cleanBar = h("span", { class: "bar clean" });
  const editedBar = h("span", { class: "bar edited" });
  const value = h("span", { class: "value" });
  const element = h(
    "li",
    {},
    h("span", { class: "word" }, shown(text)),
    h("span", { class: "bars" }, cleanBar, editedBar),
    value,
  );
  return {
    element,
    show(place, clean, edited) {
      element.style.setProperty("--place", place);
      element.classList.toggle("alone", edited == null);
      cleanBar.style.setProperty("--share", clean);
      editedBar.style.setProperty("--share", edited ?? 0);
      value.textContent = edited == null ? short(clean) : `${short(clean)} → ${short(edited)}`;
    },
  };
}

function key(kind, text) {
  return h("span", { class: `key ${kind}` }, text);
}

/** The stream along the blocks: its length, and Δ. { element, draw({ clean, delta, block, label }) } */
export function streamPicture() {
  const image = svg("svg", { role: "img", class: "stream" });
  const element = h(
    "div",
    { class: "picture" },
    h("h3", {}, t("stream.title")),
    h("p", { class: "legend" }, key("clean", t("stream.clean")), key("edited", t("stream.delta"))),
    image,
    h("p", { class: "axis" }, t("stream.axis")),
  );
  let last = null;
  const paint = tween((values) => {
    const points = last.clean.length;
    drawStream(image, values.slice(0, points), values.slice(points), last);
  });
  const update = () => last && paint([...last.clean, ...last.delta]);
  new ResizeObserver(update).observe(element);
  return {
    element,
    draw(given) {
      last = given;
      image.setAttribute("aria-label", given.words);
      update();
    },
  };
}

function drawStream(image, clean, delta, { block, mark }) {
  const scale = Number.parseFloat(getComputedStyle(document.documentElement).fontSize) / 18; // larger text on large screens
  const width = Math.max(260, image.parentElement.clientWidth / scale);
  const height = 230;
  const [left, right, top, bottom] = [38, 14, 30, 26];
  const most = Math.max(...clean, ...delta, 1) * 1.08;
  const x = (point) => left + ((width - left - right) * point) / (clean.length - 1);
  const y = (value) => height - bottom - ((height - top - bottom) * value) / most;
  const step = niceStep(most / 4);
  const parts = [];
  for (let value = 0; value <= most; value += step) {
    parts.push(
      svg("line", { class: "rule", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      svg("text", { class: "tick", x: left - 8, y: y(value) + 4, "text-anchor": "end" }, number(value)),
    );
  }
  for (let point = 0; point < clean.length; point++) {
    if (width < 420 && point % 2 === 1 && point !== clean.length - 1 && clean.length - 1 - point !== 0) continue;
    const name = point === 0 ? t("stream.embedding") : `${point - 1}`;
    parts.push(svg("text", { class: "tick", x: x(point), y: height - 8, "text-anchor": "middle" }, name));
  }
  const line = (values) =>
    values.map((value, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  parts.push(
    svg("path", { class: "area clean", d: `${line(clean)}L${x(clean.length - 1)} ${y(0)}L${x(0)} ${y(0)}Z` }),
    svg("path", { class: "line clean", d: line(clean) }),
  );
  if (mark) {
    const at = x(block + 1);
    const late = block > clean.length / 2;
    parts.push(
      svg("line", { class: "mark", x1: at, x2: at, y1: top - 8, y2: height - bottom }),
      svg("path", { class: "mark-head", d: `M${at - 6} ${top - 16}h12l-6 9z` }),
      svg(
        "text",
        { class: "mark-text", x: at + (late ? -12 : 12), y: top - 8, "text-anchor": late ? "end" : "start" },
        mark,
      ),
    );
  }
  parts.push(svg("path", { class: "line edited", d: line(delta) }));
  delta.forEach((value, i) => {
    parts.push(svg("circle", { class: "dot edited", cx: x(i), cy: y(value), r: 3.6 }));
  });
  image.setAttribute("viewBox", `0 0 ${width} ${height}`);
  image.setAttribute("height", height * scale);
  image.replaceChildren(...parts);
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
}

/** Where a head looks from one token: a column for each token before it. { element, draw({ tokens, clean, edited }) } */
export function looksPicture(title) {
  const list = h("ol", { class: "looks" });
  const heading = h("h3", {}, title);
  const legend = h("p", { class: "legend" }, key("clean", t("legend.clean")), key("edited", t("legend.edited")));
  return {
    element: h("div", { class: "picture" }, heading, legend, list),
    draw({ title, tokens, clean, edited }) {
      heading.textContent = title;
      list.setAttribute("aria-label", title);
      legend.hidden = !edited;
      while (list.children.length > tokens.length) list.lastChild.remove();
      while (list.children.length < tokens.length) list.append(lookColumn());
      tokens.forEach((token, i) => {
        const [values, bars, name] = list.children[i].children;
        values.textContent = edited ? `${short(clean[i])} → ${short(edited[i])}` : short(clean[i]);
        bars.children[0].style.setProperty("--share", clean[i]);
        bars.children[1].style.setProperty("--share", edited?.[i] ?? 0);
        bars.children[1].hidden = !edited;
        name.textContent = token;
      });
    },
  };
}

function lookColumn() {
  return h(
    "li",
    {},
    h("span", { class: "value" }),
    h("span", { class: "columns" }, h("span", { class: "column clean" }), h("span", { class: "column edited" })),
    h("span", { class: "token" }),
  );
}

/** A list of numbers as a strip of colours: { element, draw(values, most) }; orange below zero, teal above. */
export function strip(label) {
  const canvas = h("canvas", { class: "strip", role: "img", height: 1 });
  let last = null;
  const paint = () => {
    const { values, most } = last;
    canvas.width = values.length;
    const context = canvas.getContext("2d");
    const image = context.createImageData(values.length, 1);
    const style = getComputedStyle(canvas);
    const [below, zero, above] = ["--strip-below", "--strip-zero", "--strip-above"].map((name) =>
      rgb(style.getPropertyValue(name)),
    );
    values.forEach((value, i) => {
      const share = Math.min(1, Math.abs(value) / most) ** 0.7;
      const colour = value < 0 ? below : above;
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = zero[c] + (colour[c] - zero[c]) * share;
      image.data[4 * i + 3] = 255;
    });
    context.putImageData(image, 0, 0);
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => last && paint());
  return {
    element: canvas,
    draw(values, most, words) {
      last = { values, most };
      canvas.setAttribute("aria-label", `${label}: ${words}`);
      paint();
    },
  };
}

function rgb(hex) {
  const value = Number.parseInt(hex.trim().slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

/** Colour a map's cell by a change of log-probability: teal where the word gains, orange where it loses. */
export function tint(button, change, most) {
  const share = Math.min(1, Math.abs(change) / most) ** 0.6;
  button.style.setProperty("--tint", `${Math.round(share * 100)}%`);
  button.classList.toggle("loses", change < 0);
  button.classList.toggle("gains", change > 0);
  button.textContent = share > 0.55 ? (change < 0 ? "−" : "+") : "";
}

/** One bar a block: the word's probability when that block alone is skipped. { element, draw(probabilities, clean) } */
export function blocksPicture({ onchange }) {
  const boxes = [];
  const list = h("ol", { class: "blocks", "aria-label": t("skip.blocks") });
  return {
    element: list,
    draw({ alone, clean, chosen, word, blocks }) {
      while (boxes.length < blocks) {
        const block = boxes.length;
        const box = h("input", { type: "checkbox", onchange: () => onchange(block, box.checked) });
        const bar = h("span", { class: "column clean" });
        const value = h("span", { class: "value" });
        const item = h(
          "li",
          {},
          h(
            "label",
            {},
            value,
            h("span", { class: "columns" }, bar),
            box,
            h("span", { class: "block-name" }, `${block}`),
          ),
        );
        boxes.push({ box, bar, value, item });
        list.append(item);
      }
      boxes.forEach(({ box, bar, value, item }, block) => {
        box.checked = chosen.includes(block);
        item.classList.toggle("skipped", box.checked);
        const known = alone?.[block];
        bar.style.setProperty("--share", known ?? 0);
        value.textContent = known === undefined ? "" : short(known);
        box.setAttribute(
          "aria-label",
          t("skip.box", { block, word, value: known === undefined ? "…" : percent(known) }),
        );
      });
      list.style.setProperty("--line-at", clean);
    },
  };
}
