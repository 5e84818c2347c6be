import assert from "node:assert/strict";
import { test } from "node:test";
import { apply, neutral, pythonString, rebuildToPython, toPython } from "../src/edits.js";
import { SHAPE } from "../src/state.js";

const LENGTH = 4;
const changed = (values, first) => [...values.entries()].filter(([, value]) => value !== first).map(([index]) => index);

test("an edit changes its own place and nothing else", () => {
  const inputs = neutral(SHAPE, LENGTH, 2);
  apply(inputs, SHAPE, LENGTH, { kind: "scale_block", block: 3, factor: 0.5, positions: [1, 3] }, 1);
  const row = (SHAPE.blocks + 3) * LENGTH;
  assert.deepEqual(changed(inputs.block, 1), [row + 1, row + 3]);
  assert.equal(inputs.block[row + 1], 0.5);
  for (const name of ["attention", "mlp", "heads", "keys"]) assert.deepEqual(changed(inputs[name], 1), []);
  assert.deepEqual(changed(inputs.add, 0), []);
});

test("a head's factor stands at its block, head and positions", () => {
  const inputs = neutral(SHAPE, LENGTH);
  apply(inputs, SHAPE, LENGTH, { kind: "zero_heads", block: 10, heads: [3, 7] });
  const start = (head) => (10 * SHAPE.heads + head) * LENGTH;
  assert.deepEqual(
    changed(inputs.heads, 1),
    [0, 1, 2, 3].map((i) => start(3) + i).concat([0, 1, 2, 3].map((i) => start(7) + i)),
  );
  assert.deepEqual(changed(inputs.keys, 1), []);
});

test("a skipped block adds nothing with either part", () => {
  const inputs = neutral(SHAPE, LENGTH);
  apply(inputs, SHAPE, LENGTH, { kind: "skip_block", block: 0 });
  assert.deepEqual(changed(inputs.attention, 1), [0, 1, 2, 3]);
  assert.deepEqual(changed(inputs.mlp, 1), [0, 1, 2, 3]);
  assert.deepEqual(changed(inputs.block, 1), []);
});

test("a patch takes the place of the block's own state", () => {
  const inputs = neutral(SHAPE, LENGTH);
  const value = Float32Array.from({ length: LENGTH * SHAPE.width }, (_, i) => i + 1);
  apply(inputs, SHAPE, LENGTH, { kind: "patch_block", block: 2, value, positions: [1] });
  const at = 2 * LENGTH + 1;
  assert.deepEqual(changed(inputs.block, 1), [at]);
  assert.equal(inputs.block[at], 0);
  assert.equal(inputs.add[at * SHAPE.width], SHAPE.width + 1);
  assert.equal(changed(inputs.add, 0).length, SHAPE.width);
});

test("two factors at one place multiply", () => {
  const inputs = neutral(SHAPE, LENGTH);
  for (const factor of [0.5, 3]) apply(inputs, SHAPE, LENGTH, { kind: "scale_mlp", block: 1, factor });
  assert.equal(inputs.mlp[LENGTH], 1.5);
});

test("what the model does not have is refused", () => {
  const inputs = neutral(SHAPE, LENGTH);
  const wrong = [
    { kind: "scale_block", block: 12, factor: 1 },
    { kind: "scale_block", block: 0, factor: Number.NaN },
    { kind: "scale_block", block: 0, factor: 2, positions: [4] },
    { kind: "zero_heads", block: 0, heads: [12] },
    { kind: "melt_block", block: 0 },
  ];
  for (const edit of wrong) assert.throws(() => apply(inputs, SHAPE, LENGTH, edit), RangeError);
});

test("Python: skips stand before scales, whatever the order", () => {
  const code = toPython("Berlin is", [
    { kind: "scale_block", block: 2, factor: 0.5, positions: [0] },
    { kind: "zero_heads", block: 1, heads: [3, 4] },
    { kind: "skip_block", block: 2 },
  ]);
  assert.match(code, /edit\(lm, zero_heads\(1, \[3, 4\]\), skip_block\(2\), scale_block\(2, 0\.5, positions=\[0\]\)\)/);
  assert.match(code, /^from helpers import load_model, edit, zero_heads, skip_block, scale_block, top_k\n/);
});

test("Python: quotes, backslashes and new lines of a prompt", () => {
  assert.equal(pythonString('say "\\n"\n'), '"say \\"\\\\n\\"\\n"');
});

test("Python: a rebuilt state names its parts", () => {
  assert.match(rebuildToPython("a", 5, ["resid", "mlp"]), /patch_block\(5, clean\.resid\[5\] \+ clean\.mlp\[5\]\)/);
  assert.match(rebuildToPython("a", 5, []), /patch_block\(5, 0 \* clean\.resid\[5\]\)/);
});
