// What the five stations share: the place on the page, the guess, the sentence, the Python, the lesson, the reset.

import { copyButton, freshId, h } from "./dom.js";
import { percent, plain, rich, t } from "./text.js";
import { shown } from "./tokens.js";

/**
 * A station's frame. `parts`: number, name, lesson (a notebook's file name), answers (how many), control (an element),
 * pictures (elements), python() → code, settle(seen) → { right, verdict }, after() and reset() for the control.
 */
export function frame(app, { number, name, lesson, answers, control, pictures, python, settle, after, reset }) {
  const finding = h("p", { class: "finding" });
  const code = h("code");
  const question = h("span", {}, "…");
  const verdict = h("p", { class: "verdict", role: "status" });
  const group = freshId("guess");
  const options = Array.from({ length: answers }, (_, i) => {
    const input = h("input", { type: "radio", name: group, value: i, onchange: () => guess(i) });
    const text = h("span");
    return { input, text, element: h("label", {}, input, text) };
  });
  const just = h("button", { type: "button", class: "quiet", onclick: () => guess(-1) }, t("station.just"));
  const asked = h(
    "fieldset",
    { class: "guess", disabled: true },
    h("legend", {}, h("span", { class: "guess-kicker" }, t("station.guess")), " ", question),
    h(
      "div",
      { class: "options" },
      options.map((one) => one.element),
    ),
    just,
    verdict,
  );
  const lock = h("fieldset", { class: "control" }, h("legend", { class: "offscreen" }, t(`${name}.title`)), control);
  const locked = h("p", { class: "locked" }, t("station.locked"));
  const title = freshId("title");
  const section = h(
    "section",
    { class: "station", id: name, "aria-labelledby": title, tabindex: -1 },
    h(
      "div",
      { class: "station-head" },
      h("p", { class: "kicker" }, t("station.number", { number })),
      h("h2", { id: title }, t(`${name}.title`)),
      h("p", { class: "context" }, rich(t(`${name}.text`))),
    ),
    h("div", { class: "station-do" }, asked, locked, lock),
    h(
      "div",
      { class: "station-see" },
      h("div", { class: "stick" }, finding, h("div", { class: "pictures" }, pictures)),
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
        h("a", { href: `${app.lessons}/${lesson}` }, t("station.lesson", { lesson: t(`${name}.lesson`) })),
        copyButton(t("copy.link"), () => app.link(name)),
        h("button", { type: "button", class: "quiet", onclick: () => again() }, t("station.reset")),
      ),
    ),
  );

  function guess(answer) {
    verdict.replaceChildren();
    app.state.guesses[name] = answer;
    show();
    app.changed();
    after(answer);
  }

  function again() {
    if (!app.seen) return;
    delete app.state.guesses[name];
    reset();
    show();
    app.changed();
  }

  /** What `settle` gives, computed once for a prompt. */
  let known = {};
  async function settledOnce(seen, open) {
    if (known.seen !== seen || known.open !== open) known = { seen, open, answer: settle(seen, open) };
    const mine = known;
    const settled = await mine.answer;
    if (known === mine && (!settled || (open && settled.right === undefined))) known = {};
    return settled;
  }

  /** Open or close the control, and say what became of the guess. */
  async function show() {
    const { seen } = app;
    const answer = app.state.guesses[name];
    const open = answer !== undefined;
    asked.disabled = !seen;
    lock.disabled = !open;
    locked.hidden = open;
    just.hidden = open;
    section.classList.toggle("open", open);
    options.forEach(({ input, element }, i) => {
      input.checked = answer === i;
      element.classList.remove("right");
    });
    if (!seen) return;
    if (!open) verdict.replaceChildren();
    const settled = await settledOnce(seen, open);
    if (!settled || seen !== app.seen || app.state.guesses[name] !== answer) return;
    question.replaceChildren(...rich(t(`${name}.guess`, settled.values)));
    options.forEach(({ text }, i) => {
      text.textContent = t(`${name}.guess.${i}`, settled.values);
    });
    asked.classList.add("ready");
    if (!open || settled.right === undefined) return;
    options[settled.right].element.classList.add("right");
    const start = answer === settled.right ? "station.right" : answer === -1 ? "station.told" : "station.wrong";
    verdict.replaceChildren(h("strong", {}, t(start)), " ", settled.verdict);
  }

  return {
    section,
    show,
    /** The sentence; `aloud` when it answers something that the reader did. */
    say(text, aloud) {
      finding.replaceChildren(...rich(text));
      if (aloud) app.announce(plain(text));
    },
    write() {
      code.textContent = python();
    },
  };
}

/** Values for sentences about the followed word before and after: before, after, lead. */
export function wordValues(app, edited) {
  const { seen, vocabulary } = app;
  let top = 0;
  for (let i = 1; i < edited.length; i++) if (edited[i] > edited[top]) top = i;
  const same = top === seen.target;
  return {
    word: seen.word,
    before: percent(Math.exp(seen.logp[seen.target])),
    after: percent(Math.exp(edited[seen.target])),
    lead: same
      ? t("finding.same")
      : t("finding.other", { top: shown(vocabulary[top]), share: percent(Math.exp(edited[top])) }),
    top,
  };
}
