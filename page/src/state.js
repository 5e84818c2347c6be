// The page's settings, and the address that holds them: #prompt=…&scale=2:0.5&… Only what differs from the start is
// written. Whatever an address holds that is not a setting is left out, so a damaged link still opens the page.

export const SHAPE = { blocks: 12, heads: 12, width: 192, context: 128, vocabulary: 6144 };
export const GUESSES = { scale: 4, parts: 3, keys: 3, map: 3, skip: 3 }; // the number of answers to choose from
export const FACTORS = { least: 0, most: 3, step: 0.05 };
export const PARTS = ["resid", "attn", "mlp"];
export const KEYS = ["on", "keys", "off"];

export function initial(prompt) {
  return {
    prompt,
    scale: { block: 2, factor: 1 },
    parts: { block: 8, kept: [...PARTS] },
    keys: { block: 10, head: 3, state: "on" },
    map: { block: 10, head: 3 },
    skip: [],
    desk: emptyDesk(),
    guesses: {}, // station: the number of an answer, or -1 for "no guess"
  };
}

export function emptyDesk() {
  return {
    factors: Array(SHAPE.blocks).fill(1),
    attention: Array(SHAPE.blocks).fill(true),
    mlp: Array(SHAPE.blocks).fill(true),
    heads: Array.from({ length: SHAPE.blocks }, () => Array(SHAPE.heads).fill("on")),
    at: [], // positions; none means all
  };
}

/** The desk as edits. */
export function deskEdits(desk) {
  const positions = desk.at.length ? { positions: desk.at } : {};
  const edits = [];
  for (let block = 0; block < SHAPE.blocks; block++) {
    const { [block]: attention } = desk.attention;
    const { [block]: mlp } = desk.mlp;
    if (!attention && !mlp) edits.push({ kind: "skip_block", block, ...positions });
    else if (!attention) edits.push({ kind: "skip_attention", block, ...positions });
    else if (!mlp) edits.push({ kind: "skip_mlp", block, ...positions });
    for (const [state, kind] of [
      ["keys", "zero_keys"],
      ["off", "zero_heads"],
    ]) {
      const heads = indices(desk.heads[block], (value) => value === state);
      if (heads.length) edits.push({ kind, block, heads, ...positions });
    }
    if (desk.factors[block] !== 1)
      edits.push({ kind: "scale_block", block, factor: desk.factors[block], ...positions });
  }
  return edits;
}

function indices(values, test) {
  return values.flatMap((value, index) => (test(value) ? [index] : []));
}

export function toHash(state, start) {
  const found = new URLSearchParams();
  const put = (name, value, first) => value !== first && found.set(name, value);
  put("prompt", state.prompt, start.prompt);
  for (const name of ["scale", "parts", "keys", "map", "skip"]) put(name, texts[name](state), texts[name](start));
  const desk = deskText(state.desk);
  put("desk", desk, "");
  put("at", state.desk.at.join(","), "");
  const guesses = Object.entries(state.guesses).map(([name, answer]) => `${name}:${answer}`);
  put("guess", guesses.join(","), "");
  const text = found.toString();
  return text ? `#${text}` : "";
}

const texts = {
  scale: ({ scale }) => `${scale.block}:${scale.factor}`,
  parts: ({ parts }) => `${parts.block}:${parts.kept.join("+")}`,
  keys: ({ keys }) => `${keys.block}.${keys.head}:${keys.state}`,
  map: ({ map }) => `${map.block}.${map.head}`,
  skip: ({ skip }) => skip.join(","),
};

// One item a block and control: 2x0.5 (factor), 3a (no attention), 3m (no MLP), 10.3o (head off), 10.3k (keys zero).
function deskText(desk) {
  const items = [];
  for (let block = 0; block < SHAPE.blocks; block++) {
    if (desk.factors[block] !== 1) items.push(`${block}x${desk.factors[block]}`);
    if (!desk.attention[block]) items.push(`${block}a`);
    if (!desk.mlp[block]) items.push(`${block}m`);
    desk.heads[block].forEach((value, head) => {
      if (value !== "on") items.push(`${block}.${head}${value === "off" ? "o" : "k"}`);
    });
  }
  return items.join(",");
}

export function fromHash(hash, start) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const state = structuredClone(start);
  const read = (name, pattern, use) => {
    const match = pattern.exec(given.get(name) ?? "");
    if (match) use(match);
  };
  if (given.has("prompt")) state.prompt = given.get("prompt");
  read("scale", /^(\d+):([\d.]+)$/, ([, block, factor]) => {
    if (isBlock(block) && isFactor(factor)) state.scale = { block: +block, factor: +factor };
  });
  read("parts", /^(\d+):([a-z+]*)$/, ([, block, kept]) => {
    const parts = PARTS.filter((part) => kept.split("+").includes(part));
    if (isBlock(block)) state.parts = { block: +block, kept: parts };
  });
  read("keys", /^(\d+)\.(\d+):(\w+)$/, ([, block, head, value]) => {
    if (isBlock(block) && isHead(head) && KEYS.includes(value))
      state.keys = { block: +block, head: +head, state: value };
  });
  read("map", /^(\d+)\.(\d+)$/, ([, block, head]) => {
    if (isBlock(block) && isHead(head)) state.map = { block: +block, head: +head };
  });
  read("skip", /^[\d,]+$/, ([text]) => {
    state.skip = numbersIn(text, SHAPE.blocks);
  });
  read("at", /^[\d,]+$/, ([text]) => {
    state.desk.at = numbersIn(text, SHAPE.context);
  });
  for (const item of (given.get("desk") ?? "").split(",")) readDesk(state.desk, item);
  for (const item of (given.get("guess") ?? "").split(",")) {
    const [name, answer] = item.split(":");
    if (name in GUESSES && /^(-1|\d)$/.test(answer) && +answer < GUESSES[name]) state.guesses[name] = +answer;
  }
  return state;
}

function readDesk(desk, item) {
  const match = /^(\d+)(?:x([\d.]+)|(a)|(m)|\.(\d+)([ok]))$/.exec(item);
  if (!match || !isBlock(match[1])) return;
  const [, block, factor, attention, mlp, head, value] = match;
  if (factor !== undefined && isFactor(factor)) desk.factors[block] = +factor;
  if (attention) desk.attention[block] = false;
  if (mlp) desk.mlp[block] = false;
  if (head !== undefined && isHead(head)) desk.heads[block][head] = value === "o" ? "off" : "keys";
}

const isBlock = (text) => +text < SHAPE.blocks;
const isHead = (text) => +text < SHAPE.heads;
const isFactor = (text) => Number.isFinite(+text) && +text >= FACTORS.least && +text <= FACTORS.most;

function numbersIn(text, limit) {
  const numbers = text
    .split(",")
    .filter((item) => item !== "" && +item < limit)
    .map(Number);
  return [...new Set(numbers)].sort((a, b) => a - b);
}
