// The live photo: sends the newest map, shows the newest image, and connects again by itself.
//
// Of a map that the server holds only what changed is sent. Where it says that it holds another one (409), the whole map
// is sent again by itself.
//
// Events: "state" {state: connecting | ready | busy | gone, seconds}, "image" {id, blob, ms, timing, tag},
// "problem" {status, detail, hint, seconds}, "progress" {loaded, total} in bytes, while an engine loads.

import {SentMap} from "./edits.js";

const DEBOUNCE_MS = 25;
const MOST_UNANSWERED = 2;  // one that runs and one that waits: the server drops what a newer one overtakes
const BUSY_AFTER_MS = 180;
const SILENT_MS = 90_000;
const FIRST_RETRY_MS = 500;
const MOST_RETRY_MS = 8000;

export class Live extends EventTarget {
  #line = null;
  #number = 0;
  #shown = 0;
  #sent = new Map();
  #isDirty = false;
  #timer = 0;
  #busyTimer = 0;
  #silentTimer = 0;
  #retryTimer = 0;
  #retryMs = FIRST_RETRY_MS;
  #again = 0;
  #isMaking = false;
  #base = new SentMap();
  #baseId = 0;
  #wholeId = 0;

  // make: () => {head, map, whole, edit, tag}: what is sent now; null if there is nothing to send. map: {model, width,
  // height, ids}, a copy. whole: async () => {head, png}, edit: (patches) => head: what is sent for the map beside `head`.
  // open(told): begins a line to what makes the photos, {isOpen, takesEdits, send(id, head, png), close()}; png is null in
  // an edit. It calls told.opened(), told.came({id, body, blob}), told.progress({loaded, total}) and, at the end,
  // told.closed() or, where another try is up to the reader, told.failed(problem).
  constructor(make, open) {
    super();
    this.make = make;
    this.open = open;
  }

  get isOpen() { return this.#line?.isOpen ?? false; }

  connect() {
    clearTimeout(this.#retryTimer);
    this.#line?.close();
    this.#sent.clear();
    this.#base.forget();
    this.#tell("state", {state: "connecting"});
    const isNow = (act) => (told) => { if (line === this.#line) act(told); };
    const line = this.open({
      opened: isNow(() => {
        this.#retryMs = FIRST_RETRY_MS;
        this.#tell("state", {state: "ready"});
        this.changed();
      }),
      came: isNow((answer) => this.#receive(answer)),
      progress: isNow((told) => this.#tell("progress", told)),
      closed: isNow(() => this.#lost()),
      failed: isNow((problem) => { this.#forgetSent(); this.#tell("problem", {...problem, seconds: 0}); }),
    });
    this.#line = line;
  }

  // The reader asks for another try.
  retry() { if (this.isOpen) this.changed(); else this.connect(); }

  // The drawing, the style or the model is another one now.
  changed() {
    this.#isDirty = true;
    clearTimeout(this.#again);
    if (!this.#timer) this.#timer = setTimeout(() => { this.#timer = 0; this.#send(); }, DEBOUNCE_MS);
  }

  // Images of what was sent before are not shown: they are of another model.
  forget() {
    this.#shown = this.#number;
  }

  async #send() {
    if (!this.#isDirty || !this.isOpen || this.#isMaking || this.#sent.size >= MOST_UNANSWERED) return;
    this.#isDirty = false;
    this.#isMaking = true;
    const id = ++this.#number;
    const line = this.#line;
    let message = null;
    try {
      message = await this.#message();
    } finally {
      this.#isMaking = false;
    }
    if (!message || !this.isOpen || line !== this.#line) return;
    const {made, head, png} = message;
    if (png) this.#wholeId = id;
    this.#base.keep(made.map, png?.length);
    this.#baseId = id;
    this.#sent.set(id, {start: performance.now(), tag: made.tag});
    line.send(id, {...made.head, ...head}, png);
    clearTimeout(this.#busyTimer);
    this.#busyTimer = setTimeout(() => this.#tell("state", {state: "busy"}), BUSY_AFTER_MS);
    clearTimeout(this.#silentTimer);
    this.#silentTimer = setTimeout(() => this.#line?.close(), SILENT_MS);
    if (this.#isDirty) this.changed();
  }

  // The next map as a message: what changed since the last one where that is known and smaller.
  async #message() {
    const made = this.make();
    if (!made) return null;
    const patches = this.#line.takesEdits ? this.#base.patchesTo(made.map) : null;
    if (patches) return {made, head: {base: this.#baseId, ...made.edit(patches)}, png: null};
    return {made, ...await made.whole()};
  }

  #receive({id, body, blob}) {
    const sent = this.#sent.get(id);
    this.#sent.delete(id);
    if (!this.#sent.size) {
      clearTimeout(this.#busyTimer);
      clearTimeout(this.#silentTimer);
    }
    const isMended = id < this.#wholeId;  // a whole map was sent since
    if (body.status && !isMended) this.#base.forget();  // the server may hold another map than this one
    if (body.status === 409) {
      if (!isMended) this.changed();
      return;
    }
    if (blob && id > this.#shown) {
      this.#shown = id;
      const ms = sent ? performance.now() - sent.start : 0;
      this.#tell("image", {id, blob, ms, timing: body.timing, tag: sent?.tag});
    } else if (body.status && !(id <= this.#shown)) this.#failed(body);
    if (!this.#sent.size && !body.status) this.#tell("state", {state: "ready"});
    if (this.#isDirty) this.#send();
  }

  #failed(problem) {
    const isPassing = problem.status === 429 || problem.status === 503;
    const seconds = isPassing ? 1 : 0;
    this.#tell("problem", {...problem, seconds});
    if (isPassing) this.#again = setTimeout(() => this.changed(), 1000 * seconds);
  }

  #forgetSent() {
    this.#sent.clear();
    for (const timer of [this.#busyTimer, this.#silentTimer, this.#again]) clearTimeout(timer);
  }

  #lost() {
    this.#forgetSent();
    this.#tell("state", {state: "gone", seconds: Math.ceil(this.#retryMs / 1000)});
    this.#retryTimer = setTimeout(() => this.connect(), this.#retryMs);
    this.#retryMs = Math.min(MOST_RETRY_MS, 2 * this.#retryMs);
  }

  #tell(kind, detail) {
    this.dispatchEvent(new CustomEvent(kind, {detail}));
  }
}
