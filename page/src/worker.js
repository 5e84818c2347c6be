// The worker: tokenizer and model. It answers one message at a time and looks for newer ones between the passes of a
// sweep, so that a slider never waits for a map.
//
//   { kind: "warm", source }             source of the wasm, { base64 } or { url }; no answer: `load` waits for it
//   { id, kind: "load", sources, bytes } sources of the model and the tokenizer; bytes: of all three, packed
//                                        → vocabulary, the text of each token
//   { id, kind: "read", prompt }         → { ids }
//   { id, kind: "run", ids, edits, want }  want: names of outputs, all by default → these
//   { id, kind: "sweep", ids, each, target }   each: lists of edits, one for each copy → found: log-probabilities
//   { kind: "cancel", id }

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web/wasm";
import { apply, neutral } from "./edits.js";
import { logProbs } from "./numbers.js";
import { SHAPE } from "./state.js";
import { tokenTexts } from "./tokens.js";

const BATCH = 144; // tokens in one batch, twelve copies of a prompt of twelve tokens: more would not cost less for each
const OUTPUTS = ["logits", "resid", "attention_delta", "mlp_delta", "patterns"];
// A graph of one Identity. onnxruntime compiles its wasm when it is given a first model, so it is given this one while the
// real model is still on its way; the compiling is most of the page's start.
const SMALLEST = "CAg6NwoQCgFhEgFiIghJZGVudGl0eRIBZ1oPCgFhEgoKCAgBEgQKAggBYg8KAWISCgoICAESBAoCCAFCBAoAEBE=";

let session;
let tokenizer;
const waiting = [];
const cancelled = new Set();
let busy = false;
let warming; // the promise of a compiled onnxruntime
let here = 0; // packed bytes that have arrived
let tell = () => {}; // who hears of them

self.onmessage = ({ data }) => {
  if (data.kind === "cancel") cancelled.add(data.id);
  else if (data.kind === "warm") {
    warming = warm(data.source);
    warming.catch(() => {}); // `load` reports it
  } else waiting.push(data);
  if (!busy) work();
};

async function work() {
  busy = true;
  while (waiting.length) await answer(waiting.shift());
  busy = false;
}

async function answer(message) {
  try {
    const [result, moved] = await actions[message.kind](message);
    self.postMessage({ id: message.id, result }, moved ?? []);
  } catch (error) {
    self.postMessage({ id: message.id, error: String(error?.message ?? error) });
  }
}

async function warm(source) {
  const wasm = await unpacked(source);
  ort.env.wasm.numThreads = 1; // threads need a server that sends special headers; a file has no server
  ort.env.wasm.wasmBinary = wasm.buffer;
  ort.env.logLevel = "error";
  await ort.InferenceSession.create(bytesOf(SMALLEST), { executionProviders: ["wasm"] });
}

const actions = {
  async load({ id, sources, bytes }) {
    tell = () => self.postMessage({ id, progress: here / bytes });
    const [model, words] = await Promise.all([unpacked(sources.model), unpacked(sources.tokenizer), warming]);
    session = await ort.InferenceSession.create(model, {
      executionProviders: ["wasm"],
      graphOptimizationLevel: "basic", // the rest takes longer at the start and runs no faster
    });
    const { json, config } = JSON.parse(new TextDecoder().decode(words));
    tokenizer = new Tokenizer(json, config);
    return [
      {
        vocabulary: tokenTexts(
          tokenizer,
          Array.from({ length: SHAPE.vocabulary }, (_, id) => id),
        ),
      },
    ];
  },

  read({ prompt }) {
    return [{ ids: tokenizer.encode(prompt).ids }];
  },

  async run({ ids, edits, want }) {
    const outputs = await pass(ids, [edits], want);
    const result = { length: ids.length };
    for (const [name, tensor] of Object.entries(outputs)) result[name] = tensor.data;
    return [result, Object.values(outputs).map((tensor) => tensor.data.buffer)];
  },

  async sweep({ id, ids, each, target }) {
    const found = [];
    const copies = Math.max(1, Math.floor(BATCH / ids.length));
    for (let start = 0; start < each.length; start += copies) {
      while (waiting.some((other) => other.kind !== "sweep")) {
        const [next] = waiting.splice(
          waiting.findIndex((other) => other.kind !== "sweep"),
          1,
        );
        await answer(next);
      }
      if (cancelled.delete(id)) return [{ cancelled: true }];
      const batch = each.slice(start, start + copies);
      const { logits } = await pass(ids, batch, ["logits"]);
      for (let copy = 0; copy < batch.length; copy++) {
        const values = logProbs(logits.data.subarray(copy * SHAPE.vocabulary, (copy + 1) * SHAPE.vocabulary));
        found.push(values[target]);
      }
      self.postMessage({ id, progress: found.length / each.length, found: found.slice(start) });
      await new Promise((resolve) => setTimeout(resolve)); // let messages in
    }
    return [{ found }];
  },
};

/** One pass of the model over copies of a prompt, each with its own edits. */
async function pass(ids, each, want = OUTPUTS) {
  const copies = each.length;
  const length = ids.length;
  const inputs = neutral(SHAPE, length, copies);
  each.forEach((edits, copy) => {
    for (const edit of edits) apply(inputs, SHAPE, length, edit, copy);
  });
  const repeated = new BigInt64Array(copies * length);
  for (let i = 0; i < repeated.length; i++) repeated[i] = BigInt(ids[i % length]);
  const { blocks, heads, width } = SHAPE;
  const dims = {
    block: [copies, blocks, length],
    attention: [copies, blocks, length],
    mlp: [copies, blocks, length],
    heads: [copies, blocks, heads, length],
    keys: [copies, blocks, heads, length],
    add: [copies, blocks, length, width],
  };
  const feeds = { ids: new ort.Tensor("int64", repeated, [copies, length]) };
  for (const name of Object.keys(dims)) feeds[name] = new ort.Tensor("float32", inputs[name], dims[name]);
  return session.run(feeds, want);
}

/** The bytes of a part of the page, which lies in it as base64 or beside it as a file; gzipped in both cases. */
async function unpacked(source) {
  let packed;
  if (source.base64 !== undefined) {
    packed = bytesOf(source.base64);
    arrived(packed.length);
  } else {
    packed = await fetched(source.url);
  }
  if (packed[0] !== 0x1f || packed[1] !== 0x8b) return packed; // a host has unpacked it already
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function arrived(bytes) {
  here += bytes;
  tell();
}

async function fetched(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  const parts = [];
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    arrived(value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}
