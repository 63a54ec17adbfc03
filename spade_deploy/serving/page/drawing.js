// One drawing: the ids of its map, and what undo and redo need. Changes are told to whoever listens ("change").

import {joinBoxes} from "./raster.js";
import {fromRuns, toRuns} from "./runs.js";

const MOST_HISTORY_BYTES = 256 << 20;
const STEP_BYTES = 200;  // what a step takes beside its numbers, about

export class Drawing extends EventTarget {
  #before = null;
  #box = null;
  #done = [];
  #undone = [];
  #bytes = 0;  // of all steps
  #mostBytes;

  // mostBytes: what undo and redo may hold; the oldest steps go first, the last one never.
  constructor(width, height, ids, mostBytes = MOST_HISTORY_BYTES) {
    super();
    this.#mostBytes = mostBytes;
    this.width = width;
    this.height = height;
    this.ids = ids ?? new Int32Array(width * height);
  }

  get canUndo() { return this.#done.length > 0; }
  get canRedo() { return this.#undone.length > 0; }
  get isInStroke() { return this.#before !== null; }

  idAt(x, y) { return this.ids[y * this.width + x]; }
  contains(x, y) { return x >= 0 && y >= 0 && x < this.width && y < this.height; }

  // A stroke: begin, any number of paint and restore, then commit. It is one step of undo.
  begin() {
    if (this.#before) this.commit();
    this.#before = this.ids.slice();
    this.#box = null;
  }

  // change: (map) => the box that it changed, or null; see raster.js.
  paint(change) {
    const box = change(this);
    if (!box) return;
    this.#box = joinBoxes(this.#box, box);
    this.#tell(box, true);
  }

  // Take back what the stroke has painted so far: for a shape that follows the pen.
  restore() {
    if (!this.#box) return;
    const box = this.#box;
    for (let y = box.y0; y < box.y1; y++) {
      const start = y * this.width;
      this.ids.set(this.#before.subarray(start + box.x0, start + box.x1), start + box.x0);
    }
    this.#box = null;
    this.#tell(box, true);
  }

  cancel() {
    if (!this.#before) return;
    this.restore();
    this.#before = null;
  }

  commit() {
    const before = this.#before;
    const box = this.#box;
    this.#before = this.#box = null;
    if (!before || !box) return;
    const step = {box, before: toRuns(cut(before, this.width, box)), after: toRuns(cut(this.ids, this.width, box))};
    if (step.before.join() === step.after.join()) return;
    this.#remember(step);
    this.#tell(box, false);
  }

  #remember(step) {
    for (const lost of this.#undone) this.#bytes -= bytesOf(lost);
    this.#undone = [];
    this.#done.push(step);
    this.#bytes += bytesOf(step);
    while (this.#bytes > this.#mostBytes && this.#done.length > 1) this.#bytes -= bytesOf(this.#done.shift());
  }

  // A whole new content as one step of undo.
  replace(ids) {
    this.begin();
    this.paint(() => {
      this.ids.set(ids);
      return {x0: 0, y0: 0, x1: this.width, y1: this.height};
    });
    this.commit();
  }

  undo() { return this.#step(this.#done, this.#undone, "before"); }
  redo() { return this.#step(this.#undone, this.#done, "after"); }

  #step(from, to, which) {
    if (this.isInStroke) this.commit();
    const step = from.pop();
    if (!step) return false;
    to.push(step);
    const {box} = step;
    const part = fromRuns(step[which], (box.x1 - box.x0) * (box.y1 - box.y0));
    const width = box.x1 - box.x0;
    for (let y = box.y0; y < box.y1; y++) {
      this.ids.set(part.subarray((y - box.y0) * width, (y - box.y0 + 1) * width), y * this.width + box.x0);
    }
    this.#tell(box, false);
    return true;
  }

  #tell(box, isUnfinished) {
    this.dispatchEvent(new CustomEvent("change", {detail: {box, isUnfinished}}));
  }
}

function bytesOf({before, after}) { return STEP_BYTES + before.byteLength + after.byteLength; }

function cut(ids, width, box) {
  const across = box.x1 - box.x0;
  const part = new Int32Array(across * (box.y1 - box.y0));
  for (let y = box.y0; y < box.y1; y++) {
    part.set(ids.subarray(y * width + box.x0, y * width + box.x1), (y - box.y0) * across);
  }
  return part;
}
