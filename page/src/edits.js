// Edits: small plain values, one for each edit of the package, and what they mean for the exported model.
//
//   { kind: "scale_block", block: 2, factor: 0.5 }
//   { kind: "zero_heads", block: 10, heads: [3], positions: [0, 1] }
//
// Names and meanings are those of helpers/edits.py. tools/export_page.py documents the model's inputs. Factors multiply,
// so edits may come in any order here; toPython writes skips first, where the package's order says the same.

export const KINDS = [
  "skip_block",
  "skip_attention",
  "skip_mlp",
  "scale_attention",
  "scale_mlp",
  "zero_keys",
  "zero_heads",
  "scale_block",
];
const SITES = {
  scale_block: ["block"],
  scale_attention: ["attention"],
  scale_mlp: ["mlp"],
  skip_block: ["attention", "mlp"], // a block whose two parts add nothing hands on what it received
  skip_attention: ["attention"],
  skip_mlp: ["mlp"],
  zero_heads: ["heads"],
  zero_keys: ["keys"],
};

/** The inputs of one pass that changes nothing, for `copies` copies of a prompt of `length` tokens. */
export function neutral(shape, length, copies = 1) {
  const { blocks, heads, width } = shape;
  const ones = (size) => new Float32Array(size).fill(1);
  return {
    block: ones(copies * blocks * length),
    attention: ones(copies * blocks * length),
    mlp: ones(copies * blocks * length),
    heads: ones(copies * blocks * heads * length),
    keys: ones(copies * blocks * heads * length),
    add: new Float32Array(copies * blocks * length * width),
  };
}

/** Write one edit into the inputs, for one of the copies. Throws RangeError for what the model does not have. */
export function apply(inputs, shape, length, edit, copy = 0) {
  const { blocks, heads, width } = shape;
  const { kind, block } = edit;
  if (!Number.isInteger(block) || block < 0 || block >= blocks) throw new RangeError(`no block ${block}`);
  const positions = edit.positions ?? Array.from({ length }, (_, i) => i);
  for (const position of positions) {
    if (!Number.isInteger(position) || position < 0 || position >= length) throw new RangeError(`no token ${position}`);
  }
  const row = copy * blocks + block;
  if (kind === "patch_block") {
    for (const position of positions) {
      inputs.block[row * length + position] = 0;
      const from = position * width;
      inputs.add.set(edit.value.subarray(from, from + width), (row * length + position) * width);
    }
    return;
  }
  const factor = kind.startsWith("scale_") ? edit.factor : 0;
  if (!(kind in SITES) || !Number.isFinite(factor)) throw new RangeError(`no edit ${kind} by ${edit.factor}`);
  for (const site of SITES[kind]) {
    const rows = edit.heads ? edit.heads.map((head) => headRow(row, head, heads)) : [row];
    for (const start of rows) for (const position of positions) inputs[site][start * length + position] *= factor;
  }
}

function headRow(row, head, heads) {
  if (!Number.isInteger(head) || head < 0 || head >= heads) throw new RangeError(`no head ${head}`);
  return row * heads + head;
}

/** A text as Python writes it in quotes. */
export function pythonString(text) {
  const escaped = text
    .replace(/\\/g, "\\\\")
    .replace(/"/g, '\\"')
    .replace(/\n/g, "\\n")
    .replace(/\r/g, "\\r")
    .replace(/\t/g, "\\t");
  return `"${escaped}"`;
}

function call(edit) {
  const numbers = [edit.block];
  if (edit.heads) numbers.push(`[${edit.heads.join(", ")}]`);
  if (edit.kind.startsWith("scale_")) numbers.push(edit.factor);
  if (edit.positions) numbers.push(`positions=[${edit.positions.join(", ")}]`);
  return `${edit.kind}(${numbers.join(", ")})`;
}

/** The same edits in Python, with the package: what the page shows to copy. */
export function toPython(prompt, edits) {
  const sorted = [...edits].sort((a, b) => a.block - b.block || KINDS.indexOf(a.kind) - KINDS.indexOf(b.kind));
  const names = [...new Set(sorted.map((edit) => edit.kind))];
  const words = `print(top_k(lm, lm.logits(${pythonString(prompt)})[0, -1]))`;
  if (!sorted.length) return `from helpers import load_model, top_k\n\nlm = load_model()\n${words}`;
  const calls = sorted.map(call);
  const line = calls.join(", ");
  const inside = line.length > 80 ? `\n    ${calls.join(",\n    ")},\n` : line;
  const joined = inside.startsWith("\n") ? `edit(\n    lm,${inside})` : `edit(lm, ${inside})`;
  return `from helpers import load_model, edit, ${[...names, "top_k"].join(", ")}\n\nlm = load_model()\nwith ${joined}:\n    ${words}`;
}

/** A state rebuilt from some of its parts ("resid", "attn", "mlp"), put in the place of the block's own. */
export function rebuildToPython(prompt, block, parts) {
  const text = pythonString(prompt);
  const sum = parts.map((part) => `clean.${part}[${block}]`).join(" + ") || `0 * clean.resid[${block}]`;
  return (
    "from helpers import load_model, edit, patch_block, top_k, trace\n\n" +
    `lm = load_model()\nclean = trace(lm, ${text})\n` +
    `with edit(lm, patch_block(${block}, ${sum})):\n    print(top_k(lm, lm.logits(${text})[0, -1]))`
  );
}
