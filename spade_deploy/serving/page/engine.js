// What makes the photos: a server (server_engine.js), or this browser itself (browser_engine.js). An Engine has
//
//   token                   what it was let in with; empty where none is needed
//   models()                the facts of the models, as GET /v1/models gives them
//   sample(model, number)   the bytes of a PNG of ids
//   styleOf(model, photo)   the style of a photo, a list of numbers
//   photo(fields, png)      a Blob, without loss; fields as a request has them, png the label map
//   live(make)              a Live (live.js), whose newest map wins
//
// What fails throws a Problem, which has the members of problem+json.

export class Problem extends Error {
  constructor(body) {
    super(body.detail);
    this.status = body.status;
    this.detail = body.detail;
    this.hint = body.hint ?? "";
  }
}

export const isInBrowser = document.documentElement.dataset.engine === "browser";

export async function openEngine(token) {
  const {Engine} = await import(isInBrowser ? "./browser_engine.js" : "./server_engine.js");
  return new Engine(token);
}
