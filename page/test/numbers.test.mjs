import assert from "node:assert/strict";
import { test } from "node:test";
import { deltaNorm, logProbs, looks, streamNorm, topK } from "../src/numbers.js";

test("log-probabilities sum to one, for large logits too", () => {
  for (const shift of [0, 1000, -1000]) {
    const found = logProbs(Float32Array.of(1 + shift, 2 + shift, 3 + shift));
    assert.ok(Math.abs(found.reduce((sum, value) => sum + Math.exp(value), 0) - 1) < 1e-9);
    assert.ok(Math.abs(found[2] - found[0] - 2) < 1e-6);
  }
});

test("the largest, largest first, as sorting finds them", () => {
  let seed = 7;
  const random = () => {
    seed = (seed * 16807) % 2147483647;
    return seed;
  };
  const values = Array.from({ length: 500 }, random);
  const sorted = [...values.keys()].sort((a, b) => values[b] - values[a]);
  assert.deepEqual(topK(values, 9), sorted.slice(0, 9));
  assert.deepEqual(topK([5], 3), [0]);
});

test("lengths of differences, point by point", () => {
  const clean = Float32Array.of(1, 1, 0, 0);
  const edited = Float32Array.of(1, 1, 3, 4);
  assert.deepEqual(deltaNorm(clean, edited, 2), [0, 5]);
  assert.deepEqual(streamNorm(edited, 2), [Math.SQRT2, 5]);
});

test("a head's look ends at its own token", () => {
  const shape = { heads: 2 };
  const patterns = Float32Array.from({ length: 2 * 2 * 9 }, (_, i) => i);
  assert.deepEqual(looks({ length: 3, patterns }, shape, 1, 0, 1), [21, 22]);
});
