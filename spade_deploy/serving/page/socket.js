// The WebSocket /v1/live, as a line that live.js sends maps over.

export function openSocket(token, told) {
  const url = new URL("/v1/live", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  url.hash = "";
  const socket = new WebSocket(url, ["spade.v1", ...(token ? [`spade.token.${token}`] : [])]);
  socket.binaryType = "arraybuffer";
  socket.onopen = told.opened;
  socket.onmessage = ({data}) => told.came(parsed(data));
  socket.onclose = told.closed;
  return {
    get isOpen() { return socket.readyState === WebSocket.OPEN; },
    takesEdits: true,
    send(id, head, png) {
      const line = new TextEncoder().encode(`${JSON.stringify({id, ...head})}\n`);
      if (!png) return socket.send(line);
      const message = new Uint8Array(line.length + png.length);
      message.set(line);
      message.set(png, line.length);
      socket.send(message);
    },
    close() { socket.close(); },
  };
}

function parsed(data) {
  if (typeof data === "string") {
    const body = JSON.parse(data);
    return {id: body.id, body, blob: null};
  }
  const bytes = new Uint8Array(data);
  const end = bytes.indexOf(10);
  const body = JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)));
  return {id: body.id, body, blob: new Blob([bytes.subarray(end + 1)], {type: body.media_type})};
}
