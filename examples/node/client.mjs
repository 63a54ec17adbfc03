// Run an exported generator in Node with onnxruntime-node: label map PNG in, photo PNG out, as `spade infer` makes it.
//
//   npm install --ignore-scripts        (onnxruntime-node's own script fetches CUDA, which is not needed here)
//   node client.mjs ARTIFACT label.png photo.png [instance.png]
//
// It runs the fp32 dense graph; the pixels are those of `spade infer --graph dense --backend cpu`.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { decode, encode } from "fast-png";
import * as ort from "onnxruntime-node";

const [artifact, labelFile, photoFile, instanceFile] = process.argv.slice(2);
const manifest = JSON.parse(readFileSync(join(artifact, "manifest.json"), "utf8"));
const rule = manifest.input_rule;
const { height, width } = rule.resize;

// The file's own numbers: grey values, or the indices of a palette, never its colours.
function readIds(file) {
  const image = decode(readFileSync(file));
  if (image.channels !== 1) throw new Error(`${file}: a label map has one number a pixel, not ${image.channels}`);
  const { width, height, depth, data } = image;
  const stride = Math.ceil((width * depth) / 8); // pixels of 1, 2 and 4 bits are packed into bytes, row by row
  const packed = (row, column) => {
    const bit = column * depth;
    return (data[row * stride + (bit >> 3)] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
  };
  const ids = Int32Array.from({ length: width * height }, (_, at) =>
    depth < 8 ? packed(Math.floor(at / width), at % width) : data[at],
  );
  return { ids, height, width };
}

// Nearest neighbour with the same pixels as Pillow's: the middle of each new pixel, added up step by step.
function positions(from, to) {
  const step = from / to;
  let at = step * 0.5;
  return Array.from({ length: to }, () => {
    const found = Math.floor(at);
    at += step;
    return found;
  });
}

function resize(map) {
  const rows = positions(map.height, height);
  const columns = positions(map.width, width);
  return Int32Array.from(rows.flatMap((row) => columns.map((column) => map.ids[row * map.width + column])));
}

function checked(ids) {
  const { minimum, maximum } = rule.ids;
  const { file_value: unknown, id } = rule.unknown ?? {};
  return ids.map((value) => {
    const found = id != null && maximum < unknown && value === unknown ? id : value;
    if (found < minimum || found > maximum) throw new Error(`${labelFile}: id ${value}, allowed are 0..${maximum}`);
    return found;
  });
}

const session = await ort.InferenceSession.create(join(artifact, "generator.fp32.onnx"));
const shape = [1, height, width];
const ids = checked(resize(readIds(labelFile)));
const type = rule.ids.dtype;
const feeds = { label: new ort.Tensor(type, type === "uint8" ? Uint8Array.from(ids) : ids, shape) };
if (session.inputNames.includes("instance")) {
  feeds.instance = new ort.Tensor("int32", resize(readIds(instanceFile)), shape); // edges are made in the graph
}
if (session.inputNames.includes("z")) {
  feeds.z = new ort.Tensor("float32", new Float32Array(rule.style.length), [1, rule.style.length]); // the mean style
}
const { pixels } = await session.run(feeds, ["pixels"]); // 1 x H x W x 3, RGB
writeFileSync(photoFile, encode({ width, height, data: pixels.data, channels: 3, depth: 8 }));
