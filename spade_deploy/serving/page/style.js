// The style of models that have one: the mean, a random one by its seed, or that of a photo.

import {say, $} from "./ui.js";
import {text} from "./texts.js";

export class Style extends EventTarget {
  #api;
  #model = null;
  #vector = null;

  constructor(api) {
    super();
    this.#api = api;
    $("style").addEventListener("click", () => $("style-dialog").showModal());
    $("dice").addEventListener("click", () => {
      $("seed").value = String(Math.floor(Math.random() * 1e6));
      this.kind = "seed";
    });
    $("seed").addEventListener("input", () => { this.kind = "seed"; });
    for (const radio of this.#radios()) {
      radio.addEventListener("change", () => {
        if (radio.value === "photo" && !this.#vector) $("style-photo").click();
        this.#tell();
      });
    }
    $("style-photo").addEventListener("change", () => this.#take($("style-photo").files[0]));
  }

  #radios() { return [...document.querySelectorAll("input[name=style]")]; }

  get kind() { return this.#radios().find((radio) => radio.checked)?.value ?? "mean"; }

  set kind(kind) {
    for (const radio of this.#radios()) radio.checked = radio.value === kind;
    this.#tell();
  }

  get seed() {
    const seed = Number($("seed").value);
    return this.kind === "seed" && Number.isSafeInteger(seed) && seed >= 0 && this.#model?.styles.z_dim ? seed : null;
  }

  set seed(seed) {
    $("seed").value = String(seed);
    this.kind = "seed";
  }

  // The fields of a request.
  get fields() {
    if (!this.#model?.styles.z_dim) return {};
    if (this.kind === "photo" && this.#vector) return {style: this.#vector};
    return this.seed === null ? {} : {seed: this.seed};
  }

  show(model) {
    this.#model = model;
    this.#vector = null;
    $("style").hidden = !model.styles.z_dim;
    $("style-photo-row").hidden = !model.styles.from_photo;
    $("style-photo-name").textContent = text("stylePhotoNone");
    for (const radio of this.#radios()) radio.checked = radio.value === "mean";
  }

  async #take(file) {
    if (!file) return;
    const model = this.#model;
    try {
      const vector = await this.#api().styleOf(model.name, file);
      if (model !== this.#model) return;
      this.#vector = vector;
      $("style-photo-name").textContent = file.name;
      this.kind = "photo";
    } catch (problem) {
      this.#vector = null;
      $("style-photo-name").textContent = [problem.detail || text("noServer"), problem.hint].filter(Boolean).join(" ");
      say($("style-photo-name").textContent);
      this.kind = "mean";
    }
  }

  #tell() { this.dispatchEvent(new Event("changed")); }
}
