// A time-lapse: the drawing and its photos as they came, recorded as a video.

import {fromRuns} from "./runs.js";

const MOST_FRAMES = 400;
const MOST_BYTES = 256 << 20;
const LEAST_GAP_MS = 150;
const FRAMES_A_SECOND = 15;
const MOST_SECONDS = 20;
const HOLD_FRAMES = 20;
const LEAST_SIDE = 512;
const MOST_SIDE = 1024;
const KINDS = ["video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm", "video/mp4"];

export class Film {
  #frames = [];
  #last = 0;
  #gap = LEAST_GAP_MS;

  get #bytes() { return this.#frames.reduce((sum, {runs, blob}) => sum + runs.byteLength + blob.size, 0); }
  get length() { return this.#frames.length; }

  clear() {
    this.#frames = [];
    this.#gap = LEAST_GAP_MS;
  }

  // A photo came. frame: {runs, width, height, blob}. With too many, every other one goes, and fewer are kept from then.
  add(frame) {
    const now = performance.now();
    const isSoon = now - this.#last < this.#gap;
    if (isSoon && this.#frames.length) this.#frames.pop();
    else this.#last = now;
    this.#frames.push(frame);
    if (this.#frames.length > MOST_FRAMES || this.#bytes > MOST_BYTES) {
      this.#frames = this.#frames.filter((_, k, all) => (all.length - 1 - k) % 2 === 0);
      this.#gap *= 2;
    }
  }

  static get kind() {
    if (!("MediaRecorder" in window)) return null;
    return KINDS.find((kind) => MediaRecorder.isTypeSupported(kind)) ?? null;
  }

  // Record it in real time. colors: of the classes; tell: gets the share that is done. Returns a Blob.
  async record(colors, tell) {
    const {width, height} = this.#frames.at(-1);
    const frames = this.#frames.filter((one) => one.width === width && one.height === height);
    const side = Math.max(width, height);
    const scale = side > MOST_SIDE ? MOST_SIDE / side : Math.ceil(LEAST_SIDE / side);
    const canvas = document.createElement("canvas");
    canvas.width = 4 * Math.round((width * scale) / 2);  // video has even sizes
    canvas.height = 2 * Math.round((height * scale) / 2);
    const pen = canvas.getContext("2d");
    const recorder = new MediaRecorder(canvas.captureStream(FRAMES_A_SECOND), {
      mimeType: Film.kind, videoBitsPerSecond: 6_000_000,
    });
    const parts = [];
    recorder.ondataavailable = ({data}) => parts.push(data);
    const stopped = new Promise((resolve, reject) => {
      recorder.onstop = resolve;
      recorder.onerror = ({error}) => reject(error);
    });
    const step = Math.max(1, frames.length / (MOST_SECONDS * FRAMES_A_SECOND));
    const shown = [];
    for (let k = 0; k < frames.length; k += step) shown.push(frames[Math.floor(k)]);
    shown[shown.length - 1] = frames.at(-1);
    await draw(pen, shown[0], colors);
    recorder.start();
    for (let k = 0; k < shown.length + HOLD_FRAMES; k++) {
      await draw(pen, shown[Math.min(k, shown.length - 1)], colors);
      tell((k + 1) / (shown.length + HOLD_FRAMES));
      await new Promise((resolve) => setTimeout(resolve, 1000 / FRAMES_A_SECOND));
    }
    recorder.stop();
    await stopped;
    return new Blob(parts, {type: Film.kind.split(";")[0]});
  }
}

async function draw(pen, {runs, width, height, blob}, colors) {
  const bitmap = await createImageBitmap(blob);
  const half = pen.canvas.width / 2;
  pen.imageSmoothingEnabled = false;
  pen.drawImage(mapImage({width, height, ids: fromRuns(runs, width * height)}, colors), 0, 0, half, pen.canvas.height);
  pen.imageSmoothingEnabled = true;
  pen.drawImage(bitmap, half, 0, half, pen.canvas.height);
  bitmap.close();
}

// A map in the colours of its classes, on a canvas of its size.
export function mapImage({width, height, ids}, colors) {
  const canvas = new OffscreenCanvas(width, height);
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const packed = colors.map(([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0);
  for (let k = 0; k < ids.length; k++) pixels[k] = packed[ids[k]];
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
