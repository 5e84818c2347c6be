// Build the page: dist/page.html, which holds everything, and dist/page/, the same as files for a web host.
//
//   node build.mjs [--language en] [--lessons ../notebooks] [--model ../dist/model.onnx] [--out ../dist]

import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { constants, gzipSync } from "node:zlib";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const { values: options } = parseArgs({
  options: {
    language: { type: "string", default: "en" },
    lessons: { type: "string", default: "../notebooks" },
    model: { type: "string", default: join(here, "../dist/model.onnx") },
    out: { type: "string", default: join(here, "../dist") },
  },
});
const stringsFile = join(here, "strings", `${options.language}.json`);
const strings = JSON.parse(await readFile(stringsFile, "utf8"));

/** The worker is a classic one: a page from disk may not start a module as a worker. */
async function bundled(entry, format) {
  const { outputFiles } = await build({
    entryPoints: [join(here, "src", entry)],
    alias: { "@strings": stringsFile },
    bundle: true,
    write: false,
    minify: true,
    format,
    define: format === "iife" ? { "import.meta.url": "self.location.href" } : {},
    target: ["chrome103", "firefox113", "safari16.4"],
    legalComments: "inline",
  });
  return outputFiles[0].text;
}

const pack = (bytes) => gzipSync(bytes, { level: constants.Z_BEST_COMPRESSION });
const module = (path) => join(here, "node_modules", path);
const pocket = join(here, "../helpers/pocket");
const tokenizer = JSON.stringify({
  json: JSON.parse(await readFile(join(pocket, "tokenizer.json"), "utf8")),
  config: JSON.parse(await readFile(join(pocket, "tokenizer_config.json"), "utf8")),
});
const parts = {
  wasm: pack(await readFile(module("onnxruntime-web/dist/ort-wasm-simd-threaded.wasm"))),
  model: pack(await readFile(options.model)),
  tokenizer: pack(Buffer.from(tokenizer)),
};

const FONTS = [
  ["Fraunces", "fraunces", "wght-normal", "300 900", "normal"],
  ["Source Sans 3", "source-sans-3", "wght-normal", "200 900", "normal"],
];
const RANGES = {
  latin:
    "U+0-FF,U+131,U+152-153,U+2BB-2BC,U+2C6,U+2DA,U+2DC,U+2000-206F,U+20AC,U+2122,U+2191,U+2193,U+2212,U+FEFF,U+FFFD",
  vietnamese:
    "U+102-103,U+110-111,U+128-129,U+168-169,U+1A0-1A1,U+1AF-1B0,U+300-301,U+303-304,U+308-309,U+323,U+329,U+1EA0-1EF9,U+20AB",
};
const fontFiles = {};
const faces = [];
for (const [family, folder, style, weights, slant] of FONTS) {
  for (const [subset, range] of Object.entries(RANGES)) {
    const name = `${folder}-${subset}-${style}.woff2`;
    fontFiles[name] = await readFile(module(`@fontsource-variable/${folder}/files/${name}`));
    faces.push([
      name,
      `font-family:"${family}";font-weight:${weights};font-style:${slant};font-display:swap;unicode-range:${range}`,
    ]);
  }
}
const face = (where) =>
  faces.map(([name, rest]) => `@font-face{${rest};src:url(${where(name)}) format("woff2")}`).join("\n");
const css = await readFile(join(here, "style.css"), "utf8");

const escaped = (text) => text.replace(/[&<>"]/g, (one) => `&#${one.charCodeAt(0)};`);
const inScript = (text) => text.replace(/<\/(script)/gi, "<\\/$1");
const marked = (text) => escaped(text).replace(/\*\*(.+?)\*\*/g, "<strong>$1</strong>");
const template = await readFile(join(here, "index.html"), "utf8");

/** The template with {{sentence}} and {{{piece}}} filled in. */
function filled(pieces) {
  return template.replace(/\{\{\{(\w+)\}\}\}|\{\{([\w.]+)\}\}/g, (_, piece, key) => {
    const found = piece ? pieces[piece] : strings[key];
    if (found === undefined) throw new Error(`the template asks for "${piece ?? key}", which nobody gives`);
    return piece ? found : marked(found);
  });
}

const words = (key) => escaped(strings[`how.diagram.${key}`]);
const numberedBlocks = `${words("block")} 0 – 11`;

/** The stream with its twelve blocks in a row, as the body of an SVG. */
function wideDiagram() {
  const [left, right, y] = [96, 624, 30];
  const step = (right - left) / 12;
  const blocks = Array.from({ length: 12 }, (_, block) => {
    const x = left + step * (block + 0.5);
    return `<path class="dip" d="M${x - 16} ${y}C${x - 16} ${y + 34} ${x + 16} ${y + 34} ${x + 16} ${y}"/>
<rect class="block" x="${x - 15}" y="${y + 16}" width="30" height="30" rx="9"/><text class="block-label" x="${x}" y="${y + 36}">${block}</text>`;
  }).join("");
  return `<path class="river" d="M86 ${y}H634"/><path class="flow" d="M86 ${y}H634"/>${blocks}
<text class="end" x="72" y="${y + 5}" text-anchor="end">${words("in")}</text>
<text class="end" x="650" y="${y + 5}">${words("out")}</text>
<text class="name" x="360" y="${y + 72}" text-anchor="middle">${numberedBlocks}</text>`;
}

/** The same from top to bottom, for a narrow screen. */
function narrowDiagram() {
  const [top, bottom, x] = [40, 352, 160];
  const step = (bottom - top) / 12;
  const blocks = Array.from({ length: 12 }, (_, block) => {
    const y = top + step * (block + 0.5);
    const side = block % 2 ? -1 : 1;
    return `<path class="dip" d="M${x} ${y - 13}C${x + 44 * side} ${y - 13} ${x + 44 * side} ${y + 13} ${x} ${y + 13}"/>
<rect class="block" x="${x + 32 * side - 16}" y="${y - 14}" width="32" height="28" rx="9"/><text class="block-label" x="${x + 32 * side}" y="${y + 5}">${block}</text>`;
  }).join("");
  return `<path class="river" d="M${x} ${top - 8}V${bottom + 8}"/><path class="flow" d="M${x} ${top - 8}V${bottom + 8}"/>${blocks}
<text class="end" x="${x}" y="18" text-anchor="middle">${words("in")}</text>
<text class="end" x="${x}" y="${bottom + 36}" text-anchor="middle">${words("out")}</text>
<text class="name" x="238" y="${(top + bottom) / 2}" text-anchor="middle">${numberedBlocks}</text>`;
}

const common = { lessons: options.lessons, wide: wideDiagram(), narrow: narrowDiagram() };
const [main, worker, early] = await Promise.all([
  bundled("main.js", "esm"),
  bundled("worker.js", "iife"),
  bundled("early.js", "iife"),
]);

// One file. Whatever it needs is in it, and its policy forbids every request.
const base64 = (bytes) => Buffer.from(bytes).toString("base64");
const data = (name) =>
  `<script type="text/plain" id="data-${name}" data-bytes="${parts[name].length}">${base64(parts[name])}</script>`;
const one = filled({
  ...common,
  policy:
    "default-src 'none'; script-src 'unsafe-inline' 'wasm-unsafe-eval' blob:; worker-src blob:; style-src 'unsafe-inline'; font-src data:; img-src data:; connect-src 'none'; form-action 'none'; base-uri 'none'",
  style: `<style>${face((name) => `data:font/woff2;base64,${base64(fontFiles[name])}`)}\n${css}</style>`,
  // The worker and its wasm come first: it compiles while the browser reads the rest. What is above is on the screen before.
  scripts: [
    `<script type="text/plain" id="worker">${inScript(worker)}</script>`,
    data("wasm"),
    `<script>${inScript(early)}</script>`,
    data("model"),
    data("tokenizer"),
    `<script type="module">${inScript(main)}</script>`,
  ].join("\n"),
});
const out = resolve(options.out);
const folder = join(out, "page");
await rm(folder, { recursive: true, force: true });
await mkdir(folder, { recursive: true });
await writeFile(join(out, "page.html"), one);

// The same as files. The names end in .bin, so that no host unpacks them by itself.
const file = (name) =>
  `<script type="text/plain" id="data-${name}" data-bytes="${parts[name].length}" data-url="${name}.bin"></script>`;
const many = filled({
  ...common,
  policy:
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self'; style-src 'self'; font-src 'self'; img-src data:; connect-src 'self'; form-action 'none'; base-uri 'none'",
  style: '<link rel="stylesheet" href="style.css">',
  scripts: [
    '<script type="text/plain" id="worker" data-url="worker.js"></script>',
    ...Object.keys(parts).map(file),
    '<script src="early.js"></script>',
    '<script type="module" src="main.js"></script>',
  ].join("\n"),
});
const contents = {
  "index.html": many,
  "early.js": early,
  "main.js": main,
  "worker.js": worker,
  "style.css": `${face((name) => name)}\n${css}`,
  ...fontFiles,
  ...Object.fromEntries(Object.entries(parts).map(([name, bytes]) => [`${name}.bin`, bytes])),
};
for (const [name, bytes] of Object.entries(contents)) await writeFile(join(folder, name), bytes);

const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
console.log(
  `dist/page.html: ${megabytes(one.length)} MB, ${megabytes(pack(Buffer.from(one)).length)} MB gzipped; dist/page/: the same as files`,
);
