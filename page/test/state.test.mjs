import assert from "node:assert/strict";
import { test } from "node:test";
import { deskEdits, emptyDesk, fromHash, initial, toHash } from "../src/state.js";

const start = initial("Berlin is the capital of");

test("the settings at the start need no address", () => {
  assert.equal(toHash(start, start), "");
  assert.deepEqual(fromHash("", start), start);
});

test("every setting survives the address", () => {
  const state = structuredClone(start);
  state.prompt = "50% & more: “é” #1 = 🙂";
  state.scale = { block: 11, factor: 0.05 };
  state.parts = { block: 0, kept: [] };
  state.keys = { block: 3, head: 11, state: "off" };
  state.map = { block: 0, head: 0 };
  state.skip = [0, 5, 11];
  state.desk.factors[7] = 2.95;
  state.desk.attention[1] = false;
  state.desk.mlp[11] = false;
  state.desk.heads[10][3] = "keys";
  state.desk.heads[0][11] = "off";
  state.desk.at = [0, 127];
  state.guesses = { scale: 3, map: -1 };
  assert.deepEqual(fromHash(toHash(state, start), start), state);
});

test("what is no setting is left out", () => {
  const damaged = [
    "#scale=12:1",
    "#scale=2:9",
    "#scale=2:x",
    "#parts=99:resid",
    "#keys=1.12:on",
    "#keys=1.1:maybe",
    "#map=a.b",
    "#desk=12x2,1x99,1q,3.12o",
    "#guess=scale:4,nobody:1",
    "#skip=12,99",
    "#%%%",
  ];
  for (const hash of damaged) assert.deepEqual(fromHash(hash, start), start, hash);
});

test("the desk as edits", () => {
  const desk = emptyDesk();
  assert.deepEqual(deskEdits(desk), []);
  desk.attention[2] = false;
  desk.mlp[2] = false;
  desk.mlp[3] = false;
  desk.factors[2] = 0.5;
  desk.heads[4][1] = "off";
  desk.heads[4][2] = "keys";
  desk.at = [1];
  assert.deepEqual(deskEdits(desk), [
    { kind: "skip_block", block: 2, positions: [1] },
    { kind: "scale_block", block: 2, factor: 0.5, positions: [1] },
    { kind: "skip_mlp", block: 3, positions: [1] },
    { kind: "zero_keys", block: 4, heads: [2], positions: [1] },
    { kind: "zero_heads", block: 4, heads: [1], positions: [1] },
  ]);
});
