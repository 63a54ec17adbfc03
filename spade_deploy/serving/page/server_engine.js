// The engine that is a server: its endpoints, and the WebSocket of the live photo.

import {Problem} from "./engine.js";
import {Live} from "./live.js";
import {openSocket} from "./socket.js";
export class Engine {
  constructor(token = "") {
    this.token = token;
  }

  async #ask(path, options = {}) {
    const headers = {...options.headers, ...(this.token ? {Authorization: `Bearer ${this.token}`} : {})};
    let answer;
    try {
      answer = await fetch(path, {...options, headers});
    } catch {
      throw new Problem({status: 0, detail: ""});
    }
    if (answer.ok) return answer;
    const body = await answer.json().catch(() => ({}));
    throw new Problem({status: answer.status, detail: body.detail ?? answer.statusText, hint: body.hint});
  }

  async models() {
    return (await (await this.#ask("/v1/models")).json()).models;
  }

  async sample(model, number) {
    const answer = await this.#ask(`/v1/models/${encodeURIComponent(model)}/samples/${number}`);
    return new Uint8Array(await answer.arrayBuffer());
  }

  async styleOf(model, photo) {
    const path = `/v1/models/${encodeURIComponent(model)}/style`;
    const headers = {"Content-Type": "application/octet-stream"};
    return (await (await this.#ask(path, {method: "POST", body: photo, headers})).json()).style;
  }

  // The photo without loss: fields as in the live message, png the label map. Returns a Blob.
  async photo(fields, png) {
    const form = new FormData();
    for (const [name, value] of Object.entries({...fields, format: "png"})) {
      if (name === "instance") form.append(name, new Blob([png]), "instance.png");
      else form.append(name, Array.isArray(value) ? value.join(",") : String(value));
    }
    form.append("label", new Blob([png]), "label.png");
    return (await this.#ask("/v1/synthesize", {method: "POST", body: form})).blob();
  }

  live(make) { return new Live(make, (told) => openSocket(this.token, told)); }
}
