// Runs before the model and the page's code are read: the worker starts, and compiles the wasm meanwhile.
// main.js finds the worker as `theWorker`, or what went wrong as `theWorkerFailed`.

import { source } from "./sources.js";

function start() {
  const element = document.getElementById("worker");
  if (element.dataset.url) return new Worker(new URL(element.dataset.url, location.href));
  return new Worker(URL.createObjectURL(new Blob([element.textContent], { type: "text/javascript" })));
}

try {
  if (typeof WebAssembly !== "undefined" && typeof DecompressionStream !== "undefined") {
    globalThis.theWorker = start();
    globalThis.theWorker.postMessage({ kind: "warm", source: source("wasm") });
  }
} catch (error) {
  globalThis.theWorkerFailed = error;
}
