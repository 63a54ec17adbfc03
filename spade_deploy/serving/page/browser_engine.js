// The engine that is this browser: the model runs in a worker of the page, and no server is asked. See engine.js.

import {Problem} from "./engine.js";
import {Live} from "./live.js";
import {keepOffline} from "./offline.js";
import {text} from "./texts.js";

const MODEL = new URL(document.documentElement.dataset.model, document.baseURI);

export class Engine {
  token = "";
  #facts = null;
  #worker = null;
  #opening = null;
  #waiting = new Map();
  #number = 0;
  #line = null;

  async models() {
    await keepOffline();
    const answer = await found(new URL("model.json", MODEL));
    this.#facts = await answer.json();
    return [this.#facts.model];
  }

  async sample(_, number) {
    return new Uint8Array(await (await found(new URL(this.#facts.samples[number], MODEL))).arrayBuffer());
  }

  async styleOf() { throw new Problem({status: 404, detail: text("noEncoder")}); }

  async photo(fields, png) {
    await this.#opened();
    const {body, blob} = await this.#run(fields, png);
    if (!blob) throw new Problem(body);
    return blob;
  }

  live(make) {
    return new Live(make, (told) => {
      const line = {
        isOpen: false,
        takesEdits: false,
        send: (id, head, png) => this.#run(head, png).then(({body, blob}) => told.came({id, body: {id, ...body}, blob})),
        close: () => {},  // the worker stays, and a photo may take long
      };
      line.ended = (problem) => { line.isOpen = false; told.failed(problem); };
      line.progress = told.progress;
      this.#line = line;
      this.#opened().then(() => { line.isOpen = true; told.opened(); }, told.failed);
      return line;
    });
  }

  #run(fields, png) {
    const number = ++this.#number;
    return new Promise((resolve) => {
      this.#waiting.set(number, resolve);
      this.#worker.postMessage({kind: "run", number, fields, png});
    });
  }

  // The worker holds the model; the next call tries again where it could not be loaded.
  #opened() {
    this.#opening ??= new Promise((resolve, reject) => {
      const failed = (problem) => {
        this.#end();
        reject(new Problem(problem));
      };
      this.#worker = new Worker(new URL("./worker.js", import.meta.url), {type: "module"});
      this.#worker.onmessage = ({data}) => {
        if (data.kind === "progress") this.#line?.progress(data);
        else if (data.kind === "opened") {
          document.documentElement.dataset.runtime = data.runtime;
          resolve();
        } else if (data.kind === "failed") failed(data.problem);
        else {
          this.#waiting.get(data.number)?.(data);
          this.#waiting.delete(data.number);
        }
      };
      this.#worker.onerror = (event) => {
        event.preventDefault();
        const problem = {status: 500, detail: text("workerEnded"), hint: event.message ?? ""};
        failed(problem);
        this.#line?.ended(problem);
      };
      this.#worker.postMessage({kind: "open", base: MODEL.href, facts: this.#facts, threads: threadsOf()});
    });
    return this.#opening;
  }

  #end() {
    this.#worker?.terminate();
    this.#worker = this.#opening = null;
    const problem = {status: 500, detail: text("workerEnded"), hint: ""};
    for (const resolve of this.#waiting.values()) resolve({body: problem, blob: null});
    this.#waiting.clear();
  }
}

// Threads share memory, which browsers allow isolated pages alone; see offline.js.
function threadsOf() {
  return globalThis.crossOriginIsolated ? Math.max(1, Math.min(8, Math.ceil(navigator.hardwareConcurrency / 2))) : 1;
}

async function found(url) {
  let answer;
  try {
    answer = await fetch(url);
  } catch {
    throw new Problem({status: 0, detail: text("noModelFile", {file: url.pathname}), hint: text("offlineHint")});
  }
  if (answer.ok) return answer;
  const detail = text("noModelFile", {file: url.pathname});
  throw new Problem({status: answer.status, detail, hint: text("noModelFileHint", {status: answer.status})});
}
