// The dialog of a new drawing, and files that are dropped onto the page.

import {decodePng} from "./png.js";
import {mapImage} from "./film.js";
import {FileError, colorsOf, idsOfColours, idsOfPng, resized, sizesOf, templatesOf} from "./starts.js";
import {text} from "./texts.js";
import {$, make, say} from "./ui.js";

const MOST_SAMPLES = 8;

export class Begin {
  #app;
  #model = null;

  // app: {api, model, drawing, start({width, height, ids}, ground)}
  constructor(app) {
    this.#app = app;
    $("new").addEventListener("click", () => this.open());
    $("upload-map").addEventListener("change", () => this.#uploaded($("upload-map"), false));
    $("upload-colours").addEventListener("change", () => this.#uploaded($("upload-colours"), true));
    $("map-size").addEventListener("change", () => this.#showTemplates());
    const stage = $("stage");
    stage.addEventListener("dragover", (event) => {
      event.preventDefault();
      stage.classList.add("is-target");
    });
    stage.addEventListener("dragleave", () => stage.classList.remove("is-target"));
    stage.addEventListener("drop", (event) => {
      event.preventDefault();
      stage.classList.remove("is-target");
      if (event.dataTransfer.files[0]) this.take(event.dataTransfer.files[0], null);
    });
  }

  open() {
    if (this.#model !== this.#app.model) this.#showModel();
    this.#showTemplates();
    $("new-dialog").showModal();
  }

  get #size() { return sizesOf(this.#model)[Number($("map-size").value)]; }

  #showModel() {
    this.#model = this.#app.model;
    const sizes = sizesOf(this.#model);
    $("map-size").replaceChildren(...sizes.map((size, k) =>
      make("option", {value: String(k), textContent: text(k ? "otherSize" : "ownSize", size)})));
    $("map-size-row").hidden = sizes.length < 2;
    this.#showSamples();
  }

  #card(name, map) {
    const canvas = make("canvas", {width: map.width, height: map.height});
    canvas.setAttribute("aria-hidden", "true");
    canvas.getContext("2d").drawImage(mapImage(map, colorsOf(this.#model)), 0, 0);
    return make("button", {type: "button", className: "card"}, canvas, make("span", {textContent: name}));
  }

  #showTemplates() {
    const {width, height} = this.#size;
    $("templates").replaceChildren(...templatesOf(this.#model).map(({name, ids, ground}) => {
      const map = {width, height, ids: ids(width, height)};
      const card = this.#card(text(`template.${name}`), map);
      card.addEventListener("click", () => this.#start(map, ground));
      return card;
    }));
  }

  async #showSamples() {
    const model = this.#model;
    $("samples").replaceChildren();
    $("samples-title").hidden = !model.samples;
    for (let k = 0; k < Math.min(MOST_SAMPLES, model.samples); k++) {
      try {
        const map = await idsOfPng(await this.#app.api.sample(model.name, k), model);
        if (model !== this.#model) return;
        const card = this.#card(text("sample", {number: k + 1}), map);
        card.addEventListener("click", () => {
          const size = this.#size;
          this.#start({...size, ids: resized(map, size)}, null);
        });
        $("samples").append(card);
      } catch (problem) {
        this.#model = null;  // the next time asks again
        $("samples").textContent = problem.detail || text("noServer");
        return;
      }
    }
  }

  #start(map, ground) {
    $("new-dialog").close();
    this.#app.start(map, ground);
  }

  async #uploaded(input, isColours) {
    const file = input.files[0];
    input.value = "";
    if (file) await this.take(file, isColours);
  }

  // isColours: null where the file itself has to say what it is.
  async take(file, isColours) {
    if (this.#model !== this.#app.model) this.#showModel();
    const model = this.#model;
    try {
      const size = this.#size;
      const bytes = new Uint8Array(await file.arrayBuffer());
      const asColours = isColours ?? !(await holdsIds(bytes));
      const map = asColours ? await idsOfColours(file, model, size) : await idsOfPng(bytes, model);
      const from = `${map.width}×${map.height}`;
      const to = `${size.width}×${size.height}`;
      this.#start({...size, ids: resized(map, size)}, null);
      say(text(from === to ? "opened" : "resized", {name: file.name, from, to}), true);
    } catch (error) {
      if (!(error instanceof FileError)) throw error;
      say(text("badFile", {name: file.name, reason: text(error.key, error.values)}), true);
    }
  }
}

async function holdsIds(bytes) {
  try {
    return [0, 3].includes((await decodePng(bytes)).kind);
  } catch {
    return false;
  }
}
