// The style of models that have one: the mean, a random one by its seed, or that of a photo; and from there steps along the
// main directions of the model's styles.

import {$, make, say} from "./ui.js";
import {text, told} from "./texts.js";

const MOST_STEP = 3;  // standard deviations of the styles in training; beyond them there is hardly any

export class Style extends EventTarget {
  #api;
  #model = null;
  #vector = null;
  #steps = [];

  constructor(api) {
    super();
    this.#api = api;
    $("style").addEventListener("click", () => $("style-dialog").showModal());
    $("dice").addEventListener("click", () => {
      $("seed").value = String(Math.floor(Math.random() * 1e6));
      this.#choose("seed");
    });
    $("seed").addEventListener("input", () => this.#choose("seed"));
    for (const radio of this.#radios()) {
      radio.addEventListener("change", () => {
        if (radio.value === "photo" && !this.#vector) $("style-photo").click();
        this.#tell();
      });
    }
    $("style-photo").addEventListener("change", () => this.#take($("style-photo").files[0]));
    $("style-level").addEventListener("click", () => this.#setSteps([]));
  }

  #radios() { return [...document.querySelectorAll("input[name=style]")]; }

  get #kind() { return this.#radios().find((radio) => radio.checked)?.value ?? "mean"; }

  #choose(kind) {
    for (const radio of this.#radios()) radio.checked = radio.value === kind;
    this.#tell();
  }

  // The fields of a request; a link and the storage keep the same ones.
  get fields() {
    if (!this.#model?.styles.z_dim) return {};
    const found = this.#steps.some((step) => step) ? {directions: this.#steps} : {};
    if (this.#kind === "photo" && this.#vector) return {style: this.#vector, ...found};
    const seed = Number($("seed").value);
    return this.#kind === "seed" && isSeed(seed) ? {seed, ...found} : found;
  }

  // The style of a link, or of the last visit; what does not fit the model is left out.
  restore({seed, style, directions}) {
    const {z_dim: length, directions: count} = this.#model.styles;
    if (!length) return;
    if (isNumbers(directions) && directions.length <= (count ?? 0)) this.#setSteps(directions);
    if (isSeed(seed)) {
      $("seed").value = String(seed);
      this.#choose("seed");
    } else if (isNumbers(style) && style.length === length) {
      this.#vector = style;
      $("style-photo-row").hidden = false;
      $("style-photo-name").textContent = text("stylePhotoKept");
      this.#choose("photo");
    }
  }

  show(model) {
    this.#model = model;
    this.#vector = null;
    $("style").hidden = !model.styles.z_dim;
    $("style-photo-row").hidden = !model.styles.from_photo;
    $("style-photo-name").textContent = text("stylePhotoNone");
    for (const radio of this.#radios()) radio.checked = radio.value === "mean";
    const count = model.styles.directions ?? 0;
    $("style-directions-part").hidden = !count;
    $("style-directions").replaceChildren(...Array.from({length: count}, (_, k) => this.#slider(k)));
    this.#showSteps([]);
  }

  #slider(k) {
    const slider = make("input", {type: "range", min: -MOST_STEP, max: MOST_STEP, step: 0.1});
    slider.addEventListener("input", () => {
      this.#steps[k] = Number(slider.value);
      this.#showSteps(this.#steps);
      this.#tell();
    });
    slider.addEventListener("dblclick", () => this.#setSteps(this.#steps.map((step, n) => (n === k ? 0 : step))));
    return make("label", {className: "row"}, make("span", {textContent: text("styleDirection", {number: k + 1})}), slider,
      make("output"));
  }

  #setSteps(steps) {
    this.#showSteps(steps);
    this.#tell();
  }

  #showSteps(steps) {
    const rows = [...$("style-directions").children];
    this.#steps = rows.map((_, k) => steps[k] ?? 0);
    rows.forEach((row, k) => {
      const words = this.#steps[k].toFixed(1).replace("-", "\u2212");
      row.querySelector("input").value = String(this.#steps[k]);
      row.querySelector("output").textContent = words;
    });
    $("style-level").disabled = !this.#steps.some((step) => step);
  }

  async #take(file) {
    if (!file) return;
    const model = this.#model;
    try {
      const vector = await this.#api().styleOf(model.name, file);
      if (model !== this.#model) return;
      this.#vector = vector;
      $("style-photo-name").textContent = file.name;
      this.#choose("photo");
    } catch (problem) {
      this.#vector = null;
      $("style-photo-name").textContent = told(problem);
      say($("style-photo-name").textContent);
      this.#choose("mean");
    }
  }

  #tell() { this.dispatchEvent(new Event("changed")); }
}

function isSeed(value) { return Number.isSafeInteger(value) && value >= 0; }
function isNumbers(value) { return Array.isArray(value) && value.every(Number.isFinite); }
