// PNG files by their numbers: a browser's own decoder would turn ids into colours, and ids are what a label map holds.

import {passed} from "./streams.js";

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const MOST_PIXELS = 8192 * 8192;
const CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4};
// Adam7: first column, first row, step across, step down.
const PASSES = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];

const CRC = Uint32Array.from({length: 256}, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function chunk(kind, content) {
  const bytes = new Uint8Array(12 + content.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set([...kind].map((letter) => letter.charCodeAt(0)), 4);
  bytes.set(content, 8);
  let crc = 0xffffffff;
  for (let k = 4; k < 8 + content.length; k++) crc = CRC[(crc ^ bytes[k]) & 255] ^ (crc >>> 8);
  view.setUint32(8 + content.length, (crc ^ 0xffffffff) >>> 0);
  return bytes;
}

// Ids -> the bytes of a greyscale PNG, of 16 bits where isWide, else of 8; with colors [[r, g, b], ...] a palette PNG.
export async function encodeIds({width, height, ids}, {isWide = false, colors = null} = {}) {
  const size = isWide ? 2 : 1;
  const rows = new Uint8Array(height * (1 + width * size));
  for (let y = 0, at = 0; y < height; y++) {
    at++;  // filter 0
    for (let x = 0; x < width; x++) {
      const id = ids[y * width + x];
      if (isWide) rows[at++] = id >> 8;
      rows[at++] = id & 255;
    }
  }
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8 * size, colors ? 3 : 0], 8);
  const data = await passed(rows, new CompressionStream("deflate"));
  const parts = [Uint8Array.from(SIGNATURE), chunk("IHDR", header)];
  if (colors) parts.push(chunk("PLTE", Uint8Array.from(colors.flat())));
  parts.push(chunk("IDAT", data), chunk("IEND", new Uint8Array(0)));
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

// RGB bytes, row by row -> the bytes of a PNG. A canvas would do it, too, but browsers that hide from trackers change what is
// read from one.
export async function encodeRgb({width, height, pixels}) {
  const rows = new Uint8Array(height * (1 + 3 * width));
  for (let y = 0; y < height; y++) rows.set(pixels.subarray(3 * y * width, 3 * (y + 1) * width), y * (1 + 3 * width) + 1);
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, 2], 8);
  const data = await passed(rows, new CompressionStream("deflate"));
  const parts = [Uint8Array.from(SIGNATURE), chunk("IHDR", header), chunk("IDAT", data), chunk("IEND", new Uint8Array(0))];
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

export function isPng(bytes) {
  return SIGNATURE.every((value, k) => bytes[k] === value);
}

// The numbers of a file, no colours: {width, height, bits, kind, samples}; kind is the PNG's colour type, samples has one
// number for each channel of each pixel. Throws Error for what is damaged.
export async function decodePng(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let header = null;
  const data = [];
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const content = bytes.subarray(at + 8, at + 8 + length);
    if (kind === "IHDR") header = content;
    if (kind === "IDAT") data.push(content);
    if (kind === "IEND") break;
    at += 12 + length;
  }
  if (!header || header.length < 13 || !data.length) throw new Error("not a whole PNG");
  const facts = new DataView(header.buffer, header.byteOffset, 13);
  const [width, height] = [facts.getUint32(0), facts.getUint32(4)];
  const [bits, kind, , , isInterlaced] = header.subarray(8);
  const channels = CHANNELS[kind];
  if (!channels || ![1, 2, 4, 8, 16].includes(bits) || width * height > MOST_PIXELS || !width || !height) {
    throw new Error("not a PNG that can be read");
  }
  const most = 2 * (height * (1 + Math.ceil((width * channels * bits) / 8)) + 64);
  const packed = new Uint8Array(await new Blob(data).arrayBuffer());
  const raw = await passed(packed, new DecompressionStream("deflate"), most);
  const samples = new Int32Array(width * height * channels);
  let at = 0;
  for (const [x0, y0, dx, dy] of isInterlaced ? PASSES : [[0, 0, 1, 1]]) {
    const across = Math.ceil((width - x0) / dx);
    const down = Math.ceil((height - y0) / dy);
    if (across < 1 || down < 1) continue;
    at = readPass(raw, at, across, down, channels, bits, (x, y, channel, value) => {
      samples[((y0 + y * dy) * width + x0 + x * dx) * channels + channel] = value;
    });
  }
  return {width, height, bits, kind, samples};
}

function readPass(raw, at, across, down, channels, bits, put) {
  const length = Math.ceil((across * channels * bits) / 8);
  const step = Math.max(1, (channels * bits) >> 3);
  let above = new Uint8Array(length);
  for (let y = 0; y < down; y++) {
    const filter = raw[at];
    const row = raw.slice(at + 1, at + 1 + length);
    if (row.length < length) throw new Error("the PNG ends too early");
    unfilter(row, above, step, filter);
    for (let k = 0; k < across * channels; k++) {
      let value;
      if (bits === 16) value = (row[2 * k] << 8) | row[2 * k + 1];
      else if (bits === 8) value = row[k];
      else value = (row[(k * bits) >> 3] >> (8 - bits - ((k * bits) & 7))) & ((1 << bits) - 1);
      put(Math.floor(k / channels), y, k % channels, value);
    }
    above = row;
    at += 1 + length;
  }
  return at;
}

function unfilter(row, above, step, filter) {
  for (let k = 0; k < row.length; k++) {
    const left = k >= step ? row[k - step] : 0;
    const up = above[k];
    const corner = k >= step ? above[k - step] : 0;
    if (filter === 1) row[k] += left;
    else if (filter === 2) row[k] += up;
    else if (filter === 3) row[k] += (left + up) >> 1;
    else if (filter === 4) {
      const guess = left + up - corner;
      const [a, b, c] = [Math.abs(guess - left), Math.abs(guess - up), Math.abs(guess - corner)];
      row[k] += a <= b && a <= c ? left : b <= c ? up : corner;
    } else if (filter > 4) throw new Error("the PNG is damaged");
  }
}
