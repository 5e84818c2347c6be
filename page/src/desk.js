// Free play: all controls at once.

import { copyButton, grid, h, slider } from "./dom.js";
import { toPython } from "./edits.js";
import { wordValues } from "./frame.js";
import { deltaNorm, streamNorm } from "./numbers.js";
import { streamPicture, wordsPicture } from "./pictures.js";
import { deskEdits, emptyDesk, FACTORS, KEYS, SHAPE } from "./state.js";
import { edited } from "./stations.js";
import { measure, number, plain, rich, t } from "./text.js";

const POINTS = SHAPE.blocks + 1;

export function desk(app) {
  const words = wordsPicture(app);
  const stream = streamPicture();
  const finding = h("p", { class: "finding" });
  const code = h("code");
  const rows = Array.from({ length: SHAPE.blocks }, (_, block) => row(block));
  const heads = grid({
    label: t("desk.heads"),
    rows: SHAPE.blocks,
    columns: SHAPE.heads,
    cell: (button) => button.classList.add("dot"),
    onselect(block, head) {
      const value = app.state.desk.heads[block][head];
      app.state.desk.heads[block][head] = KEYS[(KEYS.indexOf(value) + 1) % KEYS.length];
      change();
    },
  });
  const at = h("div", { class: "tokens", role: "group", "aria-label": t("desk.some") });
  const section = h(
    "section",
    { class: "station desk", id: "desk", "aria-labelledby": "desk-title", tabindex: -1 },
    h(
      "div",
      { class: "station-head" },
      h("p", { class: "kicker" }, t("nav.desk")),
      h("h2", { id: "desk-title" }, t("desk.title")),
      h("p", { class: "context" }, t("desk.text")),
    ),
    h(
      "div",
      { class: "station-do" },
      h(
        "div",
        { class: "console" },
        h(
          "div",
          { class: "faders" },
          rows.map((one) => one.element),
        ),
        heads.element,
      ),
      h("p", { class: "context" }, t("desk.some")),
      at,
    ),
    h(
      "div",
      { class: "station-see" },
      h("div", { class: "stick" }, finding, h("div", { class: "pictures" }, words.element, stream.element)),
    ),
    h(
      "div",
      { class: "station-foot" },
      h(
        "details",
        { class: "python" },
        h("summary", {}, t("station.python")),
        h("pre", {}, code),
        copyButton(t("copy.python"), () => code.textContent),
      ),
      h(
        "p",
        { class: "links" },
        copyButton(t("copy.link"), () => app.link("desk")),
        h("button", { type: "button", class: "quiet", onclick: reset }, t("desk.reset")),
      ),
    ),
  );

  function row(block) {
    const fader = slider({
      label: t("desk.fader", { block }),
      min: FACTORS.least,
      max: FACTORS.most,
      step: FACTORS.step,
      mark: 1,
      format: (value) => `× ${number(value, 2)}`,
      oninput(value) {
        app.state.desk.factors[block] = value;
        change();
      },
    });
    const switches = [
      ["attention", "A"],
      ["mlp", "M"],
    ].map(([part, letter]) => {
      const label = t(`desk.${part}`, { block });
      const button = h("button", { type: "button", class: "switch", "aria-label": label, title: label }, letter);
      button.addEventListener("click", () => {
        app.state.desk[part][block] = !app.state.desk[part][block];
        change();
      });
      return [part, button];
    });
    const back = t("desk.row.reset", { block });
    const clear = h("button", { type: "button", class: "quiet back", "aria-label": back, title: back }, "↺");
    clear.addEventListener("click", () => {
      const fresh = emptyDesk();
      for (const part of ["factors", "attention", "mlp", "heads"]) app.state.desk[part][block] = fresh[part][block];
      change();
    });
    const element = h(
      "div",
      { class: "fader" },
      h("span", { class: "block-name", "aria-hidden": "true" }, `${block}`),
      fader.element,
      switches.map(([, button]) => button),
      clear,
    );
    return {
      element,
      show(state) {
        fader.set(state.factors[block]);
        for (const [part, button] of switches) button.setAttribute("aria-pressed", state[part][block]);
      },
    };
  }

  function reset() {
    app.state.desk = emptyDesk();
    change();
  }

  function change() {
    if (!app.seen) return; // the model is still on its way
    app.changed();
    update(true);
  }

  function controls() {
    const { desk: state } = app.state;
    for (const one of rows) one.show(state);
    state.heads.forEach((line, block) => {
      line.forEach((value, head) => {
        const button = heads.button(block, head);
        button.dataset.state = value;
        const label = t("desk.head", { block, head, state: t(`desk.head.${value}`) });
        button.setAttribute("aria-label", label);
        button.title = label;
      });
    });
    const { tokens } = app.seen;
    if (at.children.length !== tokens.length || at.dataset.prompt !== app.seen.prompt) {
      at.dataset.prompt = app.seen.prompt;
      at.replaceChildren(
        ...tokens.map((token, position) =>
          h("button", { type: "button", class: "token", onclick: () => press(position) }, token),
        ),
      );
    }
    [...at.children].forEach((button, position) => {
      button.setAttribute("aria-pressed", state.at.includes(position));
    });
  }

  function press(position) {
    const { desk: state } = app.state;
    state.at = state.at.includes(position) ? state.at.filter((one) => one !== position) : [...state.at, position];
    state.at.sort((a, b) => a - b);
    change();
  }

  async function update(aloud) {
    const started = performance.now();
    const { seen, state } = app;
    state.desk.at = state.desk.at.filter((position) => position < seen.length);
    controls();
    const edits = deskEdits(state.desk);
    code.textContent = toPython(seen.prompt, edits);
    const run = edits.length ? await edited(app, "desk", edits, ["resid"]) : seen.clean;
    if (!run) return;
    const delta = deltaNorm(seen.clean.resid, run.resid, POINTS);
    const values = wordValues(app, run.logp ?? seen.logp);
    const sentence = ["desk.none", "desk.finding.one"][edits.length] ?? "desk.finding";
    const text = t(sentence, { ...values, count: edits.length, last: measure(delta[POINTS - 1]) });
    words.draw(seen.logp, run.logp);
    const first = Math.min(...edits.map((edit) => edit.block));
    stream.draw({
      clean: streamNorm(seen.clean.resid, POINTS),
      delta,
      block: edits.length ? first : 0,
      mark: edits.length ? t("desk.marks") : "",
      words: plain(text),
    });
    finding.replaceChildren(...rich(text));
    if (!aloud) return;
    app.announce(plain(text));
    performance.measure("edit", { start: started });
  }

  return { section, update };
}
