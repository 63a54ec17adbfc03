// The worker of browser_engine.js: it holds the model, and makes one photo after another, so that the page stays fluid.

import {decodePng, encodeRgb} from "./png.js";
import {MissingFile, Runtime} from "./runtime.js";
import {text} from "./texts.js";

let runtime = null;

onmessage = async ({data}) => {
  if (data.kind === "open") await open(data);
  else postMessage({kind: "answer", number: data.number, ...await made(data)});
};

async function open({base, facts, threads}) {
  try {
    runtime = await Runtime.open(base, facts, {threads, told: ({loaded, total}) => tell(loaded, total)});
    postMessage({kind: "opened", runtime: runtime.name});
  } catch (error) {
    postMessage({kind: "failed", problem: problemOf(error)});
  }
}

let lastTold = 0;

function tell(loaded, total) {
  const now = performance.now();
  if (now - lastTold < 100 && loaded < total) return;
  lastTold = now;
  postMessage({kind: "progress", loaded, total});
}

async function made({fields, png}) {
  try {
    const start = performance.now();
    const {width, height, samples} = await decodePng(png);
    const decodeMs = performance.now() - start;
    // The page draws no objects: borders between classes are the edges.
    const {pixels, patternsMs, runMs} = await runtime.run({width, height, ids: samples, instances: samples}, fields);
    const begun = performance.now();
    const blob = new Blob([await encodeRgb({width, height, pixels})], {type: "image/png"});
    const stages = {decode: decodeMs, patterns: patternsMs, run: runMs, encode: performance.now() - begun};
    const timing = Object.entries(stages).map(([name, ms]) => `${name};dur=${ms.toFixed(1)}`).join(", ");
    return {body: {timing}, blob};
  } catch (error) {
    return {body: problemOf(error), blob: null};
  }
}

function problemOf(error) {
  if (error instanceof MissingFile) {
    const {file, status} = error;
    const hint = status ? text("noModelFileHint", {status}) : text("offlineHint");
    return {status: status === 200 ? 500 : status || 500, detail: text("noModelFile", {file}), hint};
  }
  return {status: 500, detail: text("runFailed", {reason: String(error?.message ?? error).slice(0, 200)}), hint: text("memoryHint")};
}
