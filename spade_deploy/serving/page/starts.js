// What a drawing starts from: blank templates, files, and the sizes that a model takes.

import {decodePng, isPng} from "./png.js";

const SKY = ["sky-other", "sky", "clouds"];
const GROUND = ["grass", "ground", "terrain", "grassland", "earth", "ground-other", "land", "field", "dirt", "sand", "road"];
const WATER = ["sea", "water", "water-other", "ocean"];

function idOf(labels, names) {
  for (const name of names) {
    const found = labels.find((label) => label.name.toLowerCase() === name);
    if (found) return found.id;
  }
  return null;
}

// The class under everything else, which the eraser paints.
export function groundOf(model) {
  const found = idOf(model.labels, idOf(model.labels, SKY) === null ? [...WATER, ...GROUND, "background"] : GROUND);
  return found ?? model.unknown_id ?? 0;
}

// The blank templates of a model: [{name, ids(width, height), ground}], the first one is what a new page shows.
export function templatesOf(model) {
  const sky = idOf(model.labels, SKY);
  const ground = idOf(model.labels, GROUND);
  const water = idOf(model.labels, WATER);
  const found = [];
  if (sky !== null && ground !== null) found.push({name: "sky", ground, ids: (w, h) => hills(w, h, sky, ground)});
  if (water !== null && ground !== null) {
    found.push({name: "sea", ground: water, ids: (w, h) => island(w, h, water, ground)});
  }
  const plain = groundOf(model);
  found.push({name: "one", ground: plain, ids: (w, h) => new Int32Array(w * h).fill(plain)});
  return found;
}

function hills(width, height, sky, ground) {
  const ids = new Int32Array(width * height);
  for (let x = 0; x < width; x++) {
    const at = x / width;
    const horizon = height * (0.58 - 0.05 * Math.sin(2.2 * Math.PI * at + 0.6) - 0.02 * Math.sin(7 * Math.PI * at));
    for (let y = 0; y < height; y++) ids[y * width + x] = y < horizon ? sky : ground;
  }
  return ids;
}

function island(width, height, water, ground) {
  const ids = new Int32Array(width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const dx = (x + 0.5) / width - 0.5;
      const dy = (y + 0.5) / height - 0.52;
      const angle = Math.atan2(dy, dx);
      const coast = 0.3 + 0.045 * Math.sin(3 * angle + 1) + 0.025 * Math.sin(7 * angle) + 0.012 * Math.sin(13 * angle);
      ids[y * width + x] = Math.hypot(dx, dy) < coast ? ground : water;
    }
  }
  return ids;
}

// The sizes to choose from: the model's own, and where it takes others its multiples and two wide ones.
export function sizesOf(model) {
  const {height, width, is_fixed: isFixed} = model.size;
  const own = {height, width};
  if (isFixed) return [own];
  return [own, ...[2, 3, 4].map((k) => ({height: k * height, width: k * width})),
    {height, width: 2 * width}, {height: 2 * height, width: 4 * width}];
}

// A file cannot be used. key: the text that says why.
export class FileError extends Error {
  constructor(key, values = {}) {
    super(key);
    this.key = key;
    this.values = values;
  }
}

const UNKNOWN = 255;

// The bytes of a greyscale or palette PNG -> {width, height, ids}; 255 is the unknown id where the model has one.
export async function idsOfPng(bytes, model) {
  if (!isPng(bytes)) throw new FileError("badFileNotPng");
  let png;
  try {
    png = await decodePng(bytes);
  } catch {
    throw new FileError("badFileDamaged");
  }
  if (png.kind !== 0 && png.kind !== 3) throw new FileError("badFileColours");
  const ids = png.samples;
  const most = model.labels.length - 1;
  if (model.unknown_id !== null && most < UNKNOWN) {
    for (let k = 0; k < ids.length; k++) if (ids[k] === UNKNOWN) ids[k] = model.unknown_id;
  }
  const bad = ids.find((id) => id > most);
  if (bad !== undefined) {
    throw new FileError("badFileIds", {count: ids.filter((id) => id === bad).length, id: bad, most});
  }
  return {width: png.width, height: png.height, ids};
}

// Any image -> the class of the nearest colour for each pixel, at a size.
export async function idsOfColours(blob, model, {width, height}) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, {colorSpaceConversion: "none", imageOrientation: "from-image"});
  } catch {
    throw new FileError("badFileDamaged");
  }
  const canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  pen.imageSmoothingEnabled = false;  // a mixture of two colours would be a third class
  pen.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const pixels = pen.getImageData(0, 0, width, height).data;
  const colors = colorsOf(model);
  const known = new Map();
  const ids = new Int32Array(width * height);
  for (let k = 0; k < ids.length; k++) {
    const [r, g, b] = [pixels[4 * k], pixels[4 * k + 1], pixels[4 * k + 2]];
    const key = (r << 16) | (g << 8) | b;
    if (!known.has(key)) known.set(key, nearest(colors, r, g, b));
    ids[k] = known.get(key);
  }
  return {width, height, ids};
}

function nearest(colors, r, g, b) {
  let best = 0;
  let least = Infinity;
  colors.forEach(([x, y, z], id) => {
    const distance = (x - r) ** 2 + (y - g) ** 2 + (z - b) ** 2;
    if (distance < least) { least = distance; best = id; }
  });
  return best;
}

export function colorsOf(model) {
  return model.labels.map(({color}) => [1, 3, 5].map((k) => parseInt(color.slice(k, k + 2), 16)));
}

// To another size by the nearest pixel.
export function resized({width, height, ids}, to) {
  if (width === to.width && height === to.height) return ids;
  const result = new Int32Array(to.width * to.height);
  for (let y = 0; y < to.height; y++) {
    const row = Math.floor(((y + 0.5) * height) / to.height) * width;
    for (let x = 0; x < to.width; x++) result[y * to.width + x] = ids[row + Math.floor(((x + 0.5) * width) / to.width)];
  }
  return result;
}
