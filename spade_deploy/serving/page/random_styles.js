// The style of a random seed: the numbers that NumPy's default_rng(seed).standard_normal draws in float32, so that a seed
// means the same style here and on a server. SeedSequence, PCG64 and a ziggurat of 256 layers, as NumPy defines them.

const U64 = (1n << 64n) - 1n;
const U128 = (1n << 128n) - 1n;
const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;
const R = 3.6541528853610088;  // where the tail begins
const AREA = 0.00492867323399141;  // of each layer, the tail with the lowest one
const MANTISSA = 2 ** 23;
const {fround} = Math;

// seed: an integer from 0 on. Returns count numbers.
export function standardNormal(seed, count) {
  const bits = pcg64(seed);
  return Float32Array.from({length: count}, () => normal(bits));
}

function seedWords(seed) {
  const words = [];
  for (let rest = BigInt(seed); words.length === 0 || rest > 0n; rest >>= 32n) words.push(Number(rest & 0xffffffffn));
  let constant = 0x43b0d7e5;
  const hashed = (value) => {
    value = (value ^ constant) >>> 0;
    constant = Math.imul(constant, 0x931e8875);
    value = Math.imul(value, constant);
    return (value ^ (value >>> 16)) >>> 0;
  };
  const mixed = (a, b) => {
    const value = (Math.imul(a, 0xca01f9dd) - Math.imul(b, 0x4973f715)) >>> 0;
    return (value ^ (value >>> 16)) >>> 0;
  };
  const pool = [0, 1, 2, 3].map((k) => hashed(words[k] ?? 0));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) if (from !== to) pool[to] = mixed(pool[to], hashed(pool[from]));
  }
  for (const word of words.slice(4)) for (let to = 0; to < 4; to++) pool[to] = mixed(pool[to], hashed(word));
  let other = 0x8b51f9dd;
  return Array.from({length: 8}, (_, k) => {
    let value = (pool[k % 4] ^ other) >>> 0;
    other = Math.imul(other, 0x58f38ded);
    value = Math.imul(value, other);
    return (value ^ (value >>> 16)) >>> 0;
  });
}

// A function that returns the next 32 random bits.
function pcg64(seed) {
  const words = seedWords(seed).map(BigInt);
  const [a, b, c, d] = [0, 2, 4, 6].map((k) => words[k] | (words[k + 1] << 32n));
  const increment = ((((c << 64n) | d) << 1n) | 1n) & U128;
  const step = (value) => (value * MULTIPLIER + increment) & U128;
  let state = step((step(0n) + ((a << 64n) | b)) & U128);
  let kept = null;
  return () => {
    if (kept !== null) {
      const high = kept;
      kept = null;
      return high;
    }
    state = step(state);
    const value = (state >> 64n) ^ (state & U64);
    const turn = state >> 122n;
    const turned = ((value >> turn) | (value << (64n - turn))) & U64;
    kept = Number(turned >> 32n);
    return Number(turned & 0xffffffffn);
  };
}

const {ki, wi, fi} = layers();

function layers() {
  const ki = new Float64Array(256);
  const wi = new Float32Array(256);
  const fi = new Float64Array(256);
  let x = R;
  fi[255] = Math.exp(-0.5 * x * x);
  wi[255] = x / MANTISSA;
  ki[0] = Math.floor(((x * fi[255]) / AREA) * MANTISSA);
  wi[0] = AREA / fi[255] / MANTISSA;
  fi[0] = 1;
  for (let k = 254; k > 0; k--) {
    const next = Math.sqrt(-2 * Math.log(AREA / x + fi[k + 1]));
    ki[k + 1] = Math.floor((next / x) * MANTISSA);
    wi[k] = next / MANTISSA;
    fi[k] = Math.exp(-0.5 * next * next);
    x = next;
  }
  return {ki, wi, fi: Float32Array.from(fi)};
}

function normal(bits) {
  const uniform = () => (bits() >>> 8) / 2 ** 24;
  const log1m = () => fround(Math.log1p(-uniform()));
  for (;;) {
    const word = bits();
    const layer = word & 255;
    const size = word >>> 9;
    const x = fround((word & 256 ? -1 : 1) * fround(size * wi[layer]));
    if (size < ki[layer]) return x;
    if (layer === 0) {
      for (;;) {
        const far = fround(-fround(1 / R) * log1m());
        const up = fround(-log1m());
        if (fround(up + up) > fround(far * far)) return (size >>> 8) & 1 ? -fround(fround(R) + far) : fround(fround(R) + far);
      }
    }
    const height = fround(fround(fround(fi[layer - 1] - fi[layer]) * uniform()) + fi[layer]);
    if (height < Math.exp(-0.5 * x * x)) return x;
  }
}
