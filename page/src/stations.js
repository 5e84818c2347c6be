// The five stations: each a question, one control, one picture, one sentence with its number.

import { choice, grid, h, slider } from "./dom.js";
import { rebuildToPython, toPython } from "./edits.js";
import { frame, wordValues } from "./frame.js";
import { deltaNorm, logProbs, looks, norm, topK } from "./numbers.js";
import { blocksPicture, looksPicture, streamPicture, strip, tint, wordsPicture } from "./pictures.js";
import { FACTORS, KEYS, PARTS, SHAPE } from "./state.js";
import { list, measure, number, percent, plain, t } from "./text.js";
import { shown } from "./tokens.js";

const POINTS = SHAPE.blocks + 1;
const blockSlider = (oninput) =>
  slider({ label: t("control.block"), min: 0, max: SHAPE.blocks - 1, step: 1, format: (value) => `${value}`, oninput });
const headSlider = (oninput) =>
  slider({ label: t("control.head"), min: 0, max: SHAPE.heads - 1, step: 1, format: (value) => `${value}`, oninput });
const times = (factor) => `× ${number(factor, Number.isInteger(factor * 10) ? (Number.isInteger(factor) ? 0 : 1) : 2)}`;

/** Run edits for one place of the page; null when something newer has overtaken it. */
export async function edited(app, place, edits, want = []) {
  const { seen } = app;
  const run = await app.model.run(place, seen.ids, edits, ["logits", ...want]);
  if (!run || app.seen !== seen) return null;
  return { ...run, logp: logProbs(run.logits) };
}

// ---- 1: scale a block

export function scaleStation(app) {
  const words = wordsPicture(app);
  const stream = streamPicture();
  const block = blockSlider((value) => set({ block: value }));
  const factor = slider({
    label: t("control.factor"),
    min: FACTORS.least,
    max: FACTORS.most,
    step: FACTORS.step,
    mark: 1,
    format: times,
    oninput: (value) => set({ factor: value }),
  });
  const edits = () => (app.state.scale.factor === 1 ? [] : [{ kind: "scale_block", ...app.state.scale }]);
  const place = frame(app, {
    number: 1,
    name: "scale",
    lesson: "01_downstream_scaling.ipynb",
    answers: 4,
    control: h("div", {}, factor.element, block.element),
    pictures: [words.element, stream.element],
    python: () => toPython(app.seen.prompt, edits()),
    async settle(seen, open) {
      const values = { word: seen.word };
      if (!open) return { values };
      const found = [];
      for (const by of [0.5, 2])
        found.push(await edited(app, `scale ${by}`, [{ kind: "scale_block", block: 2, factor: by }]));
      if (found.includes(null)) return null;
      const [a, b] = found.map(({ logp }) => topK(logp, 1)[0]);
      const changed = [a !== seen.target, b !== seen.target];
      const right = changed[0] ? (changed[1] ? 3 : 0) : changed[1] ? 1 : 2;
      const verdict = t("scale.verdict", {
        half: shown(app.vocabulary[a]),
        halfShare: percent(Math.exp(found[0].logp[a])),
        double: shown(app.vocabulary[b]),
        doubleShare: percent(Math.exp(found[1].logp[b])),
      });
      return { values, right, verdict };
    },
    after: () => set({ block: 2, factor: 2 }),
    reset: () => set(app.start.scale),
  });

  function set(change) {
    app.state.scale = { ...app.state.scale, ...change };
    app.changed();
    update(true);
  }

  async function update(aloud) {
    const started = performance.now();
    const { seen, state } = app;
    block.set(state.scale.block);
    factor.set(state.scale.factor);
    place.show();
    place.write();
    const run = edits().length ? await edited(app, "scale", edits(), ["resid"]) : seen.clean;
    if (!run) return;
    const delta = deltaNorm(seen.clean.resid, run.resid, POINTS);
    const text = sentence(state.scale, delta, run.logp ?? seen.logp);
    words.draw(seen.logp, run.logp);
    stream.draw({
      clean: seen.norms,
      delta,
      block: state.scale.block,
      mark: `${t("control.block").toLowerCase()} ${state.scale.block} ${times(state.scale.factor)}`,
      words: plain(text),
    });
    place.say(text, aloud);
    if (aloud) performance.measure("edit", { start: started });
  }

  function sentence({ block: at, factor: by }, delta, logp) {
    const values = { ...wordValues(app, logp), block: at, factor: times(by).slice(2) };
    if (by === 1) return t("scale.none", values);
    const first = delta[at + 1];
    const last = delta[POINTS - 1];
    const relative = percent(last / app.seen.norms[POINTS - 1]);
    const lengths = { first: measure(first), last: measure(last), relative };
    if (at === SHAPE.blocks - 1) return t(by === 0 ? "scale.last.zero" : "scale.last", { ...values, ...lengths });
    const trend = last > 1.05 * first ? "grows" : last < 0.95 * first ? "shrinks" : "stays";
    return t("scale.finding", { ...values, ...lengths, trend: t(`scale.${trend}`) });
  }

  return { section: place.section, update };
}

// ---- 2: rebuild a state from its parts

export function partsStation(app) {
  const words = wordsPicture(app);
  const block = blockSlider((value) => set({ block: value }));
  const rows = [...PARTS, "sum", "true"].map((name) => {
    const picture = strip(t(`parts.${name}`));
    const length = h("span", { class: "value" });
    const box = PARTS.includes(name)
      ? h("input", { type: "checkbox", onchange: ({ target }) => keep(name, target.checked) })
      : null;
    const label = h(box ? "label" : "p", { class: "strip-name" }, box ?? "", h("span", {}, t(`parts.${name}`)), length);
    return { name, picture, box, length, element: h("div", { class: `strip-row ${name}` }, label, picture.element) };
  });
  const strips = h(
    "div",
    { class: "strips" },
    rows.map((row) => row.element),
  );
  const place = frame(app, {
    number: 2,
    name: "parts",
    lesson: "02_hooks_vs_hidden_states.ipynb",
    answers: 3,
    control: h("div", {}, block.element, strips),
    pictures: [words.element],
    python: () => {
      const { block: at, kept } = app.state.parts;
      return rebuildToPython(app.seen.prompt, at, kept);
    },
    async settle(seen, open) {
      const values = { word: seen.word };
      if (!open) return { values };
      const found = [];
      for (const left of ["attn", "mlp"]) {
        const kept = PARTS.filter((part) => part !== left);
        const run = await edited(app, `parts ${left}`, [patch(8, kept)]);
        if (!run) return null;
        found.push(Math.exp(run.logp[seen.target]));
      }
      const [attention, mlp] = found;
      const right = Math.abs(attention - mlp) < 0.05 ? 2 : attention < mlp ? 0 : 1;
      return {
        values,
        right,
        verdict: t("parts.verdict", { word: seen.word, attention: percent(attention), mlp: percent(mlp) }),
      };
    },
    after: () => set({ block: 8, kept: ["resid", "mlp"] }),
    reset: () => set(app.start.parts),
  });

  /** (pos × width) what each part adds in the untouched run. */
  function partOf(name, at) {
    const { clean, length } = app.seen;
    const size = length * SHAPE.width;
    const from = { resid: clean.resid, attn: clean.attention_delta, mlp: clean.mlp_delta }[name];
    return from.subarray(at * size, (at + 1) * size);
  }

  function sumOf(at, kept) {
    const sum = new Float32Array(app.seen.length * SHAPE.width);
    for (const part of kept) {
      const values = partOf(part, at);
      for (let i = 0; i < sum.length; i++) sum[i] += values[i];
    }
    return sum;
  }

  const patch = (at, kept) => ({ kind: "patch_block", block: at, value: sumOf(at, kept) });

  function keep(name, on) {
    const { kept } = app.state.parts;
    set({ kept: PARTS.filter((part) => (part === name ? on : kept.includes(part))) });
  }

  function set(change) {
    app.state.parts = { ...app.state.parts, ...change };
    app.changed();
    update(true);
  }

  async function update(aloud) {
    const started = performance.now();
    const { seen, state } = app;
    const { block: at, kept } = state.parts;
    block.set(at);
    place.show();
    place.write();
    const sum = sumOf(at, kept);
    const own = partOf("resid", at + 1);
    draw(at, kept, sum, own);
    const run = await edited(app, "parts", [{ kind: "patch_block", block: at, value: sum }]);
    if (!run) return;
    words.draw(seen.logp, run.logp);
    place.say(sentence(at, kept, sum, own, run.logp), aloud);
    if (aloud) performance.measure("edit", { start: started });
  }

  function draw(at, kept, sum, own) {
    const last = (values) => values.subarray(values.length - SHAPE.width);
    const most = [...last(own)].map(Math.abs).sort((a, b) => a - b)[Math.floor(SHAPE.width * 0.97)];
    for (const { name, picture, box, length, element } of rows) {
      const values = last(name === "sum" ? sum : name === "true" ? own : partOf(name, at));
      const words = t("parts.strip", { length: measure(norm(values)) });
      picture.draw(values, most, words);
      length.textContent = words;
      if (!box) continue;
      box.checked = kept.includes(name);
      element.classList.toggle("left-out", !box.checked);
    }
  }

  function sentence(at, kept, sum, own, logp) {
    const values = { ...wordValues(app, logp), block: at };
    const difference = sum.map((value, i) => value - own[i]);
    if (kept.length === PARTS.length) {
      const largest = difference.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      return t("parts.all", {
        ...values,
        difference: largest === 0 ? number(0) : largest.toPrecision(1).replace("e", " e"),
      });
    }
    const left = PARTS.filter((part) => !kept.includes(part)).map((part) => t(`parts.left.${part}`));
    return t("parts.finding", { ...values, left: list(left), error: percent(norm(difference) / norm(own)) });
  }

  return { section: place.section, update };
}

// ---- 3: keys to zero

export function keysStation(app) {
  const words = wordsPicture(app);
  const picture = looksPicture("");
  const block = blockSlider((value) => set({ block: value }));
  const head = headSlider((value) => set({ head: value }));
  const state = choice({
    label: t("keys.state"),
    options: KEYS.map((value) => [value, t(`keys.state.${value}`)]),
    onchange: (value) => set({ state: value }),
  });
  const edit = (kind) => ({ kind, block: app.state.keys.block, heads: [app.state.keys.head] });
  const edits = () => ({ on: [], keys: [edit("zero_keys")], off: [edit("zero_heads")] })[app.state.keys.state];
  const place = frame(app, {
    number: 3,
    name: "keys",
    lesson: "03_multi_component_challenge.ipynb",
    answers: 3,
    control: h("div", {}, state.element, block.element, head.element),
    pictures: [picture.element, words.element],
    python: () => toPython(app.seen.prompt, edits()),
    async settle(seen, open) {
      const values = {};
      if (!open) return { values };
      const run = await edited(app, "keys settle", [{ kind: "zero_keys", block: 10, heads: [3] }], ["patterns"]);
      if (!run) return null;
      const shares = looks(run, SHAPE, 10, 3, seen.length - 1);
      const [least, most] = [Math.min(...shares), Math.max(...shares)];
      const itself = shares[shares.length - 1];
      const right = most - least < 0.01 ? 2 : itself > 0.9 ? 1 : 0;
      const numbers = { share: percent(shares[0]), least: percent(least), most: percent(most) };
      const verdict =
        right === 2
          ? t("keys.verdict.even", { ...numbers, count: seen.length })
          : t("keys.verdict", { ...numbers, token: seen.tokens[0] });
      return { values, right, verdict };
    },
    after: () => set({ block: 10, head: 3, state: "keys" }),
    reset: () => set(app.start.keys),
  });

  function set(change) {
    app.state.keys = { ...app.state.keys, ...change };
    app.changed();
    update(true);
  }

  async function update(aloud) {
    const started = performance.now();
    const { seen } = app;
    const { block: at, head: which, state: value } = app.state.keys;
    block.set(at);
    head.set(which);
    state.set(value);
    place.show();
    place.write();
    const clean = looks(seen.clean, SHAPE, at, which, seen.length - 1);
    const run = value === "on" ? null : await edited(app, "keys", edits(), ["patterns"]);
    if (value !== "on" && !run) return;
    const now = run && (value === "off" ? clean.map(() => 0) : looks(run, SHAPE, at, which, seen.length - 1));
    picture.draw({ title: t("keys.picture", { block: at, head: which }), tokens: seen.tokens, clean, edited: now });
    words.draw(seen.logp, run?.logp);
    const strongest = topK(clean, 1)[0];
    const values = {
      ...wordValues(app, run?.logp ?? seen.logp),
      token: seen.tokens[strongest],
      share: percent(clean[strongest]),
      count: seen.length,
    };
    if (value === "on") place.say(t("keys.none", values), aloud);
    else {
      const other = await edited(app, "keys other", [edit(value === "keys" ? "zero_heads" : "zero_keys")]);
      if (!other || app.state.keys.state !== value) return;
      const share = percent(Math.exp(other.logp[seen.target]));
      if (value === "keys") place.say(t("keys.finding", { ...values, even: percent(now[0]), off: share }), aloud);
      else place.say(t("keys.off", { ...values, zero: share }), aloud);
    }
    if (aloud) performance.measure("edit", { start: started });
  }

  return { section: place.section, update };
}

// ---- 4: the map of heads

export function mapStation(app) {
  const words = wordsPicture(app);
  const picture = looksPicture("");
  let found = []; // log-probabilities of the word, head by head
  let sweeping = null;
  const map = grid({
    label: t("map.grid", { word: "…" }),
    rows: SHAPE.blocks,
    columns: SHAPE.heads,
    onselect: (block, head) => {
      app.state.map = { block, head };
      app.changed();
      chosen(true);
    },
  });
  const start = h("button", { type: "button", class: "main", onclick: () => sweep() }, t("map.run"));
  const stop = h(
    "button",
    { type: "button", class: "quiet", hidden: true, onclick: () => sweeping?.cancel() },
    t("map.cancel"),
  );
  const bar = h("progress", { max: SHAPE.blocks * SHAPE.heads, value: 0, "aria-label": t("map.run") });
  const caption = h("h3", {}, "…");
  const chart = h(
    "div",
    { class: "picture map" },
    caption,
    h(
      "p",
      { class: "legend" },
      h("span", { class: "key edited" }, t("map.legend.loses")),
      h("span", { class: "key clean" }, t("map.legend.gains")),
    ),
    h("p", { class: "axis" }, t("map.rows")),
    map.element,
    h("p", { class: "axis" }, t("map.one")),
  );
  const note = h("p", { class: "chosen" });
  const place = frame(app, {
    number: 4,
    name: "map",
    lesson: "04_head_ablation.ipynb",
    answers: 3,
    control: h("div", {}, h("div", { class: "sweep" }, start, stop, bar), chart),
    pictures: [note, picture.element, words.element],
    python: () => toPython(app.seen.prompt, [edit(app.state.map)]),
    async settle(seen, open) {
      const values = { word: seen.word };
      if (!open || !complete()) return { values };
      const count = costly().length;
      return { values, right: count <= 5 ? 0 : count <= 50 ? 1 : 2, verdict: t("map.verdict", { count }) };
    },
    after: () => sweep(),
    reset: () => {
      sweeping?.cancel();
      app.state.map = { ...app.start.map };
      found = [];
      update(true);
    },
  });
  const edit = ({ block, head }) => ({ kind: "zero_heads", block, heads: [head] });
  const complete = () => found.length === SHAPE.blocks * SHAPE.heads;
  const change = (index) => found[index] - app.seen.logp[app.seen.target];
  const costly = () => found.flatMap((_, index) => (change(index) <= Math.log(0.9) ? [index] : []));
  const whole = (index) => [Math.floor(index / SHAPE.heads), index % SHAPE.heads];

  async function sweep() {
    if (sweeping || !app.seen) return;
    const started = performance.now();
    const { seen } = app;
    const each = Array.from({ length: SHAPE.blocks * SHAPE.heads }, (_, index) => {
      const [block, head] = whole(index);
      return [edit({ block, head })];
    });
    found = [];
    paint();
    start.disabled = true;
    stop.hidden = false;
    sweeping = app.model.sweep(seen.ids, each, seen.target, (_, values) => {
      if (app.seen !== seen) return;
      found.push(...values);
      paint();
    });
    const running = sweeping;
    const { cancelled } = await running;
    sweeping = null;
    start.disabled = false;
    stop.hidden = true;
    if (app.seen !== seen) {
      found = [];
      return update();
    }
    start.textContent = t("map.again");
    if (cancelled) place.say(t("map.stopped", { done: found.length }), true);
    else {
      performance.measure("map", { start: started });
      const strongest = found.reduce((best, _, index) => (change(index) < change(best) ? index : best), 0);
      const [block, head] = whole(strongest);
      app.state.map = { block, head };
      app.changed();
      map.focus(block, head);
      finding(true, strongest);
      chosen(false);
      place.show();
    }
  }

  function finding(aloud, strongest) {
    const [block, head] = whole(strongest);
    const shares = looks(app.seen.clean, SHAPE, block, head, app.seen.length - 1);
    const most = topK(shares, 1)[0];
    const count = costly().length;
    const text = t(count ? "map.finding" : "map.none", {
      count,
      word: app.seen.word,
      strongHead: head,
      strongBlock: block,
      before: percent(Math.exp(app.seen.logp[app.seen.target])),
      after: percent(Math.exp(found[strongest])),
      token: app.seen.tokens[most],
      share: percent(shares[most]),
    });
    place.say(text, aloud);
  }

  function paint() {
    bar.value = found.length;
    bar.setAttribute("aria-valuetext", t("map.progress", { done: found.length }));
    const before = percent(Math.exp(app.seen.logp[app.seen.target]));
    const most = found.reduce((largest, _, index) => Math.max(largest, Math.abs(change(index))), 0.05);
    for (let index = 0; index < SHAPE.blocks * SHAPE.heads; index++) {
      const [block, head] = whole(index);
      const button = map.button(block, head);
      const known = index < found.length;
      tint(button, known ? change(index) : 0, most);
      const label = known
        ? t("map.cell", { block, head, before, after: percent(Math.exp(found[index])) })
        : t("map.cell.unknown", { block, head });
      button.setAttribute("aria-label", label);
      button.title = label;
    }
  }

  async function chosen(aloud) {
    const started = performance.now();
    const { block, head } = app.state.map;
    for (const button of map.element.querySelectorAll("[aria-selected=true]")) button.removeAttribute("aria-selected");
    map.button(block, head).setAttribute("aria-selected", "true");
    place.write();
    const run = await edited(app, "map", [edit(app.state.map)]);
    if (!run) return;
    const shares = looks(app.seen.clean, SHAPE, block, head, app.seen.length - 1);
    const most = topK(shares, 1)[0];
    picture.draw({ title: t("map.looks", { block, head }), tokens: app.seen.tokens, clean: shares });
    words.draw(app.seen.logp, run.logp);
    const { before, after } = wordValues(app, run.logp);
    const text = t("map.chosen", {
      block,
      head,
      before,
      after,
      token: app.seen.tokens[most],
      share: percent(shares[most]),
    });
    note.textContent = text;
    if (!aloud) return;
    app.announce(text);
    performance.measure("edit", { start: started });
  }

  function update() {
    const { word } = app.seen;
    if (!sweeping) found = [];
    caption.textContent = t("map.grid", { word });
    map.element.setAttribute("aria-label", t("map.grid", { word }));
    map.focus(app.state.map.block, app.state.map.head);
    paint();
    place.say(t("map.wait"), false);
    place.show();
    chosen(false);
  }

  return {
    section: place.section,
    update() {
      sweeping?.cancel();
      update();
      if (app.state.guesses.map !== undefined && !sweeping) sweep();
    },
  };
}

// ---- 5: skip blocks

export function skipStation(app) {
  const words = wordsPicture(app);
  let alone = null; // the word's log-probability without each block
  const blocks = blocksPicture({
    onchange: (block, on) => set(on ? [...app.state.skip, block] : app.state.skip.filter((one) => one !== block)),
  });
  const caption = h("h3", {}, "…");
  const edits = () => app.state.skip.map((block) => ({ kind: "skip_block", block }));
  const place = frame(app, {
    number: 5,
    name: "skip",
    lesson: "05_skip_layer.ipynb",
    answers: 3,
    control: h("div", { class: "picture" }, caption, blocks.element),
    pictures: [words.element],
    python: () => toPython(app.seen.prompt, edits()),
    async settle(seen, open) {
      if (!alone) return null;
      const before = Math.exp(seen.logp[seen.target]);
      const values = {
        word: seen.word,
        before: percent(before),
        four: percent(Math.exp(alone[4])),
        five: percent(Math.exp(alone[5])),
      };
      if (!open) return { values };
      const run = await edited(
        app,
        "skip settle",
        [4, 5].map((block) => ({ kind: "skip_block", block })),
      );
      if (!run) return null;
      const both = Math.exp(run.logp[seen.target]);
      const right = both < before - 0.1 ? 1 : both > before + 0.1 ? 2 : 0;
      return { values, right, verdict: t("skip.verdict", { word: seen.word, both: percent(both) }) };
    },
    after: () => set([4, 5]),
    reset: () => set([]),
  });

  function set(skip) {
    app.state.skip = skip.sort((a, b) => a - b);
    app.changed();
    update(true);
  }

  async function update(aloud) {
    const started = performance.now();
    const { seen, state } = app;
    place.show();
    place.write();
    draw();
    const run = state.skip.length ? await edited(app, "skip", edits()) : {};
    if (!run) return;
    words.draw(seen.logp, run.logp);
    if (alone) place.say(sentence(run.logp ?? seen.logp), aloud);
    if (aloud) performance.measure("edit", { start: started });
  }

  function draw() {
    const { seen, state } = app;
    caption.textContent = t("skip.picture", { word: seen.word });
    blocks.draw({
      alone: alone?.map(Math.exp),
      clean: Math.exp(seen.logp[seen.target]),
      chosen: state.skip,
      word: seen.word,
      blocks: SHAPE.blocks,
    });
  }

  function sentence(logp) {
    const { seen, state } = app;
    const values = wordValues(app, logp);
    const clean = seen.logp[seen.target];
    if (state.skip.length === 0) {
      const best = topK(alone, 1)[0];
      const worst = alone.indexOf(Math.min(...alone));
      const shares = { bestShare: percent(Math.exp(alone[best])), worstShare: percent(Math.exp(alone[worst])) };
      return t("skip.none", { ...values, best, worst, ...shares });
    }
    if (state.skip.length === 1) return t("skip.one", { ...values, block: state.skip[0] });
    const sum = state.skip.reduce((total, block) => total + alone[block] - clean, clean);
    return t("skip.several", { ...values, blocks: list(state.skip), added: percent(Math.min(1, Math.exp(sum))) });
  }

  return {
    section: place.section,
    async update() {
      const { seen } = app;
      alone = null;
      update();
      const each = Array.from({ length: SHAPE.blocks }, (_, block) => [{ kind: "skip_block", block }]);
      const { found } = await app.model.sweep(seen.ids, each, seen.target);
      if (app.seen !== seen) return;
      alone = found;
      update();
    },
  };
}
