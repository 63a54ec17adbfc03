// A model in onnxruntime-web: on WebGPU the dense graph, as on every GPU; in WebAssembly the lookup graph, and the dense one
// for maps with more distinct windows than were measured to be worth it. WebGPU is used where it makes the golden map's pixels:
// kernels and drivers differ (onnxruntime 1.30 computes convolutions of 6, 9, 15, ... channels wrong, issue 29651 there).

import {extractPatterns} from "./patterns.js";
import {standardNormal} from "./random_styles.js";

export class MissingFile extends Error {
  constructor(file, status) {
    super(file);
    this.file = file;
    this.status = status;
  }
}

export class Runtime {
  #ort;
  #sessions = new Map();

  // base: the address of model.json. facts: its content. threads: of WebAssembly. told: gets {loaded, total} in bytes.
  // wanted: {provider, kind}, for measurements.
  static async open(base, facts, {threads = 1, told = () => {}, provider = null, kind = null} = {}) {
    const adapter = provider === "wasm" ? null : await navigator.gpu?.requestAdapter().catch(() => null);
    if (adapter) {
      const half = adapter.features.has("shader-f16") ? ["fp16", "fp32"] : ["fp32"];
      const order = half.flatMap((precision) => ["dense", "lookup"].map((kind) => [precision, kind]));
      try {
        const found = await Runtime.#opened(base, facts, "webgpu", order, {threads, told, kind});
        await found.#prove();
        return found;
      } catch (error) {
        if (error instanceof MissingFile || provider) throw error;  // else WebAssembly does what the GPU cannot
        console.info(`The model runs in WebAssembly. ${error.message}`);
      }
    }
    if (provider === "webgpu") throw new Error("there is no WebGPU here");
    const order = ["fp32", "fp16"].flatMap((precision) => ["lookup", "dense"].map((kind) => [precision, kind]));
    return Runtime.#opened(base, facts, "wasm", order, {threads, told, kind});
  }

  static async #opened(base, facts, provider, order, {threads, told, kind}) {
    const found = new Runtime();
    const [precision] = order.map(([precision, kind]) => facts.graphs.find(
      (graph) => graph.precision === precision && graph.kind === kind)).filter((graph) => graph
        && (!kind || graph.kind === kind));
    if (!precision) throw new Error("the model has no such graph");
    Object.assign(found, {base, facts, provider, told, graph: precision, isForced: kind !== null});
    const folder = new URL(facts.ort, base);
    const name = provider === "webgpu" ? ".asyncify" : "";
    found.#ort = await import(new URL(provider === "webgpu" ? "ort.webgpu.min.mjs" : "ort.wasm.min.mjs", folder).href);
    const {env} = found.#ort;
    env.logLevel = "error";
    env.wasm.numThreads = threads;
    env.wasm.wasmPaths = {
      mjs: new URL(`ort-wasm-simd-threaded${name}.mjs`, folder).href,
      wasm: new URL(`ort-wasm-simd-threaded${name}.wasm`, folder).href,
    };
    await found.#session(found.graph);
    found.name = `${provider === "webgpu" ? "WebGPU" : `WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}`}, ${precision.precision}`;
    return found;
  }

  // Throws unless the golden map's pixels come out. This is the first run as well, in which WebGPU prepares its kernels.
  async #prove() {
    const {file, height, width, style, min_psnr_db: least} = this.facts.golden;
    const count = height * width;
    const bytes = await downloaded(new URL(file, this.base), 11 * count, () => {});
    const [ids, instances] = [0, 1].map((part) => Array.from(new Int32Array(bytes.buffer, 4 * count * part, count)));
    const right = bytes.subarray(8 * count);
    const {pixels} = await this.run({width, height, ids, instances}, style ? {style} : {});
    const squares = right.reduce((sum, value, k) => sum + (value - pixels[k]) ** 2, 0);
    const psnr = squares ? 10 * Math.log10(255 ** 2 * right.length / squares) : Infinity;
    if (!(psnr >= least)) throw new Error(`WebGPU paints the golden map with a PSNR of ${psnr.toFixed(1)} dB, not ${least} dB.`);
  }

  #session(graph) {
    if (!this.#sessions.has(graph.file)) {
      const opening = this.#open(graph);
      opening.catch(() => this.#sessions.delete(graph.file));
      this.#sessions.set(graph.file, opening);
    }
    return this.#sessions.get(graph.file);
  }

  async #open(graph) {
    const bytes = await downloaded(new URL(graph.file, this.base), graph.bytes, this.told);
    return this.#ort.InferenceSession.create(bytes, {executionProviders: [this.provider], graphOptimizationLevel: "all"});
  }

  // map: {width, height, ids, instances}. fields: style, a list of numbers, or seed; directions, steps along the model's
  // main ones. Returns {pixels, ...} by the names of the outputs, and {kind, patternsMs, runMs}.
  async run(map, fields = {}, outputs = ["pixels"]) {
    const start = performance.now();
    let graph = this.graph;
    let feeds = null;
    if (graph.kind === "lookup") {
      const tables = extractPatterns(this.facts.graph, map);
      feeds = this.#ofTables(tables);
      const dense = this.facts.graphs.find((one) => one.kind === "dense" && one.precision === graph.precision);
      if (!this.isForced && dense && tables.share > (graph.dense_above ?? 1)) {
        // Offline, and never loaded: the lookup graph is slower here, and as right.
        if (await this.#session(dense).catch(() => null)) { graph = dense; feeds = null; }
      }
    }
    const session = await this.#session(graph);
    feeds ??= this.#ofMap(map);
    if (this.facts.graph.z_dim) feeds.z = this.#tensor("float32", this.#style(fields), [1, this.facts.graph.z_dim]);
    const begun = performance.now();
    const made = await session.run(feeds, outputs);
    const result = {kind: graph.kind, patternsMs: begun - start, runMs: performance.now() - begun};
    for (const name of outputs) {
      result[name] = await made[name].getData();
      made[name].dispose();
    }
    result.runMs = performance.now() - begun;
    return result;
  }

  #tensor(type, data, dims) { return new this.#ort.Tensor(type, data, dims); }

  #ofTables({latent, levels}) {
    const taps = this.facts.graph.kernel ** 2;
    const feeds = {};
    if (latent) feeds.latent = this.#tensor("int32", latent, [1, levels[0].rows, levels[0].columns, 9]);
    for (const {stride, rows, columns, codes, patterns, index} of levels) {
      feeds[`codes_${stride}`] = this.#tensor("int32", codes, [codes.length / taps, taps]);
      feeds[`patterns_${stride}`] = this.#tensor("int32", patterns, [patterns.length / taps, taps]);
      feeds[`index_${stride}`] = this.#tensor("int32", index, [1, rows, columns]);
    }
    return feeds;
  }

  #ofMap({width, height, ids, instances}) {
    const type = this.facts.graph.id_type;
    const data = type === "uint8" ? Uint8Array.from(ids) : Int32Array.from(ids);
    const feeds = {label: this.#tensor(type, data, [1, height, width])};
    if (this.facts.graph.has_edges) feeds.instance = this.#tensor("int32", Int32Array.from(instances), [1, height, width]);
    return feeds;
  }

  // As `moved_style` in inference/style.py: each step moves the style along the direction of its place.
  #style({style, seed, directions: steps = []}) {
    const {z_dim: count, directions = [], default_seed} = this.facts.graph;
    const chosen = seed ?? default_seed ?? null;
    const drawn = chosen === null ? new Float32Array(count) : standardNormal(chosen, count);
    const from = style ?? drawn;
    return Float32Array.from(from, (value, k) => steps.reduce((sum, step, n) => sum + step * directions[n][k], value));
  }
}

// The bytes of a file of a known size; told hears of it now and then.
async function downloaded(url, total, told) {
  let answer;
  try {
    answer = await fetch(url);
  } catch {
    throw new MissingFile(url.pathname, 0);
  }
  if (!answer.ok) throw new MissingFile(url.pathname, answer.status);
  const bytes = new Uint8Array(total);
  let loaded = 0;
  const reader = answer.body.getReader();
  for (;;) {
    const {value, done} = await reader.read().catch(() => { throw new MissingFile(url.pathname, 0); });
    if (done) break;
    if (loaded + value.length > total) throw new MissingFile(url.pathname, 200);
    bytes.set(value, loaded);
    loaded += value.length;
    told({loaded, total});
  }
  if (loaded !== total) throw new MissingFile(url.pathname, 200);
  return bytes;
}
