// The page: settings, prompt, model, stations.

import strings from "@strings";
import { Model } from "./client.js";
import { desk } from "./desk.js";
import { copyButton, h } from "./dom.js";
import { logProbs, streamNorm, topK } from "./numbers.js";
import { wordsPicture } from "./pictures.js";
import { bytes, source } from "./sources.js";
import { fromHash, initial, SHAPE, toHash } from "./state.js";
import { keysStation, mapStation, partsStation, scaleStation, skipStation } from "./stations.js";
import { number, percent, rich, speak, t } from "./text.js";
import { shown } from "./tokens.js";

speak(strings, strings.language);
const byId = (id) => document.getElementById(id);
const status = byId("status");
const problem = byId("problem");
const box = byId("prompt");
const start = initial(t("prompt.default"));

const app = {
  state: fromHash(location.hash, start),
  start,
  lessons: document.documentElement.dataset.lessons,
  seen: null, // the prompt that the pictures show, and its untouched run
  vocabulary: [],
  changed,
  announce,
  link(station) {
    const here = location.href.replace(/#.*/, "");
    const hash = new URLSearchParams(toHash(app.state, start).slice(1));
    hash.set("at-station", station);
    return `${here}#${hash}`;
  },
};
const answerPicture = wordsPicture(app);
byId("answer-picture").append(answerPicture.element);
const places = [scaleStation, partsStation, keysStation, mapStation, skipStation, desk].map((build) => build(app));
byId("stations").append(...places.map((place) => place.section));

// ---- the address and the live region

let saving = 0;
function changed() {
  clearTimeout(saving);
  saving = setTimeout(() => {
    const hash = toHash(app.state, start);
    if (hash !== location.hash) history.replaceState(null, "", hash || location.href.replace(/#.*/, ""));
  }, 200);
}

let speaking = 0;
function announce(text) {
  clearTimeout(speaking);
  speaking = setTimeout(() => {
    byId("live").textContent = text;
  }, 500);
}

addEventListener("hashchange", () => {
  app.state = fromHash(location.hash, start);
  box.value = app.state.prompt;
  read().then(jump);
});

// The address belongs to the settings, so links within the page move there by themselves.
for (const link of document.querySelectorAll('a[href^="#"]')) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    const place = byId(link.getAttribute("href").slice(1));
    place.scrollIntoView();
    place.focus({ preventScroll: true });
  });
}

function jump() {
  const station = new URLSearchParams(location.hash.slice(1)).get("at-station");
  const place = station && document.querySelector(`section.station[id="${CSS.escape(station)}"]`);
  if (place) place.scrollIntoView();
}

// ---- the prompt

box.value = app.state.prompt;
for (const example of t("prompt.examples").split("|")) {
  byId("examples").append(h("button", { type: "button", class: "chip", onclick: () => type(example) }, example));
}
byId("prompt-reset").addEventListener("click", () => type(start.prompt));
let typing = 0;
box.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(take, 250);
});
box.form.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  take();
});

function type(text) {
  box.value = text;
  take();
}

function take() {
  app.state.prompt = box.value;
  changed();
  read();
}

let reading = 0;
async function read() {
  if (!app.model) return;
  const mine = ++reading;
  const prompt = app.state.prompt;
  const started = performance.now();
  const { ids } = prompt ? await app.model.read(prompt) : { ids: [] };
  if (mine !== reading) return;
  const wrong =
    ids.length === 0
      ? t("prompt.empty")
      : ids.length > SHAPE.context
        ? t("prompt.long", { length: number(ids.length), most: SHAPE.context })
        : "";
  problem.textContent = wrong && app.seen ? `${wrong} ${t("prompt.still", { prompt: app.seen.prompt })}` : wrong;
  box.setAttribute("aria-invalid", Boolean(wrong));
  document.body.classList.toggle("stale", Boolean(wrong));
  if (wrong) return;
  const clean = await app.model.run("clean", ids, []);
  if (!clean || mine !== reading) return;
  const logp = logProbs(clean.logits);
  const [target] = topK(logp, 1);
  app.seen = {
    prompt,
    ids,
    tokens: ids.map((id, place) => shown(app.vocabulary[id], place === 0)),
    length: ids.length,
    clean,
    logp,
    norms: streamNorm(clean.resid, SHAPE.blocks + 1),
    target,
    word: shown(app.vocabulary[target]),
  };
  showPrompt();
  performance.measure("prompt", { start: started });
  for (const place of places) place.update();
}

function showPrompt() {
  const { seen } = app;
  answerPicture.draw(seen.logp);
  const answer = t("answer.line", { word: seen.word, share: percent(Math.exp(seen.logp[seen.target])) });
  byId("answer").replaceChildren(`${seen.prompt} `, h("strong", {}, shown(app.vocabulary[seen.target])));
  announce(`${t("answer.title")}: ${answer}`);
  byId("how-tokens").replaceChildren(...rich(t("how.tokens", { count: seen.length })));
  byId("tokens").replaceChildren(...seen.tokens.map((token) => h("li", { class: "token" }, token)));
}

// ---- the model

function fail(text) {
  status.textContent = text;
  document.documentElement.dataset.state = "failed";
}

async function load() {
  if (typeof WebAssembly === "undefined") return fail(t("loading.wasm"));
  if (typeof DecompressionStream === "undefined" || typeof Worker === "undefined") return fail(t("loading.old"));
  status.textContent = t("loading.start");
  try {
    if (globalThis.theWorkerFailed) throw globalThis.theWorkerFailed;
    const model = new Model(globalThis.theWorker, (busy) => byId("stations").setAttribute("aria-busy", busy));
    const parts = { model: source("model"), tokenizer: source("tokenizer") };
    const { vocabulary } = await model.load(parts, bytes("wasm") + bytes("model") + bytes("tokenizer"), (share) => {
      if (share < 1) status.textContent = t("loading.part", { share: percent(share) });
      byId("progress").value = share;
    });
    app.vocabulary = vocabulary;
    app.model = model;
  } catch (error) {
    return fail(t("loading.failed", { reason: error.message }));
  }
  byId("progress").hidden = true;
  await read();
  status.textContent = t("loading.ready", { seconds: number(performance.now() / 1000, 1) });
  performance.mark("ready");
  document.documentElement.dataset.state = "ready";
  jump();
}

byId("share").append(copyButton(t("copy.link"), () => app.link("top")));
byId("reset").addEventListener("click", () => {
  app.state = structuredClone(start);
  box.value = app.state.prompt;
  changed();
  read();
  scrollTo({ top: 0 });
});
load();
