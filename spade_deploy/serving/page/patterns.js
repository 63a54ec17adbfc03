// A label map -> the inputs of the lookup graph: number for number what spade_deploy/lookup makes of one map.
//
// facts: {num_ids, has_edges, kernel, stride, levels: [[stride, channels], ...] from coarse to fine, has_latent}.

// The distinct windows of every level. map: {width, height, ids, instances}; instances only where the model has edges.
// Returns {latent, levels: [{stride, codes, patterns, index, rows, columns}], share}, all Int32Array. share is what is left
// of the dense graph's work on gamma and beta.
export function extractPatterns(facts, map) {
  const codes = pixelCodes(facts, map);
  const outside = facts.num_ids * (facts.has_edges ? 2 : 1);
  const {names, dense} = renumbered(codes, outside);
  let [left, all] = [0, 0];
  const levels = facts.levels.map(([stride, channels]) => {
    const [rows, columns] = [Math.ceil(map.height / stride), Math.ceil(map.width / stride)];
    const level = {stride, rows, columns, ...levelPatterns(picked(dense, map, stride), rows, columns, names, facts.kernel)};
    left += channels * (level.patterns.length / facts.kernel ** 2);
    all += channels * rows * columns;
    return level;
  });
  return {latent: facts.has_latent ? latentWindows(codes, map, facts.stride, outside) : null, levels, share: left / all};
}

// The id of every pixel, or 2 * id + edge; an edge is where a 4-neighbour has another instance.
function pixelCodes(facts, {width, height, ids, instances}) {
  if (!facts.has_edges) return Int32Array.from(ids);
  const codes = new Int32Array(ids.length);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      const here = instances[at];
      const isEdge = (x > 0 && instances[at - 1] !== here) || (x + 1 < width && instances[at + 1] !== here)
        || (y > 0 && instances[at - width] !== here) || (y + 1 < height && instances[at + width] !== here);
      codes[at] = 2 * ids[at] + (isEdge ? 1 : 0);
    }
  }
  return codes;
}

// The codes that occur, with `outside` as the last, and the map as positions in them.
function renumbered(codes, outside) {
  const position = new Int32Array(outside + 1).fill(-1);
  for (const code of codes) position[code] = 0;
  position[outside] = 0;
  const names = [];
  for (let code = 0; code <= outside; code++) {
    if (position[code] === 0) { position[code] = names.length; names.push(code); }
  }
  return {names: Int32Array.from(names), dense: codes.map((code) => position[code])};
}

// Every stride-th pixel of every stride-th row.
function picked(values, {width, height}, stride) {
  if (stride === 1) return values;
  const found = new Int32Array(Math.ceil(height / stride) * Math.ceil(width / stride));
  let at = 0;
  for (let y = 0; y < height; y += stride) for (let x = 0; x < width; x += stride) found[at++] = values[y * width + x];
  return found;
}

// The distinct windows of one level. Small ones (kernel x kernel codes) lie around every pixel and every tap outside the
// image, large ones (2 kernel - 1 wide) around every pixel. Those of one code are numbered first, by code; the others
// follow in the order of their digits: a small window's codes, its centre first, a large window's four corner windows.
function levelPatterns(dense, rows, columns, names, kernel) {
  const reach = kernel - 1;
  const outside = names.length - 1;
  const width = columns + 2 * reach;
  const flat = new Int32Array((rows + 2 * reach) * width).fill(outside);
  for (let y = 0; y < rows; y++) {
    flat.set(dense.subarray(y * columns, (y + 1) * columns), (y + reach) * width + reach);
  }
  const taps = [];
  for (let i = 0; i < kernel; i++) for (let j = 0; j < kernel; j++) taps.push([i, j]);
  const centre = taps[taps.length >> 1];
  const byWeight = [centre, ...taps.filter((tap) => tap !== centre)];

  const across = columns + reach;  // small windows in a row
  const small = numbered(rows + reach, across, names.length, {
    digits: byWeight.map(([i, j]) => ({values: flat, shift: i * width + j, width})),
    codeOf: (y, x) => {
      const code = flat[y * width + x];
      for (const [i, j] of taps) if (flat[(y + i) * width + x + j] !== code) return -1;
      return code;
    },
  });
  const codeAt = (position, [i, j]) => flat[(Math.floor(position / across) + i) * width + (position % across) + j];
  // Windows around taps outside the image come last, since `outside` is the greatest code and the centre counts most.
  const inside = small.first.filter((position) => codeAt(position, centre) !== outside);
  const codes = new Int32Array(inside.length * taps.length);
  inside.forEach((position, row) => {
    taps.forEach((tap, k) => { codes[row * taps.length + k] = names[codeAt(position, tap)]; });
  });

  const corners = reach ? [[0, 0], [0, reach], [reach, 0], [reach, reach]] : [[0, 0]];
  const large = numbered(rows, columns, names.length, {
    digits: corners.map(([i, j]) => ({values: small.numbers, shift: i * across + j, width: across})),
    codeOf: (y, x) => {  // the corner windows share the centre: where each is of one code, it is the same code
      for (const [i, j] of corners) if (small.numbers[(y + i) * across + x + j] >= small.uniform) return -1;
      return flat[y * width + x];
    },
  });
  const patterns = new Int32Array(large.first.length * taps.length);
  large.first.forEach((position, row) => {
    const start = Math.floor(position / columns) * across + (position % columns);
    taps.forEach(([i, j], k) => {
      patterns[row * taps.length + k] = Math.min(small.numbers[start + i * across + j], inside.length);
    });
  });
  return {codes, patterns, index: large.numbers};
}

// Number the distinct windows of a grid. codeOf(y, x): the code of a window that has only one, else -1. digits: where
// the others differ. Returns {numbers, first, uniform}: of each window, a window of each number, how many have one code.
function numbered(rows, columns, count, {digits, codeOf}) {
  const numbers = new Int32Array(rows * columns);
  const member = new Int32Array(count).fill(-1);
  const mixed = [];
  for (let y = 0, at = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++, at++) {
      const code = codeOf(y, x);
      if (code < 0) mixed.push(at);
      else { member[code] = at; numbers[at] = code; }
      if (code < 0) numbers[at] = -1;
    }
  }
  const first = [];
  const numberOf = member.map((at) => (at < 0 ? -1 : first.push(at) - 1));
  const uniform = first.length;
  for (let at = 0; at < numbers.length; at++) if (numbers[at] >= 0) numbers[at] = numberOf[numbers[at]];
  const {ranks, members} = rankedRows(mixed, digits, columns);
  mixed.forEach((at, k) => { numbers[at] = uniform + ranks[k]; });
  for (const k of members) first.push(mixed[k]);
  return {numbers, first, uniform};
}

// Rank windows by their digits. They meet in a table of hashes, where the digits themselves are compared, so that
// different windows never count as one; then the distinct ones are sorted.
function rankedRows(positions, digits, columns) {
  const length = digits.length;
  const rows = new Int32Array(positions.length * length);
  let bits = 4;
  while (1 << bits < 2 * positions.length) bits++;
  const table = new Int32Array(1 << bits).fill(-1);
  const mask = table.length - 1;
  const distinct = [];
  const group = new Int32Array(positions.length);
  for (let k = 0; k < positions.length; k++) {
    const [y, x] = [Math.floor(positions[k] / columns), positions[k] % columns];
    let hash = 0;
    for (let d = 0; d < length; d++) {
      const {values, shift, width} = digits[d];
      const digit = values[y * width + x + shift];
      rows[k * length + d] = digit;
      hash = Math.imul(hash ^ digit, 0x9e3779b1);
      hash ^= hash >>> 15;
    }
    let slot = hash & mask;
    while (table[slot] >= 0 && compareRows(rows, length, distinct[table[slot]], k) !== 0) slot = (slot + 1) & mask;
    if (table[slot] < 0) table[slot] = distinct.push(k) - 1;
    group[k] = table[slot];
  }
  const order = distinct.map((_, number) => number).sort((a, b) => compareRows(rows, length, distinct[a], distinct[b]));
  const rank = new Int32Array(distinct.length);
  order.forEach((number, place) => { rank[number] = place; });
  return {ranks: group.map((number) => rank[number]), members: order.map((number) => distinct[number])};
}

function compareRows(rows, length, a, b) {
  for (let d = 0; d < length; d++) {
    const difference = rows[a * length + d] - rows[b * length + d];
    if (difference) return difference;
  }
  return 0;
}

// The 3 x 3 codes around each pixel of the latent map, which the first convolution sees.
function latentWindows(codes, {width, height}, stride, outside) {
  const [rows, columns] = [Math.ceil(height / stride), Math.ceil(width / stride)];
  const found = new Int32Array(rows * columns * 9);
  let at = 0;
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      for (let i = -1; i <= 1; i++) {
        for (let j = -1; j <= 1; j++) {
          const isInside = y + i >= 0 && y + i < rows && x + j >= 0 && x + j < columns;
          found[at++] = isInside ? codes[(y + i) * stride * width + (x + j) * stride] : outside;
        }
      }
    }
  }
  return found;
}
