// What changed between two maps, as the server takes it: one rectangle of run lengths.

import {toRuns} from "./runs.js";

// before, now: ids row by row, of the same size. Returns {x, y, width, height, runs}; null where nothing changed.
export function patchBetween(before, now, width, height) {
  let [x0, x1, y0, y1] = [width, 0, height, 0];
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (before[at] === now[at]) continue;
      if (x < x0) x0 = x;
      if (x >= x1) x1 = x + 1;
      if (y < y0) y0 = y;
      y1 = y + 1;
    }
  }
  if (x0 >= x1) return null;
  const across = x1 - x0;
  const part = new Int32Array(across * (y1 - y0));
  for (let y = y0; y < y1; y++) part.set(now.subarray(y * width + x0, y * width + x1), (y - y0) * across);
  return {x: x0, y: y0, width: across, height: y1 - y0, runs: [...toRuns(part)]};
}

// The map that the server got last, and how many bytes a whole one takes.
export class SentMap {
  #map = null;
  #wholeBytes = 0;

  // The patches that make `map` of what was sent; null where the whole map has to be sent, or takes fewer bytes.
  patchesTo(map) {
    const old = this.#map;
    if (!old || old.model !== map.model || old.width !== map.width || old.height !== map.height) return null;
    const patch = patchBetween(old.ids, map.ids, map.width, map.height);
    const patches = patch ? [patch] : [];
    return JSON.stringify(patches).length < this.#wholeBytes ? patches : null;
  }

  // wholeBytes: of the PNG, if it was sent.
  keep(map, wholeBytes = this.#wholeBytes) {
    this.#map = map;
    this.#wholeBytes = wholeBytes;
  }

  forget() { this.#map = null; }
}
