// A drawing <-> the fragment of a link: a line of JSON and the runs as numbers of variable length, compressed.

import {fromRuns, toRuns} from "./runs.js";
import {passed} from "./streams.js";

const MOST_PIXELS = 4096 * 4096;
const MOST_BYTES = 64 << 20;

// facts: what is kept beside the map, such as the model's name. Returns the text behind "#d=".
export async function packDrawing(drawing, facts) {
  const {width, height} = drawing;
  const head = new TextEncoder().encode(`${JSON.stringify({...facts, width, height})}\n`);
  const bytes = [...head];
  for (let number of toRuns(drawing.ids)) {
    while (number >= 128) { bytes.push((number & 127) | 128); number >>>= 7; }
    bytes.push(number);
  }
  const small = await passed(Uint8Array.from(bytes), new CompressionStream("deflate-raw"));
  return toText(small);
}

// Returns {facts, width, height, ids}. Throws where the text is damaged.
export async function unpackDrawing(text) {
  const bytes = await passed(fromText(text), new DecompressionStream("deflate-raw"), MOST_BYTES);
  const end = bytes.indexOf(10);
  const {width, height, ...facts} = JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)));
  if (!(Number.isInteger(width) && Number.isInteger(height) && width > 0 && height > 0)) throw new RangeError("no size");
  if (width * height > MOST_PIXELS) throw new RangeError("too large");
  const runs = [];
  for (let at = end + 1, number = 0, shift = 0; at < bytes.length; at++) {
    number |= (bytes[at] & 127) << shift;
    shift += 7;
    if (bytes[at] < 128) { runs.push(number); number = shift = 0; }
  }
  return {facts, width, height, ids: fromRuns(runs, width * height)};
}

function toText(bytes) {
  let text = "";
  for (let k = 0; k < bytes.length; k += 8192) text += String.fromCharCode(...bytes.subarray(k, k + 8192));
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

function fromText(text) {
  const plain = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  return Uint8Array.from(plain, (letter) => letter.charCodeAt(0));
}
