// Ids <-> runs of equal ids: [value, length, value, length, ...].

export function toRuns(ids) {
  const runs = [];
  for (let k = 0; k < ids.length; ) {
    let end = k + 1;
    while (end < ids.length && ids[end] === ids[k]) end++;
    runs.push(ids[k], end - k);
    k = end;
  }
  return Int32Array.from(runs);
}

// count: how many ids there must be. Throws RangeError where the lengths say otherwise.
export function fromRuns(runs, count) {
  const ids = new Int32Array(count);
  let at = 0;
  for (let k = 0; k + 1 < runs.length; k += 2) {
    const end = at + runs[k + 1];
    if (runs[k + 1] < 1 || end > count) throw new RangeError("the lengths of the runs are wrong");
    ids.fill(runs[k], at, end);
    at = end;
  }
  if (at !== count) throw new RangeError("the lengths of the runs are wrong");
  return ids;
}
