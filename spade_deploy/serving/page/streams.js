// Bytes through a stream such as CompressionStream.

// most: bytes of the result; more throw RangeError, so that a small file cannot fill the memory.
export async function passed(bytes, stream, most = Infinity) {
  const writer = stream.writable.getWriter();
  const sent = writer.write(bytes).then(() => writer.close());
  sent.catch(() => {});  // the reader below throws the same error
  const parts = [];
  let total = 0;
  const reader = stream.readable.getReader();
  for (;;) {
    const {value, done} = await reader.read();
    if (done) break;
    total += value.length;
    if (total > most) {
      await reader.cancel();
      throw new RangeError(`more than ${most} bytes`);
    }
    parts.push(value);
  }
  await sent;
  const joined = new Uint8Array(total);
  let at = 0;
  for (const part of parts) { joined.set(part, at); at += part.length; }
  return joined;
}
