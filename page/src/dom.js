// Small pieces of the page.

import { t } from "./text.js";

/** h("button", { class: "chip", onclick }, "text", node, …) */
export function h(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat());
  return element;
}

export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.flat());
  return element;
}

let counter = 0;
export const freshId = (name) => `${name}-${++counter}`;

/** A labelled slider: { element, set(value) }. `oninput` gets the new number; `mark` draws a tick at a value. */
export function slider({ label, min, max, step, format, oninput, mark }) {
  const id = freshId("slider");
  const input = h("input", { type: "range", id, min, max, step });
  const output = h("output", { for: id });
  const part = (value) => `${((value - min) / (max - min)) * 100}%`;
  const show = () => {
    output.textContent = format(+input.value);
    input.setAttribute("aria-valuetext", format(+input.value));
    input.style.setProperty("--at", part(+input.value));
    if (mark === undefined) return;
    input.style.setProperty("--low", part(Math.min(mark, input.value)));
    input.style.setProperty("--high", part(Math.max(mark, input.value)));
  };
  input.addEventListener("input", () => {
    show();
    oninput(+input.value);
  });
  const track = h("div", { class: "track" }, input);
  if (mark !== undefined) track.classList.add("marked");
  const element = h("div", { class: "slider" }, h("label", { for: id }, label), output, track);
  return {
    element,
    set(value) {
      input.value = value;
      show();
    },
  };
}

/** One of several, as a row of radio buttons: { element, set(value) }. */
export function choice({ label, options, onchange }) {
  const name = freshId("choice");
  const inputs = options.map(([value]) => h("input", { type: "radio", name, value, onchange: () => onchange(value) }));
  const element = h(
    "fieldset",
    { class: "choice" },
    h("legend", {}, label),
    options.map(([, text], i) => h("label", {}, inputs[i], h("span", {}, text))),
  );
  return {
    element,
    set(value) {
      for (const input of inputs) input.checked = input.value === value;
    },
  };
}

/** A button that copies what `text()` gives, and says so. */
export function copyButton(label, text) {
  const button = h("button", { type: "button", class: "quiet" }, label);
  button.addEventListener("click", async () => {
    const done = await copied(text());
    button.textContent = done ? t("copy.done") : t("copy.failed");
    setTimeout(() => {
      button.textContent = label;
    }, 2000);
  });
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea", { class: "offscreen" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy"); // where a page from disk may not use the clipboard
    area.remove();
    return done;
  }
}

/** A square of buttons of which one is in the tab order; arrow keys, Home and End move through it. */
export function grid({ label, rows, columns, cell, onselect }) {
  const buttons = [];
  const element = h("div", { class: "grid", role: "grid", "aria-label": label });
  element.style.setProperty("--columns", columns);
  for (let row = 0; row < rows; row++) {
    const line = h(
      "div",
      { role: "row", class: "grid-row" },
      h("span", { class: "grid-name", "aria-hidden": "true" }, `${row}`),
    );
    for (let column = 0; column < columns; column++) {
      const button = h("button", { type: "button", role: "gridcell", tabindex: -1 });
      button.addEventListener("click", () => select(row, column));
      cell?.(button, row, column);
      buttons.push(button);
      line.append(button);
    }
    element.append(line);
  }
  const names = Array.from({ length: columns }, (_, i) => h("span", { class: "grid-name" }, `${i}`));
  element.append(
    h("div", { class: "grid-row grid-foot", "aria-hidden": "true" }, h("span", { class: "grid-name" }), names),
  );
  let at = 0;
  function focus(index) {
    buttons[at].tabIndex = -1;
    at = index;
    buttons[at].tabIndex = 0;
  }
  function select(row, column) {
    focus(row * columns + column);
    onselect(row, column);
  }
  element.addEventListener("keydown", (event) => {
    const row = Math.floor(at / columns);
    const column = at % columns;
    const to = {
      ArrowLeft: [row, Math.max(0, column - 1)],
      ArrowRight: [row, Math.min(columns - 1, column + 1)],
      ArrowUp: [Math.max(0, row - 1), column],
      ArrowDown: [Math.min(rows - 1, row + 1), column],
      Home: [row, 0],
      End: [row, columns - 1],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    focus(to[0] * columns + to[1]);
    buttons[at].focus();
  });
  focus(0);
  return {
    element,
    button: (row, column) => buttons[row * columns + column],
    focus: (row, column) => focus(row * columns + column),
  };
}

const still = matchMedia("(prefers-reduced-motion: reduce)");

/** Draw from one list of numbers to another in a fifth of a second, or at once for who wants no motion. */
export function tween(draw) {
  let shown = null;
  let frame = 0;
  return (target) => {
    cancelAnimationFrame(frame);
    const from = shown && shown.length === target.length ? shown : target;
    const start = performance.now();
    const step = (now) => {
      const part = still.matches ? 1 : Math.min(1, (now - start) / 180);
      const eased = 1 - (1 - part) ** 3;
      shown = target.map((value, i) => from[i] + (value - from[i]) * eased);
      draw(shown);
      if (part < 1) frame = requestAnimationFrame(step);
    };
    step(from === target || still.matches ? start + 1000 : start);
  };
}
