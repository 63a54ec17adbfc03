// Shapes -> ids on a map. A map is {width, height, ids}, ids row by row. Nothing is antialiased: a pixel is of one class.
// Every function returns the box that it changed, or null: {x0, y0, x1, y1}, the last two exclusive.

const MOST_BRUSHES = 256;
const MARGIN = 1e-6;  // a pixel on the very edge is inside
const brushes = new Map();

// The pixels that a brush paints, from the pixel under its middle: {rows: [[y, first x, end x], ...], reach}; no pixel
// is farther off than reach. brush: {size, shape, flatness, angle}. Without flatness it is a disc or square of that many
// pixels; a flatness of 0.75 leaves a quarter of its height, and it is turned by an angle in degrees, anticlockwise.
export function brushSpans({size, shape, flatness = 0, angle = 0}) {
  const key = `${size} ${shape} ${flatness} ${angle}`;
  if (!brushes.has(key)) {
    if (brushes.size >= MOST_BRUSHES) brushes.clear();
    brushes.set(key, spansOf(size, shape, flatness, (angle * Math.PI) / 180));
  }
  return brushes.get(key);
}

function spansOf(size, shape, flatness, turn) {
  const shift = (size - 1) / 2 - Math.floor((size - 1) / 2);  // the middle of an even size lies between two pixels
  const [across, down] = [size / 2, Math.max(0.5, (size / 2) * (1 - flatness))];
  const [cos, sin] = [Math.cos(turn), Math.sin(turn)];
  const isInside = (x, y) => {
    const u = ((x - shift) * cos - (y - shift) * sin) / across;
    const v = ((x - shift) * sin + (y - shift) * cos) / down;
    return shape === "round" ? u * u + v * v <= 1 + MARGIN : Math.max(Math.abs(u), Math.abs(v)) <= 1 + MARGIN;
  };
  const reach = Math.ceil(size * (shape === "round" ? 0.5 : Math.SQRT1_2)) + 1;
  const rows = [];
  for (let y = -reach; y <= reach; y++) {
    let first = -reach;
    while (first <= reach && !isInside(first, y)) first++;
    let end = reach + 1;
    while (end > first && !isInside(end - 1, y)) end--;
    if (first < end) rows.push([y, first, end]);
  }
  return {rows: rows.length ? rows : [[0, 0, 1]], reach};
}

export function joinBoxes(a, b) {
  if (!a || !b) return a || b;
  return {x0: Math.min(a.x0, b.x0), y0: Math.min(a.y0, b.y0), x1: Math.max(a.x1, b.x1), y1: Math.max(a.y1, b.y1)};
}

function clipped(map, x0, y0, x1, y1) {
  const box = {x0: Math.max(0, x0), y0: Math.max(0, y0), x1: Math.min(map.width, x1), y1: Math.min(map.height, y1)};
  return box.x0 < box.x1 && box.y0 < box.y1 ? box : null;
}

// One dab of the brush whose middle is pixel (x, y).
export function stamp(map, x, y, brush, id) {
  const {rows, reach} = brushSpans(brush);
  for (const [dy, first, end] of rows) {
    const row = y + dy;
    if (row < 0 || row >= map.height) continue;
    const from = Math.max(0, x + first);
    const to = Math.min(map.width, x + end);
    if (from < to) map.ids.fill(id, row * map.width + from, row * map.width + to);
  }
  return clipped(map, x - reach, y - reach, x + reach + 1, y + reach + 1);
}

// The pixels between two pixels, both included (Bresenham).
export function* pixelsBetween(a, b) {
  const dx = Math.abs(b.x - a.x);
  const dy = -Math.abs(b.y - a.y);
  const stepX = a.x < b.x ? 1 : -1;
  const stepY = a.y < b.y ? 1 : -1;
  let {x, y} = a;
  let error = dx + dy;
  for (;;) {
    yield {x, y};
    if (x === b.x && y === b.y) return;
    const twice = 2 * error;
    if (twice >= dy) { error += dy; x += stepX; }
    if (twice <= dx) { error += dx; y += stepY; }
  }
}

export function line(map, a, b, brush, id) {
  let box = null;
  for (const {x, y} of pixelsBetween(a, b)) box = joinBoxes(box, stamp(map, x, y, brush, id));
  return box;
}

// Both corners are inside.
export function rectangle(map, a, b, id) {
  const box = clipped(map, Math.min(a.x, b.x), Math.min(a.y, b.y), Math.max(a.x, b.x) + 1, Math.max(a.y, b.y) + 1);
  if (!box) return null;
  for (let y = box.y0; y < box.y1; y++) map.ids.fill(id, y * map.width + box.x0, y * map.width + box.x1);
  return box;
}

// The pixels whose middle is inside by the even-odd rule, and those under the outline.
export function polygon(map, points, id) {
  let box = null;
  const corners = points.map((point, k) => [point, points[(k + 1) % points.length]]);
  for (const [a, b] of corners) box = joinBoxes(box, line(map, a, b, {size: 1, shape: "square"}, id));
  const top = Math.max(0, Math.min(...points.map((p) => p.y)));
  const bottom = Math.min(map.height - 1, Math.max(...points.map((p) => p.y)));
  for (let y = top; y <= bottom; y++) {
    const crossings = [];
    for (const [a, b] of corners) {
      if (a.y <= y !== b.y <= y) crossings.push(a.x + ((y - a.y) * (b.x - a.x)) / (b.y - a.y));
    }
    crossings.sort((p, q) => p - q);
    for (let k = 0; k + 1 < crossings.length; k += 2) {
      const from = Math.max(0, Math.ceil(crossings[k]));
      const to = Math.min(map.width, Math.floor(crossings[k + 1]) + 1);
      if (from < to) {
        map.ids.fill(id, y * map.width + from, y * map.width + to);
        box = joinBoxes(box, {x0: from, y0: y, x1: to, y1: y + 1});
      }
    }
  }
  return box;
}

// The connected pixels (4 neighbours) of the class under (x, y), as the indices of a map.
export function region(map, x, y) {
  const {width, height, ids} = map;
  const wanted = ids[y * width + x];
  const seen = new Uint8Array(ids.length);
  const found = [];
  const stack = [y * width + x];
  seen[stack[0]] = 1;
  while (stack.length) {
    const index = stack.pop();
    found.push(index);
    const column = index % width;
    const near = [];
    if (column > 0) near.push(index - 1);
    if (column < width - 1) near.push(index + 1);
    if (index >= width) near.push(index - width);
    if (index < width * (height - 1)) near.push(index + width);
    for (const other of near) {
      if (!seen[other] && ids[other] === wanted) { seen[other] = 1; stack.push(other); }
    }
  }
  return found;
}

export function boxOf(map, indices) {
  let [x0, y0, x1, y1] = [map.width, map.height, 0, 0];
  for (const index of indices) {
    const x = index % map.width;
    const y = (index - x) / map.width;
    if (x < x0) x0 = x;
    if (y < y0) y0 = y;
    if (x >= x1) x1 = x + 1;
    if (y >= y1) y1 = y + 1;
  }
  return x0 < x1 ? {x0, y0, x1, y1} : null;
}

// Give the connected region another class; everywhere: every pixel of that class.
export function fill(map, x, y, id, everywhere = false) {
  const old = map.ids[y * map.width + x];
  if (old === id) return null;
  if (!everywhere) {
    const indices = region(map, x, y);
    for (const index of indices) map.ids[index] = id;
    return boxOf(map, indices);
  }
  for (let k = 0; k < map.ids.length; k++) if (map.ids[k] === old) map.ids[k] = id;
  return {x0: 0, y0: 0, x1: map.width, y1: map.height};
}
