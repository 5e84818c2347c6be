import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { list, measure, percent, short, speak, t } from "../src/text.js";
import { shown, tokenTexts } from "../src/tokens.js";

const here = new URL("..", import.meta.url);
const read = (path) => readFileSync(new URL(path, here), "utf8");
const files = readdirSync(new URL("strings", here));
const english = JSON.parse(read("strings/en.json"));
const code = readdirSync(new URL("src", here))
  .map((name) => read(`src/${name}`))
  .join("\n");
const everything = `${code}\n${read("index.html")}\n${read("build.mjs")}`;
speak(english, "en");

test("every sentence that the page asks for is there, and no other", () => {
  const asked = new Set(["language"]);
  for (const [, key] of everything.matchAll(/(?:\bt\(\s*|"|\{\{)([a-z]+(?:\.[a-z0-9]+)+)/g))
    if (key in english) asked.add(key);
  for (const [, key] of everything.matchAll(/\{\{([a-z]+)\}\}/g)) asked.add(key);
  for (const [, key] of everything.matchAll(/\bt\(\s*"([^"$]+)"/g)) assert.ok(key in english, key);
  // keys with a part that is filled in, such as `${name}.guess.${i}`
  const built = [
    /^(scale|parts|keys|map|skip)\.(title|text|lesson|guess(\.\d)?)$/,
    /^parts\.(left\.)?(resid|attn|mlp|sum|true)$/,
  ];
  built.push(
    /^keys\.state\.(on|keys|off)$/,
    /^desk\.(head\.(on|keys|off)|attention|mlp)$/,
    /^scale\.(grows|shrinks|stays)$/,
    /^how\.diagram/,
  );
  const unused = Object.keys(english).filter((key) => !asked.has(key) && !built.some((pattern) => pattern.test(key)));
  assert.deepEqual(unused, []);
});

test("other languages have the same sentences with the same values", () => {
  const values = (text) => [...text.matchAll(/\{\w+\}/g)].map(([name]) => name).sort();
  for (const file of files) {
    const other = JSON.parse(read(`strings/${file}`));
    assert.deepEqual(Object.keys(other).sort(), Object.keys(english).sort(), file);
    for (const [key, text] of Object.entries(other))
      assert.deepEqual(new Set(values(text)), new Set(values(english[key])), key);
  }
});

test("a sentence or a value that is missing is an error", () => {
  assert.throws(() => t("no.such"), /no sentence/);
  assert.throws(() => t("skip.verdict", {}), /needs a value/);
});

test("numbers as people read them", () => {
  assert.deepEqual(
    [0.7654, 0.0534, 0.0004, 1, 0.9969].map((p) => percent(p)),
    ["77%", "5.3%", "below 0.1%", "100%", "99.7%"],
  );
  assert.equal(short(0), "<0.1%");
  assert.deepEqual([0, 0.5234, 7.31, 55.42, 121.4].map(measure), ["0", "0.523", "7.31", "55.4", "121"]);
  assert.equal(list([4, 5, 6]), "4, 5, and 6");
});

test("tokens as people read them", () => {
  const vocabulary = ["ĠGermany", "ly", "Ċ", "Ġ", "ðŁ", "é", "Ã©", "<|endoftext|>"];
  const tokenizer = { id_to_token: (id) => vocabulary[id] };
  const texts = tokenTexts(tokenizer, [0, 1, 2, 3, 4, 6, 7]);
  assert.deepEqual(texts, [" Germany", "ly", "\n", " ", "‹f0 9f›", "é", "<|endoftext|>"]);
  assert.deepEqual(
    texts.slice(0, 4).map((text) => shown(text)),
    ["Germany", "…ly", "⏎", "␣"],
  );
  assert.equal(shown("Berlin", true), "Berlin");
});
